"""The log: one line a step, as text or JSON, on standard output, and in files where asked."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from contextlib import suppress
from logging.handlers import BaseRotatingHandler

from autoheal.settings import Settings

FILE_PREFIX = "autoheal-"


class _Text(logging.Formatter):
    @staticmethod
    def converter(seconds: float | None) -> time.struct_time:
        return time.gmtime(seconds)

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%S"
        )

    def format(self, record: logging.LogRecord) -> str:
        return " ".join(super().format(record).splitlines())


class _Json(_Text):
    def format(self, record: logging.LogRecord) -> str:
        moment = f"{self.formatTime(record, self.datefmt)}.{record.msecs:03.0f}Z"
        line = {"time": moment, "level": record.levelname.lower(), "message": record.getMessage()}
        return json.dumps(line)


class _Files(BaseRotatingHandler):
    """Files of a limited size, each named by when it was begun; the oldest go."""

    def __init__(self, directory: str, size: float, count: int) -> None:
        self._directory, self._size, self._count = directory, size, count
        super().__init__(self._new_name(), "a", encoding="utf-8")
        self._clear()

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802
        room = len(self.format(record).encode()) + 1
        return self.stream is not None and self.stream.tell() + room > self._size

    def doRollover(self) -> None:  # noqa: N802
        self.close()
        self.baseFilename = self._new_name()
        self.stream = self._open()
        self._clear()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass  # a full disk must not stop the healing, nor fill the console

    def _new_name(self) -> str:
        """A name that sorts after all others, also after those begun in the same second."""
        begin = f"{FILE_PREFIX}{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-"
        same = [name for name in os.listdir(self._directory) if name.startswith(begin)]
        numbers = [int(name[len(begin) : len(begin) + 3]) for name in same]
        return os.path.join(self._directory, f"{begin}{max(numbers, default=0) + 1:03}.log")

    def _clear(self) -> None:
        names = sorted(n for n in os.listdir(self._directory) if n.startswith(FILE_PREFIX))
        for name in names[: -self._count]:
            with suppress(OSError):
                os.unlink(os.path.join(self._directory, name))


def configure(settings: Settings) -> None:
    """Begin the log."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    problem = None
    if settings.log_dir:
        try:
            handlers.append(_Files(settings.log_dir, settings.log_bytes, settings.log_count))
        except OSError as error:
            problem = error
    logger = logging.getLogger("autoheal")
    logger.handlers[:] = handlers
    for handler in handlers:
        handler.setFormatter(_Json() if settings.log_format == "json" else _Text())
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if problem is not None:
        logger.error(
            "AUTOHEAL_LOG_DIR=%s: no log file there: %s", settings.log_dir, problem.strerror
        )
