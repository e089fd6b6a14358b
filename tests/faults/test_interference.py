"""The engine goes away in the middle of a heal, or a user changes something."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import docker
import pytest

from autoheal.engine import Engine
from autoheal.heal import Healer
from autoheal.settings import Settings
from testbed.autoheal import WATCHING, Autoheal
from testbed.command import docker_cli, inspect
from testbed.containers import AUTOHEAL, QUICK_STOP, SLEEP, Workload, healthcheck, idle_command
from testbed.deadlines import scaled
from testbed.engines import PrivateEngine
from testbed.recreator import Recreator

Start = Callable[..., Autoheal]


class Interfered(Engine):
    """An engine where a user does something just before a certain call."""

    before: str
    interfere: Callable[[], object]

    def _met(self, method: str) -> None:
        if method == self.before:
            self.before = ""
            self.interfere()

    def stop(self, container: str, stop_timeout: int) -> None:
        self._met("stop")
        super().stop(container, stop_timeout)

    def rename(self, container: str, name: str) -> None:
        self._met("rename back" if name.count("-autoheal-") == 0 else "set aside")
        super().rename(container, name)

    def start(self, container: str) -> None:
        self._met("start")
        super().start(container)


@pytest.fixture
def interfered(tmp_path: Path) -> Callable[..., Recreator]:
    """Recreates containers, while a user interferes."""

    def make(before: str, interfere: Callable[[], object]) -> Recreator:
        recreator = Recreator(tmp_path)
        engine = Interfered(Settings(), os.environ)
        engine.before, engine.interfere = before, interfere
        recreator.healer = Healer(engine, recreator.ledger)
        return recreator

    return make


def of(name: str) -> dict[str, str]:
    """All containers whose name begins so: name and state."""
    rows = docker_cli(
        "ps", "--all", "--filter", f"name={name}", "--format", "{{.Names}} {{.State}}"
    )
    return dict(row.split() for row in rows.splitlines())


@pytest.mark.parametrize("before", ["stop", "set aside", "rename back"])
def test_a_container_that_a_user_removes_in_the_middle_stays_removed(
    before: str, name: str, interfered: Callable[..., Recreator]
) -> None:
    container = docker_cli("run", "-d", *QUICK_STOP, "--name", name, *SLEEP).strip()
    error = interfered(before, lambda: docker_cli("rm", "--force", container))(name).error
    if before == "rename back":
        # by then what was removed had another name: that was a clean-up, and the new one is left
        assert of(name) == {name: "created"} or of(name) == {name: "running"}
    else:
        assert "removed by somebody else meanwhile" in str(error)
        assert of(name) == {}


def test_a_container_that_a_user_renames_in_the_middle_is_left_running_under_that_name(
    name: str, interfered: Callable[..., Recreator]
) -> None:
    container = docker_cli("run", "-d", *QUICK_STOP, "--name", name, *SLEEP).strip()
    remake = interfered("stop", lambda: docker_cli("rename", container, f"{name}-mine"))
    assert f"somebody renamed {name} to {name}-mine" in str(remake(name).error)
    assert of(name) == {f"{name}-mine": "running"}


def test_a_container_that_a_user_created_under_its_name_in_the_middle_is_left_alone(
    name: str, interfered: Callable[..., Recreator]
) -> None:
    before = docker_cli("run", "-d", *QUICK_STOP, "--name", name, *SLEEP).strip()
    theirs: list[str] = []

    def interfere() -> None:
        theirs.append(docker_cli("run", "-d", *QUICK_STOP, "--name", name, *SLEEP).strip())

    error = str(interfered("rename back", interfere)(name).error)
    assert f"somebody made another {name} meanwhile" in error
    assert inspect(name)["Id"] == theirs[0]
    kept = f"{name}-autoheal-old-{before[:8]}"
    assert of(name) == {name: "running", kept: "exited"}
    assert inspect(kept)["Id"] == before


def stubborn_workload(client: docker.DockerClient, label: str, **labels: str) -> Workload:
    return Workload(
        client.containers.run(
            AUTOHEAL,
            [idle_command(stops_at_once=False)],
            entrypoint=["/bin/sh", "-c"],
            name=label,
            detach=True,
            network_mode="none",
            labels={label: "true", **labels},
            restart_policy={"Name": "always"},
            healthcheck=healthcheck(),
        )
    )


@pytest.mark.parametrize(
    ("end", "action"), [("killed", "restart"), ("killed", "recreate"), ("frozen", "recreate")]
)
def test_an_engine_that_goes_away_in_the_middle_of_a_heal_finds_it_finished_when_it_is_back(
    end: str,
    action: str,
    private_engine: PrivateEngine,
    autoheal: Start,
    label: str,
) -> None:
    client = private_engine.start()
    private_engine.load([AUTOHEAL])
    one = stubborn_workload(
        client, label, **{"autoheal.action": action, "autoheal.stop.timeout": "3"}
    )
    one.wait_health("healthy")
    healer = autoheal(
        DOCKER_SOCK=private_engine.socket,
        AUTOHEAL_INTERVAL="1",
        AUTOHEAL_SETTLE="1",
        AUTOHEAL_BACKOFF="1",
        CURL_TIMEOUT="2",
    )
    healer.wait_line(WATCHING)
    one.make_unhealthy()
    healer.wait_line("restarting|recreating it")
    interrupt(private_engine, end)
    if end != "frozen":
        client = private_engine.start()
    healer.wait_line("the incident is over .healed")
    found = client.api.containers(all=True)
    assert [(row["Names"], row["State"]) for row in found] == [([f"/{label}"], "running")]
    Workload(client.containers.get(label)).wait_health("healthy")
    client.api.remove_container(label, force=True)


def interrupt(engine: PrivateEngine, end: str) -> None:
    assert engine.process is not None
    pid = engine.process.pid
    if end == "frozen":
        os.kill(pid, signal.SIGSTOP)
        time.sleep(6)  # longer than the stop and the longest call
        os.kill(pid, signal.SIGCONT)
    else:
        os.kill(pid, signal.SIGKILL)
        engine.process.wait()


def test_a_flood_of_events_about_others_hides_nobody(
    name: str, autoheal: Start, label: str, workload: Any
) -> None:
    one, healer = workload(), autoheal(AUTOHEAL_INTERVAL="3600")
    healer.wait_line(WATCHING)
    began, over = threading.Event(), threading.Event()

    def flood() -> None:
        while not over.is_set():
            docker_cli(
                *("run", "--rm", "--name", f"{name}-other", "--network", "none", *SLEEP[:-1], "0")
            )
            began.set()

    with ThreadPoolExecutor(1) as pool:
        flooding = pool.submit(flood)
        assert began.wait(scaled(60))
        one.make_unhealthy()
        healer.wait_line("is healthy again")
        over.set()
        flooding.result()
