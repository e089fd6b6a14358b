"""A receiver of webhooks."""

from __future__ import annotations

import http.server
import json
import threading
from typing import Any


class Webhook:
    """A receiver of JSON by POST.

    Attributes:
        received: the bodies, oldest first.
        arrived: set once there is one.
        port: where it listens, on loopback.
    """

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        self.arrived = threading.Event()
        webhook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                webhook.received.append(json.loads(self.rfile.read(length)))
                self.send_response(204)
                self.end_headers()
                webhook.arrived.set()

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
