"""Serves the page in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from probe.knobs import SettingError

MOST_CONNECTIONS = 512


def bind(address: tuple[str, int]) -> socket.socket:
    """Take the address, before root is given away; raises `SettingError` where it is taken."""
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        words = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise SettingError(f"AUTOHEAL_WEB={host}:{port}: {words}") from None
    return listener


def serve(listener: socket.socket, app: ASGIApp) -> None:
    """Answer until the process ends; returns at once."""
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    config = uvicorn.Config(
        app,
        http=H11Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
    )
    server = uvicorn.Server(config)
    threading.Thread(
        target=lambda: asyncio.run(server.serve(sockets=[listener])), name="page", daemon=True
    ).start()
