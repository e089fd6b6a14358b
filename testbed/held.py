"""A process that cannot be killed, as while a driver holds one of its threads.

    python -m testbed.held PID

One thread is traced, and stops when it is about to exit. A process that is killed meanwhile is
left as a zombie with one live thread, and its parent waits for it, until this program ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_SEIZE, _LISTEN, _CONT = 0x4206, 0x4208, 7
_TRACE_EXIT = 0x40
_EVENT_EXIT, _EVENT_STOP = 6, 128
_ALL_CHILDREN = 0x40000000  # __WALL

_STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)


@contextmanager
def held(pid: int) -> Iterator[None]:
    """While this lasts, the process does not end, whatever it is sent; afterwards it does."""
    command = [sys.executable, "-m", "testbed.held", str(pid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as tracer:
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == b"held\n"
        try:
            yield
        finally:
            tracer.kill()


def _hold(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def ptrace(request: int, thread: int, data: int) -> None:
        if libc.ptrace(request, thread, None, ctypes.c_void_p(data)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    ptrace(_SEIZE, max(threads), _TRACE_EXIT)  # not the first one, which stands for the process
    print("held", flush=True)
    while True:
        thread, status = os.waitpid(-1, _ALL_CHILDREN)
        if not os.WIFSTOPPED(status):
            return
        event, number = status >> 16, os.WSTOPSIG(status)
        if event == _EVENT_EXIT:
            continue  # here it stays
        with suppress(ProcessLookupError):
            if event == _EVENT_STOP and number in _STOPS:
                ptrace(_LISTEN, thread, 0)
            else:
                ptrace(_CONT, thread, 0 if event else number)


if __name__ == "__main__":
    _hold(int(sys.argv[1]))
