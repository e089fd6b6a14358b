"""What the tests need: a virtual environment and a C compiler. python -m scripts.test_tools DIR"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys

from scripts import engine
from scripts.say import FailedError, main, run, step


def install() -> None:
    if shutil.which("cc") is None:  # for the stand-in of NVML
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise FailedError("the tests need a C compiler: install gcc, or run as root on Debian")
        engine.apt_update()
        engine.apt_install(["gcc", "libc6-dev"], "a C compiler")
    _make_venv(sys.argv[1])


def _make_venv(directory: str) -> None:
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
    main(install)
