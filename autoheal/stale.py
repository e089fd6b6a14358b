"""Processes of a container that hold VRAM after it has stopped, and how they are ended.

Only where the host's PID namespace and NVML are given. A process is known by its cgroup, never by
its name, and by when it started, so that no other one is ever taken for it.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress

from probe import nvml
from probe.processes import all_visible, containers_of, started

NVML_SECONDS = 3.0
TERM_SECONDS = 5.0
KILL_SECONDS = 5.0

Holder = tuple[int, str]
"""A process id, and when that process started in clock ticks since the boot."""


def can_be_seen(proc: str = "/proc") -> bool:
    """Whether the host's PID namespace and NVML are given."""
    return all_visible(proc) and nvml.has_driver_library(os.environ)


def holders(container: str, proc: str = "/proc") -> list[Holder] | None:
    """The processes of a container that hold VRAM; None where that cannot be seen."""
    if not can_be_seen(proc):
        return None
    pids = _holding_vram()
    if pids is None:
        return None
    return [
        (pid, begun)
        for pid in sorted(pids)
        if container in containers_of(pid, proc) and (begun := started(pid, proc)) is not None
    ]


def end(container: str, before: Sequence[Sequence[object]], proc: str = "/proc") -> list[str]:
    """End what of a stopped container still holds VRAM: SIGTERM, then SIGKILL.

    Args:
        container: its id.
        before: what `holders` said while it ran; also who has left its cgroup since is known so.
        proc: where the processes are seen.

    Returns:
        A description of each process that was ended.
    """
    known = {(one[0], one[1]) for one in before}
    ended = []
    for pid in sorted(_holding_vram() or ()):
        begun = started(pid, proc)
        if (pid, begun) in known or (begun and container in containers_of(pid, proc)):
            with suppress(OSError):  # it has ended by itself
                ended.append(_end(pid, begun, proc))
    return ended


def _end(pid: int, begun: str | None, proc: str) -> str:
    handle = os.pidfd_open(pid)
    try:
        if started(pid, proc) != begun:
            raise ProcessLookupError(pid)
        what = f"process {pid}"
        for number, seconds in ((signal.SIGTERM, TERM_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
            signal.pidfd_send_signal(handle, number)
            if select.select([handle], [], [], seconds)[0]:
                return f"{what} with {number.name}"
        return f"{what}, which survived {signal.SIGKILL.name}"
    finally:
        os.close(handle)


def _holding_vram() -> frozenset[int] | None:
    """Process ids that NVML names; None when it does not answer. On a sick driver it may hang."""
    found: list[frozenset[int] | None] = []
    thread = threading.Thread(target=lambda: found.append(nvml.processes()), daemon=True)
    thread.start()
    thread.join(NVML_SECONDS)
    return found[0] if found else None
