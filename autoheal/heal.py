"""Carries out an action, step by step. Each step is written down before it is taken.

A step may be taken twice without harm, so whoever finds an operation half done goes on from the
step that was begun: forward once the old container was stopped, back before that.
"""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from autoheal import stale
from autoheal.engine import (
    RETRY_SECONDS,
    ConflictError,
    Engine,
    EngineError,
    GoneError,
    Neighbour,
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
    Sighting,
    is_of_compose,
    seconds_of,
)
from autoheal.ledger import Ledger, Operation
from autoheal.policy import Policy
from autoheal.recipe import recipe, sources_of_volumes
from autoheal.stuck_runner import end_runner

STAYS_UP_SECONDS = 1.0
"""A new container that runs for this long runs; the old one is removed then."""

ANSWER_SECONDS = 3.0
"""How long an engine may take to carry out what it was asked for, beside the stop timeout."""

FOLLOWER_STOP_SECONDS = 10

TRIES = 3
"""So often is tried what comes after the heal itself: to clean up, to bring back a follower."""

UPDATE_SECONDS = 1800.0
"""The longest that a Swarm update is watched; it goes on without us."""

UPDATE_LOOK_SECONDS = 1.0

_OF_CONTAINERS = (Action.RUNNER, Action.RESTART, Action.RECREATE, Action.STOP)
"""The operations on one container; the others are on a Swarm service or stack."""

Plan = list[tuple[str, str, dict[str, Any]]]
"""Kind, name and facts of each operation, in order."""

_log = logging.getLogger("autoheal")


