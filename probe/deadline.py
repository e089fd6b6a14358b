"""The deadline of a check: what is left of it, and an alarm over whatever a thread waits for."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

RESERVE_SECONDS = 0.3
"""Kept back from the deadline for judging and printing."""

ENOUGH_SHARE = 0.4
"""Silence proves something only where there was this share of the deadline to answer in.

It is less than half, which is what waiting for another check may leave (`check.look`).
"""


class Budget:
    """The time of one check.

    Attributes:
        end: when it is over, in seconds of the monotonic clock.
        enough: seconds in which a server that is well answers.
        no_time: what there was none left for; empty while there was for everything.
    """

    def __init__(self, end: float, timeout: float) -> None:
        self.end = end
        self.enough = ENOUGH_SHARE * (timeout - RESERVE_SECONDS)
        self.no_time = ""

    @property
    def remaining(self) -> float:
        """Seconds that are left."""
        return max(self.end - time.monotonic(), 0.001)

    @property
    def has_time(self) -> bool:
        """Whether what is silent from now on can be blamed for it."""
        return self.remaining >= self.enough


@contextmanager
def alarm(end: float) -> Iterator[None]:
    """Raise `TimeoutError` in this thread at `end` (monotonic seconds), whatever it waits for.

    Signals reach the main thread only; elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(end - time.monotonic(), 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
