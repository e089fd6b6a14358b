"""When a fault counts: at once, or when several checks in a row have found it."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from pathlib import Path

import pytest

from probe import check as whole_check
from probe import observe
from probe.gpu_reading import GpuReading
from probe.judge import judge
from probe.memory import Crashes, Memory, Served
from probe.memory_file import MemoryFile
from probe.observation import Answer, Ask, Asked, Model, Observation, Slot
from probe.plan import CRASHES
from probe.report import Reason, Remedy, Verdict, parse, render
from probe.retries import counted
from probe.settings import Settings
from tests.unit.rows import (
    ANSWERED,
    BUSY_GPU,
    FIRST,
    GPU,
    HANGS,
    NOTHING,
    NOW,
    OLD,
    ON_CPU,
    OTHER,
    OTHER_ROW,
    PROVEN,
    READY,
    RUNNER,
    TO_RUNNER,
    TO_SERVER,
    asked,
    check,
    model,
    slots,
)

COUNTS = Settings(retries=3)
"""As the image's HEALTHCHECK has it, with a deadline of 10 s."""

DOWN = Observation(NOW, api_error="/api/ps: no answer")
SILENT_TWICE = asked(TO_SERVER, NOTHING, runner=RUNNER, still_silent=True)
STILL = replace(HANGS, row=ON_CPU)
HUNG = check(STILL, to=(SILENT_TWICE,))
"""Its process did nothing at all throughout."""


def told(
    *observations: Observation,
    memory: Memory = PROVEN,
    settings: Settings = COUNTS,
    every: float = 8.0,
    lasts: float = 1.0,
) -> list[Verdict]:
    """What Docker is told by checks that begin so often, and take so long."""
    verdicts = []
    for number, observation in enumerate(observations):
        began = NOW + number * every
        seen = replace(observation, began_at=began, ends_at=began + settings.timeout)
        verdict, memory = judge(seen, memory, settings, began + lasts)
        verdicts.append(verdict)
    return verdicts


def hung(model: Model = STILL, request: Asked = SILENT_TWICE, **more: object) -> Observation:
    return check(model, to=(request,), **more)


def test_a_process_that_does_nothing_at_all_is_a_fault_at_once() -> None:
    [verdict] = told(HUNG, lasts=9.7)
    assert (verdict.healthy, verdict.reason) == (False, Reason.STALLED)
    assert verdict.remedy is Remedy.RUNNER


CRASHED = Memory(
    proven=True,
    models=PROVEN.models,
    served={"d1": Served("tiny:latest", "7/1", "then")},
    crashes={"d1": Crashes(CRASHES, NOW, of_users=True)},
)
WANTED = replace(COUNTS, models=("tiny",))
CRASHES_AGAIN = check(model())


def test_beside_what_an_operator_has_to_mend_a_restart_has_to_be_found_as_often_as_ever() -> None:
    """The container has been unhealthy for an hour, and other models serve their users."""
    seen = [CRASHES_AGAIN] * 9 + [DOWN] * 5
    verdicts = told(*seen, memory=CRASHED, settings=WANTED)
    assert not any(verdict.healthy for verdict in verdicts[8:])
    remedies = [verdict.remedy for verdict in verdicts[8:]]
    restart = remedies.index(Remedy.RESTART)
    assert set(remedies[:restart]) == {Remedy.OPERATOR}
    assert restart == 5  # more than three deadlines after the first of them
    assert set(remedies[restart:]) == {Remedy.RESTART}
    assert verdicts[9].reason is Reason.API_DOWN
    assert "the next check looks again" in verdicts[9].message


@pytest.mark.parametrize("settings", [WANTED, replace(WANTED, retries=1)])
@pytest.mark.parametrize("proven", [True, False], ids=["was healthy", "never was"])
def test_one_slow_check_while_a_model_is_missing_restarts_nothing(
    settings: Settings, proven: bool
) -> None:
    """It may be pulled just now, and other models serve their users."""
    missing = Observation(NOW, missing={"tiny": "no"})
    seen = [missing] * 9 + [DOWN, missing] * 9 + [DOWN] * 6
    verdicts = told(*seen, memory=replace(PROVEN, proven=proven), settings=settings)
    remedies = [verdict.remedy for verdict in verdicts]
    assert Remedy.RESTART not in remedies[:-6]
    assert remedies[-1] is Remedy.RESTART


def test_what_an_operator_has_to_mend_does_not_count_towards_a_restart() -> None:
    """One program that begins on a machine takes the VRAM, and makes a check late."""
    missing = Observation(NOW, missing={"tiny": "no"})
    verdicts = told(*[missing] * 4, DOWN, *[missing] * 4, settings=WANTED)
    assert Remedy.RESTART not in {verdict.remedy for verdict in verdicts}


