"""Whose are the things on an engine: a run of the tests has an identity, and marks all it makes.

A run is a process of one boot of one machine. Containers, images, volumes, networks and Swarm
services carry its identity in a label, processes in their environment, Compose projects and
directories in their names. What a dead run has left can so be told from what a living run uses.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import docker

from probe.processes import started

LABEL = "ollama-autoheal.test-run"
VARIABLE = "AUTOHEAL_TEST_RUN"
_PREFIX = "autoheal-run-"
_IDENTITY = re.compile(
    r"(?P<place>[0-9a-f]{6})-(?P<boot>[0-9a-f]{8})-(?P<pid>\d+)-(?P<started>\d+)"
)
_COMPOSE_PROJECT = "com.docker.compose.project"
_LEASE, _LEASE_HOLDER = "autoheal.lease", "autoheal.lease.holder"


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]


def _place() -> str:
    """Where process ids mean the same as here: this machine, and this PID namespace of it."""
    machine = Path("/etc/machine-id")
    name = machine.read_text() if machine.exists() else socket.gethostname()
    return hashlib.sha256(f"{name} {os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:6]


def identity(pid: int) -> str:
    """The identity of the run that this process leads."""
    return f"{_place()}-{_boot()}-{pid}-{started(pid)}"


RUN = os.environ.setdefault(VARIABLE, identity(os.getpid()))
"""This run. The processes that it starts, such as pytest-xdist's workers, inherit it."""

LABELS = {LABEL: RUN}
LABEL_OPTIONS = ("--label", f"{LABEL}={RUN}")


def is_dead(run: str) -> bool:
    """Whether the process that led a run is gone; False for one of elsewhere, and for no run."""
    found = _IDENTITY.fullmatch(run)
    if found is None or found["place"] != _place():
        return False
    return found["boot"] != _boot() or started(int(found["pid"])) != found["started"]


def unique(word: str) -> str:
    """A name that nothing else has, on this engine or any other."""
    return f"{word}-{uuid.uuid4().hex[:10]}"


def compose_project() -> str:
    """A name for a Compose project of this run."""
    return unique(f"{_PREFIX}{RUN}")


def directory() -> Path:
    """A directory that the processes of this run share.

    Not pytest's own: a socket's path has at most 107 characters.
    """
    _directory().mkdir(exist_ok=True)
    return _directory()


def directory_exists() -> bool:
    """Whether this run has needed its directory: one that made nothing has not."""
    return _directory().exists()


def _directory() -> Path:
    return Path(tempfile.gettempdir(), f"{_PREFIX}{RUN}")


@contextmanager
def locked(name: str, *, across_runs: bool = False) -> Iterator[None]:
    """Hold a lock: one process of this run at a time, or one of all runs on this machine."""
    folder = Path(tempfile.gettempdir()) if across_runs else directory()
    with open(folder / f"autoheal-{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove_leftovers(client: docker.DockerClient) -> None:
    """Remove what runs that are dead have left on this engine and this machine."""
    _end_processes()
    api: Any = client.api
    dead = {run for run in _runs_on(api) if is_dead(run)}
    for run in dead:
        remove(client, run)
    for row in _volumes(api, _LEASE):
        if _holder_is_dead(row):
            with suppress(docker.errors.APIError):
                api.remove_volume(row["Name"])
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if is_dead(path.name.removeprefix(_PREFIX)):
            shutil.rmtree(path, ignore_errors=True)


def remove(client: docker.DockerClient, run: str) -> None:
    """Remove everything of one run from an engine."""
    api: Any = client.api
    with suppress(docker.errors.APIError):  # on an engine that is in no Swarm
        for row in api.services(filters={"label": f"{LABEL}={run}"}):
            api.remove_service(row["ID"])
    for row in _of(run, api.containers(all=True)):
        with suppress(docker.errors.APIError):
            api.remove_container(row["Id"], force=True, v=True)
    for row in _of(run, api.networks()):
        with suppress(docker.errors.APIError):
            api.remove_network(row["Id"])
    for row in _of(run, _volumes(api)):
        with suppress(docker.errors.APIError):
            api.remove_volume(row["Name"], force=True)
    for row in api.images(filters={"label": f"{LABEL}={run}"}):
        with suppress(docker.errors.APIError):
            api.remove_image(row["Id"], force=True)


def remove_leases(client: docker.DockerClient, holders: set[int]) -> None:
    """Remove the leases that supervisors with these process ids have left: they were killed."""
    api: Any = client.api
    for row in _volumes(api, _LEASE):
        holder = _holder(row)
        if _is_of_here(holder) and holder.get("pid") in holders:
            with suppress(docker.errors.APIError):
                api.remove_volume(row["Name"])


def _runs_on(api: Any) -> set[str]:
    rows = [*api.containers(all=True), *api.networks(), *_volumes(api)]
    rows += api.images(filters={"label": LABEL})
    return {run for row in rows if (run := _run_of(row)) is not None}


def _of(run: str, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return (row for row in rows if _run_of(row) == run)


def _run_of(row: dict[str, Any]) -> str | None:
    """The run that made something."""
    labels = row.get("Labels") or {}
    project = str(labels.get(_COMPOSE_PROJECT, ""))
    if project.startswith(_PREFIX):
        return project.removeprefix(_PREFIX).rpartition("-")[0]
    return labels.get(LABEL)


def _volumes(api: Any, label: str = "") -> list[dict[str, Any]]:
    found = api.volumes(filters={"label": label} if label else None)
    return list(found["Volumes"] or ())


def _holder(row: dict[str, Any]) -> dict[str, Any]:
    try:
        return dict(json.loads(row["Labels"][_LEASE_HOLDER]))
    except (LookupError, ValueError, TypeError):
        return {}


def _holder_is_dead(row: dict[str, Any]) -> bool:
    """Whether a lease was held by a process of this machine, outside of containers, that is gone.

    Any supervisor here would take it over at once, so nobody misses it.
    """
    holder = _holder(row)
    if not _is_of_here(holder):
        return False
    try:
        return bool(started(int(holder["pid"])) != holder["started"])
    except (LookupError, TypeError, ValueError):  # written by another version
        return False


def _is_of_here(holder: dict[str, Any]) -> bool:
    """Whether a lease's holder is a process of this boot of this machine, outside of containers."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    here = holder.get("host") == socket.gethostname() and holder.get("boot") == boot
    return bool(here and not holder.get("container"))


def _end_processes() -> None:
    """Kill the processes that a dead run has started, private engines among them."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # another user's, or gone
            for variable in (folder / "environ").read_bytes().split(b"\0"):
                name, _, value = variable.decode(errors="replace").partition("=")
                if name == VARIABLE and is_dead(value):
                    os.kill(int(folder.name), signal.SIGKILL)
