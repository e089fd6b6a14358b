"""A user who stops reading an answer: their request never ends, and Ollama waits for it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from testbed import runner
from testbed.deadlines import LONG_SECONDS, Deadline
from testbed.ollama import Ollama

SYSCTLS = {"net.ipv4.tcp_wmem": "4096 4096 4096"}
"""For the server's container: without them, megabytes of an answer fit into its buffers."""

ENDLESS = {"num_predict": 1_000_000, "num_ctx": 8192, "temperature": 5, "top_p": 1}
"""Options for an answer that goes on for long, and never says the same word over and over."""

_STUCK_TOKENS = 2000
"""More than fit into the buffers of both sides."""

LONG_ANSWER_TOKENS = 3000
"""For an answer whose user stops reading long before its end."""


@contextmanager
def send(server: Ollama, *, buffer_bytes: int = 0, **body: Any) -> Iterator[socket.socket]:
    """A client that has sent a request, and hangs up at the end.

    Args:
        buffer_bytes: how much it takes in without reading; 0 leaves that to the kernel.
        body: the request's fields.
    """
    content = json.dumps(body).encode()
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.socket() as one:
        if buffer_bytes:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        one.connect((host, int(port)))
        head = f"POST /api/generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
        one.sendall(head.encode() + content)
        yield one


@contextmanager
def stuck(server: Ollama, model: str, **options: float) -> Iterator[None]:
    """A user of a loaded model, whose runner has `/slots`, who has stopped reading its answer."""
    deadline, chosen = Deadline(LONG_SECONDS), {**ENDLESS, **options}
    with send(server, buffer_bytes=4096, model=model, prompt="a b c", options=chosen):
        while not any(_tokens(pid) > _STUCK_TOKENS for pid in runner.pids(server)):
            assert not deadline.passed, "the answer did not begin"
            time.sleep(0.1)  # a runner announces nothing
        yield


def _tokens(pid: int) -> int:
    """How many tokens of its longest answer a runner has made, which it may have ended by now."""
    status, content = runner.ask(pid, "/slots")
    slots = json.loads(content) if status == 200 else ()
    made = (
        slot["next_token"][0]["n_decoded"] if slot["is_processing"] else slot["n_prompt_tokens"]
        for slot in slots
    )
    return max(made, default=0)
