"""Carries out an action, operation by operation, and brings back what depends on the healed.

A step may be taken twice without harm, so whoever finds an operation half done goes on from the
step that was begun: forward once the old container was stopped, back before that.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from autoheal.engine import (
    RETRY_SECONDS,
    Engine,
    EngineError,
    UnreachableError,
    until_answered,
)
from autoheal.followers import followers
from autoheal.incident import (
    COMPOSE_PROJECT,
    COMPOSE_SERVICE,
    STACK,
    SWARM_SERVICE_ID,
    Action,
    Neighbour,
    Sighting,
    is_of_compose,
    seconds_of,
)
from autoheal.ledger import Ledger
from autoheal.operation import HealError, Operation
from autoheal.policy import Policy
from autoheal.recreate import recreate
from autoheal.restart import restart, stop
from autoheal.stuck_runner import end_runner
from autoheal.swarm import deploy, update

FOLLOWER_STOP_SECONDS = 10

TRIES = 3
"""So often is tried to bring back a follower."""

_OF_CONTAINERS = (Action.RUNNER, Action.RESTART, Action.RECREATE, Action.STOP)
"""The operations on one container; the others are on a Swarm service or stack."""

_STEPS: dict[str, Callable[[Engine, Ledger, Operation], Operation]] = {
    Action.RUNNER: end_runner,
    Action.RESTART: restart,
    Action.RECREATE: recreate,
    Action.STOP: stop,
    "update": update,
    "deploy": deploy,
}
"""By an operation's kind, what takes it to its end."""

Plan = list[tuple[str, str, dict[str, Any]]]
"""Kind, name and facts of each operation, in order."""

_log = logging.getLogger("autoheal")


@dataclass(frozen=True)
class Result:
    """How an action ended.

    Attributes:
        error: why it failed; None when it did not.
        container: the id that the healed container has now; empty where Swarm made others.
        left_stopped: its `finished_at`, when the failure left it stopped.
        refused: there was nothing to end.
        model: whose runner was ended; empty where none was, or that is not known.
    """

    error: str | None
    container: str
    left_stopped: str | None = None
    refused: bool = False
    model: str = ""


def plan(engine: Engine, sighting: Sighting, action: Action, policy: Policy) -> Plan:
    """The operations of an action; those of the followers come later.

    Raises:
        EngineError: when the engine does not tell what belongs together.
    """
    facts = {"id": sighting.id, "stop_timeout": policy.stop_timeout}
    if action in _OF_CONTAINERS:
        return [(action, sighting.name, facts)]
    if not sighting.is_swarm_task:
        mine = {key: sighting.labels[key] for key in (COMPOSE_PROJECT, COMPOSE_SERVICE)}
        of_service = [
            (row["Names"][0].lstrip("/"), row["Id"])
            for row in engine.containers(f"{COMPOSE_PROJECT}={mine[COMPOSE_PROJECT]}")
            if is_of_compose(row["Labels"] or {})
            and mine.items() <= row["Labels"].items()
            and (row["State"] == "running" or row["Id"] == sighting.id)
        ]
        return [
            (Action.RECREATE, name, {**facts, "id": container})
            for name, container in sorted(of_service)
        ]
    stack = sighting.labels.get(STACK)
    if policy.stack_file and stack:
        return [("deploy", stack, {"file": policy.stack_file})]
    services = [(sighting.labels[SWARM_SERVICE_ID], sighting.subject)]
    if policy.redeploy == "stack" and stack:
        services = engine.services_of(stack)
    return [("update", name, {"id": service}) for service, name in services]


