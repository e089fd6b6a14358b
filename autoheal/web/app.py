"""The page's pages: what is asked over HTTP, and who may."""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import autoheal.web
from autoheal.incident import Action
from autoheal.ledger import EVERYBODY, Ledger
from autoheal.metrics import Metrics
from autoheal.settings import Settings
from autoheal.web.collector import Collector
from autoheal.web.documented import documented
from probe.exposition import CONTENT_TYPE

STATIC = os.path.join(autoheal.web.__path__[0], "static")

LONGEST_PAUSE_SECONDS = 365 * 86_400
BODY_LIMIT_BYTES = 10_000
WRONG_TOKEN_SECONDS = 1.0
"""So long an answer to a wrong token takes."""

KEEP_ALIVE_SECONDS = 15

FRESH_SECONDS = 5.0
"""What is older is not shown to whoever opens the page; something newer comes at once."""

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class RefusedError(Exception):
    """A request is refused: the HTTP status, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class Guard:
    """Lets in who asks for a host that is this one's, and sends the headers that browsers heed.

    A page of somebody else's can have its name point to this machine (DNS rebinding), and would
    then be of the same origin as ours. So a name with a dot in it must be known.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((n.encode(), v.encode()) for n, v in HEADERS.items()),
                    *([] if b"cache-control" in given else [(b"cache-control", b"no-cache")]),
                ]
            await send(message)

        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        app = self._app if is_ours(host, self._hosts) else _refused(host)
        await app(scope, receive, send_with_headers)


def is_ours(host: str, hosts: tuple[str, ...]) -> bool:
    """Whether a `Host` header names this machine: an address, a name without a dot, or a known."""
    name = (urlsplit(f"//{host}").hostname or "") if host.isprintable() else ""
    try:
        ip_address(name)
        return True
    except ValueError:
        return bool(name) and ("." not in name or name in hosts)


