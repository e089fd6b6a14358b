"""A runner that was killed and does not end: real processes, and what is said of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from probe.end_runner import heal
from probe.judge import judge
from probe.memory import Memory
from probe.observation import Observation, RunnerHealth, Unending
from probe.processes import started
from probe.report import Reason, Remedy, Verdict
from probe.runners import unending
from probe.settings import Settings
from testbed.deadlines import Deadline
from testbed.faults import freeze, unkillable
from tests.unit.rows import (
    ANY,
    FIRST,
    NOTHING,
    NOW,
    OLD_COMMAND,
    OTHER_ROW,
    OTHER_RUNNER,
    PROVEN,
    REQUIRED,
    RUNNER,
    SILENT,
    TO_SERVER,
    WORKS,
    asked,
    check,
    model,
    past,
)

_TWO_THREADS = """
import ctypes, threading, time
ctypes.CDLL(None).prctl(0x59616D61, -1, 0, 0, 0)  # anybody may trace it
threading.Thread(target=time.sleep, args=(600,)).start()
print(flush=True)
time.sleep(600)
"""

LEFT = Unending(RUNNER.identity, "ollama", True, "D", "nvidia_ioctl")
GONE = replace(check(model(runner=None, health=None, gone=True)), unending=(LEFT,))
HANGS = check(model(health=SILENT), to=(asked(TO_SERVER, NOTHING),))
DOWN = Observation(api_error="/api/ps: no answer")
PORT = 11434


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with two threads that is called like a runner."""
    program = tmp_path / "llama-server"
    program.symlink_to(os.path.realpath(sys.executable))
    with subprocess.Popen([program, "-c", _TWO_THREADS], stdout=subprocess.PIPE) as one:
        assert one.stdout is not None
        one.stdout.readline()
        yield one
        one.kill()


@pytest.fixture(autouse=True)
def _server_is_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probe.runners.server_pid", lambda port, proc: os.getpid())


def seen(process: subprocess.Popen[bytes]) -> list[Unending]:
    identity = f"{process.pid}/{started(process.pid)}"
    return [one for one in unending(PORT) if one.identity == identity]


@pytest.mark.parametrize("frozen", [False, True])
def test_a_process_that_was_killed_and_does_not_end_is_seen_until_it_does(
    process: subprocess.Popen[bytes], frozen: bool
) -> None:
    with unkillable(process.pid):
        if frozen:
            freeze(process.pid)
        assert seen(process) == []
        os.kill(process.pid, signal.SIGKILL)
        deadline = Deadline()
        while not any(one.waits_in == "ptrace_stop" for one in seen(process)):
            assert not deadline.passed, seen(process)
    process.wait()
    assert seen(process) == []


