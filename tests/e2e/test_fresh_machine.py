"""`make up`, `make down` and `make clean` on a machine that has nothing."""

from __future__ import annotations

import json

import docker
import pytest

from scripts import apt
from testbed import runs
from testbed.fresh_machine import CLONE, FreshMachine, Suite, fresh_machine

USER = "1000"
LISTENING = (
    "import socket, subprocess; port = socket.create_server(('127.0.0.1', 11434)); "
    "raise SystemExit(subprocess.call(['make', 'up']))"
)
"""Runs `make up` while another program has Ollama's port."""

SOURCES = "ls -A /etc/apt/sources.list.d /etc/apt/preferences.d"
EVERYTHING = "docker ps -aq; docker volume ls -q; docker images -aq"


@pytest.mark.more
@pytest.mark.parametrize("suite", ["bookworm", "trixie"], ids=["Debian 12", "13"])
@pytest.mark.timeout(1800)
def test_from_nothing_make_up_heads_for_two_healthy_services_and_make_clean_back_again(
    engine: docker.DockerClient, suite: Suite
) -> None:
    with fresh_machine(engine, suite, apt.archive(), runs.LABELS) as machine:
        sources, tree = machine.run(SOURCES).output, machine.run("ls -A").output
        what_cannot_work_changes_nothing(machine)
        assert machine.run(SOURCES).output == sources

        done = machine.run("make up")
        assert done.code == 0, done.output
        assert "Next:" in done.output
        services = health(machine)
        assert {service: state for service, (_, state) in services.items()} == {
            "ollama": "healthy",
            "autoheal": "healthy",
        }
        machine.run(f"chown -R {USER} {CLONE}")
        for user in ("root", f"{USER}:{group(machine, 'docker')}"):  # the latter is in the group
            again = machine.run("make up", user=user, HOME=f"/tmp/home-{user}")
            assert again.code == 0, (user, again.output)
            assert health(machine) == services
        for target in ("up", "down", "clean"):
            other = machine.run(f"cd /tmp/clone && make {target}")
            assert other.code != 0
            assert f"The services of `make up` on this engine belong to {CLONE}" in other.output
        assert health(machine) == services

        done = machine.run("make test-unit")
        assert done.code == 0, done.output

        assert machine.run("make down").code == 0
        left = machine.run("docker ps -aq; docker volume ls -q").output.split()
        assert left == ["ollama-autoheal_ledger", "ollama-autoheal_models"]
        done = machine.run("make clean")
        assert done.code == 0
        assert machine.run(EVERYTHING).output == ""
        networks = machine.run("docker network ls --format '{{.Name}}'").output.split()
        assert sorted(networks) == ["bridge", "host", "none"]
        assert machine.run("ls -A").output == tree
        # What stays is named.
        stays = machine.run("ls /etc/apt/sources.list.d/* /etc/apt/preferences.d/*").output
        for word in ("docker.io", "mmdebstrap", *(w for w in stays.split() if w[0] == "/")):
            assert word in done.output, word


def what_cannot_work_changes_nothing(machine: FreshMachine) -> None:
    """Each is one clear line, before anything is installed."""
    done = machine.run(f'python3 -c "{LISTENING}"')
    assert done.code != 0
    assert "Port 11434 of this machine is in use by another program" in done.output
    done = machine.run("make up", DOCKER_HOST="tcp://127.0.0.1:1")
    assert done.code != 0
    assert "DOCKER_HOST=tcp://127.0.0.1:1 is set, and no Docker Engine answers" in done.output
    assert machine.run(f"cp -r {CLONE} /tmp/clone && chown -R {USER} /tmp/clone").code == 0
    done = machine.run("cd /tmp/clone && make up", user=USER)
    assert done.code != 0
    assert "Run `sudo make up` to install the one of Debian GNU/Linux" in done.output
    assert machine.run("command -v docker").code != 0
    machine.run("rm -r .logs")


def health(machine: FreshMachine) -> dict[str, tuple[str, str]]:
    """The id of each service's container, and its health."""
    rows = machine.run("docker compose ps --format json").output.splitlines()
    return {row["Service"]: (row["ID"], row["Health"]) for row in map(json.loads, rows)}


def group(machine: FreshMachine, name: str) -> str:
    return machine.run(f"getent group {name}").output.split(":")[2]
