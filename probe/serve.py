"""`ollama-probe serve`: the verdict over HTTP, for Kubernetes, load balancers and people.

One loop checks; all who ask get what it found last. A crowd of requests is therefore never a
crowd of generations, and an answer never waits for a check.
"""

import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any, NoReturn

from waitress.server import create_server

from probe.check import look
from probe.exposition import CONTENT_TYPE
from probe.knobs import SettingError
from probe.metrics import Checks, Metrics
from probe.observation import Observation
from probe.report import Reason, Remedy, Verdict, render
from probe.settings import ServeSettings, Settings

GIB = 1 << 30
LATE_CHECKS = 3
"""What was found this many checks ago says nothing of now."""

Body = dict[str, Any]
Page = Callable[[float], tuple[HTTPStatus, Body | bytes]]
"""What a page says at a moment of the monotonic clock: JSON, or metrics."""

_HELPED_BY_A_RESTART = (Remedy.RUNNER, Remedy.RESTART, Remedy.RECREATE)

StartResponse = Callable[[str, list[tuple[str, str]]], object]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        at: when it ended, in seconds of the monotonic clock.
        verdict: what it means.
        observation: what it saw.
    """

    at: float
    verdict: Verdict
    observation: Observation


class Answers:
    """The WSGI application: pages out of what was found last, and `/metrics`."""

    def __init__(self, serve: ServeSettings, settings: Settings) -> None:
        self._serve = serve
        self._late_seconds = LATE_CHECKS * (serve.interval + settings.timeout)
        self.finding: Finding | None = None
        self._checks = Checks()
        self._metrics = Metrics(settings.host, self._checks)
        self._pages: dict[str, Page] = {
            "/health": self._health,
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/metrics": lambda now: (HTTPStatus.OK, self._metrics.page()),
        }

    def found(self, finding: Finding) -> None:
        """A check has ended."""
        self.finding = finding
        self._checks.note(finding.verdict)

    def __call__(self, request: Mapping[str, Any], start: StartResponse) -> Iterable[bytes]:
        page = self._pages.get(request.get("PATH_INFO", ""))
        headers = [("Cache-Control", "no-store")]
        status: HTTPStatus
        body: Body | bytes
        if request["REQUEST_METHOD"] not in ("GET", "HEAD"):
            status, body = HTTPStatus.METHOD_NOT_ALLOWED, Body(error="only GET and HEAD")
            headers.append(("Allow", "GET, HEAD"))
        elif page is None:
            status, body = HTTPStatus.NOT_FOUND, Body(error="no such page", pages=[*self._pages])
        else:
            status, body = page(time.monotonic())
        if isinstance(body, bytes):
            kind, content = CONTENT_TYPE, body
        else:
            kind, content = "application/json", json.dumps(body).encode() + b"\n"
        headers += [("Content-Type", kind), ("Content-Length", str(len(content)))]
        start(f"{status.value} {status.phrase}", headers)
        return [] if request["REQUEST_METHOD"] == "HEAD" else [content]

    def _health(self, now: float) -> tuple[HTTPStatus, Body]:
        """Everything: 200 well, 503 not, 206 while a model is being loaded."""
        found = self.finding
        if found is None:
            return HTTPStatus.PARTIAL_CONTENT, Body(status="warming_up", message="no check yet")
        verdict, gpu = found.verdict, found.observation.gpu
        total = gpu.memory_total_bytes if gpu else None
        used = gpu.memory_used_bytes if gpu else None
        free = None if total is None or used is None else total - used
        resident = any(model.row.size_vram_bytes for model in found.observation.models)
        # A model that fills its card is as it should be: the watermark is for one that is to come.
        low = free is not None and free < self._serve.watermark * GIB and not resident
        warming = verdict.reason is Reason.LOADING
        well = verdict.healthy and not low and not self._is_late(found, now)
        words = "warming_up" if warming else "healthy" if well else "unhealthy"
        body = Body(
            status=words,
            gpu_available=bool(gpu and gpu.devices and gpu.fault is None),
            model_loaded=bool(found.observation.models) and not warming,
            free_gpu_memory_gb=None if free is None else round(free / GIB, 2),
            total_gpu_memory_gb=None if total is None else round(total / GIB, 2),
            watermark_gb=self._serve.watermark,
            below_watermark=low,
            reason=verdict.reason,
            remedy=verdict.remedy,
            message=verdict.message,
            readings=verdict.readings,
            models=[_row(model.row) for model in found.observation.models],
            gpus=[asdict(device) for device in gpu.devices] if gpu else [],
            checked_seconds_ago=round(now - found.at, 1),
        )
        if warming:
            return HTTPStatus.PARTIAL_CONTENT, body
        return HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE, body

    def _livez(self, now: float) -> tuple[HTTPStatus, Body]:
        """503 only where a restart helps: what Kubernetes does about it is a restart."""
        found = self.finding
        helps = found is not None and found.verdict.remedy in _HELPED_BY_A_RESTART
        return _short(found, HTTPStatus.SERVICE_UNAVAILABLE if helps else HTTPStatus.OK)

    def _readyz(self, now: float) -> tuple[HTTPStatus, Body]:
        """200 where a request would be answered now."""
        found = self.finding
        ready = (
            found is not None
            and found.verdict.healthy
            and found.verdict.reason is not Reason.LOADING
            and not self._is_late(found, now)
        )
        return _short(found, HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)

    def _is_late(self, found: Finding, now: float) -> bool:
        return now - found.at > self._late_seconds


def serve(settings: Settings, options: ServeSettings) -> NoReturn:
    """Check and answer until the process is ended; raises `SettingError` for a taken address."""
    # It warns of every crowd, and a crowd is nothing to this server.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    answers = Answers(options, settings)
    host, port = options.listen
    try:
        server = create_server(answers, host=host, port=port, threads=4, ident=None)
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SettingError(f"--listen {host}:{port}: {words}") from None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # as PID 1 it would not end otherwise
    threading.Thread(target=server.run, daemon=True).start()
    print(
        f"answering on {_address(host, port)} at /health, /livez, /readyz and /metrics", flush=True
    )
    said = None
    while True:
        began = time.monotonic()
        verdict, observation = look(settings)
        answers.found(Finding(time.monotonic(), verdict, observation))
        if (verdict.healthy, verdict.reason) != said:
            said = verdict.healthy, verdict.reason
            print(time.strftime("%Y-%m-%dT%H:%M:%S%z"), render(verdict), flush=True)
        time.sleep(max(began + options.interval - time.monotonic(), 0))


def _short(found: Finding | None, status: HTTPStatus) -> tuple[HTTPStatus, Body]:
    if found is None:
        return status, Body(message="no check yet")
    return status, Body(reason=found.verdict.reason, message=found.verdict.message)


def _row(model: Any) -> Body:
    return Body(name=model.name, size_bytes=model.size_bytes, size_vram_bytes=model.size_vram_bytes)


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