def test_one_slow_check_beside_what_an_operator_has_to_mend_restarts_nothing() -> None:
    seen = [CRASHES_AGAIN] * 9 + [DOWN, CRASHES_AGAIN] * 9
    verdicts = told(*seen, memory=CRASHED, settings=WANTED)
    assert Remedy.RESTART not in {verdict.remedy for verdict in verdicts}


SOME_GPUS = replace(GPU, rest=False)
BLOCKED, RUNNABLE = replace(RUNNER, blocked=True), replace(RUNNER, runnable=True)


@pytest.mark.parametrize(
    ("observation", "why"),
    [
        (hung(replace(STILL, runner=BLOCKED)), "it waits for a disk, or for a driver"),
        (hung(request=replace(SILENT_TWICE, runner=BLOCKED)), "it does so at the end"),
        (hung(replace(STILL, runner=RUNNABLE)), "it waits for a CPU"),
        (hung(request=replace(SILENT_TWICE, runner=RUNNABLE)), "it does so at the end"),
        (hung(replace(STILL, health=READY)), "its loop answers for its slots"),
        (hung(request=replace(SILENT_TWICE, still_silent=False)), "it does so at the end"),
        (hung(replace(STILL, runnable_seconds=0.11)), "it did a little, before it was asked"),
        (hung(request=replace(SILENT_TWICE, runnable_seconds=0.2)), "it did a little, after that"),
        (hung(request=replace(SILENT_TWICE, runnable_seconds=None)), "nobody knows what it did"),
        (hung(replace(STILL, runnable_seconds=None)), "the same, before it was asked"),
        (hung(request=replace(SILENT_TWICE, runner=None)), "another one may be loading"),
        (hung(HANGS), "nobody knows what the GPU did"),
        (hung(HANGS, gpu=GpuReading()), "the same"),
        (hung(HANGS, gpu=BUSY_GPU), "the GPU works"),
        (hung(HANGS, gpu=SOME_GPUS), "it may be on a GPU that NVML does not see"),
        (hung(gpu=BUSY_GPU), "it works for the others, or for a batch of this one"),
        (DOWN, "a server that starts again is silent too"),
        (check(replace(STILL, runner=OLD), OTHER), "nobody was asked"),
    ],
)
def test_whatever_else_is_found_is_a_doubt_at_first(observation: Observation, why: str) -> None:
    assert told(observation, lasts=9.7)[0].healthy, why


SERVES = slots(Slot(0, True, task=4, prompt_tokens=9, decoded_tokens=12))
STANDS = model(ON_CPU, SERVES, stands=True)
LEFT = asked(TO_SERVER, NOTHING, runner=RUNNER, slots=SERVES.slots, taken=True)


@pytest.mark.parametrize(
    "observation",
    [hung(STANDS, LEFT), hung(replace(STANDS, row=HANGS.row), LEFT, gpu=GPU)],
    ids=["on the CPU", "in VRAM"],
)
def test_a_call_that_hangs_is_certain_although_its_process_answers(
    observation: Observation,
) -> None:
    """It is in the middle of the same request all the while, and had nothing to run."""
    [verdict] = told(observation, lasts=9.7)
    assert (verdict.healthy, verdict.reason) == (False, Reason.STALLED)
    assert verdict.remedy is Remedy.RUNNER


MOVED = (Slot(0, True, task=4, prompt_tokens=9, decoded_tokens=13),)
ENDED = (Slot(0, False, task=4, held_tokens=21),)


@pytest.mark.parametrize(
    ("observation", "why"),
    [
        (hung(replace(STANDS, stands=False), LEFT), "nobody looked twice"),
        (hung(STANDS, replace(LEFT, taken=False)), "a client reads no more"),
        (hung(STANDS, replace(LEFT, slots=MOVED)), "a token has come"),
        (hung(STANDS, replace(LEFT, slots=ENDED)), "the request has ended"),
        (hung(STANDS, replace(LEFT, slots=None)), "nobody knows"),
        (hung(STANDS, replace(LEFT, runnable_seconds=0.6)), "it did some work"),
        (hung(STANDS, replace(LEFT, runnable_seconds=None)), "nobody knows what it did"),
        (hung(STANDS, replace(LEFT, runner=None)), "another one may be loading"),
        (hung(STANDS, replace(LEFT, runner=BLOCKED)), "it waits for a disk, or for a driver"),
        (hung(replace(STANDS, runner=RUNNABLE), replace(LEFT, runner=RUNNABLE)), "it starves"),
        (hung(replace(STANDS, row=HANGS.row), LEFT), "nobody knows what the GPU did"),
        (hung(replace(STANDS, row=HANGS.row), LEFT, gpu=BUSY_GPU), "the GPU works"),
        (hung(replace(STANDS, row=HANGS.row), LEFT, gpu=SOME_GPUS), "it may be on another GPU"),
        (check(STANDS), "nobody was asked"),
    ],
)
def test_one_that_answers_is_a_doubt_where_anything_else_may_be(
    observation: Observation, why: str
) -> None:
    assert told(observation, lasts=9.7)[0].healthy, why


