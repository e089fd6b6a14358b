"""What `make up` leaves: both services, as the README promises them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import docker
import pytest
from docker.models.containers import Container

from probe.report import parse
from scripts.demo import find_server
from testbed.autoheal import WATCHING
from testbed.containers import AUTOHEAL, OLLAMA, ROOT, SECOND, Workload, wait_log


@pytest.fixture
def services(engine: docker.DockerClient, make_up: None) -> dict[str, Workload]:
    """What `make up` has started."""
    # A plain container of an image that Compose built inherits its labels, but for the number.
    made = ["com.docker.compose.project=ollama-autoheal", "com.docker.compose.container-number"]
    found = engine.containers.list(filters={"label": made}, ignore_removed=True)
    return {c.labels["com.docker.compose.service"]: Workload(c) for c in found}


def test_both_services_are_healthy_and_docker_inspect_shows_the_probes_line(
    services: dict[str, Workload],
) -> None:
    assert set(services) == {"ollama", "autoheal"}
    for service in services.values():
        service.wait_health("healthy")
    verdict = parse(services["ollama"].lines[-1])
    assert verdict is not None
    assert verdict.healthy


def test_a_second_make_up_changes_nothing(services: dict[str, Workload]) -> None:
    before = {name: (s.container.id, s.started_at) for name, s in services.items()}
    subprocess.run(["make", "up"], cwd=ROOT, check=True, capture_output=True)
    assert {name: (s.container.id, s.started_at) for name, s in services.items()} == before


def test_the_demo_finds_our_own_server_and_nobody_elses(
    services: dict[str, Workload], start: Callable[..., Container]
) -> None:
    start(OLLAMA, ["serve"])
    _, found = find_server()
    assert found.id == services["ollama"].container.id


def test_autoheal_runs_without_root_without_capabilities_and_read_only(
    services: dict[str, Workload],
) -> None:
    [pid] = services["autoheal"].pids("autoheal run")
    uids = services["autoheal"].container.top(ps_args="-eo pid,uid")["Processes"]
    assert [str(pid), "65532"] in uids
    host = services["autoheal"].attributes["HostConfig"]
    assert host["ReadonlyRootfs"]
    status = Path(f"/proc/{pid}/status").read_text()
    assert "CapEff:\t0000000000000000\n" in status
    assert "no-new-privileges:true" in host["SecurityOpt"]


def test_autoheals_own_health_turns_red_when_its_deciding_thread_is_dead(
    start: Callable[..., Container], label: str
) -> None:
    socket = "/var/run/docker.sock"
    healer = Workload(
        start(
            AUTOHEAL,
            environment={"AUTOHEAL_CONTAINER_LABEL": label},
            volumes={socket: {"bind": socket, "mode": "rw"}},
            labels={"autoheal": "false"},
            healthcheck={"interval": SECOND},  # the image's own, more often
        )
    )
    healer.wait_health("healthy")
    healer.freeze("autoheal run")
    try:
        red = "unhealthy: the deciding thread has been silent for"
        healer.wait(lambda: healer.lines[-1].startswith(red), "red")
    finally:
        healer.thaw("autoheal run")
    healer.wait(lambda: healer.lines[-1] == "healthy", "green again")


def test_root_is_kept_where_only_root_can_write_the_ledger(
    start: Callable[..., Container], label: str, tmp_path: Path
) -> None:
    """A directory of the host's is root's; without a ledger its budget would be forgotten."""
    socket = "/var/run/docker.sock"
    healer = Workload(
        start(
            AUTOHEAL,
            environment={
                "AUTOHEAL_CONTAINER_LABEL": label,
                "AUTOHEAL_LEDGER": "/var/lib/autoheal/ledger.db",
            },
            volumes=[f"{socket}:{socket}", f"{tmp_path}:/var/lib/autoheal"],
            labels={"autoheal": "false"},
        )
    )
    wait_log(healer.container, "running as root: user 65532 cannot write /var/lib/autoheal/ledger")
    wait_log(healer.container, WATCHING)
    assert b"degraded" not in healer.container.logs()
    assert (tmp_path / "ledger.db").exists()
    # The commands are root there, too, and see the same ledger.
    done = healer.container.exec_run(["autoheal", "status"])
    assert done.exit_code == 0, done.output
