"""Faults of a process.

    python -m testbed.faults unkillable PID
    python -m testbed.faults hung PID

These two are none that a signal could make: the process is traced (ptrace), as by a debugger, and
they last until this program ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from probe.processes import stat, thread_states
from testbed.deadlines import Deadline, scaled

_SEIZE, _INTERRUPT, _LISTEN, _CONT, _DETACH = 0x4206, 0x4207, 0x4208, 7, 17
_TRACE_EXIT = 0x40
_EVENT_EXIT, _EVENT_STOP = 6, 128
_ALL_CHILDREN = 0x40000000  # __WALL

_WORK_SECONDS, _WORK_TICKS = 0.5, 5
"""Threads at work run for so many clock ticks in this time, on a quiet machine, and at least half
as long as the one that runs longest: with others the rest of the process would stand still, too."""

_TIMES, _AGAIN_SECONDS = 300, 0.001

_STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)


def freeze(pid: int) -> None:
    """Stop a process (SIGSTOP), and wait until all of it has stopped.

    Until one of its threads has had a CPU to take the signal, the others go on: a runner may still
    answer for its health, and take the request that it was to miss.
    """
    os.kill(pid, signal.SIGSTOP)
    deadline = Deadline()
    while any(state not in "Tt" for _, state in thread_states(pid)):
        assert not deadline.passed, f"process {pid} has not stopped"
        time.sleep(0.001)


@contextmanager
def unkillable(pid: int) -> Iterator[None]:
    """A process that does not end, whatever it is sent, as while a driver holds one of its threads.

    If it is killed meanwhile, a zombie with one live thread is left, for which its parent waits.
    """
    with _tracer("unkillable", pid):
        yield


@contextmanager
def hung(pid: int) -> Iterator[None]:
    """A process of which those threads stand still that are at work now, as in a call that hangs.

    Its other threads go on: it answers for its health.
    """
    with _tracer("hung", pid):
        yield


@contextmanager
def _tracer(fault: str, pid: int) -> Iterator[None]:
    command = [sys.executable, "-m", "testbed.faults", fault, str(pid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as tracer:
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == b"begun\n"
        try:
            yield
        finally:
            tracer.kill()


def _ptrace(request: int, thread: int, data: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(request, thread, None, ctypes.c_void_p(data)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _hang(pid: int) -> None:
    seconds, enough = scaled(_WORK_SECONDS), 0
    while True:
        ran = _ran_in(pid, seconds)
        if not enough:
            if max(ran.values(), default=0) < _WORK_TICKS:
                continue  # it is at work, and no CPU is free for it
            enough = max(ran.values()) // 2
        workers = [thread for thread, ticks in ran.items() if ticks >= max(enough, _WORK_TICKS)]
        if not workers:
            break
        for thread in workers:  # then those that wait for one that hangs, and spin
            with suppress(ProcessLookupError, FileNotFoundError):  # it has ended by now
                _stop_in_library(pid, thread)
    print("begun", flush=True)
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, _ALL_CHILDREN)  # a thread that is killed has ended only then


def _stop_in_library(pid: int, thread: int) -> None:
    """Stop a thread while it computes, which it does in a library.

    In the program itself it may hold what all others need: the whole of a Go program stands still
    when a thread does that runs its code.
    """
    libraries = _libraries(pid)
    _ptrace(_SEIZE, thread, 0)
    for _ in range(_TIMES):
        _ptrace(_INTERRUPT, thread, 0)
        os.waitpid(thread, _ALL_CHILDREN)
        with open(f"/proc/{pid}/task/{thread}/syscall", encoding="ascii") as file:
            words = file.read().split()
        at = int(words[-1], 16)
        if words[0] == "-1" and any(begin <= at < end for begin, end in libraries):
            return
        _ptrace(_CONT, thread, 0)
        time.sleep(_AGAIN_SECONDS)
    # By now it sleeps, and waits for one that is stopped.
    _ptrace(_INTERRUPT, thread, 0)
    os.waitpid(thread, _ALL_CHILDREN)
    _ptrace(_DETACH, thread, 0)


def _libraries(pid: int) -> list[tuple[int, int]]:
    """Where the code of its shared libraries is, in the memory of a process."""
    found = []
    with open(f"/proc/{pid}/maps", encoding="utf-8") as file:
        for fields in map(str.split, file):
            if len(fields) > 5 and "x" in fields[1] and ".so" in fields[5]:
                begin, _, end = fields[0].partition("-")
                found.append((int(begin, 16), int(end, 16)))
    return found


def _ran_in(pid: int, seconds: float) -> dict[int, int]:
    """For how long each thread runs in a time, in clock ticks."""
    before = _ran(pid)
    time.sleep(seconds)
    return {thread: ticks - before.get(thread, 0) for thread, ticks in _ran(pid).items()}


def _ran(pid: int) -> dict[int, int]:
    """For how long each thread has run, in clock ticks."""
    ran = {}
    for name in os.listdir(f"/proc/{pid}/task"):
        if fields := stat(f"/proc/{pid}/task/{name}/stat"):
            ran[int(name)] = int(fields[11]) + int(fields[12])
    return ran


def _hold(pid: int) -> None:
    threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    _ptrace(_SEIZE, max(threads), _TRACE_EXIT)  # not the first one, which stands for the process
    print("begun", flush=True)
    while True:
        thread, status = os.waitpid(-1, _ALL_CHILDREN)
        if not os.WIFSTOPPED(status):
            return
        event, number = status >> 16, os.WSTOPSIG(status)
        if event == _EVENT_EXIT:
            continue  # here it stays
        with suppress(ProcessLookupError):
            if event == _EVENT_STOP and number in _STOPS:
                _ptrace(_LISTEN, thread, 0)
            else:
                _ptrace(_CONT, thread, 0 if event else number)


if __name__ == "__main__":
    {"unkillable": _hold, "hung": _hang}[sys.argv[1]](int(sys.argv[2]))
