"""Services and stacks of a real Swarm, of one node: redeployed through Swarm, never behind it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoheal.engine import Engine
from autoheal.heal import Healer, Result, plan
from autoheal.incident import Action, Attempt, Incident
from autoheal.ledger import Ledger
from autoheal.policy import Policy
from autoheal.settings import Settings
from testbed.autoheal import WATCHING, Autoheal
from testbed.command import docker_cli
from testbed.containers import AUTOHEAL
from testbed.deadlines import LONG_SECONDS, Deadline
from testbed.engines import PrivateEngine, private_engine
from testbed.runs import unique

QUICKLY = [
    *("--health-interval", "500ms", "--health-retries", "1", "--stop-signal", "SIGKILL"),
    *("--health-start-period", "1ms"),
    *("--update-monitor", "1s", "--rollback-monitor", "1s", "--restart-delay", "500ms"),
    *("--detach", "--no-resolve-image"),
]


class Swarm:
    """A Swarm of one node, on an engine of its own."""

    def __init__(self, engine: PrivateEngine) -> None:
        self.host = {"DOCKER_HOST": engine.socket}
        self.docker("swarm", "init", "--advertise-addr", "127.0.0.1")

    def docker(self, *words: str) -> str:
        return docker_cli(*words, env=self.host)

    def healthy_tasks(self, service: str) -> list[str]:
        filters = ["--filter", f"label=com.docker.swarm.service.name={service}"]
        return self.docker("ps", "-q", "--no-trunc", *filters, "--filter", "health=healthy").split()

    def wait(self, holds: Callable[[], Any]) -> None:
        deadline = Deadline()
        while not holds():
            assert not deadline.passed, self.docker("service", "ls")
            time.sleep(0.2)  # Swarm's tasks have no events of their own

    def specification(self, service: str) -> Any:
        return json.loads(self.docker("service", "inspect", service))[0]["Spec"]

    def redeploy(
        self,
        service: str,
        directory: Path,
        policy: Policy,
        once_planned: Callable[[], None] = lambda: None,
    ) -> tuple[list[str], Result]:
        """Redeploy by the healer itself; the names of what it redeployed, and the result."""
        engine = Engine(Settings(), {**os.environ, **self.host})
        ledger = Ledger(str(directory / "ledger.db"), str(directory))
        sighting = engine.look(self.healthy_tasks(service)[0])
        assert sighting.subject == service
        steps = plan(engine, sighting, Action.REDEPLOY, policy)
        incident = ledger.save(Incident(service, sighting.id, time.time(), "a test"))
        attempt = Attempt(time.time(), Action.REDEPLOY)
        number, operations = ledger.begin(incident, attempt, steps)
        once_planned()
        result = Healer(engine, ledger).carry_out(number, operations, attempt.at)
        return [operation.name for operation in operations], result


@pytest.fixture(scope="module")
def swarm() -> Iterator[Swarm]:
    with private_engine() as engine:
        engine.start()
        engine.load([AUTOHEAL])
        yield Swarm(engine)


@pytest.fixture
def health_file(tmp_path: Path) -> Path:
    """While it is there, the services are healthy."""
    (tmp_path / "health").mkdir()
    file = tmp_path / "health" / "file"
    file.touch()
    return file


@pytest.fixture
def service(swarm: Swarm, label: str, health_file: Path) -> Iterator[Callable[..., str]]:
    """Starts services that are healthy while a file is there, and waits until they are."""
    names: list[str] = []

    def begin(*words: str) -> str:
        name = unique("swarm")
        names.append(name)
        swarm.docker(
            *("service", "create", "--name", name, "--container-label", f"{label}=true", *QUICKLY),
            *("--mount", f"type=bind,source={health_file.parent},target=/health,readonly"),
            *("--health-cmd", "test -e /health/file", "--entrypoint", "/bin/sleep", *words),
            *(AUTOHEAL, "1000"),
        )
        swarm.wait(lambda: bool(swarm.healthy_tasks(name)))
        return name

    yield begin
    swarm.docker("service", "rm", *names)


def test_a_service_is_redeployed_under_its_own_update_policy_and_nothing_else_about_it_changes(
    swarm: Swarm, service: Callable[..., str], tmp_path: Path
) -> None:
    name = service("--env", "A=1", "--limit-memory", "50M", "--replicas", "1")
    before, task = swarm.specification(name), swarm.healthy_tasks(name)
    names, result = swarm.redeploy(name, tmp_path, Policy())
    assert (names, result.error) == ([name], None)
    assert result.container == ""  # a service is no container
    swarm.wait(lambda: swarm.healthy_tasks(name))
    assert swarm.healthy_tasks(name) != task
    after = swarm.specification(name)
    assert after["TaskTemplate"].pop("ForceUpdate") == 1
    before["TaskTemplate"].pop("ForceUpdate")
    assert after == before


def test_a_stack_is_redeployed_whole_and_in_the_order_in_which_it_was_made(
    swarm: Swarm, service: Callable[..., str], tmp_path: Path
) -> None:
    stack = ["--label", f"com.docker.stack.namespace={tmp_path.name[:40]}"]
    mark = ["--container-label", f"com.docker.stack.namespace={tmp_path.name[:40]}"]
    first, second = service(*stack, *mark), service(*stack, *mark)
    service()  # of no stack
    names, result = swarm.redeploy(second, tmp_path, replace(Policy(), redeploy="stack"))
    assert (names, result.error) == ([first, second], None)


def test_a_stack_file_is_deployed_by_dockers_own_program(
    swarm: Swarm, service: Callable[..., str], tmp_path: Path
) -> None:
    stack = unique("stack")
    name = service("--container-label", f"com.docker.stack.namespace={stack}")
    file = tmp_path / "stack.yaml"
    file.write_text(
        f"services:\n  one:\n    image: {AUTOHEAL}\n    entrypoint: [/bin/sleep, '1000']\n"
    )
    try:
        names, result = swarm.redeploy(name, tmp_path, replace(Policy(), stack_file=str(file)))
        assert (names, result.error) == ([stack], None)
        assert swarm.docker("stack", "services", "--format", "{{.Name}}", stack) == f"{stack}_one\n"
    finally:
        swarm.docker("stack", "rm", stack)
    file.write_text("services: nonsense\n")
    _, result = swarm.redeploy(name, tmp_path, replace(Policy(), stack_file=str(file)))
    assert str(result.error).startswith("docker stack deploy: ")


def test_swarm_has_the_first_try_and_the_outcome_of_an_update_is_reported(
    swarm: Swarm,
    service: Callable[..., str],
    autoheal: Callable[..., Autoheal],
    health_file: Path,
) -> None:
    name = service("--update-failure-action", "pause", "--update-monitor", "20s")
    healer = autoheal(
        AUTOHEAL_BACKOFF="3",
        DOCKER_HOST=swarm.host["DOCKER_HOST"],
        AUTOHEAL_SETTLE="2",
        AUTOHEAL_INTERVAL="1",
    )
    healer.wait_line(WATCHING)
    health_file.unlink()
    healer.wait_line("unhealthy, waiting")
    healer.wait_line("redeploying")
    healer.wait_line("the redeploy failed: Swarm's update is paused", seconds=LONG_SECONDS)
    health_file.touch()
    healer.wait_line(f"{name}.* is healthy again")
    healer.wait_line(f"{name}: the incident is over")
    assert not [line for line in healer.lines if "restarting" in line]


def test_an_update_that_swarm_rolls_back_is_reported_as_failed(
    swarm: Swarm, service: Callable[..., str], tmp_path: Path, health_file: Path
) -> None:
    name = service("--update-failure-action", "rollback", "--update-monitor", "20s")
    _, result = swarm.redeploy(name, tmp_path, Policy(), once_planned=health_file.unlink)
    # Completed or paused: a rollback's own tasks may fail before Swarm looks, or after.
    assert str(result.error).startswith("Swarm's update is rollback_")
