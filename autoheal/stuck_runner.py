"""Ends only the runner that a model is stalled in: the container and its other models go on."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from autoheal.engine import Engine, EngineError, GoneError
from autoheal.incident import PROBE_COMMAND, Health, Sighting

END_SECONDS = 300.0
"""How long the probe may take for it; it ends within its own PROBE_TIMEOUT and a few seconds."""

JUDGED_AFTER = 2
"""So many checks later one has begun after the runner ended; the first was under way then."""

MOST_SECONDS = 300.0
"""No check is waited for longer."""

LOOK_SECONDS = 0.5

_REFUSED = 3


class RefusedError(Exception):
    """The probe has checked again, and found no runner that has to be ended; its text says what."""


def end_runner(engine: Engine, container: Sighting) -> str:
    """Have the probe in a container end the process that it finds stalled; its words.

    The probe makes a check of its own before, and ends nothing that is well by then.

    Raises:
        RefusedError: it has ended nothing, since there is nothing to end.
        EngineError: it could not be run, or could not end the process.
    """
    program = probe_program(container.test)
    command = [program, "end-runner", "--format", "json"]
    code, output = engine.run_in(container.id, command, END_SECONDS)
    try:
        said = str(json.loads(output)["message"])
    except (ValueError, LookupError, TypeError):
        words = " ".join(output.split())[-200:]
        raise EngineError(f"`{program} end-runner` ended with {code}: {words}") from None
    if code == _REFUSED:
        raise RefusedError(said)
    if code != 0:
        raise EngineError(said)
    return said


def probe_program(test: Sequence[str]) -> str:
    """How a health check calls the probe, from its command as Docker has it (`CMD`, ...)."""
    words = " ".join(test).split()
    return next((word for word in words if word.endswith(PROBE_COMMAND)), PROBE_COMMAND)


def await_check(engine: Engine, container: str) -> None:
    """Wait until Docker's health is what a check says that began after this call.

    By the engine's own times alone: its clock may not be ours.
    """
    try:
        before = engine.look(container)
        last = before.checks[-1].at if before.checks else 0.0
        limit = time.monotonic() + min(JUDGED_AFTER * before.check_seconds, MOST_SECONDS)
        now = before
        while (now.state, now.health) == ("running", Health.UNHEALTHY):
            if sum(check.at > last for check in now.checks) >= JUDGED_AFTER:
                return
            if time.monotonic() > limit:
                return
            time.sleep(LOOK_SECONDS)
            now = engine.look(container)
    except GoneError:
        return
