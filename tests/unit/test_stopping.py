"""A model that has to be unloaded, and is held by a request that does not end ("Stopping...")."""

from __future__ import annotations

from dataclasses import replace

import pytest

from probe.judge import judge
from probe.memory import Memory
from probe.observation import Model, Slot
from probe.report import Remedy
from probe.settings import Settings
from tests.unit.rows import (
    ANY,
    ENGINE,
    IN_VRAM,
    INVISIBLE,
    LOADING,
    NOW,
    OLD,
    PROVEN,
    RUNNER,
    check,
    model,
    past,
    run,
    slots,
)

DUE = replace(IN_VRAM, expires_at=NOW - 300)
"""Its time was over five minutes ago."""

FREE = slots(Slot(0, task=9, held_tokens=3000))
HELD = model(DUE, FREE)


def idle(seconds: float, *, waited: float | None = 0.0, **fields: object) -> Memory:
    """It has done nothing for so long, and a user was seen to wait so long ago."""
    waited_at = None if waited is None else NOW - waited
    return replace(past(idle_since=NOW - seconds, **fields), waited_at=waited_at)


@pytest.mark.parametrize(
    ("one", "memory", "settings", "reason"),
    [
        (HELD, idle(121), ANY, "stalled"),
        (HELD, idle(119), ANY, "ready"),
        (HELD, idle(61), Settings(stopping_timeout=60), "stalled"),
        # its time was not over for so long, or never is
        (model(replace(DUE, expires_at=NOW - 119), FREE), idle(900), ANY, "ready"),
        (model(health=FREE), idle(900), ANY, "ready"),
        # somebody who gave up comes again, but not after a minute; nobody waits
        (HELD, idle(900, waited=59), ANY, "stalled"),
        (HELD, idle(900, waited=61), ANY, "ready"),
        (HELD, idle(900, waited=None), ANY, "ready"),
        # it works: an expiry stands still while a long request runs
        (model(DUE, slots(Slot(0, True, 9, 600, 5))), idle(900), ANY, "ready"),
        (model(DUE, FREE, replace(RUNNER, cpu_seconds=52.0)), idle(900), ANY, "ready"),
        # nothing is known of what it did
        (replace(INVISIBLE, row=DUE), idle(900), ANY, "ready"),
        (model(DUE, FREE, replace(RUNNER, started=2)), idle(900), ANY, "ready"),
        (model(DUE, LOADING), idle(900), ANY, "loading"),
        (model(DUE, None, None, gone=True), idle(900), ANY, "idle"),
    ],
)
def test_a_model_that_ought_to_be_unloaded_and_does_nothing_is_stalled_while_users_wait(
    one: Model, memory: Memory, settings: Settings, reason: str
) -> None:
    verdict, _ = judge(check(one), memory, settings, NOW)
    assert str(verdict.reason) == reason, verdict


@pytest.mark.parametrize("runner", [RUNNER, OLD, ENGINE])
def test_only_the_end_of_the_server_helps(runner: object) -> None:
    """Seen on 0.9.3, 0.24.0 and 0.34.2: without its runner the row stays, and users wait on."""
    memory = idle(200, runner=runner.identity)  # type: ignore[attr-defined]
    verdict, _ = judge(check(model(DUE, runner=runner)), memory, ANY, NOW)  # type: ignore[arg-type]
    assert verdict.remedy is Remedy.RESTART
    assert "has been unloading for 200 s while users wait" in verdict.message


def test_while_nobody_waits_it_is_a_reading() -> None:
    verdicts, _ = run(*[check(HELD)] * 3, memory=PROVEN)
    assert [one.readings.get("stopping_seconds") for one in verdicts] == [None, 15, 30]
    assert all(one.healthy for one in verdicts)


def test_work_of_its_own_begins_the_time_anew() -> None:
    works = check(model(DUE, FREE, replace(RUNNER, cpu_seconds=70.0)))
    rests = check(model(DUE, FREE, replace(RUNNER, cpu_seconds=70.0)))
    verdicts, _ = run(*[check(HELD)] * 2, works, rests, rests, memory=PROVEN)
    assert [one.readings.get("stopping_seconds") for one in verdicts] == [None, 15, None, None, 15]
