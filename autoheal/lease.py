"""Two supervisors on one engine do not both heal: an incident belongs to one of them.

The lease lies in the engine, since two supervisors that share an engine need not share a ledger.
It is a volume: making one is the engine's only call that is atomic, tells whether somebody was
first, needs no image, and can carry words (labels). There are such volumes only during incidents.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256

from autoheal.engine import Engine, EngineError
from probe.processes import started

SECONDS = 900.0
"""For how long a lease holds: longer than any backoff. A holder that is known to be dead loses it
at once."""

FORGOTTEN_SECONDS = 86_400.0
"""A lease that ran out so long ago is dropped by whoever sees it."""

_SUBJECT, _HOLDER, _UNTIL = "autoheal.lease", "autoheal.lease.holder", "autoheal.lease.until"


@dataclass(frozen=True)
class Holder:
    """One life of one supervisor.

    Attributes:
        host: the name of its machine or container.
        container: the id of its container; empty outside of one.
        boot: the kernel's boot id.
        pid: its process id.
        started: when that process started, in clock ticks since the boot.
    """

    host: str
    container: str
    boot: str
    pid: int
    started: str

    @classmethod
    def this_process(cls, container: str | None, engine: Engine) -> Holder:
        """The life that calls this.

        A container of another engine, as around Docker in Docker, is left out: this engine does
        not know it, and would have every supervisor in it taken for dead.
        """
        with suppress(EngineError):
            if container is not None and engine.find(container) is None:
                container = None
        pid = os.getpid()
        return cls(socket.gethostname(), container or "", _boot(), pid, started(pid) or "")


class Leases:
    """The leases of one supervisor."""

    def __init__(self, engine: Engine, holder: Holder) -> None:
        self._engine, self._holder = engine, holder
        self._held: set[str] = set()

    def take(self, subject: str) -> float | None:
        """Take or renew the lease of a subject.

        Returns:
            None when it is ours now; else until when another holds it, in seconds of the wall
            clock.

        Raises:
            EngineError: when the engine does not say.
        """
        now = time.time()
        # A lease that was renewed bears a higher number, so the first may be free and says nothing.
        first = subject not in self._held and self._create(subject, 1, now)
        claims = self._engine.claims(f"{_SUBJECT}={subject}")
        numbers = {int(name.rpartition("-")[2]): labels for name, labels in claims.items()}
        number = max(numbers, default=0)
        if not (first and number == 1):
            if number and not self._may_take(numbers[number], now):
                if first:
                    self._engine.unclaim(_name(subject, 1))
                return float(numbers[number][_UNTIL])
            if not self._create(subject, number + 1, now):
                return now + 1  # somebody was faster
            with suppress(EngineError):
                for name in claims:
                    self._engine.unclaim(name)
        self._held.add(subject)
        return None

    def give_back(self, subject: str) -> None:
        """The incident is over: nobody holds it any more, nor does an earlier life of ours."""
        self._held.discard(subject)
        with suppress(EngineError):  # it runs out by itself
            self.drop_orphans({subject})

    def drop_orphans(self, subjects: Collection[str]) -> None:
        """Drop the leases of the dead on these subjects, whose incidents are over, and whatever
        ran out long ago: its holder is gone for good.

        Raises:
            EngineError: when the engine does not say which there are.
        """
        now = time.time()
        for name, labels in self._engine.claims(_SUBJECT).items():
            mine = labels[_SUBJECT] in subjects and self._may_take(labels, now)
            if mine or 0 < _until(labels) < now - FORGOTTEN_SECONDS:
                with suppress(EngineError):
                    self._engine.unclaim(name)

    def _create(self, subject: str, number: int, now: float) -> bool:
        holder = json.dumps(asdict(self._holder))
        labels = {_SUBJECT: subject, _HOLDER: holder, _UNTIL: f"{now + SECONDS:.3f}"}
        return self._engine.claim(_name(subject, number), labels) == labels

    def _may_take(self, labels: dict[str, str], now: float) -> bool:
        try:
            holder = Holder(**json.loads(labels[_HOLDER]))
        except (LookupError, ValueError, TypeError):
            return True  # not written by us
        return now >= _until(labels) or holder == self._holder or self._is_dead(holder)

    def _is_dead(self, other: Holder) -> bool:
        """Whether a holder certainly lives no more."""
        mine = self._holder
        if other.container:
            if other.container == mine.container:
                return True  # an earlier life of this container
            found = self._engine.find(other.container)
            return found is None or not found["State"]["Running"]
        if mine.container or other.host != mine.host:
            return False  # nothing to see from here
        return other.boot != mine.boot or started(other.pid) != other.started


def _until(labels: Mapping[str, str]) -> float:
    """Until when a lease holds; 0 for one that cannot be read."""
    try:
        return float(labels[_UNTIL])
    except (LookupError, ValueError):
        return 0.0


def _name(subject: str, number: int) -> str:
    return f"autoheal-lease-{sha256(subject.encode()).hexdigest()[:16]}-{number}"


def _boot() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
