"""Compile a shared library that stands in front of, or in the place of, a real one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def compile_library(source: Path, target: Path) -> None:
    """Compile a file of C."""
    assert shutil.which("cc") is not None, "no C compiler: `make test` installs one"
    options = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra")
    subprocess.run(["cc", *options, "-o", target, source], check=True)
