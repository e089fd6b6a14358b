"""Stops and starts a container, which stays the same one."""

from __future__ import annotations

import logging
import time
from typing import Literal

from autoheal import stale
from autoheal.engine import RETRY_SECONDS, Engine
from autoheal.incident import seconds_of
from autoheal.ledger import Ledger
from autoheal.operation import HealError, Operation

ANSWER_SECONDS = 3.0
"""How long an engine may take to carry out what it was asked for, beside the stop timeout."""

_log = logging.getLogger("autoheal")


def restart(engine: Engine, ledger: Ledger, operation: Operation) -> Operation:
    """Restart a container; what still holds VRAM of it is ended in between, where that shows."""
    container = operation.facts["id"]
    timeout = operation.facts["stop_timeout"]
    if operation.step == "planned":
        holders = stale.holders(container)
        if holders is None:  # no GPU to look at: the engine does it all, even without us
            operation = ledger.step(operation, "restart", at=time.time())
            engine.restart(container, timeout)
            return operation
        operation = ledger.step(operation, "stop", at=time.time(), holders=holders)
    if operation.step in ("stop", "clear"):
        engine.stop(container, timeout)
        operation = clear(ledger, operation, container)
        operation = ledger.step(operation, "start")
    if operation.step == "start":
        engine.start(container)
        return operation
    came = _what_came_of(engine, operation)
    if came == "stopped":
        engine.start(container)
    elif came == "nothing" and operation.facts.get("follows"):
        engine.restart(container, timeout)
    elif came == "nothing":
        raise HealError("the engine was asked for a restart, and nothing came of it")
    return operation


def _what_came_of(
    engine: Engine, operation: Operation
) -> Literal["restarted", "stopped", "nothing"]:
    """What came of a restart that was asked of the engine, by a call whose answer was lost."""
    asked = float(operation.facts["at"])
    patience = operation.facts["stop_timeout"] + ANSWER_SECONDS
    while True:
        state = engine.inspect(operation.facts["id"])["State"]
        if seconds_of(state["StartedAt"]) >= asked:
            return "restarted"
        if state["Status"] in ("exited", "dead"):
            # An engine that died in the middle notes the end when it is back. Whoever stopped
            # it: we have asked for it to run, and it must not be lost.
            return "stopped"
        if not asked <= time.time() <= asked + patience:
            return "nothing"
        time.sleep(RETRY_SECONDS)


def stop(engine: Engine, ledger: Ledger, operation: Operation) -> Operation:
    """Stop a container, and leave it so."""
    operation = ledger.step(operation, "stop", at=time.time())
    engine.stop(operation.facts["id"], operation.facts["stop_timeout"])
    return operation


def clear(ledger: Ledger, operation: Operation, container: str) -> Operation:
    """End what still holds VRAM of a container that has stopped."""
    holders = operation.facts.get("holders")
    if holders:
        operation = ledger.step(operation, "clear")
        for process in stale.end(container, holders):
            _log.warning("%s: ended %s, which still held VRAM", operation.name, process)
    return operation
