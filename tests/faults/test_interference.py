"""The engine goes away in the middle of a heal, or a person has other plans."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from autoheal.engine import Engine
from autoheal.heal import Healer
from autoheal.settings import Settings
from tests.e2e.conftest import (
    AUTOHEAL,
    SECOND,
    Autoheal,
    Patient,
    PrivateEngine,
    fall_sick,
)
from tests.e2e.test_recreate import QUICK, SLEEP, Remaker, clean_up, docker_cli, inspect

Start = Callable[..., Autoheal]


@pytest.fixture
def name(label: str) -> Iterator[str]:
    yield label
    clean_up(label)


class Meddled(Engine):
    """An engine where a person does something just before a certain call."""

    before: str
    meddle: Callable[[], object]

    def _met(self, method: str) -> None:
        if method == self.before:
            self.before = ""
            self.meddle()

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
def meddled(tmp_path: Path) -> Callable[..., Remaker]:
    """Makes containers again, while a person meddles."""

    def make(before: str, meddle: Callable[[], object]) -> Remaker:
        remaker = Remaker(tmp_path)
        engine = Meddled(Settings(), os.environ)
        engine.before, engine.meddle = before, meddle
        remaker.healer = Healer(engine, remaker.ledger)
        return remaker

    return make


def of(name: str) -> dict[str, str]:
    """All containers whose name begins so: name and state."""
    rows = docker_cli(
        "ps", "--all", "--filter", f"name={name}", "--format", "{{.Names}} {{.State}}"
    )
    return dict(row.split() for row in rows.splitlines())


@pytest.mark.parametrize("before", ["stop", "set aside", "rename back"])
def test_one_that_a_person_removes_in_the_middle_stays_removed(
    before: str, name: str, meddled: Callable[..., Remaker]
) -> None:
    container = docker_cli("run", "-d", *QUICK, "--name", name, *SLEEP).strip()
    error = meddled(before, lambda: docker_cli("rm", "--force", container))(name).error
    if before == "rename back":
        # by then what was removed had another name: that was a clean-up, and the new one is left
        assert of(name) == {name: "created"} or of(name) == {name: "running"}
    else:
        assert "removed by somebody else meanwhile" in str(error)
        assert of(name) == {}


def test_one_that_a_person_renames_in_the_middle_is_left_running_under_that_name(
    name: str, meddled: Callable[..., Remaker]
) -> None:
    container = docker_cli("run", "-d", *QUICK, "--name", name, *SLEEP).strip()
    remake = meddled("stop", lambda: docker_cli("rename", container, f"{name}-mine"))
    assert f"somebody renamed {name} to {name}-mine" in str(remake(name).error)
    assert of(name) == {f"{name}-mine": "running"}


def test_one_that_a_person_made_under_its_name_in_the_middle_is_left_alone(
    name: str, meddled: Callable[..., Remaker]
) -> None:
    before = docker_cli("run", "-d", *QUICK, "--name", name, *SLEEP).strip()
    theirs: list[str] = []

    def meddle() -> None:
        theirs.append(docker_cli("run", "-d", *QUICK, "--name", name, *SLEEP).strip())

    error = str(meddled("rename back", meddle)(name).error)
    assert f"somebody made another {name} meanwhile" in error
    assert inspect(name)["Id"] == theirs[0]
    kept = f"{name}-autoheal-old-{before[:8]}"
    assert of(name) == {name: "running", kept: "exited"}
    assert inspect(kept)["Id"] == before


def sick_one(client: docker.DockerClient, label: str, **labels: str) -> Patient:
    return Patient(
        client.containers.run(
            AUTOHEAL,
            ["rm -f /sick; while :; do sleep 1000 & wait; done"],  # it takes its time to stop
            entrypoint=["/bin/sh", "-c"],
            name=label,
            detach=True,
            network_mode="none",
            labels={label: "true", **labels},
            restart_policy={"Name": "always"},
            healthcheck={
                "test": ["CMD-SHELL", "test ! -e /sick"],
                "interval": SECOND // 4,
                "retries": 1,
                "start_period": 1_000_000,
            },
        )
    )


@pytest.mark.parametrize(
    ("end", "action"), [("killed", "restart"), ("killed", "recreate"), ("frozen", "recreate")]
)
def test_an_engine_that_goes_away_in_the_middle_of_a_heal_finds_it_finished_when_it_is_back(
    end: str,
    action: str,
    engine: docker.DockerClient,
    private_engine: PrivateEngine,
    autoheal: Start,
    label: str,
) -> None:
    client = private_engine.start()
    client.images.load(b"".join(engine.images.get(AUTOHEAL).save(named=True)))
    one = sick_one(client, label, **{"autoheal.action": action, "autoheal.stop.timeout": "3"})
    one.wait_health("healthy")
    healer = autoheal(
        DOCKER_SOCK=private_engine.socket,
        AUTOHEAL_INTERVAL="1",
        AUTOHEAL_SETTLE="1",
        AUTOHEAL_BACKOFF="1",
        CURL_TIMEOUT="2",
    )
    healer.wait_line("watching the Docker engine")
    fall_sick(one)
    healer.wait_line("restarting|making it anew")
    interrupt(private_engine, end)
    if end != "frozen":
        client = private_engine.start()
    healer.wait_line("the incident is over .healed", seconds=90)
    found = client.api.containers(all=True)
    assert [(row["Names"], row["State"]) for row in found] == [([f"/{label}"], "running")]
    Patient(client.containers.get(label)).wait_health("healthy")
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
    name: str, autoheal: Start, label: str, patient: Any
) -> None:
    one, healer = patient(), autoheal(AUTOHEAL_INTERVAL="3600")
    healer.wait_line("watching the Docker engine")
    for _ in range(10):
        docker_cli("run", "--rm", "--name", f"{name}-other", "--network", "none", *SLEEP[:-1], "0")
    fall_sick(one)
    healer.wait_line("is healthy again")
