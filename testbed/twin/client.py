"""The client of a request, and what waits for it or for its turn."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable


class GoneError(Exception):
    """The client went away."""


class Client:
    """Who made a request, until it is answered or they go away.

    Attributes:
        gone: it is answered, or they went away.
    """

    def __init__(self) -> None:
        self.gone = False
        self._lock = threading.Lock()
        self._then: list[Callable[[], object]] = []

    def when_gone(self, act: Callable[[], object]) -> None:
        """Call this at the end, or now if that is past."""
        with self._lock:
            if not self.gone:
                self._then.append(act)
                return
        act()

    def end(self) -> None:
        """The request is answered, or the client went away."""
        with self._lock:
            acts, self._then, self.gone = self._then, [], True
        for act in acts:
            act()


class Slots:
    """So many requests at a time, in the order in which they came."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[queue.SimpleQueue[bool]] = deque()
        self._lock = threading.Lock()

    def acquire(self, client: Client) -> None:
        """Wait for a slot; raises `GoneError`."""
        turn: queue.SimpleQueue[bool] = queue.SimpleQueue()
        with self._lock:
            if self._free:
                self._free -= 1
                return
            self._waiting.append(turn)
        client.when_gone(lambda: turn.put(False))
        if turn.get():
            return
        with self._lock:
            if turn in self._waiting:
                self._waiting.remove(turn)
                raise GoneError
        self.release()  # its turn has come meanwhile
        raise GoneError

    def release(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().put(True)
            else:
                self._free += 1
