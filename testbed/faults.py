"""Faults of a process.

    python -m testbed.faults PID

makes a process unkillable until this program ends. No signal could: it is traced (ptrace), as by a
debugger.
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

from probe.processes import thread_states
from testbed.deadlines import Deadline

_SEIZE, _LISTEN, _MESSAGE, _CONT = 0x4206, 0x4208, 0x4201, 7
_TRACE_EXIT = 0x40
_EVENT_EXIT, _EVENT_STOP = 6, 128
_ALL_CHILDREN = 0x40000000  # __WALL

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
    command = [sys.executable, "-m", "testbed.faults", str(pid)]
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


def _is_killed(thread: int) -> bool:
    """Whether a thread that exits was killed; others end by themselves, as after each token."""
    code = ctypes.c_ulong()
    _ptrace(_MESSAGE, thread, ctypes.addressof(code))
    return code.value & 0x7F == signal.SIGKILL


def _hold(pid: int) -> None:
    for name in os.listdir(f"/proc/{pid}/task"):
        with suppress(ProcessLookupError):  # it has ended since
            if int(name) != pid:  # the first one stands for the process
                _ptrace(_SEIZE, int(name), _TRACE_EXIT)
    print("begun", flush=True)
    held = False
    while True:
        thread, status = os.waitpid(-1, _ALL_CHILDREN)
        if not os.WIFSTOPPED(status):
            continue
        event, number = status >> 16, os.WSTOPSIG(status)
        with suppress(ProcessLookupError):
            if event == _EVENT_EXIT and not held and _is_killed(thread):
                held = True  # here it stays
            elif event == _EVENT_STOP and number in _STOPS:
                _ptrace(_LISTEN, thread, 0)
            else:
                _ptrace(_CONT, thread, 0 if event else number)


if __name__ == "__main__":
    _hold(int(sys.argv[1]))
