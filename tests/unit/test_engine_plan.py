"""What `make up` does on each kind of machine until a Docker Engine answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scripts import apt, engine
from scripts.engine_plan import Plan, Stop, plan, socket_to_mount
from scripts.machine import Machine, os_release

DEBIAN_11 = {"PRETTY_NAME": "Debian 11", "ID": "debian", "VERSION_ID": "11"}
DEBIAN_12 = {"PRETTY_NAME": "Debian 12", "ID": "debian", "VERSION_ID": "12"}
DEBIAN_13 = {"PRETTY_NAME": "Debian 13", "ID": "debian", "VERSION_ID": "13"}
DEBIAN_SID = {"PRETTY_NAME": "Debian sid", "ID": "debian"}
UBUNTU_22 = {"ID": "ubuntu", "ID_LIKE": "debian", "VERSION_ID": "22.04"}
UBUNTU_24 = {"ID": "ubuntu", "ID_LIKE": "debian", "VERSION_ID": "24.04"}
MINT = {"ID": "linuxmint", "ID_LIKE": "ubuntu debian", "VERSION_ID": "22"}
RASPBIAN = {"ID": "raspbian", "ID_LIKE": "debian", "VERSION_ID": "12"}
FEDORA = {"PRETTY_NAME": "Fedora Linux 43", "ID": "fedora", "VERSION_ID": "43"}

BARE = Machine(apt=True)
"""Root, and nothing of Docker; a Debian or Ubuntu is still to be filled in."""

USER: dict[str, Any] = {"uid": 1000, "groups": frozenset({"user"})}
DOCKER: dict[str, Any] = {"client": True, "daemon": True, "compose": True, "buildx": True}
RUNNING: dict[str, Any] = {**DOCKER, "answer": "yes"}
CLIENT: dict[str, Any] = {"client": True, "compose": True, "buildx": True}

FROM_TRIXIE = (
    *("docker.io/trixie", "docker-cli/trixie", "docker-compose/trixie", "docker-buildx/trixie"),
    *("containerd/trixie", "runc/bookworm", "iptables"),
)
FROM_13 = ("docker.io", "docker-cli", "docker-compose", "docker-buildx", "containerd", "iptables")
FROM_UBUNTU = ("docker.io", "docker-compose-v2", "docker-buildx", "containerd", "iptables")


def machine(system: Any = DEBIAN_12, **facts: Any) -> Machine:
    return replace(BARE, system=system, **facts)


@pytest.mark.parametrize(
    ("here", "todo"),
    [
        # An engine that answers is used as it is, by whoever may.
        (machine(**RUNNING), Plan()),
        (machine(UBUNTU_22, **RUNNING, package="docker-ce"), Plan()),
        (machine(UBUNTU_24, **RUNNING, package="docker-ce", **USER), Plan()),
        (machine(FEDORA, **RUNNING, apt=False, **USER), Plan()),
        (machine({"ID": "macos"}, **{**RUNNING, "daemon": False}, apt=False, **USER), Plan()),
        (machine(**RUNNING, chosen_by="rootless", endpoint="unix:///run/user/1/d", **USER), Plan()),
        (machine(**RUNNING, chosen_by="DOCKER_HOST", endpoint="tcp://far:2376"), Plan()),
        # One that lacks a plugin gets that, and is otherwise left as it is.
        (
            machine(**{**RUNNING, "compose": False}, package="docker-ce"),
            Plan(("docker-compose-plugin",)),
        ),
        (
            machine(UBUNTU_24, **{**RUNNING, "buildx": False}, package="docker-ce"),
            Plan(("docker-buildx-plugin",)),
        ),
        (
            machine(
                DEBIAN_13, **{**RUNNING, "compose": False, "buildx": False}, package="docker.io"
            ),
            Plan(("docker-compose", "docker-buildx")),
        ),
        (
            machine(UBUNTU_22, **{**RUNNING, "compose": False}, package="docker.io"),
            Plan(("docker-compose-v2",)),
        ),
        # One that is installed is started.
        (machine(**DOCKER, package="docker.io"), Plan(start=True)),
        (
            machine(DEBIAN_13, **{**DOCKER, "compose": False}, package="docker.io"),
            Plan(("docker-compose",), start=True),
        ),
        # Where there is none, it is installed.
        (machine(), Plan(FROM_TRIXIE, start=True)),
        (machine(DEBIAN_13), Plan(FROM_13, start=True)),
        (machine(DEBIAN_SID), Plan(FROM_13, start=True)),
        (machine(UBUNTU_22), Plan(FROM_UBUNTU, start=True)),
        (machine(UBUNTU_24), Plan(FROM_UBUNTU, start=True)),
        (machine(MINT), Plan(FROM_UBUNTU, start=True)),
        # A client without an engine is used with the engine that is installed.
        (
            machine(client=True),
            Plan(tuple(p for p in FROM_TRIXIE if "docker-cli" not in p), start=True),
        ),
    ],
)
def test_what_is_there_is_used_and_only_what_is_missing_is_installed(
    here: Machine, todo: Plan
) -> None:
    assert plan(here) == todo


@pytest.mark.parametrize(
    ("here", "words"),
    [
        (machine(**USER), "Run `sudo make up` to install the one of Debian 12's package archive"),
        (
            machine(UBUNTU_24, **USER),
            "or install Docker's: https://docs.docker.com/engine/install/u",
        ),
        (machine(DEBIAN_11), "Debian 11's own is too old"),
        (machine(RASPBIAN), "see https://docs.docker.com/engine/install/"),
        (machine(FEDORA, apt=False), "run: sudo dnf install moby-engine docker-compose"),
        (machine(FEDORA, apt=False, **USER), "sudo systemctl enable --now docker"),
        (machine({"ID": "nixos"}, apt=False), "see https://docs.docker.com/engine/install/"),
        (machine(wsl=True, **CLIENT), "Start Docker Desktop and enable it for this distribution"),
        (
            machine(**DOCKER, package="docker-ce", systemd=True, **USER),
            "Start it: sudo systemctl start docker",
        ),
        (machine(**DOCKER, package="docker-ce", **USER), "Start it: sudo make up"),
        (
            machine(**DOCKER, answer="denied", **USER),
            'sudo usermod --append --groups docker "$USER"), and log in again',
        ),
        (
            machine(**DOCKER, answer="denied", member=True, **USER),
            "not yet in this session. Log in again, or run: newgrp docker",
        ),
        (
            machine(**{**RUNNING, "compose": False}, package="docker.io"),
            "no package of Compose v2 for its own engine (docker.io). Install Docker's packages",
        ),
        (
            machine(UBUNTU_24, **{**RUNNING, "compose": False}, package="docker-ce", **USER),
            "Compose v2 is missing. Run: sudo apt-get install docker-compose-plugin",
        ),
        (
            machine(FEDORA, **{**RUNNING, "compose": False, "buildx": False}, apt=False),
            "Compose v2 and Buildx is missing. Install the plugins",
        ),
        (
            machine(**CLIENT, chosen_by="DOCKER_HOST", endpoint="tcp://far:2376"),
            "DOCKER_HOST=tcp://far:2376 is set, and no Docker Engine answers there",
        ),
        (
            machine(**CLIENT, chosen_by="desktop-linux", endpoint="unix:///home/u/d.sock", **USER),
            "`desktop-linux` is selected, and no Docker Engine answers at unix:///home/u/d.sock. "
            "Start Docker Desktop, or select",
        ),
        (
            machine(**DOCKER, chosen_by="rootless", endpoint="unix:///run/user/1/d", **USER),
            "systemctl --user start docker",
        ),
    ],
)
def test_where_nothing_can_be_done_one_line_says_what_to_run(here: Machine, words: str) -> None:
    todo = plan(here)
    assert isinstance(todo, Stop)
    assert words in todo.message
    assert "\n" not in todo.message


def test_an_installation_that_was_interrupted_is_continued() -> None:
    """Whatever state it left: no daemon, packages that are not configured, or no plugins yet."""
    there = {"package": "docker.io", "begun": True}
    for state in (
        {"begun": True},
        {**DOCKER, "begun": True},
        {**DOCKER, **there, "compose": False},
        {**RUNNING, **there, "compose": False},
    ):
        todo = plan(machine(**state))
        assert isinstance(todo, Plan)
        assert {"docker.io/trixie", "docker-compose/trixie"} <= set(todo.install)
        assert todo.start
    assert plan(machine(**RUNNING, **there)) == Plan()
    assert plan(machine(**DOCKER, **there)) == Plan(start=True)


def test_root_installs_no_second_engine_for_a_user_of_a_rootless_one() -> None:
    todo = plan(machine(rootless="/run/user/1000/docker.sock"))
    assert isinstance(todo, Stop)
    assert "Run `make up` without sudo" in todo.message


@pytest.mark.parametrize(
    ("endpoint", "system", "path"),
    [
        ("unix:///var/run/docker.sock", DEBIAN_12, None),
        ("unix:///run/user/1000/docker.sock", DEBIAN_12, "/run/user/1000/docker.sock"),
        ("unix:///home/u/.docker/desktop/docker.sock", UBUNTU_24, None),
        ("unix:///Users/u/.colima/default/docker.sock", {}, None),
        ("tcp://far:2376", DEBIAN_12, None),
        ("ssh://far", DEBIAN_12, None),
    ],
)
def test_autoheal_is_given_the_socket_that_the_engines_own_host_has(
    endpoint: str, system: dict[str, str], path: str | None
) -> None:
    assert socket_to_mount(Machine(system=system, endpoint=endpoint)) == path


def test_the_fields_of_os_release_are_read_as_a_shell_reads_them() -> None:
    text = '# a comment\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n'
    assert os_release(text) == {
        "PRETTY_NAME": "Debian GNU/Linux 12 (bookworm)",
        "ID": "debian",
        "VERSION_ID": "12",
    }


SIMULATED = """
Remv docker-ce [5:27.3.1-1~debian.12~bookworm]
Inst docker.io (26.1.5+dfsg1-9+deb13u1 Debian:13/stable [amd64])
Inst containerd [1.6.20] (1.7.24 Debian:13/stable [amd64])
Conf docker.io (26.1.5+dfsg1-9+deb13u1 Debian:13/stable [amd64])
"""


def test_what_apt_would_remove_replace_and_add_is_read_from_its_simulation() -> None:
    assert apt.removals(SIMULATED) == "remove docker-ce"
    assert apt.upgrades(SIMULATED) == ["containerd"]
    assert apt.new(SIMULATED) == ["docker.io"]
    assert engine._changes_an_engine(SIMULATED) == "replace containerd"
    assert apt.removals(SIMULATED.replace("Remv", "Keep")) is None
