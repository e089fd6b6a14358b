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

from autoheal.engine import Engine, EngineError
from autoheal.lease import Holder, Leases
from autoheal.settings import Settings
from probe.processes import started
from testbed.autoheal import PROMPT, WATCHING, Autoheal
from testbed.containers import AUTOHEAL, ROOT, Workload, healthcheck
from testbed.deadlines import Deadline, scaled
from testbed.nvml import HEALTHY, Nvml, needs_host_pids
from testbed.runs import LABELS
from testbed.webhook import Webhook

Start = Callable[..., Autoheal]
Workloads = Callable[..., Workload]


class HealthFile:
    """A container is healthy while a file of this machine's is there, whatever is done to it."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "health" / "file"
        self.file.parent.mkdir()
        self.file.touch()

    @property
    def options(self) -> dict[str, Any]:
        return {
            "volumes": {str(self.file.parent): {"bind": "/health", "mode": "ro"}},
            "healthcheck": healthcheck("test -e /health/file"),
        }


@pytest.fixture
def health_file(tmp_path: Path) -> HealthFile:
    return HealthFile(tmp_path)


class Script:
    """A script that notes its arguments, as AUTOHEAL_NOTIFY_SCRIPT.

    Attributes:
        path: of the script.
    """

    def __init__(self, directory: Path) -> None:
        self.path, self._file = directory / "notify", directory / "notified"
        self.path.write_text(
            f'#!/bin/sh\nprintf "%s|" "$@" >> {self._file}; echo >> {self._file}\n'
        )
        self.path.chmod(0o755)

    def received(self, news: str) -> list[list[str]]:
        """The arguments of each call about this, oldest first."""
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        return [words for line in lines if (words := line.split("|"))[0] == news]

    def wait(self, news: str) -> list[str]:
        deadline = Deadline()
        while not (found := self.received(news)):
            assert not deadline.passed, news
            time.sleep(0.05)  # a file that another process writes
        return found[0]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path)


def test_an_action_that_does_not_help_is_not_repeated_and_giving_up_is_notified_once(
    workload: Workloads, autoheal: Start, health_file: HealthFile, script: Script
) -> None:
    one = workload(**health_file.options)
    healer = autoheal(AUTOHEAL_NOTIFY_SCRIPT=str(script.path), **PROMPT)
    healer.wait_line(WATCHING)
    before = one.attributes["Id"]
    health_file.file.unlink()
    healer.wait_line("given up, needs an operator")
    done = [line for line in healer.lines if "(attempt" in line]
    assert [line.split(": ")[1].split(" in ")[0] for line in done] == [
        *("restarted", "restarted", "recreated")
    ]
    times = [
        float(e["at"])
        for i in json.loads(healer.command("history", "--json"))
        for e in i["attempts"]
    ]
    assert times[1] - times[0] >= 1
    assert times[2] - times[1] >= 2
    assert script.wait("given_up")[1] == one.name
    assert "given up" in healer.command("status")
    # by hand
    health_file.file.touch()
    healer.wait_line("the incident is over (?:.recovered.)")
    assert len(script.received("given_up")) == 1
    assert "given up" not in healer.command("status")
    [row] = json.loads(healer.command("status", "--json"))
    assert row["container"] == one.name
    assert row["id"] != before[:12]


def test_a_pause_outlives_a_restart_and_ends_by_command(
    workload: Workloads, autoheal: Start, tmp_path: Path
) -> None:
    one, healer = workload(), autoheal(**PROMPT)
    healer.wait_line(WATCHING)
    said = healer.command("pause", one.name, "--for", "10m")
    assert said.startswith(f"{one.name}: left alone until 20")
    healer.kill()
    healer = autoheal(**PROMPT)
    healer.wait_line(WATCHING)
    before = one.started_at
    one.make_unhealthy()
    healer.wait_line("healing is paused|unhealthy, waiting")
    assert "paused for 10 min" in healer.command("status")
    assert one.started_at == before
    assert healer.command("resume") == "All containers: healing resumed\n"
    healer.wait_line("is healthy again")
    assert healer.command("resume") == "Nothing was paused\n"


def test_a_pause_of_a_misspelled_name_is_an_error(workload: Workloads, autoheal: Start) -> None:
    workload()
    healer = autoheal(**PROMPT)
    healer.wait_line(WATCHING)
    said = healer.command("pause", "nobody-there", fails=True)
    assert said == "autoheal: no such container: nobody-there; see `autoheal status`\n"


def test_a_container_that_recovers_within_its_delay_is_left_alone(
    workload: Workloads, autoheal: Start, label: str, health_file: HealthFile
) -> None:
    labels = {label: "true", "autoheal.delay": "4", "autoheal.settle": "1"}
    one, healer = workload(labels=labels, **health_file.options), autoheal()
    healer.wait_line(WATCHING)
    before = one.started_at
    health_file.file.unlink()
    healer.wait_line("unhealthy, waiting")
    health_file.file.touch()
    healer.wait_line("is healthy again; nothing was done")
    healer.wait_line("the incident is over .recovered")
    assert one.started_at == before


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        ({"autoheal.dry-run": "true"}, "dry run: the restart would follow"),
        ({"autoheal.action": "none"}, "autoheal.action=none leaves it to an operator"),
        ({"autoheal.ladder": "redeploy"}, "it belongs to no Compose service"),
    ],
    ids=["dry run", "none", "redeploy of what is not Compose's"],
)
def test_labels_that_forbid_an_action(
    workload: Workloads, autoheal: Start, label: str, labels: dict[str, str], line: str
) -> None:
    one, healer = workload(labels={label: "true", **labels}), autoheal(**PROMPT)
    healer.wait_line(WATCHING)
    before = one.started_at
    one.make_unhealthy()
    healer.wait_line(line)
    one.wait_health("unhealthy")
    assert one.started_at == before
    assert not [line for line in healer.lines if "restarting" in line]


def test_stop_stops_it_and_it_stays_stopped(
    workload: Workloads, autoheal: Start, label: str
) -> None:
    one, other = workload(labels={label: "true", "autoheal.action": "stop"}), workload()
    healer = autoheal(**PROMPT)
    healer.wait_line(WATCHING)
    one.make_unhealthy()
    healer.wait_line("stopped in")
    other.make_unhealthy()
    healer.wait_line(f"{other.name} is healthy again")  # both have been inspected again
    assert one.attributes["State"]["Status"] == "exited"


def test_two_supervisors_on_one_engine_heal_each_incident_once(
    workload: Workloads, autoheal: Start, tmp_path: Path, label: str
) -> None:
    one = workload(labels={label: "true", "autoheal.action": "restart"})
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
        one.make_unhealthy()
        one.wait_restarted(before)
        one.wait_health("healthy")
    for healer in healers:
        healer.wait_line("the incident is over")

    def restarts() -> int:
        return sum(": restarted in" in line for healer in healers for line in healer.lines)

    # The container may be healthy before the engine has answered who restarted it.
    one.wait(lambda: restarts() >= 3, "told of each restart")
    assert restarts() == 3
    one.container.top()  # an event too: the last to be read
    actions = itertools.takewhile(lambda action: action != "top", (e["Action"] for e in events))
    assert list(actions).count("restart") == 3


def test_a_lease_that_was_renewed_is_still_nobody_elses(label: str) -> None:
    engine = Engine(Settings(), os.environ)
    mine, other = Holder.this_process(None, engine), os.getppid()
    theirs = replace(mine, pid=other, started=started(other) or "")
    one, another = Leases(engine, mine), Leases(engine, theirs)
    for _ in range(3):
        assert one.take(label) is None
        assert another.take(label) is not None
    one.give_back(label)
    assert another.take(label) is None
    assert one.take(label) is not None
    another.give_back(label)
    assert engine.claims(f"autoheal.lease={label}") == {}


def test_a_supervisor_in_a_container_of_another_engine_is_not_taken_for_dead(label: str) -> None:
    """As in a development container: the engine inside knows nothing of the one around it."""
    engine = Engine(Settings(), os.environ)
    mine, other = Holder.this_process("ab" * 32, engine), os.getppid()
    theirs = replace(mine, pid=other, started=started(other) or "")
    one, another = Leases(engine, mine), Leases(engine, theirs)
    assert one.take(label) is None
    assert another.take(label) is not None
    one.give_back(label)


def test_the_lease_of_a_supervisor_that_was_killed_is_taken_over_at_once(
    workload: Workloads, autoheal: Start, tmp_path: Path, health_file: HealthFile
) -> None:
    one, healer = workload(**health_file.options), autoheal(**PROMPT)
    healer.wait_line(WATCHING)
    health_file.file.unlink()
    healer.wait_line("restarted in")
    healer.kill()
    (tmp_path / "other").mkdir()
    successor = autoheal(AUTOHEAL_STATE_DIR=str(tmp_path / "other"), **PROMPT)
    successor.wait_line("restarted in")
    health_file.file.touch()
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
        engine.volumes.create(f"autoheal-lease-{label}-{name}", labels={**claim, **LABELS})
    dropped = engine.api.events(
        decode=True,
        until=int(now + scaled(60)),
        filters={"volume": f"autoheal-lease-{label}-forgotten", "event": "destroy"},
    )
    autoheal(**PROMPT)
    next(dropped)
    engine.volumes.get(f"autoheal-lease-{label}-held").remove()


def test_a_group_goes_together(workload: Workloads, autoheal: Start, label: str) -> None:
    group = {"autoheal.group": label}
    one, other = workload(labels={label: "true", **group}), workload(labels=group)
    stranger = workload(labels={"autoheal.group": "another"})
    healer = autoheal(**PROMPT)
    healer.wait_line(WATCHING)
    before, untouched = other.started_at, stranger.started_at
    one.make_unhealthy()
    other.wait_restarted(before)
    healer.wait_line(f"{one.name} is healthy again")
    assert stranger.started_at == untouched


def test_a_container_that_uses_more_than_it_may_is_healed_with_that_reason(
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
    healer = autoheal(CHECK_INTERVAL="1", MAX_UNHEALTHY="2", MAX_CPU_PERCENT="2", **PROMPT)
    line = healer.wait_line("is unhealthy: over_limit")
    assert "more than 2 % in 2 measurements in a row" in line
    healer.wait_line(f"{container.name}: restarted")
    healer.wait_line("the incident is over .healed")


def test_a_dead_receiver_delays_nothing_and_no_secret_reaches_the_log(
    workload: Workloads, autoheal: Start, webhook: Webhook
) -> None:
    got, arrived, port = webhook.received, webhook.arrived, webhook.port
    one = workload()
    healer = autoheal(
        WEBHOOK_URL="http://127.0.0.1:9/hidden",
        APPRISE_URL="http://127.0.0.1:9/hidden",
        AUTOHEAL_NOTIFY_URLS=f"json://127.0.0.1:9/hidden json://127.0.0.1:{port}/hidden",
        **PROMPT,
    )
    healer.wait_line(WATCHING)
    one.make_unhealthy()
    healer.wait_line("is healthy again")
    assert arrived.wait(scaled(60))
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
    workload: Workloads, autoheal: Start, full_disk: Path
) -> None:
    one = workload()
    healer = autoheal(AUTOHEAL_LEDGER=f"{full_disk}/ledger.db", **PROMPT)
    healer.wait_line(WATCHING)
    one.make_unhealthy()
    healer.wait_line("the incident is over")
    (full_disk / "filler").write_bytes(bytes(1_800_000))
    one.make_unhealthy()
    healer.wait_line("autoheal is degraded: the ledger .* cannot be written .the disk is full")
    healer.wait_line("the incident is over", count=2)
    healer.stop()
    (full_disk / "filler").unlink()
    healer = autoheal(AUTOHEAL_LEDGER=f"{full_disk}/ledger.db", **PROMPT)
    healer.wait_line(WATCHING)
    assert len(json.loads(healer.command("history", "--json"))) == 2


def test_an_operator_can_heal_a_healthy_container_and_see_what_was_done(
    workload: Workloads, autoheal: Start
) -> None:
    one, healer = workload(), autoheal(**PROMPT)
    healer.wait_line(WATCHING)
    healer.wait_healthy()
    assert (
        healer.command("heal", one.name, "--action", "recreate") == f"{one.name}: recreate done\n"
    )
    story = healer.command("history", one.name)
    for step in ("create", "stop", "set aside", "rename", "start", "remove"):
        assert f"{one.name}: {step}" in story
    said = healer.command("heal", "nobody-there", fails=True)
    assert said == "autoheal: no such container: nobody-there\n"
    said = healer.command("heal", one.name, "--action", "redeploy", fails=True)
    why = "it belongs to no Compose service"
    assert said == f"autoheal: redeploy cannot be done to {one.name}: {why}\n"


def test_a_drill_breaks_it_reports_the_times_and_asks_first(
    workload: Workloads, autoheal: Start
) -> None:
    one = workload(
        # it hangs, as a frozen server does
        healthcheck=healthcheck("grep -q 'State:.[RS]' /proc/1/status")
    )
    healer = autoheal(AUTOHEAL_DEFAULT_STOP_TIMEOUT="1", **PROMPT)
    healer.wait_line(WATCHING)
    healer.wait_healthy()
    said = healer.command("drill", one.name, fails=True)
    assert said == f"autoheal: drill breaks {one.name} on purpose; say --yes if you mean it\n"
    times = json.loads(healer.command("drill", one.name, "--yes", "--json"))
    assert times["unhealthy"] < times["killed"] < times["healthy"]
    healer.wait_line("is healthy again")


def test_a_drill_that_nobody_would_heal_is_refused(workload: Workloads, autoheal: Start) -> None:
    one, healer = workload(), autoheal(**PROMPT)
    healer.wait_line(WATCHING)
    healer.wait_healthy()
    healer.command("pause")
    said = healer.command("drill", one.name, "--yes", fails=True)
    assert "paused" in said
    assert one.health == "healthy"


def test_a_container_that_its_own_check_would_end_is_not_frozen_through_the_engine(
    workload: Workloads, autoheal: Start
) -> None:
    """Docker takes it for one that was stopped by hand, whose restart policy is void."""
    one, healer = workload(environment={"PROBE_HEAL": "restart"}), autoheal(**PROMPT)
    healer.wait_line(WATCHING)
    healer.wait_healthy()
    said = healer.command("drill", one.name, "--yes", fails=True)
    assert "PROBE_HEAL=restart" in said
    assert "kill -STOP" in said
    assert one.health == "healthy"


def test_the_doctor_finds_what_stands_in_the_way(
    workload: Workloads, start: Callable[..., Container], autoheal: Start, label: str
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
    odd = workload(labels={label: "true", "autoheal.window": "soon"})
    said = healer.command("doctor", fails=True)
    assert f"problem  {mute.name} is labelled, but has no HEALTHCHECK" in said
    assert f"problem  {odd.name}: label autoheal.window='soon': must be a number of seconds" in said
    assert "warning  the ledger is in memory" in said
    assert "ok       every call that healing needs is allowed" in said
    found = json.loads(healer.command("doctor", "--json", fails=True))
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
    said = healer.command("status", fails=True)
    assert said.startswith("autoheal: there is no Docker engine at unix://")
    said = healer.command("doctor", fails=True)
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


@needs_host_pids
def test_what_still_holds_vram_of_a_stopped_container_is_ended_and_nothing_else(
    workload: Workloads, autoheal: Start, nvml: Nvml, lingering: Any
) -> None:
    one = workload()
    container = one.attributes["Id"]
    stubborn = "import signal; signal.signal(15, signal.SIG_IGN); signal.pause()"
    polite = lingering(container, "sleep", "1000")
    deaf = lingering(container, sys.executable, "-c", stubborn)
    strangers = [lingering(None, "sleep", "1000"), lingering("f" * 64, "sleep", "1000")]
    everybody = [polite, deaf, *strangers]
    nvml.answer(HEALTHY, *(f"process {process.pid}" for process in everybody))
    healer = autoheal(LD_LIBRARY_PATH=str(nvml.directory), **PROMPT)
    healer.wait_line(WATCHING)
    one.make_unhealthy()
    healer.wait_line(f"{one.name}: ended process {polite.pid} with SIGTERM, which still held VRAM")
    healer.wait_line(f"{one.name}: ended process {deaf.pid} with SIGKILL, which still held VRAM")
    healer.wait_line("is healthy again")
    assert [process.poll() for process in everybody] == [
        -signal.SIGTERM,
        -signal.SIGKILL,
        None,
        None,
    ]
    steps = [step for step in healer.command("history").split("\n") if ": " in step]
    assert [step.rpartition(" ")[2] for step in steps[-3:]] == ["stop", "clear", "start"]


def test_a_command_in_a_container_that_never_ends_is_given_up(workload: Workloads) -> None:
    one, engine = workload(), Engine(Settings(), os.environ)
    assert engine.run_in(one.name, ["sh", "-c", "echo said; exit 3"]) == (3, "said\n")
    with pytest.raises(EngineError, match="sleep 1000 did not end within 1 s"):
        engine.run_in(one.name, ["sleep", "1000"], 1)
    assert one.health == "healthy"
