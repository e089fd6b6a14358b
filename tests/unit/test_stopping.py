"""A model that has to be unloaded, and is held by a request that does not end ("Stopping...")."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from probe.judge import judge
from probe.memory import Memory
from probe.observation import Model, Runner, Slot
from probe.report import Remedy
from probe.settings import Settings
from tests.unit.rows import (
    ANY,
    BUSY_GPU,
    ENGINE,
    GPU,
    IN_VRAM,
    INVISIBLE,
    LOADING,
    NOW,
    OLD,
    OTHER,
    OTHER_ROW,
    OTHER_RUNNER,
    PROVEN,
    RUNNER,
    UNIFIED,
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
    """It was due and did nothing for so long, and a user was seen to wait so long ago."""
    waited_at = None if waited is None else NOW - waited
    return replace(past(due_since=NOW - seconds, **fields), waited_at=waited_at)


def beside(memory: Memory) -> Memory:
    """The same with another model loaded."""
    other = replace(memory.models["d1"], runner=OTHER_RUNNER.identity, due_since=None)
    return replace(memory, models={**memory.models, "d2": other})


@pytest.mark.parametrize(
    ("one", "memory", "settings", "reason"),
    [
        (HELD, idle(121), ANY, "stalled"),
        (HELD, idle(119), ANY, "ready"),
        (HELD, idle(61), Settings(stopping_timeout=60), "stalled"),
        # its time is not over
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
        # its process has gone, and the row stays
        (model(DUE, None, None, gone=True), idle(900), ANY, "stalled"),
    ],
)
def test_a_model_that_ought_to_be_unloaded_and_does_nothing_is_stalled_while_users_wait(
    one: Model, memory: Memory, settings: Settings, reason: str
) -> None:
    verdict, _ = judge(check(one), memory, settings, NOW)
    assert str(verdict.reason) == reason, verdict


@pytest.mark.parametrize(
    ("one", "more", "reason"),
    [
        # a GPU that reads a long prompt shows in nothing else, where there are no slots
        (model(DUE, runner=OLD), {}, "ready"),
        (model(DUE, runner=OLD), {"gpu": UNIFIED}, "ready"),
        (model(DUE, runner=OLD), {"gpu": BUSY_GPU}, "ready"),
        (model(DUE, runner=OLD), {"gpu": GPU}, "stalled"),
        (model(replace(DUE, size_vram_bytes=0), runner=OLD), {}, "stalled"),
        (HELD, {"gpu": BUSY_GPU}, "stalled"),
    ],
)
def test_a_runner_may_wait_for_its_gpu(one: Model, more: dict[str, Any], reason: str) -> None:
    assert one.runner is not None
    memory = idle(200, runner=one.runner.identity)
    verdict, _ = judge(check(one, **more), memory, ANY, NOW)
    assert str(verdict.reason) == reason, verdict


@pytest.mark.parametrize(
    ("other", "more", "reason"),
    [
        (OTHER, {}, "stalled"),
        (OTHER, {"strays": 1}, "ready"),
        (model(OTHER_ROW, runner=replace(OTHER_RUNNER, cpu_seconds=55.0)), {}, "ready"),
        (model(OTHER_ROW, runner=replace(OLD, pid=8)), {}, "ready"),
        (model(OTHER_ROW, runner=replace(OLD, pid=8)), {"gpu": GPU}, "stalled"),
        (OTHER, {"loading": ((replace(RUNNER, pid=9), LOADING),)}, "loading"),
    ],
)
def test_nobody_else_is_cut_off_by_a_restart(
    other: Model, more: dict[str, Any], reason: str
) -> None:
    """Nor a prompt that a GPU reads, where neither slots nor NVML would show it."""
    verdict, _ = judge(check(HELD, other, **more), beside(idle(200)), ANY, NOW)
    assert str(verdict.reason) == reason, verdict


@pytest.mark.parametrize("runner", [RUNNER, OLD, ENGINE])
def test_only_the_end_of_the_server_helps(runner: Runner) -> None:
    """Seen on 0.9.3, 0.24.0 and 0.34.2: without its runner the row stays, and users wait on."""
    memory = idle(200, runner=runner.identity)
    one = model(replace(DUE, size_vram_bytes=0), runner=runner)
    verdict, _ = judge(check(one), memory, ANY, NOW)
    assert verdict.remedy is Remedy.RESTART
    assert "has been unloading for 200 s while users wait" in verdict.message


def test_while_nobody_waits_it_is_a_reading() -> None:
    verdicts, _ = run(*[check(HELD)] * 3, memory=PROVEN)
    assert [one.readings.get("stopping_seconds") for one in verdicts] == [None, 15, 30]
    assert all(one.healthy for one in verdicts)


def test_work_of_its_own_begins_the_time_anew() -> None:
    works = check(model(DUE, FREE, replace(RUNNER, cpu_seconds=70.0)))  # some, since the last
    rests = check(model(DUE, FREE, replace(RUNNER, cpu_seconds=70.0)))
    verdicts, _ = run(*[check(HELD)] * 2, works, rests, rests, memory=PROVEN)
    assert [one.readings.get("stopping_seconds") for one in verdicts] == [None, 15, None, None, 15]
