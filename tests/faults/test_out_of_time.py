"""Checks that begin with too little time, on a server that answers or is silent on command."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from probe.deadline import RESERVE_SECONDS
from probe.gpu_reading import GpuFault, GpuReading
from probe.memory import Memory, ModelMemory
from probe.observation import CommandLine, Dialect, Observation, Runner
from probe.observe import observe
from probe.settings import Settings
from testbed.deadlines import scaled

SHORT_SECONDS = 3.0
"""What such a check has left of its deadline: time for every answer, and too little for silence."""

ALL_SECONDS = 60.0
"""The whole deadline. A busy machine scales all of these."""

EXPIRES_AT = "2318-01-01T00:00:00Z"
ROW = {"name": "tiny:latest", "expires_at": EXPIRES_AT, "context_length": 4096}
LISTED = {"models": [ROW]}
READY = {"status": 0, "progress": 1.0}
TOKEN = {"response": "a", "done": True}


class StandIn:
    """A server and its runner; a mock, since the real ones cannot be silenced request by request.

    Attributes:
        answers: what is answered to each path, in turn; the last one for ever, None with silence.
        asked: the paths, oldest first.
    """

    def __init__(self) -> None:
        self.answers: dict[str, list[object]] = {
            "/api/ps": [LISTED],
            "/api/tags": [LISTED],
            "/health": [READY],
            "/api/generate": [TOKEN],
        }
        self.asked: list[str] = []
        self.port = 0
        self.over = threading.Event()

    def check(
        self,
        seconds: float,
        models: tuple[str, ...] = (),
        timeout: float = ALL_SECONDS,
        gpu: str = "off",
    ) -> Observation:
        """What a check sees that has so many seconds left of its deadline."""
        times = scaled(1.0)  # measured once, so that their ratio stays as it is
        row = ModelMemory(runner="7/1", expires_text=EXPIRES_AT)
        memory = Memory(checked_at=time.monotonic() - 1, models={"tiny:latest": row})
        host = f"http://127.0.0.1:{self.port}"
        settings = Settings(host, models, "always", gpu, timeout * times)
        return observe(settings, memory, time.monotonic() + seconds * times)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    one = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            one.asked.append(self.path)
            answers = one.answers[self.path]
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if answer is None:
                one.over.wait()
                return
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        listener.daemon_threads = True
        one.port = listener.server_port
        command = CommandLine(Dialect.OLLAMA_RUNNER, one.port, num_ctx=4096, options_visible=True)
        monkeypatch.setattr("probe.runners.find", lambda: (Runner(7, 1, command),))
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        yield one
        one.over.set()
        listener.shutdown()


def test_a_server_that_had_no_time_to_answer_is_not_called_silent(server: StandIn) -> None:
    server.answers["/api/ps"] = [None]
    seen = server.check(0.1)
    assert (seen.api_error, seen.answered, seen.no_time) == (None, False, "to ask the server")


def test_a_server_that_is_silent_for_a_whole_deadline_is_called_so(server: StandIn) -> None:
    server.answers["/api/ps"] = [None]
    seen = server.check(2 - RESERVE_SECONDS, timeout=2)
    assert "no answer from" in (seen.api_error or "")


def test_a_runner_that_had_no_time_to_answer_is_not_called_silent(server: StandIn) -> None:
    server.answers["/health"] = [None]
    [one] = server.check(SHORT_SECONDS).models
    assert one.health is not None
    assert one.health.state == "unknown"


def test_a_load_is_seen_by_a_check_with_little_time_left(server: StandIn) -> None:
    server.answers["/health"] = [{"status": 2, "progress": 0.4}]
    seen = server.check(SHORT_SECONDS)
    assert seen.models[0].health is not None
    assert (seen.models[0].health.state, seen.no_time) == ("loading", "")


def test_a_model_is_asked_only_where_its_silence_would_mean_something(server: StandIn) -> None:
    assert server.check(SHORT_SECONDS).no_time == "to ask tiny:latest for a token"
    assert "/api/generate" not in server.asked
    assert server.check(ALL_SECONDS).asked["tiny:latest"][0].answer.outcome == "token"


def test_a_gpu_that_had_no_time_to_answer_is_not_called_lost(
    server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers["/api/ps"] = [{"models": []}]

    class Hanging:
        def __init__(self, *_: object, **__: object) -> None: ...

        def result(self, timeout: float) -> GpuReading:
            return GpuReading(fault=GpuFault.HANGS, error="NVML does not answer")

    monkeypatch.setattr("probe.nvml.BackgroundRead", Hanging)
    seen = server.check(SHORT_SECONDS, gpu="required")
    assert (seen.gpu, seen.no_time) == (None, "to read the GPU")


def test_a_list_that_had_no_time_to_come_is_not_missed(server: StandIn) -> None:
    server.answers["/api/ps"], server.answers["/api/tags"] = [{"models": []}], [None]
    seen = server.check(SHORT_SECONDS, models=("tiny",))
    assert (seen.api_error, seen.missing, seen.no_time) == (None, {}, "to ask for tiny")
