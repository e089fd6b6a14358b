"""Processes as /proc shows them: which one it is, what it is called, whose container's it is."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress

HOST_PID_NAMESPACE = "pid:[4026531836]"
"""The kernel's first PID namespace always has this number (PROC_PID_INIT_INO)."""

# /docker/ID, /system.slice/docker-ID.scope, /kubepods/.../cri-containerd-ID.scope, /default/ID
_INSIDE = re.compile(r"^NSpid:.*?(\d+)$", re.MULTILINE)
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
    fields = stat(f"{proc}/{pid}/stat")
    return fields[19] if fields else None


def name_of(pid: int, proc: str = "/proc") -> str | None:
    """What a process is called; None when there is none."""
    return read(f"{proc}/{pid}/comm").strip() or None


def pid_inside(pid: int, proc: str = "/proc") -> int | None:
    """The number that a process has in its own PID namespace; None when there is none."""
    found = _INSIDE.search(read(f"{proc}/{pid}/status"))
    return int(found[1]) if found else None


def containers_of(pid: int, proc: str = "/proc") -> tuple[str, ...]:
    """Full ids of the containers that a process is in, the innermost last.

    They stand in the names of its control groups, of version 1 as of 2, Docker's as containerd's.
    """
    return tuple(dict.fromkeys(_CONTAINER.findall(read(f"{proc}/{pid}/cgroup"))))


def boot_id(proc: str = "/proc") -> str:
    """What names the time since the machine was started; empty where it cannot be read."""
    return read(f"{proc}/sys/kernel/random/boot_id").strip()


def stat(path: str) -> list[str] | None:
    """The fields of a `stat` file that follow the name: the state, the parent and so on.

    Args:
        path: of a process or of one of its threads.
    """
    fields = read(path).rpartition(")")[2].split()
    return fields if len(fields) > 21 else None


def first_child(parent: int, proc: str = "/proc") -> int | None:
    """The oldest process of those whose parent this is; None where there is none."""
    children = []
    for pid in filter(str.isdigit, os.listdir(proc)):
        fields = stat(f"{proc}/{pid}/stat")
        if fields is not None and fields[1] == str(parent):
            children.append((int(fields[19]), int(pid)))
    return min(children)[1] if children else None


def thread_states(pid: int | str, proc: str = "/proc") -> Iterator[tuple[str, str]]:
    """The threads of a process, each with the kernel's letter for what it does now."""
    with suppress(OSError):
        for thread in os.listdir(f"{proc}/{pid}/task"):
            if fields := stat(f"{proc}/{pid}/task/{thread}/stat"):
                yield thread, fields[0]


def is_at_work(pid: int, proc: str = "/proc") -> bool:
    """Whether a process runs or waits for a disk at this moment."""
    return any(state in "RD" for _, state in thread_states(pid, proc))


def open_files(pid: int, proc: str = "/proc") -> Iterator[str]:
    """What the open files of a process are; raises `OSError` where that cannot be read."""
    for descriptor in os.listdir(f"{proc}/{pid}/fd"):
        with suppress(FileNotFoundError):
            yield os.readlink(f"{proc}/{pid}/fd/{descriptor}")


def read(path: str) -> str:
    """A file of /proc; empty where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
