"""Compile the faults in the middle of a call of a real runner, which loads them first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

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
    def fault(self, word: Literal["hang", "crash", "fail"]) -> Iterator[None]:
        """From its next batch on a runner has this fault; `decode.c` explains each.

        The runner of Ollama 0.9 can only hang.
        """
        file = self._directory / "decode.conf"
        file.write_text(word)
        try:
            yield
        finally:
            file.unlink()