def test_what_is_no_runner_of_this_server_only_keeps_its_container_from_stopping(
    process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with unkillable(process.pid):
        process.kill()
        while not (left := seen(process)):
            assert process.poll() is None
        assert (left[0].name, left[0].runner) == ("llama-server", True)
        monkeypatch.setattr("probe.runners.server_pid", lambda port, proc: os.getpid() + 1)
        monkeypatch.setattr("probe.runners.all_visible", lambda proc: False)
        assert not seen(process)[0].runner
        monkeypatch.setattr("probe.runners.all_visible", lambda proc: True)
        assert seen(process) == []  # it may be of another container


def test_one_that_has_ended_and_waits_for_its_parent_to_notice_has_ended(
    process: subprocess.Popen[bytes],
) -> None:
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert started(process.pid) is not None
    assert seen(process) == []


@pytest.mark.parametrize(
    ("state", "flags", "pending", "ending"),
    [
        ("D", 0, "0000000000000100", True),
        ("R", 0, "0000000000000102", True),  # it spins in a driver
        ("D", 0, "0000000000004000", False),  # SIGTERM
        ("S", 0, "0000000000000100", False),  # it is about to be woken
        ("D", 0x400104, "0000000000000000", True),  # a process that ends by itself takes no signal
    ],
)
def test_a_process_that_the_kernel_holds_is_seen_to_be_ending(
    tmp_path: Path, state: str, flags: int, pending: str, ending: bool
) -> None:
    thread = tmp_path / "7/task/7"
    thread.mkdir(parents=True)
    for directory in (tmp_path / "7", thread):
        fields = f"{state} {os.getpid()} 0 0 0 0 {flags} {'0 ' * 12}99 0 0"
        (directory / "stat").write_text(f"7 (ollama) {fields}")
    (tmp_path / "7/comm").write_text("ollama\n")
    (tmp_path / "7/status").write_text(f"SigPnd:\t0000000000000000\nShdPnd:\t{pending}\n")
    (thread / "wchan").write_text("nvidia_ioctl")
    found = (Unending("7/99", "ollama", True, state, "nvidia_ioctl"),) if ending else ()
    assert unending(PORT, str(tmp_path)) == found


def told(
    observation: Observation, *, after: float, memory: Memory = PROVEN, knobs: Settings = ANY
) -> list[Verdict]:
    """The verdicts of checks every 8 s that all see the same, until so many seconds after the
    first."""
    verdicts = []
    for number in range(int(after // 8) + 1):
        verdict, memory = judge(observation, memory, knobs, NOW + 8 * number)
        verdicts.append(verdict)
    return verdicts


def test_a_runner_that_does_not_end_needs_an_operator_once_it_had_time_to() -> None:
    verdicts = told(GONE, after=24)
    assert [verdict.healthy for verdict in verdicts] == [True, True, True, False]
    assert (verdicts[-1].reason, verdicts[-1].remedy) == (Reason.STALLED, Remedy.OPERATOR)
    assert verdicts[-1].message == (
        "the runner of tiny:latest (process 7 of the container) was killed 24 s ago and does not "
        "end (state D, in nvidia_ioctl). No restart of the container ends it: reset its GPU, or "
        "restart the machine"
    )


def test_a_model_that_hung_before_it_was_killed_does_not_look_healthy_in_between() -> None:
    for verdict in told(GONE, after=16, memory=past(silent_since=NOW - 15)):
        assert (verdict.healthy, verdict.remedy) == (False, Remedy.NONE)
        assert "has not ended yet" in verdict.message


def test_a_killed_runner_that_waits_for_a_cpu_to_end_on_has_time_to() -> None:
    starved = replace(GONE, unending=(replace(LEFT, state="R"),))
    verdicts = told(starved, after=24, memory=past(silent_since=NOW - 15))
    assert [verdict.healthy for verdict in verdicts] == [True, True, True, False]


def test_once_it_has_ended_all_is_well() -> None:
    _, memory = judge(GONE, PROVEN, ANY, NOW)
    verdict, memory = judge(replace(GONE, unending=()), memory, ANY, NOW + 60)
    assert (verdict.healthy, memory.unending) == (True, {})


@pytest.mark.parametrize("observation", [DOWN, HANGS])
def test_no_fault_is_healed_while_a_killed_runner_is_there(observation: Observation) -> None:
    assert told(observation, after=0)[0].remedy in (Remedy.RESTART, Remedy.RUNNER)
    left = replace(LEFT, identity="9/1")
    verdicts = told(replace(observation, unending=(left,)), after=24)
    assert [verdict.healthy for verdict in verdicts] == [False] * 4
    assert [verdict.remedy for verdict in verdicts] == [Remedy.NONE] * 3 + [Remedy.OPERATOR]
    assert verdicts[-1].message.startswith("the runner (process 9 of the container) was killed")


def test_work_that_a_killed_runner_seems_to_do_serves_nobody() -> None:
    works = check(model(health=SILENT, silent_seconds=2.4, runnable_seconds=2.0))
    assert told(works, after=24)[-1].reason is Reason.BUSY
    assert told(replace(works, unending=(LEFT,)), after=24)[-1].remedy is Remedy.OPERATOR


def test_as_long_as_users_get_tokens_it_is_only_a_reading() -> None:
    memory = PROVEN
    for number in range(4):
        used = replace(RUNNER, writes=700 + 1000 * (number + 1), pid=8)
        other = model(OTHER_ROW, runner=replace(used, command=OLD_COMMAND))
        verdict, memory = judge(
            replace(check(other), unending=(LEFT,)), memory, ANY, NOW + 15 * number
        )
        assert (verdict.healthy, verdict.readings["unending"]) == (True, LEFT.identity)


def test_a_required_model_that_was_never_ready_does_not_wait_for_ever() -> None:
    loads = replace(check(missing={"tiny": "yes"}), unending=(LEFT,))
    verdicts = told(loads, after=24, memory=FIRST, knobs=REQUIRED)
    assert (verdicts[0].healthy, verdicts[0].reason) == (False, Reason.LOADING)
    assert (verdicts[-1].reason, verdicts[-1].remedy) == (Reason.STALLED, Remedy.OPERATOR)


def test_what_already_needs_an_operator_keeps_its_reason() -> None:
    missing = replace(check(missing={"tiny": "no"}), unending=(LEFT,))
    verdict = told(missing, after=24, knobs=REQUIRED)[-1]
    assert (verdict.reason, verdict.remedy) == (Reason.MODEL_MISSING, Remedy.OPERATOR)


def test_a_check_without_time_repeats_no_restart() -> None:
    memory = PROVEN
    for number in range(3):
        _, memory = judge(DOWN, memory, ANY, NOW + 15 * number)
    no_time = Observation(no_time="to ask the server", answered=False)
    assert judge(no_time, memory, ANY, NOW + 45)[0].remedy is Remedy.RESTART
    for seconds, remedy in ((45, Remedy.NONE), (70, Remedy.OPERATOR)):
        verdict, memory = judge(replace(no_time, unending=(LEFT,)), memory, ANY, NOW + seconds)
        assert (verdict.healthy, verdict.remedy) == (False, remedy)


def test_nor_that_all_was_well() -> None:
    no_time = replace(GONE, no_time="to read the GPU")
    verdicts = told(no_time, after=24)
    assert [verdict.healthy for verdict in verdicts] == [True, True, True, False]
    assert verdicts[-1].remedy is Remedy.OPERATOR


def test_a_health_check_that_could_not_end_a_runner_does_not_look_healthy_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("probe.end_runner.end", lambda pid, start: "stuck")
    knobs = replace(ANY, retries=3)
    certain = replace(PROVEN, failed=True, suspect=RUNNER.identity, suspect_checks=3)
    verdict, memory = judge(HANGS, certain, knobs, NOW)
    verdict, memory = heal(knobs, verdict, HANGS, memory, lambda _: True)
    assert ("has not ended yet" in verdict.message, len(memory.ended)) == (True, 1)
    verdicts = told(GONE, after=24, memory=memory, knobs=knobs)
    assert [verdict.healthy for verdict in verdicts] == [False] * 4
    assert verdicts[-1].remedy is Remedy.OPERATOR


def test_any_process_that_does_not_end_forbids_a_restart_and_only_a_runner_is_a_fault() -> None:
    check_of_ours = replace(LEFT, identity="30/1", name="python3.11", runner=False)
    well = told(replace(check(model()), unending=(check_of_ours,)), after=24)
    assert [verdict.healthy for verdict in well] == [True] * 4
    verdict = told(replace(DOWN, unending=(check_of_ours,)), after=24)[-1]
    assert verdict.remedy is Remedy.OPERATOR
    assert verdict.message.startswith(
        "process 30 of the container (python3.11) was killed 24 s ago"
    )


def test_a_load_that_goes_on_shows_that_the_server_does_not_wait() -> None:
    memory = PROVEN
    for number in range(6):
        loads = model(health=RunnerHealth("loading", 0.1 * number), runner=OTHER_RUNNER)
        verdict, memory = judge(
            replace(check(loads), unending=(LEFT,)), memory, ANY, NOW + 8 * number
        )
        assert (verdict.healthy, verdict.reason) == (True, Reason.LOADING)


def test_a_model_that_is_busy_is_let_work_though_another_ones_runner_does_not_end() -> None:
    works = replace(WORKS, row=OTHER_ROW, runner=OTHER_RUNNER)
    assert told(replace(check(works), unending=(LEFT,)), after=24)[-1].reason is Reason.BUSY


def test_without_a_memory_nothing_is_restarted_either() -> None:
    forgotten = replace(PROVEN, kept=False, models={})
    verdict, _ = judge(replace(DOWN, unending=(LEFT,)), forgotten, ANY, NOW)
    assert verdict.remedy is Remedy.OPERATOR
    assert judge(GONE, forgotten, ANY, NOW)[0].healthy  # it may be about to end


def test_what_rested_on_a_process_that_has_ended_is_not_repeated() -> None:
    memory = PROVEN
    for number in range(4):
        _, memory = judge(replace(DOWN, unending=(LEFT,)), memory, ANY, NOW + 8 * number)
    for number in range(4, 7):
        no_time = Observation(no_time="to ask the server", answered=False)
        verdict, memory = judge(no_time, memory, ANY, NOW + 8 * number)
        assert "does not end" not in verdict.message
        assert verdict.healthy
