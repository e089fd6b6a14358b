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
from probe.memory import Memory
from probe.observation import Model, Observation
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
    PROVEN,
    RUNNER,
    SILENT,
    TO_SERVER,
    asked,
    check,
    model,
)

COUNTS = Settings(retries=3)
"""As the image's HEALTHCHECK has it, with a deadline of 10 s."""

DOWN = Observation(NOW, api_error="/api/ps: no answer")
UNANSWERED = asked(TO_SERVER, NOTHING, runner=RUNNER)
HUNG = check(model(ON_CPU, health=SILENT), to=(UNANSWERED,))
"""Its process did nothing at all for 9.7 s."""


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
        seen = replace(observation, began_at=began)
        verdict, memory = judge(seen, memory, settings, began + lasts)
        verdicts.append(verdict)
    return verdicts


def test_a_process_that_does_nothing_at_all_is_a_fault_at_once() -> None:
    [verdict] = told(HUNG, lasts=9.7)
    assert (verdict.healthy, verdict.reason) == (False, Reason.STALLED)
    assert verdict.remedy is Remedy.RUNNER


@pytest.mark.parametrize(
    ("observation", "why"),
    [
        (
            check(model(ON_CPU, SILENT, replace(RUNNER, blocked=True)), to=(UNANSWERED,)),
            "it waits for a disk, or for a driver",
        ),
        (check(model(ON_CPU), to=(UNANSWERED,)), "its loop answers for its slots"),
        (
            check(model(ON_CPU, SILENT), to=(replace(UNANSWERED, runnable_seconds=0.2),)),
            "it did a little",
        ),
        (
            check(model(ON_CPU, SILENT), to=(replace(UNANSWERED, runnable_seconds=None),)),
            "nobody knows what it did",
        ),
        (
            check(model(ON_CPU, SILENT), to=(replace(UNANSWERED, runner=None),)),
            "it has gone, and another one may be loading",
        ),
        (check(model(health=SILENT), to=(UNANSWERED,)), "nobody knows what the GPU did"),
        (check(model(health=SILENT), to=(UNANSWERED,), gpu=GpuReading()), "the same"),
        (check(model(health=SILENT), to=(UNANSWERED,), gpu=BUSY_GPU), "the GPU works"),
        (DOWN, "a server that starts again is silent too"),
        (check(model(ON_CPU, SILENT, OLD), OTHER), "nobody was asked"),
    ],
)
def test_whatever_else_is_found_is_a_doubt_at_first(observation: Observation, why: object) -> None:
    assert told(observation, lasts=9.7)[0].healthy, why


def test_a_still_gpu_makes_it_certain() -> None:
    assert not told(check(model(health=SILENT), to=(UNANSWERED,), gpu=GPU), lasts=9.7)[0].healthy


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
    # three checks in a row, and for longer than two checks may take
    assert [verdict.healthy for verdict in verdicts] == [True, True, True, False, False, False]
    assert verdicts[-1].remedy is Remedy.RESTART
    assert "doubt" not in verdicts[-1].readings


def test_slow_checks_need_no_more_of_them() -> None:
    verdicts = told(*[DOWN] * 3, every=18, lasts=9.7)
    assert [verdict.healthy for verdict in verdicts] == [True, True, False]


@pytest.mark.parametrize("well", [check(model(), to=(ANSWERED,)), Observation(NOW)])
def test_a_check_that_finds_nothing_wrong_ends_a_doubt(well: Observation) -> None:
    verdicts = told(DOWN, DOWN, DOWN, well, DOWN, DOWN, DOWN)
    assert all(verdict.healthy for verdict in verdicts)


def test_faults_of_several_kinds_are_counted_together_as_docker_does() -> None:
    slow = check(model(ON_CPU), to=(UNANSWERED,))
    verdicts = told(*itertools.islice(itertools.cycle([DOWN, slow]), 5))
    assert not verdicts[-1].healthy


def test_there_is_no_doubt_before_the_first_healthy_check() -> None:
    # It would end Docker's start period.
    assert [v.healthy for v in told(DOWN, DOWN, memory=FIRST)] == [False, False]


def test_a_server_that_is_unhealthy_does_not_get_well_by_a_doubt() -> None:
    verdicts = told(HUNG, DOWN, DOWN, lasts=9.7)
    assert [verdict.healthy for verdict in verdicts] == [False, False, False]


def test_a_setting_that_is_wrong_is_no_doubt() -> None:
    wrong = Verdict(False, Reason.MISCONFIGURED, "")
    assert counted(wrong, PROVEN, COUNTS, NOW) == wrong


def test_unless_the_probe_is_to_count_docker_does() -> None:
    assert [v.healthy for v in told(DOWN, settings=Settings())] == [False]


def test_a_check_without_time_repeats_what_was_counted() -> None:
    out_of_time = Observation(NOW, no_time="to ask the server", answered=False)
    verdicts = told(HUNG, out_of_time, lasts=9.7)
    assert [verdict.healthy for verdict in verdicts] == [False, False]
    verdicts = told(DOWN, out_of_time, out_of_time, lasts=9.7)
    assert all(verdict.healthy for verdict in verdicts)


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


@pytest.mark.parametrize(
    ("second", "healthy"), [(DOWN, False), (check(model(), to=(ANSWERED,)), True)]
)
def test_without_a_memory_a_check_looks_twice_by_itself(
    looks: list[Observation], second: Observation, healthy: bool, tmp_path: Path
) -> None:
    looks += [DOWN, second]
    nowhere = str(tmp_path / "not there")
    verdict, _ = whole_check.look(Settings(retries=3, timeout=1, state_dir=nowhere))
    assert verdict.healthy is healthy
    assert looks == []


def test_with_a_memory_it_looks_once(looks: list[Observation], tmp_path: Path) -> None:
    looks += [DOWN]
    whole_check.look(Settings(retries=3, timeout=1, state_dir=str(tmp_path)))
    assert looks == []
