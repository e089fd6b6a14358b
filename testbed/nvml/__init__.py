"""Compile the stand-in for NVML, which the real pynvml in a real probe loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from probe.processes import all_visible
from testbed.libraries import compile_library

MOUNT = "/usr/local/nvidia/lib"
"""Where Ollama's image searches for the driver's libraries."""

HEALTHY = "device GPU-1 24576 9000 0"

needs_host_pids = pytest.mark.skipif(
    not all_visible(),
    reason="needs the host's PID namespace, as these tests lack in a container",
)
"""For tests in which NVML names processes by their ids."""


class Nvml:
    """A directory with `libnvidia-ml.so.1` and the file of its answers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        compile_library(Path(__file__).with_name("nvml.c"), directory / "libnvidia-ml.so.1")
        self.answer(HEALTHY)

    def answer(self, *lines: str) -> None:
        """Set the answers from the next reading on; `nvml.c` explains the lines."""
        (self.directory / "nvml.conf").write_text("\n".join(lines) + "\n")

    @property
    def volume(self) -> dict[str, dict[str, str]]:
        return {str(self.directory): {"bind": MOUNT, "mode": "ro"}}
