"""A server in front of a real Ollama, for what this one cannot be made to show without a GPU.

It hands everything on, writes down what was asked, and may claim in `/api/ps` that models are in
VRAM, as a server with a GPU does (and as one that has lost its GPU may go on doing).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx


class Front:
    """What was asked through it, and what it claims.

    Attributes:
        url: where containers reach it.
        asked: path and body of each POST, oldest first.
        vram_share: of each model's size, what it says is in VRAM; None hands the truth on. A size
            that the server does not know is 1 GiB.
        context_length: of each model, as newer servers tell it; None leaves it out.
    """

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.vram_share: float | None = None
        self.context_length: int | None = None

    @property
    def generations(self) -> list[dict[str, Any]]:
        """The requests that asked a model for something."""
        return [body for path, body in self.asked if path in ("/api/generate", "/api/embed")]


@contextmanager
def in_front_of(upstream: str, gateway: str) -> Iterator[Front]:
    """Such a server before `upstream`, at the address of this machine on the containers' bridge."""
    front = Front()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._hand_on(b"")

        def do_HEAD(self) -> None:
            self._hand_on(b"")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            front.asked.append((self.path, json.loads(body)))
            self._hand_on(body)

        def _hand_on(self, body: bytes) -> None:
            try:
                reply = httpx.request(self.command, upstream + self.path, content=body, timeout=120)
            except httpx.HTTPError:  # the server behind is gone, and so are we
                self.close_connection = True
                return
            content = reply.content
            if self.path == "/api/ps" and front.vram_share is not None:
                answer = reply.json()
                for model in answer["models"]:
                    model["size"] = model["size"] or 2**30
                    model["size_vram"] = int(model["size"] * front.vram_share)
                    if front.context_length is not None:
                        model["context_length"] = front.context_length
                content = json.dumps(answer).encode()
            self.send_response(reply.status_code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer((gateway, 0), Handler) as server:
        server.daemon_threads = True
        front.url = f"http://{gateway}:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield front
        server.shutdown()
