"""What `make` calls."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  # older ones get no further than this line
    sys.exit(
        f"Python 3.11 or newer is needed, and {sys.executable} is "
        f"{sys.version_info[0]}.{sys.version_info[1]}. "
        "Name another: make PYTHON=/path/to/python3.11"
    )
