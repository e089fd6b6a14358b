"""What the tests need: a virtual environment, a C compiler, a browser and Prometheus.

python -m scripts.test_tools DIR
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys

from scripts import engine
from scripts.say import ROOT, FailedError, main, run, step

PROMETHEUS = ROOT / ".tools" / "prometheus"
"""Prometheus, promtool and node_exporter: programs, not services."""


def install() -> None:
    if shutil.which("cc") is None:  # for the stand-in of NVML
        _need_debian("a C compiler: install gcc")
        engine.apt_update()
        engine.apt_install(["gcc", "libc6-dev"], "a C compiler")
    if browser_path() is None:
        _need_debian("a browser: install chromium")
        engine.apt_update()
        engine.apt_install(["chromium"], "a browser")
    if not PROMETHEUS.exists():
        _need_debian("Prometheus")
        engine.apt_update()
        apart = "promtool" in run(["apt-cache", "depends", "prometheus"])  # since Debian 13
        packages = ["prometheus", "prometheus-node-exporter", *(["promtool"] if apart else [])]
        engine.unpack(packages, PROMETHEUS, "Prometheus")
    _make_venv(sys.argv[1])


def browser_path() -> str | None:
    """The browser that there is; None where there is none."""
    return shutil.which("chromium") or shutil.which("google-chrome")


def _need_debian(what: str) -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise FailedError(f"the tests need {what}, or run as root on Debian")


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
