"""End one process: what it does is written down first, and no other is ever meant."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Literal

from probe.connections import open_connections
from probe.processes import read, started, stat, thread_states

END_SECONDS = 2.0
"""A process that is killed and has not ended by then cannot be killed."""


@dataclass(frozen=True)
class Evidence:
    """What a process was doing. What cannot be read is empty or None.

    Attributes:
        state: the kernel's letter for it: `R`, `S`, `D`, `T` or `Z`.
        waits_in: the kernel's function that it waits in.
        threads: how many threads there are in each state.
        cpu_seconds: time that it has run.
        memory_bytes: memory that it holds, without VRAM.
        connections: open connections, over TCP.
    """

    state: str = ""
    waits_in: str = ""
    threads: dict[str, int] | None = None
    cpu_seconds: float | None = None
    memory_bytes: int | None = None
    connections: int | None = None


def evidence(pid: int, proc: str = "/proc") -> Evidence:
    """What a process is doing now; never raises."""
    fields = stat(f"{proc}/{pid}/stat")
    if fields is None:
        return Evidence()
    threads = Counter(state for _, state in thread_states(pid, proc))
    return Evidence(
        state=fields[0],
        waits_in=read(f"{proc}/{pid}/wchan").strip("0\n"),
        threads=dict(threads),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
        memory_bytes=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        connections=open_connections(pid, proc),
    )


def end(pid: int, start: int) -> Literal["ended", "gone", "denied", "stuck"]:
    """Kill a process (SIGKILL), and wait until it has ended.

    Args:
        pid: its process id.
        start: when it started, as `send` takes it.

    Returns:
        `gone`: it had ended before. `denied`: this user may not. `stuck`: it does not end.
    """
    result = send(pid, start, signal.SIGKILL)
    if result != "sent":
        return result
    return "ended" if _ends(pid, start) else "stuck"


def send(pid: int, start: int, number: int) -> Literal["sent", "gone", "denied"]:
    """Send a signal to a process.

    Args:
        pid: its process id.
        start: when it started, in clock ticks since the boot; a process that has its number, and
            started at another time, is another one.
        number: the signal; 0 only asks whether this user may send one.

    Returns:
        `gone`: it had ended before. `denied`: this user may not.
    """
    with ExitStack() as stack:
        descriptor = None
        with suppress(OSError):  # a kernel before 5.3, and sandboxes, have none
            descriptor = os.pidfd_open(pid)
            stack.callback(os.close, descriptor)
        # From here on the descriptor means this process, whatever becomes of its number.
        if started(pid) != str(start):
            return "gone"
        try:
            if descriptor is None:
                os.kill(pid, number)
            else:
                signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return "gone"
        except PermissionError:
            return "denied"
    return "sent"


def _ends(pid: int, start: int) -> bool:
    deadline = time.monotonic() + END_SECONDS
    while started(pid) == str(start):
        if _is_dead(pid):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _is_dead(pid: int) -> bool:
    """Whether it is a zombie without threads: all that is left is for its parent to notice."""
    fields = stat(f"/proc/{pid}/stat")
    return fields is not None and fields[0] == "Z" and fields[17] in ("0", "1")
