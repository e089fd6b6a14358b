"""The stand-in for NVML: compiled here, seen by the real pynvml in a real probe."""

from __future__ import annotations

import subprocess
from pathlib import Path

MOUNT = "/usr/local/nvidia/lib"
"""Where NVIDIA's runtime puts its libraries for Ollama's image."""

HEALTHY = "device GPU-1 24576 9000 0"


class Nvml:
    """A directory with `libnvidia-ml.so.1` and what it answers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        source = Path(__file__).with_name("nvml.c")
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-o", directory / "libnvidia-ml.so.1", source],
            check=True,
        )
        self.answer(HEALTHY)

    def answer(self, *lines: str) -> None:
        """Answer so from the next check on; the lines are explained in `nvml.c`."""
        (self.directory / "nvml.conf").write_text("\n".join(lines) + "\n")

    @property
    def volume(self) -> dict[str, dict[str, str]]:
        return {str(self.directory): {"bind": MOUNT, "mode": "ro"}}
