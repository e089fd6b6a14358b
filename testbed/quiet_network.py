"""A network that changes for nobody, for a browser.

Chromium gives up all that it loads whenever an address of its network comes or goes
(ERR_NETWORK_CHANGED), and Docker adds and removes addresses with every container.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

_HOLD = "ip link set lo up && echo up && exec cat"


class QuietNetwork:
    """A network namespace with nothing but a loopback interface.

    Attributes:
        inside: the words before a command that is to run in it.
    """

    def __init__(self, holder: subprocess.Popen[bytes]) -> None:
        self._holder = holder
        self._listeners: list[socket.socket] = []
        self.inside = ["nsenter", "--target", str(holder.pid), "--net"]

    def let_through(self, port: int) -> None:
        """Whoever connects to this port of 127.0.0.1 in there gets to that of this machine."""
        with ThreadPoolExecutor(1) as apart:  # its thread moves there, and ends
            listener = apart.submit(self._listen, port).result()
        self._listeners.append(listener)
        threading.Thread(target=pass_on_from, args=(listener, port), daemon=True).start()

    def close(self) -> None:
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)  # ends its accept
            listener.close()

    def _listen(self, port: int) -> socket.socket:
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/proc/{self._holder.pid}/ns/net") as namespace:
            if libc.setns(namespace.fileno(), 0):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), namespace.name)
        return socket.create_server(("127.0.0.1", port))


@contextlib.contextmanager
def quiet_network() -> Iterator[QuietNetwork]:
    """One that goes at the end; needs root."""
    hold = ["unshare", "--net", "sh", "-c", _HOLD]
    with subprocess.Popen(hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"up\n"
        network = QuietNetwork(holder)
        yield network
        network.close()
        holder.stdin.close()  # of which it reads the end


def pass_on_from(listener: socket.socket, port: int) -> None:
    """Pass on what comes in at a listener to a port of this machine, until the listener is shut."""
    while True:
        try:
            inside, _ = listener.accept()
        except OSError:
            return
        try:
            outside = socket.create_connection(("127.0.0.1", port))
        except OSError:  # nobody listens there, and nobody seems to here
            inside.close()
            continue
        for ends in ((inside, outside), (outside, inside)):
            threading.Thread(target=_pass_on, args=ends, daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    with contextlib.suppress(OSError):  # its end, or that it was cut off
        target.shutdown(socket.SHUT_WR)
