"""Where the command `ollama-probe` starts."""

import gc
import sys


def main() -> None:
    """Run `check` at once when it stands alone, as in HEALTHCHECK; only people need a parser."""
    if sys.argv[1:] == ["check"]:
        gc.disable()  # the process is gone before it could make waste worth collecting
        from probe.check import run

        run({})
    else:
        from probe.cli import main

        main(prog_name="ollama-probe")


if __name__ == "__main__":
    main()