FAILED = asked(TO_RUNNER, Answer("error", 0.1, None, 500, "Compute error."), runner=RUNNER)
REFUSED = asked(TO_SERVER, Answer("error", 0.1, None, 200, "no token"), runner=RUNNER)


@pytest.mark.parametrize(
    ("answers", "healthy"),
    [
        ((FAILED, REFUSED), True),
        ((FAILED, REFUSED, FAILED), True),
        ((FAILED, REFUSED, FAILED, FAILED), False),
        ((FAILED, REFUSED, FAILED, ANSWERED), True),
        ((replace(FAILED, ask=Ask("server", 0, keep=True)), FAILED, REFUSED, FAILED), True),
    ],
)
def test_requests_that_fail_one_after_the_other_leave_no_doubt(
    answers: tuple[Asked, ...], healthy: bool
) -> None:
    [verdict] = told(check(model(ON_CPU), to=answers))
    assert verdict.healthy is healthy
    assert healthy or (verdict.reason, verdict.remedy) == (Reason.STALLED, Remedy.RUNNER)


def test_a_still_gpu_makes_it_certain() -> None:
    assert not told(hung(HANGS, gpu=GPU), lasts=9.7)[0].healthy


def test_a_check_that_was_stopped_itself_is_certain_of_nothing() -> None:
    # As by `docker pause`, or with a whole virtual machine: the process was stopped as well.
    [verdict] = told(HUNG, lasts=60)
    assert (verdict.healthy, verdict.readings["doubt"]) == (True, "stalled")


def test_a_doubt_says_what_was_found_and_is_a_fault_once_it_has_lasted() -> None:
    verdicts = told(*[DOWN] * 6)
    first = verdicts[0]
    assert (first.healthy, first.reason) == (True, Reason.BUSY)
    assert first.readings["doubt"] == "api_down"
    assert first.message.startswith("/api/ps: no answer")
    # three checks in a row, and for longer than three checks may take
    assert [verdict.healthy for verdict in verdicts] == [True, True, True, True, False, False]
    assert verdicts[-1].remedy is Remedy.RESTART
    assert "doubt" not in verdicts[-1].readings


def test_slow_checks_need_no_more_of_them() -> None:
    verdicts = told(*[DOWN] * 3, every=18, lasts=9.7)
    assert [verdict.healthy for verdict in verdicts] == [True, True, False]


@pytest.mark.parametrize("well", [check(model(), to=(ANSWERED,)), Observation(NOW)])
def test_a_check_that_finds_nothing_wrong_ends_a_doubt(well: Observation) -> None:
    verdicts = told(*[DOWN] * 4, well, *[DOWN] * 4)
    assert all(verdict.healthy for verdict in verdicts)


def test_faults_of_several_kinds_are_counted_together_as_docker_does() -> None:
    slow = check(model(ON_CPU), to=(asked(TO_SERVER, NOTHING),))
    verdicts = told(*itertools.islice(itertools.cycle([DOWN, slow]), 6))
    assert not verdicts[-1].healthy


def test_there_is_no_doubt_before_the_first_healthy_check() -> None:
    # It would end Docker's start period.
    assert [v.healthy for v in told(DOWN, DOWN, memory=FIRST)] == [False, False]


def test_a_server_that_is_unhealthy_does_not_get_well_by_a_doubt() -> None:
    verdicts = told(HUNG, DOWN, DOWN, lasts=9.7)
    assert [verdict.healthy for verdict in verdicts] == [False, False, False]


def test_a_setting_that_is_wrong_is_no_doubt() -> None:
    wrong = Verdict(False, Reason.MISCONFIGURED, "")
    assert counted(wrong, PROVEN, PROVEN, COUNTS, NOW)[0] == wrong


def test_unless_the_probe_is_to_count_docker_does() -> None:
    assert [v.healthy for v in told(DOWN, settings=Settings())] == [False]


def test_a_check_without_time_repeats_what_was_counted() -> None:
    out_of_time = Observation(NOW, no_time="to ask the server", answered=False)
    verdicts = told(HUNG, out_of_time, lasts=9.7)
    assert [verdict.healthy for verdict in verdicts] == [False, False]
    # Nor are faults in a row that have checks without time between them.
    verdicts = told(*[DOWN, out_of_time] * 4, lasts=9.7)
    assert all(verdict.healthy for verdict in verdicts)


