"""Servers that answer as no Ollama does. A mock, since the real one cannot be made to."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

import pytest

from probe.report import Reason, Verdict, parse
from testbed.deadlines import scaled

SILENT = {
    "says nothing",
    "sends headers and then nothing",
    "sends a header, byte by byte",
    "sends a body, byte by byte",
}
"""Kinds that a check hears nothing of but by its deadline."""

SHORT_SECONDS, LONG_SECONDS = 3.0, 60.0
"""The deadlines of checks that wait for it, and of those that end by what they hear."""

START_SECONDS = 5.0
"""What a check may take beyond its deadline, to start and to end."""

ALONE = ("unshare", "--pid", "--fork", "--mount-proc")
"""In its own PID namespace a check does not see the runners of other tests' servers."""

Talk = Callable[[socket.socket], None]


def head(status: str, length: int) -> bytes:
    return f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n".encode()


def says(content: bytes) -> Talk:
    return lambda client: client.sendall(content)


def then_nothing(content: bytes) -> Talk:
    def talk(client: socket.socket) -> None:
        client.sendall(content)
        client.recv(1)  # until it hangs up

    return talk


def for_ever(first: bytes, more: bytes, pause_seconds: float) -> Talk:
    def talk(client: socket.socket) -> None:
        client.sendall(first)
        while True:
            client.sendall(more)
            time.sleep(pause_seconds)

    return talk


SERVERS: dict[str, tuple[Talk, str]] = {
    "says nothing": (then_nothing(b""), "no answer from"),
    "sends headers and then nothing": (then_nothing(head("200 OK", 9)), "no answer from"),
    "sends a header, byte by byte": (for_ever(b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.1), "no answer"),
    "sends a body, byte by byte": (for_ever(head("200 OK", 9999), b"{", 0.1), "no answer from"),
    "sends a gigabyte": (for_ever(head("200 OK", 1 << 30), b"x" * 65536, 0), "has no end"),
    "sends no JSON": (says(head("200 OK", 5) + b"hello"), "did not answer with Ollama's JSON"),
    "sends other JSON": (says(head("200 OK", 14) + b'{"models":[3]}'), "not an answer of Ollama's"),
    "redirects": (says(head("302 Found", 0)), "answered HTTP 302"),
    "answers 500": (says(head("500 Oh", 0)), "answered HTTP 500"),
    "answers 503": (says(head("503 Busy", 0)), "answered HTTP 503"),
    "is not HTTP": (says(b"SSH-2.0-OpenSSH_9.2\r\n"), "/api/ps: "),
    "hangs up": (lambda client: None, "/api/ps: "),
}


LISTED = json.dumps(
    {
        "models": [
            {
                "name": "tiny:latest",
                "expires_at": "2318-01-01T00:00:00Z",
                "context_length": 4096,
            }
        ]
    }
).encode()

MODELS: dict[str, tuple[Talk, Reason, str]] = {
    "says nothing": (then_nothing(b""), Reason.STALLED, "gave no token within"),
    "sends headers and then nothing": (
        then_nothing(head("200 OK", 9)),
        *(Reason.STALLED, "gave no token within"),
    ),
    "sends a body, byte by byte": (
        for_ever(head("200 OK", 9999), b"{", 0.1),
        *(Reason.STALLED, "gave no token within"),
    ),
    "sends a gigabyte": (
        for_ever(head("200 OK", 1 << 30), b"x" * 65536, 0),
        *(Reason.STALLED, "has no end"),
    ),
    "sends no JSON": (
        says(head("200 OK", 5) + b"hello"),
        *(Reason.STALLED, "not an answer of Ollama's"),
    ),
    "redirects": (says(head("302 Found", 0)), Reason.STALLED, "not an answer of Ollama's"),
    "answers 500": (says(head("500 Oh", 2) + b"{}"), Reason.STALLED, "HTTP 500"),
    "answers 503": (
        says(head("503 Busy", 2) + b"{}"),
        Reason.BUSY,
        "the queue for tiny:latest is full",
    ),
    "hangs up": (lambda client: None, Reason.STALLED, "cannot be used"),
}


@pytest.mark.parametrize("kind", SERVERS)
def test_a_check_ends_in_time_and_says_api_down_of_a_server_that(kind: str, tmp_path: Path) -> None:
    talk, words = SERVERS[kind]
    verdict = checked(lambda request: talk, tmp_path, kind)
    assert verdict.reason is Reason.API_DOWN
    assert words in verdict.message


@pytest.mark.parametrize("kind", MODELS)
def test_a_check_ends_in_time_and_is_right_of_a_model_that(kind: str, tmp_path: Path) -> None:
    talk, reason, words = MODELS[kind]
    listed = says(head("200 OK", len(LISTED)) + LISTED)
    verdict = checked(lambda request: listed if b" /api/ps " in request else talk, tmp_path, kind)
    assert verdict.reason is reason
    assert words in verdict.message


def checked(answer: Callable[[bytes], Talk], state: Path, kind: str) -> Verdict:
    """What a check says of a server that answers each request so; it ends in time."""
    deadline = scaled(SHORT_SECONDS if kind in SILENT else LONG_SECONDS)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def meet(client: socket.socket) -> None:
            with client, suppress(OSError), client.makefile("rb") as stream:
                lines = list(takewhile(lambda line: line != b"\r\n", stream))
                lengths = (line[15:] for line in lines if line.startswith(b"Content-Length:"))
                stream.read(sum(map(int, lengths)))
                if lines:
                    answer(lines[0])(client)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    threading.Thread(target=meet, args=(client,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        done = subprocess.run(
            [*ALONE, sys.executable, "-m", "probe", "check"],
            env={
                **os.environ,
                "OLLAMA_HOST": f"127.0.0.1:{listener.getsockname()[1]}",
                "PROBE_TIMEOUT": str(min(deadline, 300)),
                "PROBE_STATE_DIR": str(state),
                "PROBE_CACHE_DIR": str(state),
                "PROBE_GENERATE": "always",  # nothing is suspected of these servers
            },
            capture_output=True,
            text=True,
            timeout=deadline + scaled(START_SECONDS),
        )
    verdict = parse(done.stdout)
    assert verdict is not None, done
    assert (done.returncode, done.stderr) == (verdict.exit_code, "")
    return verdict
