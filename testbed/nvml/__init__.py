"""Compile the stand-in for NVML, which the real pynvml in a real probe loads."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from probe.processes import all_visible

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
        source = Path(__file__).with_name("nvml.c")
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-o", directory / "libnvidia-ml.so.1", source],
            check=True,
        )
        self.answer(HEALTHY)

    def answer(self, *lines: str) -> None:
        """Set the answers from the next reading on; `nvml.c` explains the lines."""
        (self.directory / "nvml.conf").write_text("\n".join(lines) + "\n")

    @property
    def volume(self) -> dict[str, dict[str, str]]:
        return {str(self.directory): {"bind": MOUNT, "mode": "ro"}}