def test_a_check_that_does_not_count_tells_at_once_and_changes_nothing_for_those_that_do() -> None:
    # As of `end-runner`, `serve` and `status`, which share the memory of the health check.
    verdict, memory = judge(DOWN, PROVEN, COUNTS, NOW, counts=False)
    assert not verdict.healthy
    out_of_time = Observation(NOW, no_time="to ask the server", answered=False)
    for observation in (DOWN, out_of_time, HUNG):
        assert memory.suspect_checks == memory.fault_checks == 0
        _, memory = judge(observation, memory, COUNTS, NOW, counts=False)
    assert [v.healthy for v in told(DOWN, out_of_time, DOWN, memory=memory)] == [True, True, True]


def test_what_is_certain_comes_before_another_models_fault() -> None:
    refused = asked(TO_SERVER, Answer("error", 0.1, status=500, message="broken"))
    both = check(OTHER, STILL)
    both = replace(both, asked={OTHER_ROW.key: (refused,), ON_CPU.key: (SILENT_TWICE,)})
    [verdict] = told(both, lasts=9.7)
    assert (verdict.healthy, verdict.readings["runner_pid"]) == (False, RUNNER.pid)


def test_a_doubt_is_a_line_that_an_older_autoheal_takes_for_healthy() -> None:
    line = render(told(DOWN)[0])
    assert line.startswith("healthy busy: ")
    read = parse(line)
    assert read is not None
    assert (read.healthy, read.readings["doubt"]) == (True, "api_down")


# --- a runner that holds up /api/ps ---------------------------------------------------------


def holding(one: Model) -> Observation:
    return Observation(NOW, api_error="/api/ps: no answer", held_by=(one,))


@pytest.mark.parametrize(
    ("one", "healthy"),
    [
        (replace(HANGS, row=ON_CPU), False),
        (replace(HANGS, row=ON_CPU, silent_seconds=1.0), True),
        (replace(HANGS, row=ON_CPU, runner=replace(RUNNER, blocked=True)), True),
        (HANGS, True),
    ],
)
def test_one_that_did_nothing_while_it_held_up_the_list_is_a_fault_at_once(
    one: Model, healthy: bool
) -> None:
    [verdict] = told(holding(one), lasts=9.7)
    assert verdict.healthy is healthy
    assert healthy or verdict.remedy is Remedy.RUNNER


# --- without a memory -----------------------------------------------------------------------


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Observation]:
    """What one check sees, one look after another; the server is a mock."""
    queue: list[Observation] = []

    def look(settings: Settings, memory: Memory, end: float) -> Observation:
        return replace(queue.pop(0), began_at=time.monotonic())

    monkeypatch.setattr(observe, "observe", look)
    return queue


WELL = check(model(), to=(ANSWERED,))


def look(settings: Settings) -> bool:
    """Make a whole check that counts; returns whether it passes."""
    return whole_check.look(settings, counts=True)[0].healthy


@pytest.mark.parametrize(("second", "healthy"), [(DOWN, False), (WELL, True)])
def test_without_a_memory_a_check_looks_twice_by_itself(
    looks: list[Observation], second: Observation, healthy: bool, tmp_path: Path
) -> None:
    looks += [DOWN, second]
    nowhere = str(tmp_path / "not there")
    assert look(Settings(retries=3, timeout=1, state_dir=nowhere)) is healthy
    assert looks == []


def test_with_a_memory_it_looks_once(looks: list[Observation], tmp_path: Path) -> None:
    looks += [DOWN]
    look(Settings(retries=3, timeout=1, state_dir=str(tmp_path)))
    assert looks == []


def test_a_memory_that_was_lost_is_none(looks: list[Observation], tmp_path: Path) -> None:
    """As on a full disk, which leaves an empty file."""
    settings = Settings(retries=3, timeout=1, state_dir=str(tmp_path))
    looks += [WELL, DOWN, WELL]
    look(settings)
    Path(MemoryFile(settings).path).write_bytes(b"")
    assert look(settings)
    assert looks == []


def test_beside_another_check_that_takes_its_time_one_fault_is_a_doubt(
    looks: list[Observation], tmp_path: Path
) -> None:
    settings = Settings(retries=3, timeout=1, state_dir=str(tmp_path))
    looks += [WELL, DOWN]
    look(settings)
    other = MemoryFile(settings)
    other.acquire()
    try:
        assert look(settings)
    finally:
        other.release()
    assert looks == []
