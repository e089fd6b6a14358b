"""When a health check ends the server, as tables; the end itself is tested on an engine."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from probe import end_runner, end_server
from probe.healing import restart_is_due, with_end
from probe.judge import judge
from probe.memory import Episode, Memory
from probe.observation import Observation
from probe.processes import first_child
from probe.report import Reason, Remedy, Verdict
from probe.restarts import BUDGET, Restarts
from probe.retries import CHECKS
from probe.settings import Settings
from tests.unit.rows import (
    ANY,
    NOTHING,
    NOW,
    PROVEN,
    REQUIRED,
    SILENT,
    TO_SERVER,
    asked,
    check,
    model,
    run,
)

HUNG = check(model(health=SILENT), to=(asked(TO_SERVER, NOTHING),))
[(HOUR, MOST), (DAY, MOST_A_DAY)] = BUDGET.values()

DOWN = Verdict(False, Reason.API_DOWN, "/api/ps: no answer")
NO_ANSWER = Observation(api_error="/api/ps: no answer", answered=False)


def found(checks: int, since: float = 60) -> Memory:
    """The memory after so many checks in a row that have found that a restart would help."""
    last = Episode(0, 0, checks, False, "api_down", "")
    return Memory(proven=True, fault_since=NOW - since, restart_checks=checks, episodes=(last,))


THREE = found(3)


@pytest.mark.parametrize(
    ("memory", "due"),
    [
        (THREE, True),
        (found(2), False),
        (found(9, since=29), False),  # checks by hand, at once
        (Memory(), False),
    ],
)
def test_a_restart_is_due_after_several_checks_and_some_time(memory: Memory, due: bool) -> None:
    assert restart_is_due(memory, ANY, NOW) is due


@pytest.mark.parametrize(
    ("observations", "checks"),
    [
        ((NO_ANSWER,) * 3, 3),
        ((NO_ANSWER, NO_ANSWER, check(model())), 0),
        ((NO_ANSWER, NO_ANSWER, Observation(missing={"tiny": "no"})), 0),  # an operator's
        # a runner is ended first
        ((HUNG,) * 5, 0),
        ((NO_ANSWER, HUNG, NO_ANSWER), 2),
    ],
)
def test_only_checks_count_that_have_found_that_a_restart_would_help(
    observations: tuple[Observation, ...], checks: int
) -> None:
    _, memory = run(*observations, memory=PROVEN, settings=REQUIRED)
    assert memory.restart_checks == checks


def test_a_runner_that_cannot_be_ended_counts_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probe.end_runner.end", lambda pid, start: "denied")
    monkeypatch.setattr("time.monotonic", lambda: NOW)
    memory = PROVEN
    for _ in range(15):  # the first nine have tried it
        verdict, memory = judge(HUNG, memory, ANY, NOW)
        verdict, memory = end_runner.heal(ANY, verdict, HUNG, memory, lambda _: True)
    assert verdict.remedy is Remedy.RESTART
    assert memory.restart_checks >= CHECKS


def test_after_the_end_of_a_runner_the_count_begins_anew() -> None:
    assert with_end(THREE, NOW).restart_checks == 0


# --- the server -------------------------------------------------------------------------------


class Machine:
    """A container with a server in it, and the signals that were sent."""

    def __init__(self, patch: pytest.MonkeyPatch, directory: Path) -> None:
        self.sent: list[tuple[int, int, signal.Signals]] = []
        self.now = NOW
        self.settings = Settings(
            heal="restart", restart_policy="unless-stopped", cache_dir=str(directory)
        )
        self.pid: int | None = 1
        self.saves = True
        self.first, self.child, self.hosts, self.may = "ollama", 9, False, True
        patch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        patch.setattr("probe.runners.server_pid", lambda port: self.pid)
        patch.setattr(end_server, "started", lambda pid: "500")
        patch.setattr(end_server, "send", self._send)
        patch.setattr(end_server, "all_visible", lambda: self.hosts)
        patch.setattr(end_server, "name_of", lambda pid: self.first)
        patch.setattr(end_server, "first_child", lambda pid: self.child)
        patch.setattr("time.monotonic", lambda: self.now)
        patch.setattr("time.clock_gettime", lambda clock: self.now)

    def _send(self, pid: int, start: int, number: int) -> str:
        if number not in (0, signal.SIGCONT):
            self.sent.append((pid, start, signal.Signals(number)))
        return "sent" if self.may else "denied"

    def heal(self, memory: Memory = THREE, verdict: Verdict = DOWN) -> tuple[Verdict, Memory]:
        return end_server.heal(self.settings, verdict, memory, lambda memory: self.saves)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    monkeypatch.setattr("probe.restarts._short_lived", lambda directory, proc: None)
    return Machine(monkeypatch, tmp_path)


def test_the_server_is_asked_to_end_once_and_the_remedy_is_none_meanwhile(
    machine: Machine,
) -> None:
    verdict, memory = machine.heal()
    assert machine.sent == [(1, 500, signal.SIGTERM)]
    assert verdict.remedy is Remedy.NONE
    assert (
        "sent SIGTERM to the server, so that Docker starts the container again" in verdict.message
    )
    machine.now += 9
    verdict, memory = machine.heal(memory)
    assert (len(machine.sent), verdict.remedy) == (1, Remedy.NONE)


@pytest.mark.parametrize(("pid", "number"), [(1, signal.SIGQUIT), (9, signal.SIGKILL)])
@pytest.mark.parametrize("interval", [11, 40, 3600])
def test_a_server_that_does_not_end_is_made_to_and_then_left_to_others(
    machine: Machine, pid: int, number: signal.Signals, interval: float
) -> None:
    machine.pid, machine.first = pid, "tini"
    _, memory = machine.heal()
    machine.now += interval
    verdict, memory = machine.heal(memory)
    assert [one[2] for one in machine.sent] == [signal.SIGTERM, number]
    assert verdict.remedy is Remedy.NONE
    machine.now += 21
    verdict, memory = machine.heal(memory)
    assert (len(machine.sent), verdict.remedy) == (2, Remedy.RESTART)
    assert "it does not exit: restart the container" in verdict.message


def with_(**fields: object) -> Callable[[Machine], None]:
    def change(machine: Machine) -> None:
        for name, value in fields.items():
            setattr(machine, name, value)

    return change


def settings(**fields: object) -> Callable[[Machine], None]:
    def change(machine: Machine) -> None:
        machine.settings = replace(machine.settings, **fields)  # type: ignore[arg-type]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (settings(restart_policy="none"), "set PROBE_RESTART_POLICY to this container's"),
        (settings(restart_policy="no"), "with the restart policy no the container would stay"),
        (settings(restart_policy="on-failure"), "would stay stopped"),
        (settings(host="http://192.0.2.1:11434"), "the server is not in this container"),
        (with_(hosts=True), "the container uses the host's processes"),
        (with_(may=False), f"user {os.geteuid()} may not signal it"),
        (with_(pid=9, first="sh"), "process 1 is sh, not Ollama: start it with `exec"),
        (with_(pid=10, first="tini"), "process 1 is tini, not Ollama"),  # which waits for process 9
        (with_(pid=None), "no Ollama server found on port 11434"),
        (with_(saves=False), "PROBE_STATE_DIR cannot be written"),
    ],
)
def test_where_the_container_might_stay_down_or_be_ended_for_ever_its_server_is_not_ended(
    machine: Machine, change: Callable[[Machine], None], words: str
) -> None:
    change(machine)
    verdict, _ = machine.heal()
    assert machine.sent == []
    assert verdict.remedy is Remedy.RESTART
    assert words in verdict.message


def test_in_kubernetes_it_is_left_to_the_liveness_probe(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There a container that starts again is a new one, and the count of its ends is lost."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    verdict, _ = machine.heal()
    assert (machine.sent, verdict.remedy) == ([], Remedy.RESTART)


def test_without_a_memory_nothing_is_ended(machine: Machine) -> None:
    verdict, _ = machine.heal(replace(THREE, kept=False))
    assert (machine.sent, verdict.remedy) == ([], Remedy.RESTART)


def test_a_server_that_has_not_begun_yet_has_as_long_as_a_load_may_take(machine: Machine) -> None:
    machine.settings = replace(machine.settings, load_timeout=NOW)
    verdict, _ = machine.heal(replace(THREE, proven=False))
    assert (machine.sent, verdict.remedy) == ([], Remedy.NONE)
    machine.now += 10  # it started five seconds after the machine
    machine.heal(replace(THREE, proven=False))
    assert len(machine.sent) == 1


def test_the_server_is_ended_a_few_times_an_hour_after_longer_and_longer_waits(
    machine: Machine,
) -> None:
    """Each time it starts anew: nothing but the file is left of what was."""
    waits = []
    for wait in (0, 60, 240):
        machine.now += wait - 1
        if wait:
            verdict, _ = machine.heal()
            waits.append("will be ended again in" in verdict.message)
        machine.now += 1
        machine.heal()
    assert waits == [True, True]
    assert len(machine.sent) == MOST
    machine.now += 600
    verdict, _ = machine.heal()
    assert f"was ended {MOST} times within an hour, which is the limit" in verdict.message
    assert (len(machine.sent), verdict.remedy) == (MOST, Remedy.RESTART)
    machine.now += HOUR
    machine.heal()
    assert len(machine.sent) == MOST + 1


def test_a_fault_that_no_end_helps_against_is_given_up_for_the_day(machine: Machine) -> None:
    for _ in range(4 * 24):
        verdict, _ = machine.heal()
        machine.now += DAY / 100
    assert len(machine.sent) == MOST_A_DAY
    assert f"was ended {MOST_A_DAY} times within a day, which is the limit" in verdict.message
    assert verdict.remedy is Remedy.RESTART


# --- what outlives it -------------------------------------------------------------------------

ROOT = "1 0 0:1 / / rw - overlay overlay rw\n"


def proc(directory: Path, *mounts: str, boot: str = "b") -> str:
    (directory / "self").mkdir(parents=True, exist_ok=True)
    (directory / "self/mountinfo").write_text(ROOT + "".join(mounts))
    (directory / "sys/kernel/random").mkdir(parents=True, exist_ok=True)
    (directory / "sys/kernel/random/boot_id").write_text(boot)
    return str(directory)


def test_an_end_is_known_to_the_next_life_of_the_container_and_to_no_other_boot(
    tmp_path: Path,
) -> None:
    first = Restarts(str(tmp_path), proc(tmp_path / "proc"))
    assert first.note(NOW)
    assert Restarts(str(tmp_path), proc(tmp_path / "proc")).times == (NOW,)
    assert Restarts(str(tmp_path), proc(tmp_path / "proc", boot="c")).times == ()


@pytest.mark.parametrize("kind", ["tmpfs", "ramfs"])
def test_what_ends_with_the_container_is_no_place_for_it(tmp_path: Path, kind: str) -> None:
    mount = f"2 1 0:2 / {tmp_path} rw - {kind} {kind} rw\n"
    one = Restarts(str(tmp_path), proc(tmp_path / "proc", mount))
    assert one.problem is not None
    assert kind in one.problem
    assert not one.note(NOW)
    assert list(tmp_path.glob("restarts*")) == []


def test_a_mount_inside_another_one_decides(tmp_path: Path) -> None:
    mounts = (
        f"2 1 0:2 / {tmp_path.parent} rw - tmpfs tmpfs rw\n",
        f"3 2 0:3 / {tmp_path} rw shared:1 - ext4 /dev/sda rw\n",
    )
    assert Restarts(str(tmp_path), proc(tmp_path / "proc", *mounts)).problem is None


def test_where_nothing_can_be_written_or_read_nothing_is_ended(tmp_path: Path) -> None:
    nowhere = Restarts(str(tmp_path / "nowhere"), proc(tmp_path / "proc"))
    assert not nowhere.note(NOW)
    assert nowhere.problem is not None
    for content in ("", "[]", '{"boot": "b"}', '{"boot": "b", "times": ["x"]}', "{"):
        Path(nowhere.path).parent.mkdir(exist_ok=True)
        Path(nowhere.path).write_text(content)
        broken = Restarts(str(tmp_path / "nowhere"), proc(tmp_path / "proc"))
        assert broken.problem is not None
        assert "cannot be read" in broken.problem
        assert not broken.note(NOW)


def test_the_file_is_as_small_as_a_day_has_ends(tmp_path: Path) -> None:
    one = Restarts(str(tmp_path), proc(tmp_path / "proc"))
    for number in range(20):
        assert one.note(NOW + number * DAY / 2)
    assert len(json.loads(Path(one.path).read_text())["times"]) == 2


def test_the_first_child_is_the_one_that_started_first(tmp_path: Path) -> None:
    for pid, parent, start in ((1, 0, 5), (7, 1, 20), (8, 1, 10), (9, 7, 1)):
        (tmp_path / str(pid)).mkdir()
        fields = f"S {parent} " + "0 " * 17 + f"{start} 0 0\n"
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (x) {fields}")
    assert first_child(1, str(tmp_path)) == 8
    assert first_child(8, str(tmp_path)) is None
