"""Which runner is ended, and when, as tables; and how a process is ended, with real ones."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from probe.end_process import end, evidence
from probe.end_runner import heal
from probe.gpu_reading import GpuReading
from probe.healing import (
    MOST,
    RECENT_SECONDS,
    WINDOW_SECONDS,
    culprit,
    has_rested,
    is_certain,
    is_due,
    is_spent,
    with_end,
    with_suspect,
)
from probe.judge import judge
from probe.memory import Memory
from probe.observation import Dialect, Observation, Runner, RunnerHealth, Slot
from probe.processes import started
from probe.report import Reason, Remedy, Verdict
from probe.retries import CHECKS
from probe.settings import Settings
from tests.unit.rows import (
    ANY,
    BUSY_GPU,
    GPU,
    NOTHING,
    NOW,
    OTHER,
    OTHER_ROW,
    OTHER_RUNNER,
    PROVEN,
    REQUIRED,
    RUNNER,
    SILENT,
    TO_SERVER,
    asked,
    check,
    model,
    past,
    slots,
)

SILENT_FOR_A_MINUTE = past(silent_since=NOW - 60)
HUNG = check(model(health=SILENT), OTHER, to=(asked(TO_SERVER, NOTHING),))


def judged(observation: Observation = HUNG, memory: Memory = PROVEN) -> Verdict:
    return judge(observation, memory, ANY, NOW)[0]


# --- which ----------------------------------------------------------------------------------


def test_a_stalled_model_names_its_process_and_no_other() -> None:
    verdict = judged()
    assert (verdict.reason, verdict.remedy) == (Reason.STALLED, Remedy.RUNNER)
    assert verdict.readings["runner_pid"] == RUNNER.pid
    assert culprit(verdict, HUNG) == RUNNER


def test_a_model_that_waits_behind_another_ones_runner_is_not_blamed() -> None:
    # Up to 0.29 the server begins nothing while it waits for one runner to end.
    hangs = replace(OTHER, health=SILENT, silent_seconds=2.4, runnable_seconds=0.0)
    waits = check(model(), hangs, to=(asked(TO_SERVER, NOTHING),))
    memory = past(silent_since=NOW - 60)
    for _ in range(5):
        verdict, memory = judge(waits, memory, ANY, NOW)
        assert verdict.readings.get("runner_pid") in (None, OTHER_RUNNER.pid)
        assert culprit(verdict, waits, "tiny") is None


def test_of_two_models_whose_runners_answer_while_both_hang_none_is_blamed() -> None:
    both = check(model(), OTHER, to=(asked(TO_SERVER, NOTHING),))
    both = replace(both, asked={**both.asked, OTHER_ROW.key: (asked(TO_SERVER, NOTHING),)})
    verdict = judged(both, SILENT_FOR_A_MINUTE)
    assert (verdict.reason, verdict.remedy) == (Reason.STALLED, Remedy.RESTART)


@pytest.mark.parametrize(
    ("name", "is_meant"), [("tiny", True), ("tiny:latest", True), ("other", False)]
)
def test_only_the_runner_of_the_model_that_was_asked_for_is_ended(
    name: str, is_meant: bool
) -> None:
    assert (culprit(judged(), HUNG, name) is not None) is is_meant


def test_nothing_is_ended_for_a_verdict_that_asks_for_something_else() -> None:
    for remedy in set(Remedy) - {Remedy.RUNNER}:
        verdict = Verdict(False, Reason.STALLED, "", {"runner_pid": RUNNER.pid}, remedy=remedy)
        assert culprit(verdict, HUNG) is None
    assert culprit(Verdict(True, Reason.BUSY, "", {"runner_pid": RUNNER.pid}), HUNG) is None


def test_a_process_that_the_check_has_not_seen_is_not_ended() -> None:
    verdict = replace(judged(), readings={"model": "tiny:latest", "runner_pid": 1})
    assert culprit(verdict, HUNG) is None


IDLE, WORKING = Slot(0, False, 9, 600, 5), Slot(0, True, 9, 600, 5)


@pytest.mark.parametrize(
    ("observation", "remedy"),
    [
        (HUNG, Remedy.RUNNER),
        # its runner answers and has nothing to do: the request waits for something else
        (check(model(health=slots(IDLE)), to=(asked(TO_SERVER, NOTHING),)), Remedy.RESTART),
        (
            check(model(health=slots(WORKING)), to=(asked(TO_SERVER, NOTHING),), gpu=GPU),
            Remedy.RUNNER,
        ),
        # nobody knows which process it is
        (check(model(runner=None), to=(asked(TO_SERVER, NOTHING),)), Remedy.RESTART),
    ],
)
def test_only_where_the_runner_is_the_culprit_its_end_is_asked_for(
    observation: Observation, remedy: Remedy
) -> None:
    verdict = judged(observation, SILENT_FOR_A_MINUTE)
    assert (verdict.reason, verdict.remedy) == (Reason.STALLED, remedy)


def held(ran: float, held_since: float | None, gpu: GpuReading | None = None) -> Verdict:
    """What is said while one silent runner holds up `/api/ps`."""
    one = model(health=SILENT, silent_seconds=1.4, runnable_seconds=ran)
    observation = Observation(api_error="/api/ps: no answer", held_by=(one,), gpu=gpu)
    return judged(observation, past(held_since=held_since, silent_since=NOW - 900))


@pytest.mark.parametrize(
    ("ran", "seconds", "gpu", "reason", "remedy"),
    [
        (0.0, None, GPU, Reason.BUSY, Remedy.NONE),  # seen once, whatever was silent before
        (0.0, 15, GPU, Reason.STALLED, Remedy.RUNNER),
        (0.0, 15, None, Reason.STALLED, Remedy.RUNNER),
        (1.0, 15, GPU, Reason.BUSY, Remedy.NONE),  # it works: a long batch
        (0.03, 15, BUSY_GPU, Reason.BUSY, Remedy.NONE),  # the GPU does
        (0.03, 15, None, Reason.BUSY, Remedy.NONE),  # nobody says whether the GPU does
        (1.0, 599, GPU, Reason.BUSY, Remedy.NONE),
        (1.0, 601, GPU, Reason.STALLED, Remedy.RESTART),  # what works is not ended alone
    ],
)
def test_a_runner_that_holds_up_the_list_of_models_is_the_culprit_and_not_the_server(
    ran: float, seconds: int | None, gpu: GpuReading | None, reason: Reason, remedy: Remedy
) -> None:
    verdict = held(ran, None if seconds is None else NOW - seconds, gpu)
    assert (verdict.reason, verdict.remedy) == (reason, remedy)


def test_the_second_check_that_sees_a_runner_hold_up_the_list_knows_of_the_first() -> None:
    one = model(health=SILENT, silent_seconds=1.4, runnable_seconds=0.0)
    observation = Observation(api_error="/api/ps: no answer", held_by=(one,))
    verdict, memory = judge(observation, PROVEN, ANY, NOW)
    assert verdict.healthy
    verdict, _ = judge(observation, memory, ANY, NOW + 15)
    assert (verdict.reason, verdict.remedy) == (Reason.STALLED, Remedy.RUNNER)
    _, memory = judge(check(model()), memory, ANY, NOW + 15)
    verdict, _ = judge(observation, memory, ANY, NOW + 30)
    assert verdict.healthy  # in between it did not


def test_of_two_silent_runners_neither_is_named() -> None:
    two = (model(health=SILENT, silent_seconds=1.4), model(OTHER_ROW, runner=OTHER_RUNNER))
    observation = Observation(api_error="/api/ps: no answer", held_by=two)
    assert judged(observation).reason is Reason.API_DOWN


def test_a_container_is_not_healthy_before_its_required_model_was_ready_though_another_hangs() -> (
    None
):
    one = model(OTHER_ROW, SILENT, OTHER_RUNNER)
    observation = Observation(api_error="/api/ps: no answer", held_by=(one,))
    verdict, memory = judge(observation, Memory(), REQUIRED, NOW)
    assert (verdict.healthy, verdict.reason) == (False, Reason.LOADING)
    assert not memory.proven


def test_the_runner_of_a_server_elsewhere_is_not_ended() -> None:
    settings = Settings(host="http://192.0.2.1:11434")
    verdict, _ = judge(HUNG, PROVEN, settings, NOW)
    assert (verdict.reason, verdict.remedy) == (Reason.STALLED, Remedy.RESTART)


def test_a_model_that_works_for_too_long_is_not_ended_alone() -> None:
    works = model(health=SILENT, silent_seconds=2.4, runnable_seconds=2.0)
    verdict = judged(
        check(works, to=(asked(TO_SERVER, NOTHING, 5.0),)), past(silent_since=NOW - 9999)
    )
    assert (verdict.reason, verdict.remedy) == (Reason.STALLED, Remedy.RESTART)


def test_a_prompt_that_is_read_is_seen_though_slots_were_silent_in_between() -> None:
    """As during a long batch, in every second check."""
    reads = model(health=slots(Slot(0, True, 9, 600, 0)))
    _, memory = judge(check(reads), PROVEN, ANY, NOW)
    silent = model(health=SILENT, silent_seconds=2.4, runnable_seconds=2.0)
    _, memory = judge(check(silent), memory, ANY, NOW + 15)
    assert memory.models["d1"].silent_since is not None
    reads_on = model(health=slots(Slot(0, True, 9, 9000, 0)))
    _, memory = judge(check(reads_on), memory, ANY, NOW + 30)
    assert memory.models["d1"].silent_since is None


def test_an_mlx_runner_is_not_ended() -> None:
    """Whether its server recovers from that was not seen."""
    mlx = replace(RUNNER, command=replace(RUNNER.command, dialect=Dialect.MLX))
    verdict = judged(check(model(runner=mlx), to=(asked(TO_SERVER, NOTHING),)), SILENT_FOR_A_MINUTE)
    assert verdict.remedy is not Remedy.RUNNER


# --- when -----------------------------------------------------------------------------------


def counted(*runners: Runner | None) -> Memory:
    """The memory after checks that asked for the end of these."""
    memory = Memory()
    for one in runners:
        memory = with_suspect(memory, one)
    return memory


@pytest.mark.parametrize(
    ("runners", "due"),
    [
        ((RUNNER, RUNNER), False),
        ((RUNNER, RUNNER, RUNNER), True),
        ((RUNNER, RUNNER, OTHER_RUNNER), False),
        ((RUNNER, RUNNER, None, RUNNER), False),
        ((RUNNER, RUNNER, RUNNER, None), False),
    ],
)
def test_a_check_waits_for_three_checks_in_a_row_that_name_one_runner(
    runners: tuple[Runner | None, ...], due: bool
) -> None:
    assert is_due(counted(*runners)) is due


def test_after_the_end_of_one_runner_the_count_begins_anew() -> None:
    assert not is_due(with_end(counted(RUNNER, RUNNER, RUNNER), NOW))


def test_no_more_runners_are_ended_than_the_budget_has_and_it_comes_back() -> None:
    memory = Memory()
    for number in range(MOST):
        assert not is_spent(memory, NOW + number)
        memory = with_end(memory, NOW + number)
    assert is_spent(memory, NOW + MOST)
    assert not is_spent(memory, NOW + WINDOW_SECONDS + 1)


def test_a_check_that_is_certain_waits_for_no_other() -> None:
    assert is_due(with_suspect(Memory(), RUNNER, NOW, certain=True))


SINCE = replace(RUNNER, queued_seconds=9.0)


@pytest.mark.parametrize(
    ("runner", "rested"),
    [
        (SINCE, True),
        (replace(SINCE, pid=OTHER_RUNNER.pid), False),
        (replace(SINCE, cpu_seconds=50.5), False),
        (replace(SINCE, queued_seconds=9.5), False),
        # a thread that ended has taken along what it had waited
        (replace(SINCE, cpu_seconds=55.0, queued_seconds=0.0), False),
        (replace(SINCE, read_bytes=1 << 30), False),
        (replace(SINCE, blocked=True), False),
        (replace(SINCE, runnable=True), False),
    ],
)
def test_a_runner_that_has_done_anything_since_is_looked_at_again(
    runner: Runner, rested: bool
) -> None:
    memory = with_suspect(Memory(), SINCE, NOW, certain=True)
    assert has_rested(runner, memory, NOW + 5, answers=False) is rested


@pytest.mark.parametrize(
    ("runner", "rested"),
    [
        (SINCE, True),
        (replace(SINCE, runnable=True), True),  # it answers another's question for its health
        (replace(SINCE, cpu_seconds=SINCE.cpu_seconds + 0.2), True),
        (replace(SINCE, queued_seconds=11.0), True),  # as it does on a crowded machine
        (replace(SINCE, cpu_seconds=SINCE.cpu_seconds + 0.6), False),
        (replace(SINCE, queued_seconds=15.0), False),  # it starves, and may have work to do
        (replace(SINCE, read_bytes=1 << 30), False),
        (replace(SINCE, blocked=True), False),
    ],
)
def test_one_that_answers_for_its_health_may_have_done_that_and_no_more(
    runner: Runner, rested: bool
) -> None:
    # Counted since the check began, which took a while to be certain.
    memory = with_suspect(Memory(checked_at=NOW), SINCE, NOW + 9.7, certain=True)
    assert has_rested(runner, memory, NOW + 10, answers=True) is rested


def test_one_of_which_no_check_was_certain_lately_is_looked_at_again() -> None:
    memory = with_suspect(Memory(), RUNNER, NOW, certain=True)
    assert is_certain(memory, NOW + RECENT_SECONDS)
    assert not is_certain(memory, NOW + RECENT_SECONDS + 1)
    assert not is_certain(counted(RUNNER, RUNNER, RUNNER), NOW)


# --- ending ---------------------------------------------------------------------------------


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def test_a_process_is_ended(sleeper: subprocess.Popen[bytes]) -> None:
    start = int(started(sleeper.pid) or 0)
    assert end(sleeper.pid, start) == "ended"
    assert sleeper.wait() != 0
    assert end(sleeper.pid, start) == "gone"


def test_another_process_with_the_same_number_lives_on(sleeper: subprocess.Popen[bytes]) -> None:
    assert end(sleeper.pid, int(started(sleeper.pid) or 0) - 1) == "gone"
    assert sleeper.poll() is None


def test_what_a_process_does_is_written_down(sleeper: subprocess.Popen[bytes]) -> None:
    seen = evidence(sleeper.pid)
    assert seen.state in ("S", "R", "D")
    assert seen.threads is not None
    assert sum(seen.threads.values()) == 1
    assert seen.connections == 0


def test_of_a_process_that_is_not_there_nothing_is_known(tmp_path: os.PathLike[str]) -> None:
    assert evidence(1, str(tmp_path)).state == ""


# --- the health check itself ------------------------------------------------------------------


@pytest.fixture
def hung(sleeper: subprocess.Popen[bytes]) -> Runner:
    """A runner that may really be ended."""
    return replace(RUNNER, pid=sleeper.pid, started=int(started(sleeper.pid) or 0))


def check_that_heals(
    runner: Runner, memory: Memory, *, saved: bool = True
) -> tuple[Verdict, Memory]:
    observation = check(model(health=SILENT, runner=runner), to=(asked(TO_SERVER, NOTHING),))
    verdict, memory = judge(observation, memory, ANY, NOW)
    return heal(ANY, verdict, observation, memory, lambda _: saved)


def test_a_check_ends_the_runner_at_the_third_time_and_nobody_else_has_to_act(
    hung: Runner, sleeper: subprocess.Popen[bytes]
) -> None:
    memory = PROVEN
    for _ in range(CHECKS - 1):
        verdict, memory = check_that_heals(hung, memory)
        assert (verdict.healthy, verdict.remedy) == (False, Remedy.NONE)
        assert sleeper.poll() is None
    verdict, memory = check_that_heals(hung, memory)
    assert (verdict.healthy, verdict.remedy) == (False, Remedy.NONE)
    assert f"its runner (process {hung.pid}) was ended" in verdict.message
    assert sleeper.wait() != 0
    assert len(memory.ended) == 1
    # a check without time repeats what this one said, and nobody restarts what was healed
    verdict, _ = judge(Observation(no_time="to ask the server", answered=False), memory, ANY, NOW)
    assert verdict.remedy is Remedy.NONE


def test_a_check_that_has_ended_enough_runners_asks_for_a_restart(
    hung: Runner, sleeper: subprocess.Popen[bytes]
) -> None:
    memory = replace(PROVEN, ended=(time.monotonic(),) * MOST)
    verdict, _ = check_that_heals(hung, memory)
    assert verdict.remedy is Remedy.RESTART
    assert "which did not help" in verdict.message
    assert sleeper.poll() is None


def test_without_a_memory_the_check_leaves_it_to_others(
    hung: Runner, sleeper: subprocess.Popen[bytes]
) -> None:
    """It could not know how often it has found this, nor what it has done about it."""
    for memory, saved in ((replace(PROVEN, kept=False), True), (PROVEN, False)):
        for _ in range(CHECKS + 1):
            verdict, memory = check_that_heals(hung, memory, saved=saved)
            assert verdict.remedy is Remedy.RUNNER
    assert sleeper.poll() is None


def test_a_process_that_has_ended_by_itself_is_nobodys_fault(
    hung: Runner, sleeper: subprocess.Popen[bytes]
) -> None:
    sleeper.kill()
    sleeper.wait()
    memory = PROVEN
    for _ in range(CHECKS):
        verdict, memory = check_that_heals(hung, memory)
    assert "has ended by itself meanwhile" in verdict.message
    assert verdict.remedy is Remedy.NONE


def test_a_check_ends_nothing_for_another_fault(hung: Runner) -> None:
    verdict = Verdict(False, Reason.CPU_FALLBACK, "on the CPU", remedy=Remedy.RESTART)
    observation = check(model(runner=hung))
    assert heal(ANY, verdict, observation, PROVEN, lambda _: True) == (verdict, PROVEN)


STANDS = Slot(0, True, 9, 600, 5)


@pytest.mark.parametrize(
    ("now", "ended"),
    [
        ((STANDS,), True),
        ((STANDS, Slot(1, True, 10)), True),  # our own request came to another slot
        ((replace(STANDS, decoded_tokens=6),), False),
        ((replace(STANDS, is_processing=False),), False),
        (None, True),  # it does not even answer
    ],
)
def test_a_runner_that_goes_on_by_now_is_not_ended(
    hung: Runner,
    sleeper: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    now: tuple[Slot, ...] | None,
    ended: bool,
) -> None:
    """It stood still in the middle of an answer, and the question was left unanswered."""
    health = RunnerHealth("silent") if now is None else RunnerHealth("ready", slots=now)
    monkeypatch.setattr("probe.ollama.Server.runner_health", lambda *_: health)
    observation = check(
        model(health=slots(STANDS), runner=hung), to=(asked(TO_SERVER, NOTHING),), gpu=GPU
    )
    memory = PROVEN
    for _ in range(CHECKS):
        verdict, memory = judge(observation, memory, ANY, NOW)
        verdict, memory = heal(ANY, verdict, observation, memory, lambda _: True)
    assert ("was ended" in verdict.message) is ended, verdict
    assert verdict.remedy is Remedy.NONE
    assert (sleeper.poll() is None) is not ended
