"""How long to wait for anything: one place, and longer the busier this machine is.

A deadline only decides when a test that waits for an event gives up; it never makes a passing
test slower. So it is generous, and is multiplied by how many processes want each core.
"""

from __future__ import annotations

import os
import time

ORDINARY_SECONDS = 60.0
"""For one thing that takes seconds on a quiet machine: a start, a health check, a heal."""

LONG_SECONDS = 120.0
"""For what takes up to a minute there: several loads of a large model, a burst of heals."""

MOST_TIMES = 10.0
"""A machine slower than this has another fault."""


def slowness() -> float:
    """How many times slower than alone a process may run here: runnable processes per core.

    The kernel's own mean over the last minute, or what runs now where that is more.
    """
    with open("/proc/loadavg", encoding="ascii") as file:
        minute, _, _, now, _ = file.read().split()
    runnable = max(float(minute), float(now.partition("/")[0]))
    return min(max(1.0, runnable / (os.cpu_count() or 1)), MOST_TIMES)


def scaled(seconds: float) -> float:
    """What takes so long on a quiet machine, as long as it may take on this one now."""
    return seconds * slowness()


class Deadline:
    """A time limit that moves away while the machine is busy.

    Args:
        seconds: the limit on a quiet machine.
    """

    def __init__(self, seconds: float = ORDINARY_SECONDS) -> None:
        self.seconds = seconds
        self._began = time.monotonic()
        self._slowest = slowness()

    @property
    def remaining(self) -> float:
        """Seconds until it has passed, at least 0, as busy as the machine has been until now."""
        self._slowest = max(self._slowest, slowness())
        return max(self._began + self.seconds * self._slowest - time.monotonic(), 0.0)

    @property
    def passed(self) -> bool:
        return self.remaining == 0.0
