"""Make the virtual environment of the tests: python -m scripts.venv DIR."""

from __future__ import annotations

import importlib.util
import os
import sys

from scripts import engine
from scripts.say import FailedError, main, run, step


def make() -> None:
    directory = sys.argv[1]
    if importlib.util.find_spec("ensurepip") is None:  # Debian keeps it in a package of its own
        if os.geteuid() != 0:
            raise FailedError("this Python has no ensurepip; install python3-venv, or run as root")
        engine.apt_update()
        engine.apt_install(["python3-venv"], "venv")
    with step("installing what the tests need"):
        run([sys.executable, "-m", "venv", "--clear", directory], log="venv")
        pip = [f"{directory}/bin/python", "-m", "pip", "install", "--quiet"]
        run([*pip, "--require-hashes", "-r", "requirements/dev.txt"], log="venv")


if __name__ == "__main__":
    main(make)
