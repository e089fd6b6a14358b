"""What developers need: a virtual environment, and programs of Debian's for the tests.

python -m scripts.dev_env venv DIR
python -m scripts.dev_env unit       for the unit tests
python -m scripts.dev_env engine     for the tests on an engine, too
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys

from scripts import apt
from scripts.say import ROOT, FailedError, main, run, step

PROMETHEUS = ROOT / ".tools" / "prometheus"
"""Prometheus, promtool and node_exporter: programs, not services."""


def prepare() -> None:
    match sys.argv[1:]:
        case ["venv", directory]:
            _make_venv(directory)
        case ["unit"]:
            _need_for_unit_tests()
        case ["engine"]:
            _need_for_unit_tests()
            _need_on_an_engine()
        case words:
            raise FailedError(f"{' '.join(words)!r}: must be `venv DIR`, `unit` or `engine`")


def _make_venv(directory: str) -> None:
    if os.path.islink(directory):
        raise FailedError(f"{directory} is a link: what it points to would be replaced. Remove it.")
    # Debian keeps it in a package of its own.
    _need({"python3-venv": importlib.util.find_spec("ensurepip") is not None})
    with step("creating the virtual environment", "up to 2 min"):
        run([sys.executable, "-m", "venv", "--clear", directory], log="venv")
        pip = [f"{directory}/bin/python", "-m", "pip", "install", "--quiet"]
        run([*pip, "--require-hashes", "-r", "requirements/dev.txt"], log="venv")


def _need_for_unit_tests() -> None:
    _need(
        {
            "gcc": shutil.which("cc") is not None,  # compiles the simulated NVML
            "libc6-dev": os.path.exists("/usr/include/stdio.h"),
            "mount": shutil.which("mount") is not None,  # makes a disk that is full
        }
    )


def _need_on_an_engine() -> None:
    _need(
        {
            "chromium": any(map(shutil.which, ("chromium", "google-chrome"))),
            "openssl": shutil.which("openssl") is not None,
            "iproute2": shutil.which("ip") is not None,
            "mmdebstrap": shutil.which("mmdebstrap") is not None,
        }
    )
    if not PROMETHEUS.exists():
        _require_apt("Prometheus")
        apt.update()
        apart = "promtool" in run(["apt-cache", "depends", "prometheus"])  # since Debian 13
        packages = ["prometheus", "prometheus-node-exporter", *(["promtool"] if apart else [])]
        apt.unpack(packages, PROMETHEUS, "Prometheus")


def _need(packages: dict[str, bool]) -> None:
    """Install the Debian packages that are not there."""
    missing = [name for name, there in packages.items() if not there]
    if missing:
        _require_apt(" ".join(missing))
        apt.update()
        apt.install(missing, "the test dependencies")


def _require_apt(what: str) -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise FailedError(
            f"This needs {what}, which is not installed. Run: sudo apt-get install {what}"
            if shutil.which("apt-get")
            else f"This needs {what}, which is not installed; on Debian, root installs it here."
        )


if __name__ == "__main__":
    main(prepare)
