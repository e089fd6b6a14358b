"""Runs attempts: each in a thread of its own, under a lease, written down from begin to end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from autoheal.decide import Decision
from autoheal.engine import Engine, EngineError, GoneError, UnreachableError, until_answered
from autoheal.heal import Healer, Result, plan
from autoheal.incident import Action, Attempt, Incident, Sighting
from autoheal.lease import Holder, Leases
from autoheal.ledger import Ledger
from autoheal.operation import Unfinished
from autoheal.policy import Policy
from autoheal.turns import Waiting

FRESH_SECONDS = 0.5
"""A sighting older than this is made anew before anything is done."""

OTHERS_LOOK_SECONDS = 30.0
"""How soon to look again at a container that another supervisor heals."""

RECENT_INCIDENTS = 100
"""So many incidents back an earlier life's lease is looked for."""

_log = logging.getLogger("autoheal")


@dataclass(frozen=True)
class Turn:
    """A heal that waits for its turn, or has it.

    Attributes:
        waiting: how it stands in the queue.
        sighting: the container as it was seen.
        rules: how it wants to be treated.
        decision: what is to be done.
        request: the number of a person's request; None when nobody asked.
    """

    waiting: Waiting
    sighting: Sighting
    rules: Policy
    decision: Decision
    request: int | None = None


@dataclass(frozen=True)
class Done:
    """What came of a turn: an attempt, or why there was none.

    Attributes:
        subject: whose turn it was.
        sighting: the container as it was before; None when an earlier life began this.
        attempt: what was done, and how it ended.
        container: the id that the container has now.
        why_not: why there was no attempt.
        again: when to look again then, in seconds of the wall clock.
        request: the number of a person's request.
    """

    subject: str
    sighting: Sighting | None
    attempt: Attempt | None = None
    container: str = ""
    why_not: str = ""
    again: float | None = None
    request: int | None = None