def application(
    collector: Collector,
    ledger: Ledger,
    settings: Settings,
    metrics: Metrics,
    problem: Callable[[], str | None],
    unready: Callable[[], str | None],
) -> ASGIApp:
    """The whole site, as an ASGI application.

    Args:
        collector: what there is to see.
        ledger: where wishes are put down.
        settings: of autoheal.
        metrics: for Prometheus.
        problem: why autoheal is not well, in one line; None when it is.
        unready: why it could not heal now, in one line; None when it could.
    """
    site = _Site(collector, ledger, settings, metrics)
    app = Starlette(
        routes=[
            Route("/", site.page),
            Route("/healthz", _saying("healthy", problem)),
            Route("/readyz", _saying("ready", unready)),
            Route("/metrics", site.metrics),
            Route("/api/status", site.status),
            Route("/api/history", site.history),
            Route("/api/events", site.events),
            Route("/api/unlock", site.unlock, methods=["POST"]),
            Route("/api/heal", site.heal, methods=["POST"]),
            Route("/api/heal/{number:int}", site.healed),
            Route("/api/pause", site.pause, methods=["POST"]),
            Route("/api/resume", site.resume, methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        exception_handlers={RefusedError: _tell_why},
    )
    return Guard(app, settings.web_hosts)


def _saying(
    well: str, problem: Callable[[], str | None]
) -> Callable[[Request], Awaitable[Response]]:
    """A page that is 200 while there is no problem, and 503 with it."""

    async def page(request: Request) -> Response:
        words = await run_in_threadpool(problem)
        return PlainTextResponse(f"{words or well}\n", 200 if words is None else 503)

    return page


class _Site:
    def __init__(
        self, collector: Collector, ledger: Ledger, settings: Settings, metrics: Metrics
    ) -> None:
        self._collector, self._ledger = collector, ledger
        self._settings, self._metrics = settings, metrics

    # -- looking

    async def page(self, request: Request) -> Response:
        return FileResponse(os.path.join(STATIC, "index.html"))

    async def metrics(self, request: Request) -> Response:
        page = await run_in_threadpool(self._metrics.page)
        return Response(page, headers={"content-type": CONTENT_TYPE})

    async def status(self, request: Request) -> Response:
        snapshot = await run_in_threadpool(self._collector.look)
        return JSONResponse({**documented(snapshot), "autoheal": self._ours(snapshot.as_dict())})

    async def history(self, request: Request) -> Response:
        return JSONResponse(self._collector.history())

    async def events(self, request: Request) -> Response:
        """Server-sent events: `status` with everything, at once and whenever there is news."""
        return EventSourceResponse(self._news(), ping=KEEP_ALIVE_SECONDS)

    async def _news(self) -> AsyncIterator[ServerSentEvent]:
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(news.set)

        with self._collector.watched(wake):
            latest = self._collector.latest
            if latest is not None and time.time() - latest.at < FRESH_SECONDS:
                news.set()
            while True:
                await news.wait()
                news.clear()
                snapshot = self._collector.latest
                if snapshot is not None:
                    data = await run_in_threadpool(
                        lambda shown: json.dumps(self._ours(shown.as_dict())), snapshot
                    )
                    yield ServerSentEvent(data, event="status")

    def _ours(self, shown: dict[str, Any]) -> dict[str, Any]:
        return {**shown, "writable": self._settings.web_token is not None}

    # -- doing

    async def unlock(self, request: Request) -> Response:
        """Only says whether the token is right."""
        await self._wish(request)
        return JSONResponse({"writable": True})

    async def heal(self, request: Request) -> Response:
        wish = await self._wish(request)
        try:
            action = Action(wish.get("action") or Action.RESTART)
        except ValueError:
            action = Action.NONE
        if action is Action.NONE:
            allowed = ", ".join(a for a in Action if a is not Action.NONE)
            raise RefusedError(400, f"action: must be one of {allowed}")
        number = await run_in_threadpool(self._ledger.ask, _name(wish), action)
        return JSONResponse({"request": number}, 202, {"location": f"/api/heal/{number}"})

    async def healed(self, request: Request) -> Response:
        """What became of a wish; null while it is under way."""
        number = request.path_params["number"]
        answer = await run_in_threadpool(self._ledger.answer_to, number)
        return JSONResponse({"request": number, "answer": answer})

    async def pause(self, request: Request) -> Response:
        wish = await self._wish(request)
        until = time.time() + _seconds(wish)
        await run_in_threadpool(self._ledger.pause, _name(wish, EVERYBODY), until)
        self._collector.changed()
        return JSONResponse({"until": until})

    async def resume(self, request: Request) -> Response:
        wish = await self._wish(request)
        was = await run_in_threadpool(self._ledger.resume, _name(wish, EVERYBODY))
        self._collector.changed()
        return JSONResponse({"resumed": was})

    async def _wish(self, request: Request) -> Mapping[str, Any]:
        """The request's JSON; raises `RefusedError` where its sender may not wish for anything."""
        token = self._settings.web_token
        if token is None:
            raise RefusedError(403, "this page is read-only: AUTOHEAL_WEB_TOKEN is not set")
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            raise RefusedError(403, "this comes from another site's page")
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.encode(), token.encode()):
            await asyncio.sleep(WRONG_TOKEN_SECONDS)
            raise RefusedError(401, "the token is wrong")
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > BODY_LIMIT_BYTES:
                raise RefusedError(413, f"more than {BODY_LIMIT_BYTES} bytes")
        try:
            wish = json.loads(body)
        except ValueError:
            wish = None
        if not isinstance(wish, dict):
            raise RefusedError(400, "the body must be a JSON object")
        return wish


def _name(wish: Mapping[str, Any], default: str | None = None) -> str:
    name = wish.get("name", default)
    if not isinstance(name, str) or not name:
        raise RefusedError(400, "name: must be a container's name")
    return name


def _seconds(wish: Mapping[str, Any]) -> float:
    seconds = wish.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        seconds = 0
    if not 0 < seconds <= LONGEST_PAUSE_SECONDS:
        raise RefusedError(
            400, f"seconds: must be a number, more than 0 and at most {LONGEST_PAUSE_SECONDS}"
        )
    return float(seconds)


async def _tell_why(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    headers = {"www-authenticate": "Bearer"} if error.status == 401 else None
    return JSONResponse({"error": error.why}, error.status, headers)


def _refused(host: str) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    return PlainTextResponse(
        f"{host!r} is not known to be this machine: name it in AUTOHEAL_WEB_HOSTS\n", 421
    )
