"""Ends only the runner that a model is stalled in: the container and its other models go on."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from autoheal.engine import Engine, EngineError, ForbiddenError
from autoheal.healthcheck import probe_program
from autoheal.ledger import Ledger
from autoheal.operation import Operation

_log = logging.getLogger("autoheal")

END_SECONDS = 330.0
"""How long the probe may take for it: the longest PROBE_TIMEOUT, and what it takes to end."""

_ENDED, _REFUSED = 0, 3


@dataclass(frozen=True)
class Answer:
    """What the probe says: in words, whether it has ended a process, and whose; empty: unknown."""

    words: str
    ended: bool
    model: str = ""


def end_runner(engine: Engine, ledger: Ledger, operation: Operation) -> Operation:
    """End the stuck runner in a container; nothing, where its probe says that there is none."""
    if operation.step in ("ended", "refused"):
        return operation
    container = operation.facts["id"]
    again = operation.step == "end runner"  # whose answer was lost
    operation = ledger.step(operation, "end runner")
    answer = ask(engine, container, engine.look(container).test)
    _log.info("%s: %s", operation.name, answer.words)
    if answer.ended:
        return ledger.step(operation, "ended", model=answer.model)
    return operation if again else ledger.step(operation, "refused", refused=True)


def ask(engine: Engine, container: str, test: Sequence[str]) -> Answer:
    """Have the probe in a container end the process that it finds stalled.

    The probe makes a check of its own before, and ends nothing that is well by then.

    Args:
        engine: where the container runs.
        container: its id.
        test: its health check's command, as Docker has it (`CMD`, ...).

    Raises:
        EngineError: the probe could not be run, or could not end the process.
    """
    program = probe_program(test)
    command = [program, "end-runner", "--format", "json"]
    try:
        code, output = engine.run_in(container, command, END_SECONDS)
    except ForbiddenError as error:
        return Answer(f"nothing may be run in the container: {error}", ended=False)
    model = ""
    try:
        said = json.loads(output)
        words, model = str(said["message"]), str(said.get("model") or "")
    except (ValueError, LookupError, TypeError, AttributeError):
        words = f"`{program} end-runner` ended with {code}: {' '.join(output.split())[-200:]}"
    if code not in (_ENDED, _REFUSED):
        raise EngineError(words)
    return Answer(words, ended=code == _ENDED, model=model)
