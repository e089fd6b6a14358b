"""Services and stacks of a real Swarm, of one node: redeployed through Swarm, never behind it."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest

from autoheal.engine import Engine
from autoheal.heal import Healer, Result, plan
from autoheal.incident import Action, Attempt, Incident
from autoheal.ledger import Ledger
from autoheal.settings import Policy, Settings
from tests.e2e.conftest import AUTOHEAL, Autoheal
from tests.e2e.test_recreate import docker_cli

QUICKLY = [
    *("--health-interval", "500ms", "--health-retries", "1", "--stop-signal", "SIGKILL"),
    *("--health-start-period", "1ms"),
    *("--update-monitor", "1s", "--rollback-monitor", "1s", "--restart-delay", "500ms"),
    *("--detach", "--no-resolve-image"),
]


@pytest.fixture(scope="module")
def swarm(engine: docker.DockerClient) -> Iterator[None]:
    if engine.info()["Swarm"]["LocalNodeState"] == "active":
        pytest.fail("this engine is a Swarm's already: the tests make one of their own")
    docker_cli("swarm", "init", "--advertise-addr", "127.0.0.1")
    yield
    docker_cli("swarm", "leave", "--force")
    task = "com.docker.swarm.node.id"
    for left in engine.containers.list(all=True, filters={"label": task}, ignore_removed=True):
        with suppress(docker.errors.APIError):  # perhaps Swarm was about to remove it
            left.remove(force=True)
    networks = docker_cli("network", "ls", "--quiet", "--filter", "name=docker_gwbridge").split()
    if networks:
        docker_cli("network", "rm", *networks)


@pytest.fixture
def service(
    swarm: None, engine: docker.DockerClient, label: str, tmp_path: Path
) -> Iterator[Callable[..., str]]:
    """Starts services that are well while a file is there, and waits until they are."""
    (tmp_path / "cure").mkdir()
    (tmp_path / "cure" / "well").touch()
    names: list[str] = []

    def begin(*words: str) -> str:
        name = f"swarm-{uuid.uuid4().hex[:8]}"
        names.append(name)
        docker_cli(
            *("service", "create", "--name", name, "--container-label", f"{label}=true", *QUICKLY),
            *("--mount", f"type=bind,source={tmp_path}/cure,target=/cure,readonly"),
            *("--health-cmd", "test -e /cure/well", "--entrypoint", "/bin/sleep", *words),
            *(AUTOHEAL, "1000"),
        )
        wait_for(lambda: bool(healthy_tasks(name)))
        return name

    yield begin
    docker_cli("service", "rm", *names)


def healthy_tasks(service: str) -> list[str]:
    filters = ["--filter", f"label=com.docker.swarm.service.name={service}"]
    return docker_cli("ps", "-q", "--no-trunc", *filters, "--filter", "health=healthy").split()


def wait_for(holds: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, docker_cli("service", "ls")
        time.sleep(0.2)  # Swarm's tasks have no events of their own


def specification(service: str) -> Any:
    return json.loads(docker_cli("service", "inspect", service))[0]["Spec"]


def redeploy(
    service: str, directory: Path, policy: Policy, once_planned: Callable[[], None] = lambda: None
) -> tuple[list[str], Result]:
    """Redeploy by the healer itself; the names of what it took in hand, and the result."""
    engine = Engine(Settings(), os.environ)
    ledger = Ledger(str(directory / "ledger.db"), str(directory))
    sighting = engine.look(healthy_tasks(service)[0])
    assert sighting.subject == service
    steps = plan(engine, sighting, Action.REDEPLOY, policy)
    incident = ledger.save(Incident(service, sighting.id, time.time(), "a test"))
    attempt = Attempt(time.time(), Action.REDEPLOY)
    number, operations = ledger.begin(incident, attempt, steps)
    once_planned()
    result = Healer(engine, ledger).carry_out(number, operations, attempt.at)
    return [operation.name for operation in operations], result


def test_a_service_is_made_anew_under_its_own_update_policy_and_nothing_else_about_it_changes(
    service: Callable[..., str], tmp_path: Path
) -> None:
    name = service("--env", "A=1", "--limit-memory", "50M", "--replicas", "1")
    before, task = specification(name), healthy_tasks(name)
    names, result = redeploy(name, tmp_path, Policy())
    assert (names, result.error) == ([name], None)
    assert result.container == ""  # a service is no container
    wait_for(lambda: healthy_tasks(name))
    assert healthy_tasks(name) != task
    after = specification(name)
    assert after["TaskTemplate"].pop("ForceUpdate") == 1
    before["TaskTemplate"].pop("ForceUpdate")
    assert after == before


def test_a_stack_is_redeployed_whole_and_in_the_order_in_which_it_was_made(
    service: Callable[..., str], tmp_path: Path
) -> None:
    stack = ["--label", f"com.docker.stack.namespace={tmp_path.name[:40]}"]
    mark = ["--container-label", f"com.docker.stack.namespace={tmp_path.name[:40]}"]
    first, second = service(*stack, *mark), service(*stack, *mark)
    service()  # of no stack
    names, result = redeploy(second, tmp_path, replace(Policy(), redeploy="stack"))
    assert (names, result.error) == ([first, second], None)


def test_a_stack_file_is_deployed_by_dockers_own_program(
    service: Callable[..., str], tmp_path: Path
) -> None:
    stack = f"stack-{uuid.uuid4().hex[:8]}"
    name = service("--container-label", f"com.docker.stack.namespace={stack}")
    file = tmp_path / "stack.yaml"
    file.write_text(
        f"services:\n  one:\n    image: {AUTOHEAL}\n    entrypoint: [/bin/sleep, '1000']\n"
    )
    try:
        names, result = redeploy(name, tmp_path, replace(Policy(), stack_file=str(file)))
        assert (names, result.error) == ([stack], None)
        assert docker_cli("stack", "services", "--format", "{{.Name}}", stack) == f"{stack}_one\n"
    finally:
        docker_cli("stack", "rm", stack)
    file.write_text("services: nonsense\n")
    _, result = redeploy(name, tmp_path, replace(Policy(), stack_file=str(file)))
    assert str(result.error).startswith("docker stack deploy: ")


def test_swarm_has_the_first_try_and_what_comes_of_an_update_is_told(
    service: Callable[..., str], autoheal: Callable[..., Autoheal], tmp_path: Path
) -> None:
    name = service("--update-failure-action", "pause", "--update-monitor", "20s")
    healer = autoheal(AUTOHEAL_BACKOFF="3", AUTOHEAL_SETTLE="2", AUTOHEAL_INTERVAL="1")
    healer.wait_line("watching the Docker engine")
    (tmp_path / "cure" / "well").unlink()
    healer.wait_line("unhealthy, waiting")
    healer.wait_line("redeploying")
    healer.wait_line("the redeploy failed: Swarm's update is paused", seconds=120)
    (tmp_path / "cure" / "well").touch()
    healer.wait_line(f"{name}.* is healthy again")
    healer.wait_line(f"{name}: the incident is over")
    assert not [line for line in healer.lines if "restarting" in line]


def test_an_update_that_swarm_rolls_back_is_told_as_failed(
    service: Callable[..., str], tmp_path: Path
) -> None:
    name = service("--update-failure-action", "rollback", "--update-monitor", "20s")
    cure = tmp_path / "cure" / "well"
    _, result = redeploy(name, tmp_path, Policy(), once_planned=cure.unlink)
    # Completed or paused: a rollback's own tasks may fail before Swarm looks, or after.
    assert str(result.error).startswith("Swarm's update is rollback_")
