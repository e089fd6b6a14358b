"""Decide how to get a working Docker Engine with Compose and Buildx. No I/O.

What is there is used, and never changed: an engine that answers is not touched, and one that is
installed is at most started.
"""

from __future__ import annotations

from dataclasses import dataclass

from scripts.machine import Machine

DOCS = "https://docs.docker.com/engine/install/"

DEBIAN_12 = "12"
TRIXIE = "trixie"
TOO_OLD = ("8", "9", "10", "11")

_PLUGINS = {
    # docker-ce comes from Docker's own package source, which has the plugins, too.
    "docker-ce": ("docker-compose-plugin", "docker-buildx-plugin"),
    "debian": ("docker-compose", "docker-buildx"),
    "ubuntu": ("docker-compose-v2", "docker-buildx"),
}

# What to run, by the field ID of /etc/os-release. These commands are untested.
_BY_HAND = {
    "fedora": "sudo dnf install moby-engine docker-compose docker-buildx "
    "&& sudo systemctl enable --now docker",
    "arch": "sudo pacman -S docker docker-compose docker-buildx "
    "&& sudo systemctl enable --now docker",
    "alpine": "doas apk add docker docker-cli-compose docker-cli-buildx "
    "&& doas rc-service docker start",
}


@dataclass(frozen=True)
class Plan:
    """The steps to take on this machine; empty if nothing is missing.

    Attributes:
        install: Debian packages, each with the suite it is taken from where that is not the
            system's own (`docker.io/trixie`).
        start: the engine is to be started.
    """

    install: tuple[str, ...] = ()
    start: bool = False

    @property
    def from_trixie(self) -> bool:
        """Whether packages come from Debian 13, on Debian 12."""
        return any(package.endswith(f"/{TRIXIE}") for package in self.install)


@dataclass(frozen=True)
class Stop:
    """Nothing can be done without the user; `message` says what and why, and what to run."""

    message: str


def plan(machine: Machine) -> Plan | Stop:
    """Decide what leads to an engine that answers, with Compose and Buildx."""
    if machine.answer == "yes" and not _lacks(machine):
        return Plan()
    if machine.answer == "yes":
        return _install(machine) if _was_cut_off(machine) else _plugins(machine)
    if machine.answer == "denied":
        return Stop(_denied(machine))
    if machine.chosen_by:
        return Stop(_does_not_answer(machine))
    if machine.rootless:
        return Stop(
            f"This user has a rootless Docker Engine ({machine.rootless}), and root has none. Run "
            "`make up` without sudo."
        )
    if _was_cut_off(machine):
        return _install(machine)
    if machine.daemon:
        return _start(machine)
    return _install(machine)


def _was_cut_off(machine: Machine) -> bool:
    """Whether an earlier run has begun to install an engine, and root can go on with that."""
    complete = machine.package and machine.daemon and not _lacks(machine)
    return machine.begun and machine.uid == 0 and not complete


def _lacks(machine: Machine) -> str:
    names = (("Compose v2", machine.compose), ("Buildx", machine.buildx))
    return " and ".join(name for name, there in names if not there)


def _family(machine: Machine) -> str:
    """`debian` or `ubuntu` where packages have the names that they have there, else empty."""
    like = f"{machine.system.get('ID', '')} {machine.system.get('ID_LIKE', '')}".split()
    return next((name for name in ("ubuntu", "debian") if name in like and machine.apt), "")


def _is_debian_12(machine: Machine) -> bool:
    return machine.system.get("ID") == "debian" and machine.system.get("VERSION_ID") == DEBIAN_12


def _plugins(machine: Machine) -> Plan | Stop:
    """The engine answers, or is installed: add what the client lacks, and nothing else."""
    lacks = _lacks(machine)
    kind = "docker-ce" if machine.package == "docker-ce" else _family(machine)
    if not machine.package or not machine.apt:
        return Stop(
            f"Docker is installed, but {lacks} is missing. Install the plugins "
            f"docker-compose-plugin and docker-buildx-plugin: {DOCS}"
        )
    if kind != "docker-ce" and _is_debian_12(machine):
        return Stop(
            f"Debian 12 has no package of {lacks} for its own engine ({machine.package}). Install "
            f"Docker's packages instead; containers stop during the change: {DOCS}debian/"
        )
    wanted = zip(_PLUGINS[kind], (machine.compose, machine.buildx), strict=True)
    install = tuple(package for package, there in wanted if not there)
    if machine.uid != 0:
        return Stop(
            f"Docker is installed, but {lacks} is missing. "
            f"Run: sudo apt-get install {' '.join(install)}"
        )
    return Plan(install, start=machine.answer != "yes")


