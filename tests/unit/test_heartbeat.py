"""When `autoheal health` turns red."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from autoheal import heartbeat
from autoheal.settings import Settings


@pytest.mark.parametrize(
    ("beat_ago", "contact_ago", "problem"),
    [
        (1, 1, None),
        (21, 1, "the deciding thread has been silent for 21 s"),
        (1, None, "the Docker engine has not answered yet"),
        (1, 81, "the Docker engine has not answered for 81 s"),
        (1, 79, None),
    ],
)
def test_it_is_red_when_nobody_decides_or_the_engine_is_gone(
    tmp_path: Path, beat_ago: float, contact_ago: float | None, problem: str | None
) -> None:
    settings = Settings(state_dir=str(tmp_path))
    now = time.monotonic()
    contact = None if contact_ago is None else now - contact_ago
    Path(heartbeat.path(settings)).write_text(
        json.dumps({"beat": now - beat_ago, "contact": contact})
    )
    assert heartbeat.problem(settings) == problem


@pytest.mark.parametrize("content", [None, "", "{}", "null"])
def test_it_is_red_when_there_is_no_heartbeat(tmp_path: Path, content: str | None) -> None:
    settings = Settings(state_dir=str(tmp_path))
    if content is not None:
        Path(heartbeat.path(settings)).write_text(content)
    assert str(heartbeat.problem(settings)).startswith(
        "autoheal is not running here (no heartbeat in "
    )


def test_a_beat_makes_it_green(tmp_path: Path) -> None:
    settings = Settings(state_dir=str(tmp_path))
    heartbeat.beat(settings, time.monotonic())
    assert heartbeat.problem(settings) is None
