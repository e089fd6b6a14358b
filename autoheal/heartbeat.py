"""The heartbeat that `autoheal health` reads: a small file, written by the deciding thread."""

from __future__ import annotations

import json
import os
import time

from autoheal.settings import Settings

SECONDS = 5.0
"""The deciding thread beats at least this often."""

DEAD_AFTER_SECONDS = 20.0


def path(settings: Settings) -> str:
    return os.path.join(settings.state_dir, "autoheal-heartbeat.json")


def beat(settings: Settings, contact: float | None) -> None:
    """Note that the deciding thread is alive, and when the engine last answered."""
    now = time.monotonic()
    temporary = f"{path(settings)}.{os.getpid()}"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump({"beat": now, "contact": contact}, file)
        os.replace(temporary, path(settings))
    except OSError:
        pass  # without it `autoheal health` turns red, which says so


def problem(settings: Settings) -> str | None:
    """Why autoheal is not healthy, in one line; None when it is."""
    now = time.monotonic()
    try:
        with open(path(settings), encoding="utf-8") as file:
            signs = json.load(file)
        age = now - float(signs["beat"])
        contact = signs["contact"]
        silence = None if contact is None else now - float(contact)
    except (OSError, ValueError, LookupError, TypeError):
        return f"autoheal is not running here (no heartbeat in {path(settings)})"
    if age > DEAD_AFTER_SECONDS:
        return f"the deciding thread has been silent for {age:.0f} s"
    if silence is None:
        return "the Docker engine has not answered yet"
    if silence > 2 * settings.interval + DEAD_AFTER_SECONDS:
        return f"the Docker engine has not answered for {silence:.0f} s"
    return None
