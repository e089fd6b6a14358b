"""Events, reconnection and periodic listing → a stream of `Sighting`s. Nothing is missed."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from autoheal.engine import Engine, EngineError, GoneError
from autoheal.incident import Sighting

FIRST_RETRY_SECONDS = 0.2
LONGEST_RETRY_SECONDS = 5.0

_log = logging.getLogger("autoheal")


@dataclass(frozen=True)
class Gone:
    """A container is no more; its id."""

    id: str


class Watch:
    """Watches one engine in threads of its own, and puts what it sees into `sightings`.

    Events tell at once. They are lost while nobody listens, so after each (re)connection, and
    every `interval` seconds besides, all unhealthy containers are listed, and those looked at
    that `also` names.

    Attributes:
        sightings: what was seen, oldest first.
        contact: when the engine last answered, in seconds of the monotonic clock; None if never.
        lost_since: since when it does not, likewise; None while it does.
        listening_since: since when it has told of events without a break, likewise.
        events: how many events there were.
    """

    def __init__(
        self, engine: Engine, label: str, interval: float, also: Callable[[], Iterable[str]]
    ) -> None:
        self.sightings: queue.SimpleQueue[Sighting | Gone | None] = queue.SimpleQueue()
        self.contact: float | None = None
        self.lost_since: float | None = None
        self.listening_since: float | None = None
        self.events = 0
        self._also = also
        self._engine, self._label, self._interval = engine, label, interval
        self._stopping = threading.Event()

    def start(self) -> None:
        """Begin to watch; returns at once."""
        for run in (self._follow, self._list_now_and_then):
            threading.Thread(target=run, name=run.__name__, daemon=True).start()

    def stop(self) -> None:
        """Stop watching and wake whoever waits for a sighting. Safe in a signal handler."""
        self._stopping.set()
        self.sightings.put(None)

    def look(self, container: str) -> None:
        """Put this container's present state into `sightings`."""
        seen: Sighting | Gone
        try:
            seen = self._engine.look(container)
        except GoneError:
            seen = Gone(container)
        self.contact = time.monotonic()
        self.sightings.put(seen)

    def look_soon(self, container: str) -> None:
        """`look`, without waiting for the engine."""
        threading.Thread(target=self._look_quietly, args=(container,), daemon=True).start()

    def _look_quietly(self, container: str) -> None:
        try:
            self.look(container)
        except EngineError as error:
            _log.debug("%s", error)  # the listing after the reconnection will see it

    def _follow(self) -> None:
        retry = FIRST_RETRY_SECONDS
        said = ""
        while not self._stopping.is_set():
            try:
                events = self._engine.events(self._label)
                _log.info("watching the Docker engine at %s", self._engine.url)
                said, retry = "", FIRST_RETRY_SECONDS
                self._list()  # after the stream is open: what happens in between is in both
                self.lost_since, self.listening_since = None, time.monotonic()
                for container in events:
                    self.events += 1
                    self.look(container)
                problem = "the engine closed the connection"
            except EngineError as error:
                problem = str(error)
            if self._stopping.is_set():
                return
            self.lost_since, self.listening_since = self.lost_since or time.monotonic(), None
            if problem != said:
                _log.warning("%s; trying again until it answers", problem)
                said = problem
            self._stopping.wait(retry)
            retry = min(retry * 2, LONGEST_RETRY_SECONDS)

    def _list_now_and_then(self) -> None:
        while not self._stopping.wait(self._interval):
            try:
                self._list()
            except EngineError as error:
                _log.debug("%s", error)  # `_follow` says it

    def _list(self) -> None:
        rows = self._engine.containers(self._label, health="unhealthy")
        self.contact = time.monotonic()
        for container in dict.fromkeys([*(row["Id"] for row in rows), *self._also()]):
            self.look(container)
