"""Containers that use more than they may: CPU, memory, disk (`MAX_CPU_PERCENT` and its kin)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from autoheal.engine import Engine, EngineError, GoneError, Usage
from autoheal.settings import Settings

_log = logging.getLogger("autoheal")


class Limits:
    """Looks at the watched containers now and then, in a thread of its own.

    Args:
        engine: where they run.
        settings: the limits, and how often to look.
        look: is called with the id of a container that is over a limit, or is not any more.
    """

    def __init__(self, engine: Engine, settings: Settings, look: Callable[[str], None]) -> None:
        self._engine, self._settings, self._look = engine, settings, look
        self._complaints: dict[str, str] = {}
        self._before: dict[str, tuple[float, Usage]] = {}
        self._times_over: dict[str, int] = {}

    def start(self) -> None:
        """Begin to look, if there is any limit; returns at once."""
        s = self._settings
        if (s.max_cpu_percent, s.max_memory_percent, s.max_io_bytes) != (None, None, None):
            threading.Thread(target=self._run, name="limits", daemon=True).start()

    def complaint(self, container: str) -> str:
        """Which limit a container has been over for too long, in words; empty for none."""
        return self._complaints.get(container, "")

    def _run(self) -> None:
        while True:
            try:
                self._round()
            except EngineError as error:
                _log.debug("%s", error)  # the watch says it
            time.sleep(self._settings.check_interval)

    def _round(self) -> None:
        rows = self._engine.containers(self._settings.label_filter, status="running")
        ids = {row["Id"] for row in rows}
        for container in ids:
            try:
                now, usage = time.monotonic(), self._engine.usage(container)
            except GoneError:
                continue
            before = self._before.get(container)
            self._before[container] = now, usage
            if before is not None and usage.cpu_seconds >= before[1].cpu_seconds:
                words = over(before[1], usage, now - before[0], self._settings)
                self._count(container, words)
        for known in (self._before, self._times_over, self._complaints):
            for container in set(known) - ids:
                del known[container]

    def _count(self, container: str, words: str) -> None:
        times = self._times_over.get(container, 0) + 1 if words else 0
        self._times_over[container] = times
        lasting = (
            f"{words} in {times} measurements in a row"
            if times >= self._settings.max_unhealthy
            else ""
        )
        if lasting or self._complaints.get(container):
            self._complaints[container] = lasting
            self._look(container)


def over(before: Usage, now: Usage, seconds: float, settings: Settings) -> str:
    """Which limits a container was over between two looks, in words; empty for none. Pure."""
    cpu = 100 * (now.cpu_seconds - before.cpu_seconds) / seconds
    memory = 100 * now.memory_bytes / now.memory_limit_bytes if now.memory_limit_bytes else 0.0
    io = (now.io_bytes - before.io_bytes) / seconds
    found = []
    for what, value, limit, unit in (
        ("CPU", cpu, settings.max_cpu_percent, " %"),
        ("memory", memory, settings.max_memory_percent, " %"),
        ("disk", io, settings.max_io_bytes, " bytes/s"),
    ):
        if limit is not None and value > limit:
            found.append(f"{what} {value:.0f}{unit}, more than {limit:.15g}{unit}")
    return f"over_limit: {'; '.join(found)}" if found else ""
