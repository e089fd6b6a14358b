"""`ollama serve`: the image has this file in a folder named `serve`, which Python runs."""

from testbed.twin.server import main

main()
