"""Compile the faults in the middle of a call of a real runner, which loads them first."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from testbed.deadlines import Deadline
from testbed.libraries import compile_library

_MOUNT = "/opt/decode"


class Decode:
    """A directory with the library, and the file that says which fault is wanted."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        compile_library(Path(__file__).with_name("decode.c"), directory / "decode.so")

    @property
    def env(self) -> dict[str, str]:
        return {"LD_PRELOAD": f"{_MOUNT}/decode.so"}

    @property
    def volume(self) -> dict[str, dict[str, str]]:
        return {str(self._directory): {"bind": _MOUNT, "mode": "ro"}}

    @contextmanager
    def fault(self, word: Literal["hang", "crash", "fail", "pass"]) -> Iterator[None]:
        """Every runner that computes meanwhile has this fault; `decode.c` explains each.

        The runner of Ollama 0.9 can only hang.
        """
        file = self._directory / "decode.conf"
        file.write_text(word)
        try:
            yield
        finally:
            file.unlink()

    def hit(self, pid: int, word: Literal["hang", "fail"]) -> None:
        """Give this fault to one runner that is at work, and wait until it has it."""
        deadline = Deadline()
        with self.fault(word):
            while word not in _thread_names(pid):
                assert not deadline.passed, f"process {pid} computes nothing"
                time.sleep(0.005)


def _thread_names(pid: int) -> set[str]:
    names = set()
    for file in Path(f"/proc/{pid}/task").glob("*/comm"):
        with suppress(OSError):  # it has ended by now
            names.add(file.read_text().strip())
    return names