class HealError(Exception):
    """An operation failed; its text says why, and how things stand."""


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
        kinds: dict[str, Callable[[Operation], Operation]] = {
            Action.RUNNER: self._runner,
            Action.RESTART: self._restart,
            Action.RECREATE: self._recreate,
            Action.STOP: self._stop,
            "update": self._update,
            "deploy": self._deploy,
        }
        with self._only_one(operation.name):
            said = False
            while True:
                try:
                    if call_off:
                        self._call_off(operation)
                        return self._ledger.finish(operation, "undone")
                    return self._ledger.finish(kinds[operation.kind](operation), "done")
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

    def _runner(self, operation: Operation) -> Operation:
        if operation.step in ("ended", "refused"):
            return operation
        container = operation.facts["id"]
        again = operation.step == "end runner"  # whose answer was lost
        operation = self._ledger.step(operation, "end runner")
        answer = end_runner(self._engine, container, self._engine.look(container).test)
        _log.info("%s: %s", operation.name, answer.words)
        if answer.ended:
            return self._ledger.step(operation, "ended", model=answer.model)
        return operation if again else self._ledger.step(operation, "refused", refused=True)

    def _restart(self, operation: Operation) -> Operation:
        engine, container = self._engine, operation.facts["id"]
        timeout = operation.facts["stop_timeout"]
        if operation.step == "planned":
            holders = stale.holders(container)
            if holders is None:  # no GPU to look at: the engine does it all, even without us
                operation = self._ledger.step(operation, "restart", at=time.time())
                engine.restart(container, timeout)
                return operation
            operation = self._ledger.step(operation, "stop", at=time.time(), holders=holders)
        if operation.step in ("stop", "clear"):
            engine.stop(container, timeout)
            operation = self._clear(operation, container)
            operation = self._ledger.step(operation, "start")
        if operation.step == "start":
            engine.start(container)
            return operation
        came = self._what_came_of(operation)
        if came == "stopped":
            engine.start(container)
        elif came == "nothing" and operation.facts.get("follows"):
            engine.restart(container, timeout)
        elif came == "nothing":
            raise HealError("the engine was asked for a restart, and nothing came of it")
        return operation

    def _what_came_of(self, operation: Operation) -> Literal["restarted", "stopped", "nothing"]:
        """What came of a restart that was asked of the engine, by a call whose answer was lost."""
        asked = float(operation.facts["at"])
        patience = operation.facts["stop_timeout"] + ANSWER_SECONDS
        while True:
            state = self._engine.inspect(operation.facts["id"])["State"]
            if seconds_of(state["StartedAt"]) >= asked:
                return "restarted"
            if state["Status"] in ("exited", "dead"):
                # An engine that died in the middle notes the end when it is back. Whoever stopped
                # it: we have asked for it to run, and it must not be lost.
                return "stopped"
            if not asked <= time.time() <= asked + patience:
                return "nothing"
            time.sleep(RETRY_SECONDS)

    def _stop(self, operation: Operation) -> Operation:
        operation = self._ledger.step(operation, "stop", at=time.time())
        self._engine.stop(operation.facts["id"], operation.facts["stop_timeout"])
        return operation

    def _clear(self, operation: Operation, container: str) -> Operation:
        """End what still holds VRAM of a container that has stopped."""
        holders = operation.facts.get("holders")
        if holders:
            operation = self._ledger.step(operation, "clear")
            for process in stale.end(container, holders):
                _log.warning("%s: ended %s, which still held VRAM", operation.name, process)
        return operation

    # -- recreate

    def _recreate(self, operation: Operation) -> Operation:
        try:
            return self._make_again(operation)
        except UnreachableError:
            raise
        except EngineError as error:
            return self._undo(self._ledger.reload(operation), str(error))

    def _make_again(self, operation: Operation) -> Operation:
        engine, ledger = self._engine, self._ledger
        name, old = operation.name, operation.facts["id"]
        if operation.step == "undo":
            return self._undo(operation, operation.facts["because"])
        if operation.step == "planned":
            found = engine.find(old)
            if found is None:
                raise HealError(f"{name} was removed by somebody else")
            if found["HostConfig"].get("AutoRemove"):
                raise HealError(f"{name} is removed when it stops (--rm): it cannot be recreated")
            name = found["Name"].lstrip("/")
            operation = ledger.step(
                operation,
                "create",
                new_name=f"{name}-autoheal-new-{old[:8]}",
                old_name=f"{name}-autoheal-old-{old[:8]}",
                name=name,
                runs=operation.facts.get("runs", True),
                holders=stale.holders(old),
            )
        facts = operation.facts
        name = facts["name"]
        if operation.step == "create":
            operation = ledger.step(operation, "stop", new_id=self._create(operation))
        facts = operation.facts
        new = facts["new_id"]
        if operation.step in ("stop", "clear"):
            engine.stop(old, facts["stop_timeout"])
            operation = self._clear(operation, old)
            operation = ledger.step(operation, "set aside")
        if operation.step == "set aside":
            self._name(old, facts["old_name"], name)
            operation = ledger.step(operation, "rename")
        if operation.step == "rename":
            self._name(new, name, facts["new_name"])
            operation = ledger.step(operation, "start")
        if operation.step == "start":
            if facts["runs"]:
                before = engine.find(old)
                if before is not None and before["State"]["Running"]:  # the engine came back
                    engine.stop(old, facts["stop_timeout"])
                engine.start(new)
                if engine.ends_within(new, STAYS_UP_SECONDS):
                    code = engine.inspect(new)["State"]["ExitCode"]
                    raise EngineError(f"the new {name} ended at once, with {code}")
            operation = ledger.step(operation, "remove")
        if operation.step == "remove":
            self._remove(old)
        return operation

    def _remove(self, container: str) -> None:
        """Remove what was set aside; the engine may need a moment to let go of it."""
        for tries_left in range(TRIES - 1, -1, -1):
            try:
                self._engine.remove(container)
            except GoneError:
                pass
            except UnreachableError:
                raise
            except EngineError:
                if not tries_left:
                    raise
                time.sleep(RETRY_SECONDS)
                continue
            return

    def _create(self, operation: Operation) -> str:
        """Make the new container, under its own name and not started; returns its id."""
        facts, engine = operation.facts, self._engine
        half_made = engine.find(facts["new_name"])
        if half_made is not None:  # by an earlier life, perhaps without all of its networks
            engine.remove(half_made["Id"])
        old = engine.inspect(facts["id"])
        named, is_id = old["Config"]["Image"], old["Image"]
        gone = [one for one in sources_of_volumes(old) if engine.find(one) is None]
        image = named if engine.image_of(named) == is_id else is_id
        successors = facts.get("successors", {})
        for attempt in (image, is_id):
            made = engine.create(
                facts["new_name"], recipe(old, image=attempt, gone=gone, successors=successors)
            )
            if engine.inspect(made)["Image"] == is_id:
                return made
            engine.remove(made)  # the name was given to another image just now
        raise EngineError(f"{operation.name} could not be made from the same image")

    def _name(self, container: str, name: str, other: str) -> None:
        """Rename a container, unless it has that name; one that has neither was renamed by a
        person."""
        now = self._engine.inspect(container)["Name"].lstrip("/")
        if now == name:
            return
        if now != other:
            raise ConflictError(f"somebody renamed {other} to {now}")
        self._engine.rename(container, name)

    def _undo(self, operation: Operation, because: str) -> Operation:
        """Bring the old container back; always raises, for the operation has failed."""
        engine, facts, name = self._engine, operation.facts, operation.facts.get("name", "")
        if operation.step == "remove":  # the new one runs
            _log.warning("%s: the old container could not be removed: %s", name, because)
            return operation
        if operation.step != "undo":
            stopped, aside = operation.step != "create", operation.step in ("rename", "start")
            operation = self._ledger.step(
                operation, "undo", because=because, stopped=stopped, aside=aside
            )
        stopped, aside = operation.facts["stopped"], operation.facts["aside"]
        new = engine.find(facts.get("new_id") or facts["new_name"])
        old = engine.find(facts["id"])
        if old is None and aside and new is not None:
            # Somebody cleaned up what we had set aside; what is left must not be lost.
            if new["Name"].lstrip("/") != name:
                engine.rename(new["Id"], name)
            raise HealError(f"{because}; the old {name} was removed meanwhile, the new one is left")
        if new is not None and new["Id"] != facts["id"]:
            engine.remove(new["Id"])
        if old is None:
            raise HealError(f"{because}; the old {name} was removed by somebody else meanwhile")
        notes = []
        if old["Name"].lstrip("/") == facts.get("old_name"):
            try:
                engine.rename(facts["id"], name)
            except ConflictError:
                raise HealError(
                    f"{because}; somebody made another {name} meanwhile, so the old one is kept, "
                    f"stopped, as {facts['old_name']}"
                ) from None
        if stopped and facts["runs"] and not old["State"]["Running"]:
            try:
                engine.start(facts["id"])
            except UnreachableError:
                raise
            except EngineError as error:
                notes.append(f", but does not start: {error}")
        raise HealError(f"{because}; the old {name} is back" + "".join(notes))

    # -- Swarm

    def _update(self, operation: Operation) -> Operation:
        service = operation.facts["id"]
        if operation.step == "planned":
            forced = self._engine.service(service).forced + 1
            operation = self._ledger.step(operation, "update", forced=forced)
        if self._engine.service(service).forced < operation.facts["forced"]:
            self._engine.update_by_force(service, operation.facts["forced"])
        deadline = time.monotonic() + UPDATE_SECONDS
        while time.monotonic() < deadline:
            update = self._engine.service(service)
            if update.state == "completed":
                return operation
            if update.state in ("paused", "rollback_paused", "rollback_completed"):
                raise HealError(f"Swarm's update is {update.state}: {update.message}")
            time.sleep(UPDATE_LOOK_SECONDS)
        raise HealError(f"Swarm's update is not over after {UPDATE_SECONDS:g} s")

    def _deploy(self, operation: Operation) -> Operation:
        """`docker stack deploy`: only Docker's own program reads stack files."""
        operation = self._ledger.step(operation, "deploy")
        file = operation.facts["file"]
        command = ["docker", "--host", self._engine.url, "stack", "deploy", "--compose-file", file]
        try:
            done = subprocess.run(
                [*command, "--with-registry-auth", operation.name],
                capture_output=True,
                text=True,
                timeout=UPDATE_SECONDS,
            )
        except FileNotFoundError:
            raise HealError(
                "there is no docker program here to read the stack file with: mount one, or leave "
                "the file out for an update by force"
            ) from None
        except subprocess.TimeoutExpired:
            raise HealError(
                f"docker stack deploy was not over after {UPDATE_SECONDS:g} s"
            ) from None
        if done.returncode != 0:
            raise HealError(f"docker stack deploy: {' '.join(done.stderr.split())[-300:]}")
        return operation

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
