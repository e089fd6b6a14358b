"""Whose turn it is to be healed. Pure: so many at once, so many in a minute, and fairly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MINUTE_SECONDS = 60.0

BROKEN_AFTER = 5
"""So many heals failed in a row, of at least three containers: it is not the containers."""

BROKEN_SECONDS = 60.0
"""For how long nothing is healed then."""


@dataclass(frozen=True)
class Waiting:
    """One that waits for its turn.

    Attributes:
        subject: what is to be healed.
        attempts: how many attempts it has had in its incident.
        since: when it began to wait, in seconds of the wall clock.
    """

    subject: str
    attempts: int
    since: float


@dataclass(frozen=True)
class Ended:
    """A heal that is over: of what, when, and whether it was carried out."""

    subject: str
    at: float
    failed: bool


@dataclass(frozen=True)
class Turns:
    """Whose turn it is now, and when to ask again for those that are left (None: on any end)."""

    now: tuple[str, ...]
    again: float | None = None


def turns(
    waiting: Iterable[Waiting],
    running: int,
    begun: Sequence[float],
    *,
    at_once: int,
    per_minute: int,
    now: float,
) -> Turns:
    """Choose.

    Those that were tried least go first, so that one that never gets well is in nobody's way;
    among equals it is first come, first served.

    Args:
        waiting: all that want a turn.
        running: heals under way.
        begun: when past heals began, in seconds of the wall clock.
        at_once: the limit of heals under way.
        per_minute: the limit of heals begun within a minute.
        now: seconds of the wall clock.
    """
    recent = sorted(at for at in begun if now - MINUTE_SECONDS < at <= now)
    room = max(min(at_once - running, per_minute - len(recent)), 0)
    queue = sorted(waiting, key=lambda one: (one.attempts, one.since, one.subject))
    again = None
    if len(queue) > room and len(recent) + room >= per_minute:
        again = (recent[0] if recent else now) + MINUTE_SECONDS
    return Turns(tuple(one.subject for one in queue[:room]), again)


def broken_until(ended: Iterable[Ended]) -> float | None:
    """Until when nothing is healed because healing itself is broken; None when it is not.

    A registry that is gone or a disk that is full fails every heal alike; trying on would be a
    storm of restarts.
    """
    last = list(ended)[-BROKEN_AFTER:]
    if (
        len(last) < BROKEN_AFTER
        or not all(one.failed for one in last)
        or len({one.subject for one in last}) < 3
    ):
        return None
    return last[-1].at + BROKEN_SECONDS
