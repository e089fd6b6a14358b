"""What `make up` leaves: both services, as the README promises them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable

import docker
import pytest
from docker.models.containers import Container

from probe.report import parse
from scripts.demo import find_server
from tests.e2e.conftest import OLLAMA, ROOT, Patient


@pytest.fixture
def services(engine: docker.DockerClient) -> dict[str, Patient]:
    # A plain container of an image that Compose built inherits its labels, but for the number.
    made = ["com.docker.compose.project=ollama-autoheal", "com.docker.compose.container-number"]
    found = engine.containers.list(filters={"label": made}, ignore_removed=True)
    return {c.labels["com.docker.compose.service"]: Patient(c) for c in found}


def test_both_services_are_healthy_and_docker_inspect_shows_the_probes_line(
    services: dict[str, Patient],
) -> None:
    assert set(services) == {"ollama", "autoheal"}
    for service in services.values():
        service.wait_health("healthy")
    verdict = parse(services["ollama"].lines[-1])
    assert verdict is not None
    assert verdict.healthy


def test_a_second_make_up_changes_nothing(services: dict[str, Patient]) -> None:
    before = {name: (s.container.id, s.started_at) for name, s in services.items()}
    subprocess.run(["make", "up"], cwd=ROOT, check=True, capture_output=True)
    assert {name: (s.container.id, s.started_at) for name, s in services.items()} == before


def test_the_demo_breaks_our_own_server_and_nobody_elses(
    services: dict[str, Patient], start: Callable[..., Container]
) -> None:
    start(OLLAMA, ["serve"])
    _, found = find_server()
    assert found.id == services["ollama"].container.id


def test_autoheal_runs_without_root_without_capabilities_and_read_only(
    services: dict[str, Patient],
) -> None:
    [pid] = services["autoheal"].pids("autoheal run")
    uids = services["autoheal"].container.top(ps_args="-eo pid,uid")["Processes"]
    assert [str(pid), "65532"] in uids
    host = services["autoheal"].attributes["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert "no-new-privileges:true" in host["SecurityOpt"]


def test_autoheals_own_health_turns_red_when_its_deciding_thread_is_dead(
    services: dict[str, Patient],
) -> None:
    healer = services["autoheal"]
    [pid] = healer.pids("autoheal run")
    os.kill(pid, signal.SIGSTOP)
    try:
        red = "unhealthy: the deciding thread has been silent for"
        healer.wait(lambda: healer.lines[-1].startswith(red), "red")
    finally:
        os.kill(pid, signal.SIGCONT)
    healer.wait(lambda: healer.lines[-1] == "healthy", "green again")
