"""What passes connections on to a browser."""

from __future__ import annotations

import socket
import struct
import threading

import pytest

from testbed.quiet_network import pass_on_from

AT_ONCE = struct.pack("ii", 1, 0)
"""Of SO_LINGER: the other side gets no end of the stream but an error."""


@pytest.mark.parametrize("resets", [False, True])
def test_a_connection_that_one_side_ends_is_ended_for_the_other(resets: bool) -> None:
    # As a server does that closes an idle connection while the next request comes in on it.
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        passing = (listener, server.getsockname()[1])
        threading.Thread(target=pass_on_from, args=passing, daemon=True).start()
        with socket.create_connection(listener.getsockname(), timeout=60) as client:
            accepted, _ = server.accept()
            client.sendall(b"a request")
            assert accepted.recv(100) == b"a request"
            accepted.sendall(b"an answer")
            assert client.recv(100) == b"an answer"
            if resets:
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
            accepted.close()
            assert client.recv(100) == b""
            listener.shutdown(socket.SHUT_RDWR)