class Attempts:
    """All attempts that are under way.

    Args:
        engine: where the containers are.
        ledger: where it is all written down.
        own_id: the container that this runs in, if it does.
        ended: is called with the result of each, in its own thread.
        degraded: is called when healing itself is impaired: which part, and how.
    """

    def __init__(
        self,
        engine: Engine,
        ledger: Ledger,
        own_id: str | None,
        ended: Callable[[Done], None],
        degraded: Callable[[str, str], None],
    ) -> None:
        self._engine, self._ledger = engine, ledger
        self._healer = Healer(engine, ledger, own_id)
        self._leases = Leases(engine, Holder.this_process(own_id, engine))
        self._ended, self._degraded = ended, degraded
        self._threads: dict[str, threading.Thread] = {}

    @property
    def count(self) -> int:
        """How many are under way."""
        return len(self._threads)

    def is_busy(self, subject: str, name: str = "") -> bool:
        """Whether an attempt at this subject, or any operation on this container, is under way."""
        return subject in self._threads or self._healer.is_busy(name)

    def begin(self, turn: Turn, incident: Incident) -> None:
        """Take a turn; returns at once."""
        self._in_thread(incident.subject, partial(self._heal, turn, incident))

    def is_over(self, subject: str) -> None:
        """The result of the attempt at a subject was taken note of."""
        self._threads.pop(subject, None)

    def join(self, deadline: float) -> list[str]:
        """Wait for all until then (monotonic clock); returns the subjects of those left."""
        for thread in self._threads.values():
            thread.join(max(deadline - time.monotonic(), 0))
        return [subject for subject, thread in self._threads.items() if thread.is_alive()]

    def give_lease_back(self, subject: str) -> None:
        """The incident is over; returns at once."""
        give_back = partial(self._leases.give_back, subject)
        threading.Thread(target=give_back, daemon=True).start()

    def finish_what_was_begun(self) -> None:
        """Finish or undo what an earlier life was doing when it ended; returns at once."""
        for one in self._ledger.unfinished():
            subject, action, seconds = one.incident.subject, one.action, time.time() - one.at
            _log.warning(
                "%s: the %s, begun %.0f s ago, was not finished; seeing to it",
                *(subject, action.noun, seconds),
            )
            self._in_thread(subject, partial(self._finish, one))
        entries = self._ledger.history(None, RECENT_INCIDENTS)
        still_open = {entry.subject for entry in entries if entry.closed is None}
        over = {entry.subject for entry in entries} - still_open
        drop = partial(self._drop_orphans, over)
        threading.Thread(target=drop, daemon=True).start()

    def _in_thread(self, subject: str, work: Callable[[], Done]) -> None:
        def run() -> None:
            try:
                done = work()
            except Exception as error:
                _log.exception("%s: a fault of autoheal's own", subject)
                done = Done(subject, None, why_not=f"a fault of autoheal's own: {error!r}")
            self._ended(done)

        thread = threading.Thread(target=run, name=f"heal-{subject}", daemon=True)
        self._threads[subject] = thread
        thread.start()

    def _heal(self, turn: Turn, incident: Incident) -> Done:
        sighting, rules, decision = turn.sighting, turn.rules, turn.decision
        action = decision.action
        none = Done(incident.subject, sighting, request=turn.request)
        try:
            if turn.request is None and time.time() - turn.waiting.since > FRESH_SECONDS:
                fresh = self._engine.look(sighting.id)
                if (fresh.state, fresh.health) != (sighting.state, sighting.health):
                    why_not = "its state changed before its turn"
                    return replace(none, why_not=why_not, again=time.time())
            held_until = self._take_lease(incident.subject)
            if held_until is not None:
                again = min(held_until, time.time() + OTHERS_LOOK_SECONDS)
                return replace(none, why_not="another autoheal has this incident", again=again)
            operations = plan(self._engine, sighting, action, rules)
        except GoneError:
            return replace(none, why_not="it is gone", again=time.time())
        except EngineError as error:
            return replace(none, why_not=str(error), again=time.time() + rules.backoff)
        how = "is unhealthy: " if turn.request is None else "is to be healed: "
        _log.warning("%s (%s) %s%s", sighting.name, sighting.id[:12], how, decision.why)
        stop = "" if action is Action.RUNNER else f", with {rules.stop_timeout} s to stop"
        _log.info("%s: %s%s", sighting.name, _DOING[action], stop)
        attempt = Attempt(time.time(), action, decision.rung)
        number, planned = self._ledger.begin(incident, attempt, operations)
        return self._end(number, none, attempt, self._healer.carry_out(number, planned, attempt.at))

    def _finish(self, one: Unfinished) -> Done:
        none = Done(one.incident.subject, None)
        held_until = until_answered(partial(self._take_lease, one.incident.subject))
        if held_until is not None:
            return replace(none, why_not="another autoheal is healing it", again=held_until)
        result = self._healer.carry_out(one.attempt, one.operations, one.at, resumed=True)
        attempt = next(a for a in one.incident.attempts if a.at == one.at)
        return self._end(one.attempt, none, attempt, result)

    def _end(self, number: int, none: Done, attempt: Attempt, result: Result) -> Done:
        ended = time.time()
        attempt = replace(
            attempt, ended=ended, error=result.error, left_stopped=result.left_stopped
        )
        if attempt.action is Action.RUNNER:
            checked = self._last_check(result.container)
            attempt = replace(attempt, refused=result.refused, model=result.model, checked=checked)
        self._ledger.end(number, attempt, result.container)
        return replace(none, attempt=attempt, container=result.container)

    def _last_check(self, container: str) -> float | None:
        try:
            checks = self._engine.look(container).checks
        except EngineError:
            return None
        return checks[-1].at if checks else 0.0

    def _take_lease(self, subject: str) -> float | None:
        try:
            return self._leases.take(subject)
        except UnreachableError:
            raise
        except EngineError as error:
            text = f"cannot take a lease, so no second autoheal may watch this engine: {error}"
            self._degraded("lease", text)
            return None

    def _drop_orphans(self, subjects: set[str]) -> None:
        """An earlier life may have ended between an incident and its lease."""
        try:
            until_answered(partial(self._leases.drop_orphans, subjects))
        except EngineError as error:
            _log.debug("%s", error)


_DOING = {
    Action.RUNNER: "ending only its stuck runner",
    Action.RESTART: "restarting",
    Action.RECREATE: "recreating it",
    Action.REDEPLOY: "redeploying",
    Action.STOP: "stopping",
}
