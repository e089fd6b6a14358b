"""What a check says that ran out of its own time, as tables: whatever answered before stands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from probe.gpu_reading import GpuFault
from probe.judge import judge
from probe.loads import STILL_SECONDS
from probe.memory import Episode, Load, Memory
from probe.memory_file import MemoryFile
from probe.observation import Model, Observation
from probe.plan import BUSY_SECONDS, is_suspected, keep, routine, shape_of
from probe.report import Reason
from probe.settings import Settings
from tests.unit.rows import (
    ANSWERED,
    ANY,
    CLOCK,
    EMPTY,
    FIRST,
    GPU,
    GPU_REQUIRED,
    HANGS,
    IN_VRAM,
    KNOWN,
    LOADING,
    NOW,
    ON_CPU,
    PROVEN,
    REQUIRED,
    UNANSWERED,
    UNKNOWN,
    USED_GPU,
    WORKS,
    broken,
    check,
    model,
    past,
)

NOT_ASKED = check(model(), no_time="to ask tiny for a token")
NOT_HEARD = check(model(health=UNKNOWN), no_time="to ask the runner of tiny")
WORKS_UNSEEN = check(WORKS, no_time="to read the GPU")
NOTHING_HEARD = Observation(began_at=NOW, clock=CLOCK, no_time="to ask the server", answered=False)
NOT_LOADED = Observation(began_at=NOW, clock=CLOCK, no_time="to ask for tiny")


def loads(one: Model | None = None) -> Observation:
    return check(one or model(health=LOADING), no_time="for more")


def after(
    reason: Reason, healthy: bool = False, *, ago: float = 15, checks: int = 3, **more: object
) -> Memory:
    """So many checks in a row have ended so, and they had time."""
    last = Episode(NOW + CLOCK - ago, NOW + CLOCK - ago, checks, healthy, reason, "as it was")
    memory = replace(PROVEN, checked_at=NOW - ago, episodes=(last,))
    return replace(memory, **more)  # type: ignore[arg-type]


WAS_READY = after(Reason.READY, True)
WAS_BUSY = after(Reason.BUSY, True, models={"d1": replace(KNOWN, silent_since=NOW - 500)})
WAS_LOADING = after(
    Reason.LOADING, True, load=Load("tiny:latest", NOW - 300, NOW - STILL_SECONDS - 10)
)
ROOM = replace(USED_GPU, models=past(room_bytes=22 << 30).models, episodes=WAS_READY.episodes)
LONG_AGO = NOW - BUSY_SECONDS - 1
LONG_LOAD = Load("tiny:latest", NOW - ANY.load_timeout - 15, NOW - 15)


@pytest.mark.parametrize(
    ("observation", "memory", "settings", "reason", "healthy"),
    [
        # it heard nothing at all: nothing has changed
        (NOTHING_HEARD, WAS_READY, ANY, "ready", True),
        (NOTHING_HEARD, after(Reason.IDLE, True), ANY, "idle", True),
        (NOTHING_HEARD, after(Reason.IDLE, True, checks=1), ANY, "idle", True),
        (NOTHING_HEARD, WAS_LOADING, ANY, "loading", True),
        (NOTHING_HEARD, after(Reason.STALLED), ANY, "stalled", False),
        (NOTHING_HEARD, after(Reason.API_DOWN), ANY, "api_down", False),
        # ... of the server; the GPU is read beside
        (
            replace(NOTHING_HEARD, gpu=broken(GpuFault.UNKNOWN)),
            *(replace(WAS_READY, gpus=("GPU-1",), gpu_faults=1, gpu_fault="unknown"), ANY),
            *("gpu_lost", False),
        ),
        # ... and if that goes on, or has never been otherwise, an operator is needed
        (
            NOTHING_HEARD,
            *(after(Reason.READY, True, no_time_since=LONG_AGO), ANY, "misconfigured", False),
        ),
        (NOTHING_HEARD, FIRST, ANY, "misconfigured", False),
        # ... but not where checks are far apart, or the container was paused
        (NOTHING_HEARD, after(Reason.READY, True, ago=BUSY_SECONDS + 1), ANY, "ready", True),
        (NOT_ASKED, after(Reason.READY, True, ago=BUSY_SECONDS + 1), ANY, "ready", True),
        # the server answered, and the model was not asked
        (NOT_ASKED, WAS_READY, ANY, "ready", True),
        (NOT_ASKED, WAS_BUSY, ANY, "busy", True),
        (NOT_ASKED, after(Reason.STALLED), ANY, "stalled", False),
        (NOT_ASKED, after(Reason.SLOW), ANY, "slow", False),
        (NOT_ASKED, after(Reason.API_DOWN), ANY, "ready", True),
        (NOT_ASKED, after(Reason.IDLE, True), ANY, "ready", True),
        # ... nor the GPU, or nothing but the GPU
        (NOT_ASKED, after(Reason.GPU_LOST), ANY, "gpu_lost", False),
        (NOT_ASKED, after(Reason.CPU_FALLBACK), ANY, "cpu_fallback", False),
        (NOT_ASKED, after(Reason.VRAM_MISMATCH), ANY, "vram_mismatch", False),
        (NOT_ASKED, after(Reason.VRAM_TAKEN), ANY, "vram_taken", False),
        (NOT_LOADED, after(Reason.GPU_LOST), REQUIRED, "gpu_lost", False),
        (loads(), after(Reason.GPU_LOST), ANY, "gpu_lost", False),
        (WORKS_UNSEEN, after(Reason.CPU_FALLBACK), ANY, "cpu_fallback", False),
        (WORKS_UNSEEN, after(Reason.STALLED), ANY, "busy", True),
        (replace(NOT_ASKED, gpu=GPU), after(Reason.GPU_LOST), ANY, "ready", True),
        (replace(NOT_ASKED, gpu=GPU), after(Reason.CPU_FALLBACK), ANY, "ready", True),
        (replace(NOT_ASKED, gpu=GPU), after(Reason.VRAM_MISMATCH), ANY, "ready", True),
        (replace(NOT_ASKED, gpu=GPU), after(Reason.VRAM_TAKEN), ANY, "ready", True),
        (replace(NOTHING_HEARD, gpu=GPU), after(Reason.GPU_LOST), ANY, "busy", True),
        (replace(NOTHING_HEARD, gpu=GPU), after(Reason.CPU_FALLBACK), ANY, "cpu_fallback", False),
        # ... and what an earlier answer said stands
        (NOT_ASKED, after(Reason.MODEL_MISSING), REQUIRED, "model_missing", False),
        (NOT_ASKED, after(Reason.MISCONFIGURED), REQUIRED, "misconfigured", False),
        (NOT_ASKED, WAS_LOADING, ANY, "ready", True),
        (NOT_ASKED, FIRST, ANY, "ready", True),
        (NOT_ASKED, FIRST, REQUIRED, "loading", False),
        (NOT_ASKED, after(Reason.READY, True, no_time_since=LONG_AGO), ANY, "misconfigured", False),
        # what it did hear counts
        (loads(), FIRST, ANY, "loading", True),
        (
            check(HANGS, to=(UNANSWERED,), no_time="for more"),
            *(WAS_READY, ANY, "stalled", False),
        ),
        (check(WORKS, no_time="for more"), WAS_READY, ANY, "busy", True),
        # ... but a runner that was silent, with no time to ask the server, is not stalled by that
        (check(HANGS, no_time="for more"), WAS_READY, ANY, "ready", True),
        (check(HANGS, no_time="for more"), after(Reason.STALLED), ANY, "stalled", False),
        (
            check(model(ON_CPU), gpu=EMPTY, no_time="for more"),
            *(ROOM, GPU_REQUIRED, "cpu_fallback", False),
        ),
        # a load whose runner had no time to answer goes on
        (NOT_HEARD, WAS_LOADING, ANY, "loading", True),
        (NOT_HEARD, WAS_READY, ANY, "ready", True),
        # ... and is not too long where no runner was seen to load: it may have ended since
        (NOT_HEARD, replace(WAS_LOADING, load=LONG_LOAD), ANY, "loading", True),
        (NOT_LOADED, replace(WAS_LOADING, load=LONG_LOAD), REQUIRED, "loading", True),
        (
            loads(),
            *(replace(WAS_LOADING, load=LONG_LOAD), ANY, "stalled", False),
        ),
        # the required model is not loaded
        (NOT_LOADED, WAS_READY, REQUIRED, "ready", True),
        (NOT_LOADED, WAS_LOADING, REQUIRED, "loading", True),
        (NOT_LOADED, after(Reason.MODEL_MISSING), REQUIRED, "model_missing", False),
        (NOT_LOADED, after(Reason.MISCONFIGURED), REQUIRED, "misconfigured", False),
        (NOT_LOADED, after(Reason.STALLED), REQUIRED, "stalled", False),
        (NOT_LOADED, after(Reason.VRAM_TAKEN), REQUIRED, "vram_taken", False),
        (replace(NOT_LOADED, gpu=GPU), after(Reason.VRAM_TAKEN), REQUIRED, "vram_taken", False),
        (NOT_LOADED, after(Reason.API_DOWN), REQUIRED, "loading", True),
        (NOT_LOADED, after(Reason.API_DOWN, proven=False), REQUIRED, "loading", False),
    ],
)
def test_a_check_that_ran_out_of_time_blames_nobody(
    observation: Observation, memory: Memory, settings: Settings, reason: str, healthy: bool
) -> None:
    verdict, _ = judge(observation, memory, settings, NOW)
    assert (verdict.reason, verdict.healthy) == (Reason(reason), healthy), verdict.message


@pytest.mark.parametrize("checks", [1, 2])
@pytest.mark.parametrize(
    "observation", [NOTHING_HEARD, NOT_ASKED], ids=["nothing heard", "not asked"]
)
@pytest.mark.parametrize("reason", [Reason.STALLED, Reason.GPU_LOST, Reason.MISCONFIGURED])
def test_a_fault_that_was_seen_less_than_three_times_is_not_repeated(
    reason: Reason, observation: Observation, checks: int
) -> None:
    """Docker calls a container unhealthy after three failures; these are not three."""
    verdict, left = judge(observation, after(reason, checks=checks), ANY, NOW)
    assert (verdict.healthy, verdict.reason) == (True, Reason.BUSY)
    assert "this check had no time left" in verdict.message
    assert f"found {reason}: as it was" in verdict.message
    assert left.episodes[-1].checks == checks


def test_one_failure_and_checks_without_time_never_make_three_failures_in_a_row() -> None:
    _, memory = judge(check(model(), to=(UNANSWERED,)), WAS_READY, ANY, NOW)
    for later in range(15, 300, 15):
        verdict, memory = judge(NOT_ASKED, memory, ANY, NOW + later)
        assert verdict.healthy
    assert (memory.episodes[-1].reason, memory.episodes[-1].checks) == ("stalled", 1)


@pytest.mark.parametrize("reason", [Reason.LOADING, Reason.API_DOWN])
def test_a_required_model_that_was_never_ready_is_not_called_healthy_for_want_of_time(
    reason: Reason,
) -> None:
    """So a rollout waits for it, and nothing is restarted for `loading`."""
    verdict, _ = judge(NOTHING_HEARD, after(reason, checks=1, proven=False), REQUIRED, NOW)
    assert (verdict.healthy, verdict.reason) == (False, Reason.LOADING)


@pytest.mark.parametrize("memory", [WAS_READY, WAS_BUSY], ids=["ready", "busy"])
@pytest.mark.parametrize(
    "observation",
    [NOTHING_HEARD, check(model(replace(IN_VRAM, expires_text="later")), no_time="for more")],
    ids=["nothing heard", "not asked"],
)
def test_what_a_check_had_no_time_for_is_left_to_the_next_one(
    observation: Observation, memory: Memory
) -> None:
    """So a user's request that ended meanwhile shows then, and a time of being busy goes on."""
    listed = (KNOWN.runner,)
    memory = replace(memory, vram_percents={shape_of(model()): 100.0}, listed=listed)
    _, left = judge(observation, memory, ANY, NOW)
    assert left == replace(memory, no_time_since=NOW)