class Healer:
    """Carries out operations, and brings back what depends on them.

    Safe to use from several threads; no two operations on one container run at a time.

    Args:
        engine: where they run.
        ledger: where every step is written down.
        own_id: the container that this runs in, which follows nobody.
    """

    def __init__(self, engine: Engine, ledger: Ledger, own_id: str | None = None) -> None:
        self._engine, self._ledger, self._own_id = engine, ledger, own_id
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def is_busy(self, name: str) -> bool:
        """Whether an operation on this container is under way."""
        with self._guard:
            lock = self._locks.get(name)
        return lock is not None and lock.locked()

    def carry_out(
        self,
        attempt: int,
        operations: Sequence[Operation],
        began: float,
        *,
        resumed: bool = False,
    ) -> Result:
        """Take all operations of an attempt, and those of the followers; never raises.

        Args:
            attempt: its number in the ledger.
            operations: those that are planned or were begun, in order.
            began: when the attempt began, in seconds of the wall clock.
            resumed: an earlier life began it. What had done nothing to a container by then is
                called off: it may be well by now.
        """
        healed: list[str] = []
        replaced: dict[str, str] = {}
        error: str | None = None
        refused, model = False, ""
        for operation in operations:
            following = bool(operation.facts.get("follows"))
            harmless = operation.step in ("planned", "create") and not following
            try:
                if operation.outcome is None and resumed and harmless:
                    operation = self._take(operation, call_off=True)
                elif operation.outcome is None and (error is None or following):
                    operation = self._take(operation)
                refused = refused or bool(operation.facts.get("refused"))
                model = operation.facts.get("model", model)
                if operation.outcome in ("failed", "undone"):
                    error = error or "autoheal was ended in the middle of it"
            except HealError as problem:
                error = error or str(problem)
                operation = self._ledger.reload(operation)
            if operation.outcome != "done" and not operation.facts.get("stopped"):
                continue  # nothing was done to it that anybody would have to follow
            new = operation.facts.get("new_id")
            old = operation.facts.get("id", "")
            if new and operation.outcome == "done":
                replaced[old] = new
            healed.append(new if old in replaced and new else old)
        kinds = {operation.kind for operation in operations}
        if kinds & {Action.RESTART, Action.RECREATE} and healed:
            behind = self._bring_back_followers(attempt, healed, replaced, operations, began)
            error = error or behind
        containers = [one for one in operations if one.kind in _OF_CONTAINERS]
        old = containers[0].facts.get("id", "") if containers else ""
        now = replaced.get(old, old)
        stops = error is not None and Action.RUNNER not in kinds
        left_stopped = self._left_stopped(now, began) if stops else None
        return Result(error, now, left_stopped, refused, model)

    # -- one operation

    def _take(self, operation: Operation, *, call_off: bool = False) -> Operation:
        """Take one operation to its end, waiting for an engine that went away.

        Raises:
            HealError: when it failed; what was there before is back, as far as it can be.
        """
        with self._only_one(operation.name):
            said = False
            while True:
                try:
                    if call_off:
                        self._call_off(operation)
                        return self._ledger.finish(operation, "undone")
                    return self._ledger.finish(
                        _STEPS[operation.kind](self._engine, self._ledger, operation), "done"
                    )
                except UnreachableError as error:
                    if not said:
                        _log.warning("%s: %s; going on when it answers", operation.name, error)
                        said = True
                    time.sleep(RETRY_SECONDS)
                    operation = self._ledger.reload(operation)
                except (HealError, EngineError) as error:
                    self._ledger.finish(operation, "failed")
                    raise HealError(str(error)) from None

    def _call_off(self, operation: Operation) -> None:
        half_made = operation.facts.get("new_name") and self._engine.find(
            operation.facts["new_name"]
        )
        if half_made:
            self._engine.remove(half_made["Id"])

    @contextmanager
    def _only_one(self, name: str) -> Iterator[None]:
        with self._guard:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            yield

    # -- followers

    def _bring_back_followers(
        self,
        attempt: int,
        healed: list[str],
        replaced: dict[str, str],
        operations: Sequence[Operation],
        began: float,
    ) -> str | None:
        """Bring back what depends on the healed; returns what did not come back, if anything."""
        done = {operation.facts.get("id") for operation in operations}
        try:
            found = followers(healed, replaced, until_answered(self._engine.neighbours))
        except (EngineError, HealError) as error:
            return f"dependent containers were not restarted: {error}"
        problems = []
        for follower in found:
            one = follower.container
            if one.id in (*done, self._own_id) or (self.is_busy(one.name) and not follower.anew):
                continue
            runs = one.state == "running" or self._stopped_since(one, began)
            if not (runs or follower.anew):
                continue  # a person stopped it
            kind = Action.RECREATE if follower.anew else Action.RESTART
            facts = {"id": one.id, "stop_timeout": FOLLOWER_STOP_SECONDS, "follows": True}
            if follower.anew:
                facts |= {"successors": replaced, "runs": runs}
            _log.info("%s: %s, as it depends on what was healed", one.name, kind)
            try:
                operation = self._follow(attempt, (kind, one.name, facts))
            except HealError as error:
                problems.append(f"{one.name}, which depends on it: {error}")
                continue
            if follower.anew:
                replaced[one.id] = operation.facts["new_id"]
        return "; ".join(problems) or None

    def _follow(self, attempt: int, planned: tuple[str, str, dict[str, Any]]) -> Operation:
        """Bring one follower back; it has no incident of its own that would try again."""
        for tries_left in range(TRIES - 1, -1, -1):
            [operation] = self._ledger.plan(attempt, [planned])
            try:
                return self._take(operation)
            except HealError as error:
                if not tries_left:
                    raise
                _log.warning("%s: %s; trying again", operation.name, error)
                time.sleep(RETRY_SECONDS)
        raise AssertionError("unreachable")

    def _stopped_since(self, one: Neighbour, began: float) -> bool:
        """Whether it ended because of what we did: some end with the one they depend on."""
        found = self._engine.find(one.id)
        return found is not None and seconds_of(found["State"].get("FinishedAt", "")) >= began

    def _left_stopped(self, container: str, began: float) -> str | None:
        try:
            state = self._engine.inspect(container)["State"]
        except EngineError:
            return None
        stopped = state["Status"] == "exited" and seconds_of(state["FinishedAt"]) >= began - 1
        return str(state["FinishedAt"]) if stopped else None
