"""TCP connections, as the kernel shows them: of this network namespace, and of a process."""

import os
import socket
import struct
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass

from probe.processes import open_files, read

_ESTABLISHED, _LISTEN = "01", "0A"
_NOTHING = "00000000"

# Linux's sock_diag(7): what to ask, and where in the answer what is read here stands.
# Its older request tells of both address families at once, in one walk through all sockets.
_SOCK_DIAG, _TCPDIAG_GETSOCK, _REQUEST_DUMP, _DONE, _ERROR = 4, 18, 0x301, 3, 2
_INFO, _STATE_ESTABLISHED = 2, 1
_HEADER, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=HH")
_MESSAGE_BYTES = 72
_AGES, _BYTES = struct.Struct("=I4xI"), struct.Struct("=QQ")
_AGES_AT, _BYTES_AT = 44, 120

# As /proc has addresses: four bytes at a time, each with its last one first.
_IPV4 = ("", "0000000000000000FFFF0000")
_IPV6_LOOPBACK = "00000000000000000000000001000000"

_LOOKS, _ACKNOWLEDGED_SECONDS = 3, 0.05

_DIAG_SECONDS = 0.2
"""The kernel answers at once."""


@dataclass(frozen=True)
class _Socket:
    """A row of the kernel's table; addresses end with four bytes and the port, in hexadecimal."""

    address: str
    peer: str
    state: str
    inode: str
    unsent: str

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2], 16)


def listening(port: int, proc: str = "/proc") -> set[str]:
    """What `/proc/PID/fd` calls the sockets that listen on a port."""
    return {one.inode for one in _sockets(proc) if one.state == _LISTEN and one.port == port}


def has_clients(port: int, proc: str = "/proc") -> bool | None:
    """Whether anybody but this process is connected to the server that listens on a port.

    A client that has gone counts no more, whether the server has noticed or not.

    Returns:
        None where no server listens on it, as far as can be seen.
    """
    table = list(_sockets(proc))
    if not any(one.state == _LISTEN and one.port == port for one in table):
        return None
    with suppress(OSError):
        files = set(open_files(os.getpid(), proc))
        ours = {_end(one.address) for one in table if one.inode in files}
        return any(
            one.state == _ESTABLISHED and one.port == port and _end(one.peer) not in ours
            for one in table
        )
    return None


def have_taken_all(ports: Collection[int], proc: str = "/proc") -> bool:
    """Whether all but this process who are connected to these ports have taken what they were sent.

    A client that reads no more leaves some of it with the kernel for as long as that lasts; of
    what was sent a moment ago some is there until it is acknowledged. False where nothing shows.
    """
    with suppress(OSError):
        files = set(open_files(os.getpid(), proc))
        for _ in range(_LOOKS):
            table = list(_sockets(proc))
            ours = {_end(one.address) for one in table if one.inode in files}
            theirs = [one for one in table if one.port in ports and _end(one.peer) not in ours]
            sent = [one.unsent for one in theirs if one.state == _ESTABLISHED]
            if theirs and set(sent) <= {_NOTHING}:
                return True
            time.sleep(_ACKNOWLEDGED_SECONDS)
    return False


def waits(port: int) -> tuple[float, ...]:
    """For how many seconds each client of the server has waited for the first byte of an answer.

    On such a connection something was received after the last that was sent, if any was. On one
    that is idle, or on which an answer is being given, it was not.

    Returns:
        Of those who wait; empty where the kernel does not tell.
    """
    found = []
    with suppress(OSError, struct.error):
        for info in _tcp_infos(port):
            since_sent, since_received = _AGES.unpack_from(info, _AGES_AT)
            acknowledged_bytes, received_bytes = _BYTES.unpack_from(info, _BYTES_AT)
            if received_bytes and (not acknowledged_bytes or since_received < since_sent):
                found.append(since_received / 1e3)
    return tuple(found)


def _tcp_infos(port: int) -> Iterator[bytes]:
    """The kernel's `tcp_info` of every connection that has this port here."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
        kernel.settimeout(_DIAG_SECONDS)
        request = struct.pack("=BxxB", socket.AF_INET, 1 << (_INFO - 1))
        request += struct.pack("!H", port) + bytes(46)
        request += struct.pack("=II", 1 << _STATE_ESTABLISHED, 0)
        size = _HEADER.size + len(request)
        kernel.send(_HEADER.pack(size, _TCPDIAG_GETSOCK, _REQUEST_DUMP, 0, 0) + request)
        while True:
            for kind, message in _messages(kernel.recv(1 << 16)):
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    raise OSError("sock_diag is refused")
                yield from _attributes(message[_MESSAGE_BYTES:], _INFO)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        size, kind, *_ = _HEADER.unpack_from(data)
        yield kind, data[_HEADER.size : size]
        data = data[max((size + 3) & ~3, _HEADER.size) :]


def _attributes(data: bytes, wanted: int) -> Iterator[bytes]:
    while len(data) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(data)
        if kind == wanted:
            yield data[_ATTRIBUTE.size : size]
        data = data[max((size + 3) & ~3, _ATTRIBUTE.size) :]


def open_connections(pid: int, proc: str = "/proc") -> int | None:
    """How many connections a process has; None where its sockets cannot be read."""
    sockets: set[str] = set()
    with suppress(OSError):
        sockets.update(open_files(pid, proc))
    if not sockets:
        return None
    table = _sockets(f"{proc}/{pid}")
    return sum(one.state == _ESTABLISHED and one.inode in sockets for one in table)


def calls_others(pid: int, port: int, proc: str = "/proc") -> bool:
    """Whether a server has called another machine, as for a model that runs in the cloud.

    Args:
        pid: of the server.
        port: where it listens: these connections are its clients'.
        proc: where processes show.
    """
    try:
        sockets = set(open_files(pid, proc))
    except OSError:
        return True  # it may have
    return any(
        one.state == _ESTABLISHED
        and one.inode in sockets
        and one.port != port
        and not _is_loopback(one.peer)
        for one in _sockets(f"{proc}/{pid}")
    )


def _is_loopback(address: str) -> bool:
    host = address.partition(":")[0]
    return host.endswith("7F") if host[:-8] in _IPV4 else host == _IPV6_LOOPBACK


def _end(address: str) -> str:
    """The same for an IPv4 address and for the IPv6 address that stands for it."""
    host, _, port = address.partition(":")
    return f"{host[-8:]}:{port}"


def _sockets(proc: str) -> Iterator[_Socket]:
    for table in ("tcp", "tcp6"):
        for fields in map(str.split, read(f"{proc}/net/{table}").splitlines()[1:]):
            if len(fields) > 9:
                unsent = fields[4].partition(":")[0]
                yield _Socket(fields[1], fields[2], fields[3], f"socket:[{fields[9]}]", unsent)