def test_a_load_goes_on_over_a_check_that_could_not_ask_its_runner() -> None:
    for observation in (NOT_HEARD, NOT_LOADED):
        _, left = judge(observation, WAS_LOADING, REQUIRED, NOW)
        assert left.load is not None
        assert left.load.since == NOW - 300
    _, left = judge(NOT_ASKED, WAS_LOADING, REQUIRED, NOW)
    assert left.load is None


def test_checks_without_time_are_counted_from_the_first_until_one_learns_something(
    tmp_path: Path,
) -> None:
    _, memory = judge(NOTHING_HEARD, WAS_READY, ANY, NOW)
    _, memory = judge(NOT_ASKED, memory, ANY, NOW + 15)
    file = MemoryFile(Settings(state_dir=str(tmp_path), cache_dir=str(tmp_path)))
    file.acquire()
    file.save(memory)
    memory = file.load()
    file.release()
    assert memory.no_time_since == NOW
    _, memory = judge(check(model(), to=(ANSWERED,)), memory, ANY, NOW + 30)
    assert memory.no_time_since is None


def test_a_model_that_was_seen_in_vram_is_remembered_whatever_there_was_no_time_for() -> None:
    _, left = judge(NOT_ASKED, WAS_READY, ANY, NOW)
    assert left.vram_percents == {shape_of(model()): 100.0}


def test_a_runner_that_had_no_time_to_answer_is_asked_for_nothing() -> None:
    one = model(health=UNKNOWN)
    assert routine(one, past(unshared_text="then"), ANY) is None
    assert keep(one, WAS_READY, REQUIRED, NOW) is None
    assert not is_suspected(one, past(silent_since=NOW - 99), ANY, NOW)


def test_a_server_that_never_has_time_for_a_silent_model_needs_an_operator() -> None:
    """Nothing is proven: neither that it is stalled, nor that it is not."""
    memory, verdict = WAS_READY, None
    for later in range(0, int(BUSY_SECONDS) + 60, 15):
        observation = check(HANGS, no_time="to ask the server", began_at=NOW + later)
        verdict, memory = judge(observation, memory, ANY, NOW + later)
        assert verdict.reason in (Reason.READY, Reason.MISCONFIGURED)
    assert verdict is not None
    assert verdict.reason is Reason.MISCONFIGURED
