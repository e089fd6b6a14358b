"""What the healer does beyond a restart, and when it does nothing, on a real engine."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.models.containers import Container

from autoheal.engine import Engine
from autoheal.lease import Holder, Leases
from autoheal.settings import Settings
from probe.processes import started
from tests.e2e.conftest import (
    AUTOHEAL,
    MILLISECOND,
    ROOT,
    SECOND,
    Autoheal,
    Hook,
    Patient,
    fall_sick,
)
from tests.nvml import HEALTHY, Nvml

Start = Callable[..., Autoheal]
Patients = Callable[..., Patient]
WATCHING = "watching the Docker engine"
PROMPT = {"AUTOHEAL_BACKOFF": "1", "AUTOHEAL_SETTLE": "2", "AUTOHEAL_INTERVAL": "1"}


class Cure:
    """A container that is well while a file of this machine's is there, whatever is done to it."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "cure" / "well"
        self.file.parent.mkdir()
        self.file.touch()

    @property
    def options(self) -> dict[str, Any]:
        check = {"test": ["CMD-SHELL", "test -e /cure/well"], "interval": SECOND // 4}
        return {
            "volumes": {str(self.file.parent): {"bind": "/cure", "mode": "ro"}},
            "healthcheck": {**check, "retries": 1, "start_period": MILLISECOND},
        }


@pytest.fixture
def cure(tmp_path: Path) -> Cure:
    return Cure(tmp_path)


@pytest.fixture
def told(tmp_path: Path) -> Callable[[], list[list[str]]]:
    """A script that notes what people are told; what it noted so far."""
    script, file = tmp_path / "tell", tmp_path / "told"
    script.write_text(f'#!/bin/sh\nprintf "%s|" "$@" >> {file}; echo >> {file}\n')
    script.chmod(0o755)

    def read() -> list[list[str]]:
        return [line.split("|") for line in file.read_text().splitlines()] if file.exists() else []

    return read


def command(healer: Autoheal, *words: str, fails: bool = False) -> str:
    """Run `autoheal ...` where this autoheal runs; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "autoheal.cli", *words],
        env={**os.environ, **healer.env},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode != 0) is fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def wait_told(told: Callable[[], list[list[str]]], news: str, seconds: float = 20) -> list[str]:
    deadline = time.monotonic() + seconds
    while not (found := [one for one in told() if one[0] == news]):
        assert time.monotonic() < deadline, told()
        time.sleep(0.05)  # a file that another process writes
    return found[0]


def test_what_does_not_help_is_not_done_again_and_at_the_end_one_person_is_told_once(
    patient: Patients, autoheal: Start, cure: Cure, told: Any, tmp_path: Path
) -> None:
    one = patient(**cure.options)
    healer = autoheal(AUTOHEAL_NOTIFY_SCRIPT=str(tmp_path / "tell"), **PROMPT)
    healer.wait_line(WATCHING)
    before = one.attributes["Id"]
    cure.file.unlink()
    healer.wait_line("given up, a person is needed")
    done = [line for line in healer.lines if "(attempt" in line]
    assert [line.split(": ")[1].split(" in ")[0] for line in done] == [
        *("restarted", "restarted", "recreated")
    ]
    times = [
        float(e["at"])
        for i in json.loads(command(healer, "history", "--json"))
        for e in i["attempts"]
    ]
    assert times[1] - times[0] >= 1
    assert times[2] - times[1] >= 2
    assert wait_told(told, "given_up")[1] == one.name
    assert "given up" in command(healer, "status")
    # by hand
    cure.file.touch()
    healer.wait_line("the incident is over (?:.recovered.)")
    assert [news[0] for news in told()].count("given_up") == 1
    assert "given up" not in command(healer, "status")
    [row] = json.loads(command(healer, "status", "--json"))
    assert row["container"] == one.name
    assert row["id"] != before[:12]


def test_a_pause_outlives_a_restart_and_ends_by_command(
    patient: Patients, autoheal: Start, tmp_path: Path
) -> None:
    one, healer = patient(), autoheal(**PROMPT)
    healer.wait_line(WATCHING)
    said = command(healer, "pause", one.name, "--for", "10m")
    assert said.startswith(f"{one.name}: left alone until 20")
    healer.process.kill()
    healer = autoheal(**PROMPT)
    healer.wait_line(WATCHING)
    before = one.started_at
    fall_sick(one)
    healer.wait_line("healing is paused|unhealthy, waiting")
    assert "paused for 10 min" in command(healer, "status")
    assert one.started_at == before
    assert command(healer, "resume") == "All containers: healed again\n"
    healer.wait_line("is healthy again")
    assert command(healer, "resume") == "All containers: was not paused\n"


def test_one_that_gets_well_within_its_delay_is_left_alone(
    patient: Patients, autoheal: Start, label: str, cure: Cure
) -> None:
    labels = {label: "true", "autoheal.delay": "4", "autoheal.settle": "1"}
    one, healer = patient(labels=labels, **cure.options), autoheal()
    healer.wait_line(WATCHING)
    before = one.started_at
    cure.file.unlink()
    healer.wait_line("unhealthy, waiting")
    cure.file.touch()
    healer.wait_line("is healthy again; nothing was done")
    healer.wait_line("the incident is over .recovered")
    assert one.started_at == before


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        ({"autoheal.dry-run": "true"}, "dry run: this would be a restart"),
        ({"autoheal.action": "none"}, "autoheal.action=none leaves it to a person"),
        ({"autoheal.ladder": "redeploy"}, "it belongs to no Compose service"),
    ],
    ids=["dry run", "none", "redeploy of what is not Compose's"],
)
def test_labels_that_mean_hands_off(
    patient: Patients, autoheal: Start, label: str, labels: dict[str, str], line: str
) -> None:
    one, healer = patient(labels={label: "true", **labels}), autoheal(**PROMPT)
    healer.wait_line(WATCHING)
    before = one.started_at
    fall_sick(one)
    healer.wait_line(line)
    one.wait_health("unhealthy")
    assert one.started_at == before
    assert not [line for line in healer.lines if "restarting" in line]


def test_stop_stops_it_and_it_stays_stopped(patient: Patients, autoheal: Start, label: str) -> None:
    one = patient(labels={label: "true", "autoheal.action": "stop"})
    healer = autoheal(**PROMPT)
    healer.wait_line(WATCHING)
    fall_sick(one)
    healer.wait_line("stopped in")
    assert one.attributes["State"]["Status"] == "exited"


def test_two_supervisors_on_one_engine_heal_each_incident_once(
    patient: Patients, autoheal: Start, tmp_path: Path, label: str
) -> None:
    one = patient(labels={label: "true", "autoheal.action": "restart"})
    (tmp_path / "other").mkdir()
    healers = [autoheal(**PROMPT), autoheal(AUTOHEAL_STATE_DIR=str(tmp_path / "other"), **PROMPT)]
    for healer in healers:
        healer.wait_line(WATCHING)
    # Listened to from here on: the engine remembers no more than the last 256 of everybody's.
    events = one.container.client.api.events(  # type: ignore[union-attr]
        decode=True, filters={"container": one.container.id}
    )
    for _ in range(3):
        before = one.started_at
        fall_sick(one)
        one.wait_restarted(before)
        one.wait_health("healthy")
    for healer in healers:
        healer.wait_line("the incident is over")
    done = [line for h in healers for line in h.lines if ": restarted in" in line]
    assert len(done) == 3
    one.container.top()  # an event too: the last to be read
    actions = itertools.takewhile(lambda action: action != "top", (e["Action"] for e in events))
    assert list(actions).count("restart") == 3


def test_a_lease_that_was_renewed_is_still_nobody_elses(label: str) -> None:
    mine, other = Holder.this_process(None), os.getppid()
    theirs = replace(mine, pid=other, started=started(other) or "")
    engine = Engine(Settings(), os.environ)
    one, another = Leases(engine, mine), Leases(engine, theirs)
    for _ in range(3):
        assert one.take(label) is None
        assert another.take(label) is not None
    one.give_back(label)
    assert another.take(label) is None
    assert one.take(label) is not None
    another.give_back(label)
    assert engine.claims(f"autoheal.lease={label}") == {}


def test_the_lease_of_a_supervisor_that_was_killed_is_taken_over_at_once(
    patient: Patients, autoheal: Start, tmp_path: Path, cure: Cure
) -> None:
    one, healer = patient(**cure.options), autoheal(**PROMPT)
    healer.wait_line(WATCHING)
    cure.file.unlink()
    healer.wait_line("restarted in")
    healer.process.kill()
    healer.process.wait()
    (tmp_path / "other").mkdir()
    successor = autoheal(AUTOHEAL_STATE_DIR=str(tmp_path / "other"), **PROMPT)
    successor.wait_line("restarted in", seconds=15)
    cure.file.touch()
    one.wait_health("healthy")
    successor.wait_line("the incident is over")


def test_a_lease_that_was_forgotten_is_dropped_and_one_that_holds_is_not(
    autoheal: Start, engine: docker.DockerClient, label: str
) -> None:
    now = time.time()
    holder = {"host": "elsewhere", "container": "", "boot": "", "pid": 1, "started": "1"}
    for name, until in (("held", now + 60), ("forgotten", now - 2 * 86_400)):
        claim = {
            "autoheal.lease": f"{label}-{name}",
            "autoheal.lease.holder": json.dumps(holder),
            "autoheal.lease.until": f"{until:.3f}",
        }
        engine.volumes.create(f"autoheal-lease-{label}-{name}", labels=claim)
    dropped = engine.api.events(
        decode=True,
        until=int(now) + 60,
        filters={"volume": f"autoheal-lease-{label}-forgotten", "event": "destroy"},
    )
    autoheal(**PROMPT)
    next(dropped)
    engine.volumes.get(f"autoheal-lease-{label}-held").remove()


def test_a_group_goes_together(patient: Patients, autoheal: Start, label: str) -> None:
    group = {"autoheal.group": label}
    one, other = patient(labels={label: "true", **group}), patient(labels=group)
    stranger = patient(labels={"autoheal.group": "another"})
    healer = autoheal(**PROMPT)
    healer.wait_line(WATCHING)
    before, untouched = other.started_at, stranger.started_at
    fall_sick(one)
    other.wait_restarted(before)
    healer.wait_line(f"{one.name} is healthy again")
    assert stranger.started_at == untouched


def test_one_that_uses_more_than_it_may_is_healed_with_that_reason(
    start: Callable[..., Container], autoheal: Start, label: str, engine: docker.DockerClient
) -> None:
    container = start(
        AUTOHEAL,
        ["test -e /calm && exec sleep 1000; touch /calm; while :; do :; done"],
        entrypoint=["/bin/sh", "-c"],
        labels={label: "true"},
        healthcheck={"test": ["NONE"]},
        stop_signal="SIGKILL",
    )
    healer = autoheal(CHECK_INTERVAL="1", MAX_UNHEALTHY="2", MAX_CPU_PERCENT="30", **PROMPT)
    line = healer.wait_line("is unhealthy: over_limit")
    assert "more than 30 %, 2 looks in a row" in line
    healer.wait_line(f"{container.name}: restarted")
    healer.wait_line("the incident is over .healed")


def test_a_dead_receiver_delays_nothing_and_no_secret_reaches_the_log(
    patient: Patients, autoheal: Start, hook: Hook
) -> None:
    got, arrived, port = hook.told, hook.arrived, hook.port
    one = patient()
    healer = autoheal(
        WEBHOOK_URL="http://127.0.0.1:9/hidden",
        APPRISE_URL="http://127.0.0.1:9/hidden",
        AUTOHEAL_NOTIFY_URLS=f"json://127.0.0.1:9/hidden json://127.0.0.1:{port}/hidden",
        **PROMPT,
    )
    healer.wait_line(WATCHING)
    fall_sick(one)
    healer.wait_line("is healthy again")
    assert arrived.wait(10)
    assert got[0]["title"] == f"autoheal: healed: {one.name}"
    assert "Successfully restarted the container!" in got[0]["message"]
    healer.wait_line("the webhook: it could not be reached .*; again in 5 s")
    healer.wait_line("receiver 1 of AUTOHEAL_NOTIFY_URLS: .*; again in 5 s")
    assert not [line for line in healer.lines if "hidden" in line or ":9" in line]


def test_a_service_that_apprise_does_not_know_is_said_at_the_start(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autoheal.cli", "run"],
        env={**os.environ, "AUTOHEAL_NOTIFY_URLS": "pigeon://secret/home"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "autoheal: AUTOHEAL_NOTIFY_URLS=(hidden): address 1 (pigeon://...) must be one that "
        "Apprise knows: https://appriseit.com/services/\n"
    )


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a disk of its own with 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_under_the_ledger_stops_no_heal_and_loses_no_history(
    patient: Patients, autoheal: Start, full_disk: Path
) -> None:
    one = patient()
    healer = autoheal(AUTOHEAL_LEDGER=f"{full_disk}/ledger.db", **PROMPT)
    healer.wait_line(WATCHING)
    fall_sick(one)
    healer.wait_line("the incident is over")
    (full_disk / "filler").write_bytes(bytes(1_800_000))
    fall_sick(one)
    healer.wait_line("autoheal is degraded: the ledger .* cannot be written .the disk is full")
    healer.wait_line("the incident is over", count=2)
    healer.stop()
    (full_disk / "filler").unlink()
    healer = autoheal(AUTOHEAL_LEDGER=f"{full_disk}/ledger.db", **PROMPT)
    healer.wait_line(WATCHING)
    assert len(json.loads(command(healer, "history", "--json"))) == 2


def test_a_person_can_have_a_healthy_one_healed_and_see_what_was_done(
    patient: Patients, autoheal: Start
) -> None:
    one, healer = patient(), autoheal(**PROMPT)
    healer.wait_line(WATCHING)
    healer.wait_healthy()
    assert (
        command(healer, "heal", one.name, "--action", "recreate") == f"{one.name}: recreate done\n"
    )
    story = command(healer, "history", one.name)
    for step in ("create", "stop", "set aside", "rename", "start", "remove"):
        assert f"{one.name}: {step}" in story
    said = command(healer, "heal", "nobody-there", fails=True)
    assert said == "autoheal: nobody-there: there is no container nobody-there\n"
    said = command(healer, "heal", one.name, "--action", "redeploy", fails=True)
    assert said == f"autoheal: {one.name}: redeploy cannot be done to {one.name}\n"


def test_a_drill_breaks_it_reports_the_times_and_asks_first(
    patient: Patients, autoheal: Start
) -> None:
    one = patient(
        healthcheck={
            # it hangs, as a frozen server does
            "test": ["CMD-SHELL", "grep -q 'State:.[RS]' /proc/1/status"],
            "interval": SECOND // 4,
            "retries": 1,
            "start_period": MILLISECOND,
        }
    )
    healer = autoheal(AUTOHEAL_DEFAULT_STOP_TIMEOUT="1", **PROMPT)
    healer.wait_line(WATCHING)
    healer.wait_healthy()
    said = command(healer, "drill", one.name, fails=True)
    assert said == f"autoheal: drill breaks {one.name} on purpose; say --yes if you mean it\n"
    times = json.loads(command(healer, "drill", one.name, "--yes", "--json"))
    assert times["unhealthy"] < times["killed"] < times["healthy"]
    healer.wait_line("is healthy again")


def test_a_drill_that_nobody_would_heal_is_refused(patient: Patients, autoheal: Start) -> None:
    one, healer = patient(), autoheal(**PROMPT)
    healer.wait_line(WATCHING)
    healer.wait_healthy()
    command(healer, "pause")
    said = command(healer, "drill", one.name, "--yes", fails=True)
    assert "paused" in said
    assert one.health == "healthy"


def test_the_doctor_finds_what_stands_in_the_way(
    patient: Patients, start: Callable[..., Container], autoheal: Start, label: str
) -> None:
    healer = autoheal(**PROMPT)
    healer.wait_line(WATCHING)
    healer.wait_healthy()
    mute = start(
        AUTOHEAL,
        ["1000"],
        entrypoint=["/bin/sleep"],
        labels={label: "true"},
        healthcheck={"test": ["NONE"]},
        stop_signal="SIGKILL",
    )
    odd = patient(labels={label: "true", "autoheal.window": "soon"})
    said = command(healer, "doctor", fails=True)
    assert f"problem  {mute.name} is labelled, but has no HEALTHCHECK" in said
    assert f"problem  {odd.name}: label autoheal.window='soon': must be a number of seconds" in said
    assert "warning  the ledger is in memory" in said
    assert "ok       every call that healing needs is allowed" in said
    found = json.loads(command(healer, "doctor", "--json", fails=True))
    assert {"level", "what", "advice"} == set(found[0])


@pytest.mark.parametrize("words", [["status"], ["history"], ["pause"], ["heal", "x"]])
def test_a_command_where_no_autoheal_runs_says_so(words: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autoheal.cli", *words],
        env={**os.environ, "AUTOHEAL_STATE_DIR": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"autoheal: there is no ledger at {tmp_path}/autoheal-ledger.db")
    assert done.stderr.count("\n") == 1


def test_commands_say_no_such_engine_in_one_line(autoheal: Start, tmp_path: Path) -> None:
    healer = autoheal(DOCKER_SOCK=str(tmp_path / "docker.sock"))
    healer.wait_line("there is no Docker engine at")
    said = command(healer, "status", fails=True)
    assert said.startswith("autoheal: there is no Docker engine at unix://")
    said = command(healer, "doctor", fails=True)
    assert "→ mount the socket" in said


@pytest.fixture
def lingering(request: pytest.FixtureRequest) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts processes of this machine, in a cgroup whose name ends as a container's does."""
    running: list[subprocess.Popen[bytes]] = []
    folders: list[Path] = []
    root = Path("/sys/fs/cgroup")
    root = root / "pids" if (root / "pids").is_dir() else root  # version 1 or 2

    def begin(container: str | None, *words: str) -> subprocess.Popen[bytes]:
        one = subprocess.Popen(words)
        running.append(one)
        if container is not None:
            folder = root / f"autoheal-test-{one.pid}" / container
            folder.mkdir(parents=True)
            folders.extend([folder, folder.parent])
            (folder / "cgroup.procs").write_text(str(one.pid))
        return one

    yield begin
    for one in running:
        one.kill()
        one.wait()
    for folder in folders:
        folder.rmdir()


def test_what_still_holds_vram_of_a_stopped_container_is_ended_and_nothing_else(
    patient: Patients, autoheal: Start, nvml: Nvml, lingering: Any
) -> None:
    one = patient()
    container = one.attributes["Id"]
    stubborn = "import signal; signal.signal(15, signal.SIG_IGN); signal.pause()"
    polite = lingering(container, "sleep", "1000")
    deaf = lingering(container, sys.executable, "-c", stubborn)
    strangers = [lingering(None, "sleep", "1000"), lingering("f" * 64, "sleep", "1000")]
    everybody = [polite, deaf, *strangers]
    nvml.answer(HEALTHY, *(f"process {process.pid}" for process in everybody))
    healer = autoheal(LD_LIBRARY_PATH=str(nvml.directory), **PROMPT)
    healer.wait_line(WATCHING)
    fall_sick(one)
    healer.wait_line(f"{one.name}: ended process {polite.pid} with SIGTERM, which still held VRAM")
    healer.wait_line(f"{one.name}: ended process {deaf.pid} with SIGKILL, which still held VRAM")
    healer.wait_line("is healthy again")
    assert [process.poll() for process in everybody] == [
        -signal.SIGTERM,
        -signal.SIGKILL,
        None,
        None,
    ]
    steps = [step for step in command(healer, "history").split("\n") if ": " in step]
    assert [step.rpartition(" ")[2] for step in steps[-3:]] == ["stop", "clear", "start"]
