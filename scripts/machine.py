"""What this machine has of Docker: the facts that `engine_plan` decides on."""

from __future__ import annotations

import grp
import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from scripts import apt
from scripts.say import FailedError, run, works

CLIENT_SECONDS = 20
"""How long the client may take to say whether an engine answers: it may be across a network."""

_ENGINE_PACKAGES = ("docker-ce", "docker.io", "moby-engine")


@dataclass(frozen=True)
class Machine:
    """Facts only; see `plan` for what follows from them.

    Attributes:
        system: the fields of /etc/os-release.
        answer: whether the engine answers that the client points to; `denied`: it is there, and
            this user may not use it.
        client: there is a `docker` program.
        daemon: there is a `dockerd` program.
        compose: the client has Compose v2.
        buildx: the client has Buildx.
        endpoint: the engine's address, as the client sees it.
        chosen_by: what set that address: `DOCKER_HOST`, a context's name, or empty for none.
        package: the installed Debian package that has the engine, or empty.
        apt: there is an `apt-get`.
        uid: of this user.
        groups: names of the groups of this session.
        member: /etc/group has this user in the group `docker`, perhaps since this session began.
        begun: an earlier run has begun to install an engine here, and may have been cut off.
        rootless: the socket of a rootless engine of the user who ran sudo, or empty.
        systemd: it manages this machine's services.
        wsl: this is the Windows Subsystem for Linux.
    """

    system: Mapping[str, str] = field(default_factory=dict)
    answer: Literal["yes", "no", "denied"] = "no"
    client: bool = False
    daemon: bool = False
    compose: bool = False
    buildx: bool = False
    endpoint: str = "unix:///var/run/docker.sock"
    chosen_by: str = ""
    package: str = ""
    apt: bool = False
    uid: int = 0
    groups: frozenset[str] = frozenset()
    member: bool = False
    begun: bool = False
    rootless: str = ""
    systemd: bool = False
    wsl: bool = False

    @property
    def is_local(self) -> bool:
        """Whether the engine, as far as its address tells, is on this machine."""
        return self.endpoint.startswith("unix://")

    @property
    def name(self) -> str:
        """The system's name, for people."""
        return self.system.get("PRETTY_NAME") or "this system"


def inspect() -> Machine:
    """Read the facts from this machine; changes nothing."""
    user = os.environ.get("SUDO_USER") or os.environ.get("USER") or ""
    client = shutil.which("docker") is not None
    endpoint, chosen_by = _endpoint(client)
    return Machine(
        system=os_release(_read("/etc/os-release")),
        answer=_answer() if client else "no",
        client=client,
        daemon=shutil.which("dockerd") is not None,
        compose=works(["docker", "compose", "version"]),
        buildx=works(["docker", "buildx", "version"]),
        endpoint=endpoint,
        chosen_by=chosen_by,
        package=next(filter(_installed, _ENGINE_PACKAGES), ""),
        apt=shutil.which("apt-get") is not None,
        uid=os.geteuid(),
        groups=frozenset(_group_name(gid) for gid in os.getgroups()),
        member=user in _members("docker"),
        begun=apt.begun("docker.io"),
        rootless=_rootless(),
        systemd=os.path.isdir("/run/systemd/system"),
        wsl="microsoft" in _read("/proc/version").lower(),
    )


def os_release(text: str) -> dict[str, str]:
    """The fields of /etc/os-release, a file in shell syntax."""
    pairs = (word.partition("=") for word in shlex.split(text, comments=True))
    return {key: value for key, _, value in pairs}


def _answer() -> Literal["yes", "no", "denied"]:
    try:
        run(["docker", "version"], timeout=CLIENT_SECONDS)
    except FailedError as error:
        return "denied" if "permission denied" in str(error) else "no"
    return "yes"


def _endpoint(client: bool) -> tuple[str, str]:
    host = os.environ.get("DOCKER_HOST")
    if host:
        return host, "DOCKER_HOST"
    if not client:
        return Machine.endpoint, ""
    form = "{{.Name}} {{.Endpoints.docker.Host}}"
    try:
        name, _, address = run(["docker", "context", "inspect", "--format", form]).partition(" ")
    except FailedError:  # there is no context of that name
        name, address = os.environ.get("DOCKER_CONTEXT", "unknown"), "an unknown address"
    return address.strip(), "" if name == "default" else name


def _rootless() -> str:
    """The socket of the user behind `sudo`, which root's client does not look for."""
    socket = f"/run/user/{os.environ.get('SUDO_UID', '')}/docker.sock"
    return socket if "SUDO_UID" in os.environ and os.path.exists(socket) else ""


def _installed(package: str) -> bool:
    try:
        status = run(["dpkg-query", "--show", "--showformat", "${db:Status-Status}", package])
    except FailedError:
        return False
    return status == "installed"


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _members(group: str) -> list[str]:
    try:
        return grp.getgrnam(group).gr_mem
    except KeyError:
        return []


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
