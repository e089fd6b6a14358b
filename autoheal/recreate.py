"""Makes a container again from its own configuration, and loses none on the way.

The new one is made beside the old one, which is removed when the new one runs.
"""

from __future__ import annotations

import logging
import time

from autoheal import stale
from autoheal.engine import (
    RETRY_SECONDS,
    ConflictError,
    Engine,
    EngineError,
    GoneError,
    UnreachableError,
)
from autoheal.ledger import Ledger
from autoheal.operation import HealError, Operation
from autoheal.recipe import recipe, sources_of_volumes
from autoheal.restart import clear

STAYS_UP_SECONDS = 1.0
"""A new container that runs for this long runs; the old one is removed then."""

TRIES = 3
"""So often is tried to remove the old one."""

_log = logging.getLogger("autoheal")


def recreate(engine: Engine, ledger: Ledger, operation: Operation) -> Operation:
    """Make a container again from its own configuration; where that fails the old one is back."""
    try:
        return _make_again(engine, ledger, operation)
    except UnreachableError:
        raise
    except EngineError as error:
        return _undo(engine, ledger, ledger.reload(operation), str(error))


def _make_again(engine: Engine, ledger: Ledger, operation: Operation) -> Operation:
    name, old = operation.name, operation.facts["id"]
    if operation.step == "undo":
        return _undo(engine, ledger, operation, operation.facts["because"])
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
        operation = ledger.step(operation, "stop", new_id=_create(engine, operation))
    facts = operation.facts
    new = facts["new_id"]
    if operation.step in ("stop", "clear"):
        engine.stop(old, facts["stop_timeout"])
        operation = clear(ledger, operation, old)
        operation = ledger.step(operation, "set aside")
    if operation.step == "set aside":
        _name(engine, old, facts["old_name"], name)
        operation = ledger.step(operation, "rename")
    if operation.step == "rename":
        _name(engine, new, name, facts["new_name"])
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
        _remove(engine, old)
    return operation


def _remove(engine: Engine, container: str) -> None:
    """Remove what was set aside; the engine may need a moment to let go of it."""
    for tries_left in range(TRIES - 1, -1, -1):
        try:
            engine.remove(container)
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


def _create(engine: Engine, operation: Operation) -> str:
    """Make the new container, under its own name and not started; returns its id."""
    facts = operation.facts
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


def _name(engine: Engine, container: str, name: str, other: str) -> None:
    """Rename a container, unless it has that name; one that has neither was renamed by a
    person."""
    now = engine.inspect(container)["Name"].lstrip("/")
    if now == name:
        return
    if now != other:
        raise ConflictError(f"somebody renamed {other} to {now}")
    engine.rename(container, name)


def _undo(engine: Engine, ledger: Ledger, operation: Operation, because: str) -> Operation:
    """Bring the old container back; always raises, for the operation has failed."""
    facts, name = operation.facts, operation.facts.get("name", "")
    if operation.step == "remove":  # the new one runs
        _log.warning("%s: the old container could not be removed: %s", name, because)
        return operation
    if operation.step != "undo":
        stopped, aside = operation.step != "create", operation.step in ("rename", "start")
        operation = ledger.step(operation, "undo", because=because, stopped=stopped, aside=aside)
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
