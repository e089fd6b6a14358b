"""Carries out an action, and says how it ended."""

from __future__ import annotations

import time

from autoheal.decide import Attempt, Sighting
from autoheal.engine import Engine, EngineError


def restart(engine: Engine, sighting: Sighting, stop_timeout: int) -> Attempt:
    """Restart a container in place. Never raises: a failure is part of the attempt."""
    began = time.monotonic()
    try:
        engine.restart(sighting.id, stop_timeout)
    except EngineError as error:
        return Attempt(began, str(error), _left_stopped(engine, sighting))
    return Attempt(began)


def _left_stopped(engine: Engine, before: Sighting) -> str | None:
    """When the container stopped, if our attempt is why it is not running now."""
    try:
        now = engine.look(before.id)
    except EngineError:
        return None
    stopped = now.state == "exited" and before.finished_at != now.finished_at
    return now.finished_at if stopped else None