def _start(machine: Machine) -> Plan | Stop:
    if machine.uid != 0:
        how = "sudo systemctl start docker" if machine.systemd else "sudo make up"
        return Stop(
            "Docker Engine is installed, but not running: nothing answers at "
            f"{machine.endpoint}. Start it: {how}"
        )
    return _plugins(machine) if _lacks(machine) else Plan(start=True)


def _install(machine: Machine) -> Plan | Stop:
    if machine.wsl:
        return Stop(
            "No Docker Engine answers in this WSL distribution. Start Docker Desktop and enable "
            "it for this distribution (Settings > Resources > WSL integration)."
        )
    family = _family(machine)
    if not family or (family == "debian" and machine.system.get("ID") != "debian"):
        line = _BY_HAND.get(machine.system.get("ID", ""))
        how = f"run: {line}" if line else f"see {DOCS}"
        return Stop(f"No Docker Engine answers on this machine. To install one, {how}")
    if machine.uid != 0:
        return Stop(
            "No Docker Engine answers on this machine. Run `sudo make up` to install the one of "
            f"{machine.name}'s package archive, or install Docker's: {DOCS}{family}/"
        )
    if family == "debian" and machine.system.get("VERSION_ID") in TOO_OLD:
        return Stop(
            f"No Docker Engine answers, and {machine.name}'s own is too old. "
            f"Install Docker's: {DOCS}debian/"
        )
    names = ["docker.io", *_PLUGINS[family], "containerd"]
    if family == "debian" and not machine.client:
        names.insert(1, "docker-cli")  # Ubuntu has it in docker.io
    if _is_debian_12(machine):
        # 12 has Engine 20.10 and Compose v1. The packages of 13 run on it, with the runc of 12.
        return Plan((*(f"{n}/{TRIXIE}" for n in names), "runc/bookworm", "iptables"), start=True)
    return Plan((*names, "iptables"), start=True)


def _denied(machine: Machine) -> str:
    if "docker" not in machine.groups and machine.member:
        return (
            "This user is in the group `docker`, but not yet in this session. Log in again, or "
            "run: newgrp docker"
        )
    return (
        f"This user may not use the Docker Engine at {machine.endpoint}. Add it to the group "
        '`docker`, which is equivalent to root (sudo usermod --append --groups docker "$USER"), '
        "and log in again; or run `sudo make up`."
    )


def _does_not_answer(machine: Machine) -> str:
    if machine.chosen_by == "DOCKER_HOST":
        return (
            f"DOCKER_HOST={machine.endpoint} is set, and no Docker Engine answers there. Start "
            "that engine, or unset DOCKER_HOST to use this machine's own."
        )
    starts = {
        "desktop-linux": "Start Docker Desktop",
        "rootless": "Start it (systemctl --user start docker)",
    }
    return (
        f"The Docker context `{machine.chosen_by}` is selected, and no Docker Engine answers at "
        f"{machine.endpoint}. {starts.get(machine.chosen_by, 'Start that engine')}, or select "
        "this machine's own: docker context use default"
    )


def socket_to_mount(machine: Machine) -> str | None:
    """Path of the engine's socket on the engine's host, to mount into autoheal.

    None: the usual /var/run/docker.sock. Rootless Docker has another one; Docker Desktop and
    engines across a network have the usual one, whatever their client's address is.
    """
    path = machine.endpoint.removeprefix("unix://")
    in_a_virtual_machine = not machine.system or "/.docker/desktop/" in path
    if path == machine.endpoint or in_a_virtual_machine:
        return None
    return None if path in ("/var/run/docker.sock", "/run/docker.sock") else path
