"""Processes as /proc shows them: which one it is, what it is called, whose container's it is."""

from __future__ import annotations

import os
import re

HOST_PID_NAMESPACE = "pid:[4026531836]"
"""The kernel's first PID namespace always has this number (PROC_PID_INIT_INO)."""

# /docker/ID, /system.slice/docker-ID.scope, /kubepods/.../cri-containerd-ID.scope, /default/ID
_CONTAINER = re.compile(r"(?<![0-9a-f])([0-9a-f]{64})(?![0-9a-f])")


def all_visible(proc: str = "/proc") -> bool:
    """Whether this is the host's PID namespace, so that a process id means the same as to NVML."""
    try:
        return os.readlink(f"{proc}/self/ns/pid") == HOST_PID_NAMESPACE
    except OSError:
        return False


def started(pid: int, proc: str = "/proc") -> str | None:
    """When a process started, in clock ticks since the boot; None when there is none.

    It tells one process from another that has its number later.
    """
    return after[19] if (after := _read(f"{proc}/{pid}/stat").rpartition(")")[2].split()) else None


def name_of(pid: int, proc: str = "/proc") -> str | None:
    """What a process is called; None when there is none."""
    return _read(f"{proc}/{pid}/comm").strip() or None


def pid_inside(pid: int, proc: str = "/proc") -> int | None:
    """The number that a process has in its own PID namespace; None when there is none."""
    found = re.search(r"^NSpid:.*?(\d+)$", _read(f"{proc}/{pid}/status"), re.MULTILINE)
    return int(found[1]) if found else None


def containers_of(pid: int, proc: str = "/proc") -> tuple[str, ...]:
    """Full ids of the containers that a process is in, the innermost last.

    They stand in the names of its control groups, of version 1 as of 2, Docker's as containerd's.
    """
    return tuple(dict.fromkeys(_CONTAINER.findall(_read(f"{proc}/{pid}/cgroup"))))


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
