"""`ollama-probe serve` beside a real server: what Kubernetes and load balancers ask."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from docker.models.containers import Container

from tests.e2e.conftest import OLLAMA, Ollama, wait_log
from tests.front import in_front_of
from tests.nvml import Nvml

Start = Callable[..., Ollama]
Pages = Callable[..., "Page"]

QUIET = {"interval": 3600.0}
"""A server whose own HEALTHCHECK does not come between."""


class Page:
    """The pages of one `serve`."""

    def __init__(self, url: str, container: Container) -> None:
        self.url = url
        self.container = container

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        reply = httpx.get(self.url + path, timeout=5)
        return reply.status_code, dict(reply.json())

    def wait_line(self, pattern: str) -> None:
        """Wait until it has said so."""
        wait_log(self.container, pattern)

    def codes(self) -> tuple[int, int, int]:
        """Status of /health, /livez and /readyz."""
        health, livez, readyz = (self.get(path)[0] for path in ("/health", "/livez", "/readyz"))
        return health, livez, readyz


@pytest.fixture
def pages(start: Callable[..., Container]) -> Pages:
    """Starts `serve` beside a server, in its network and PID namespace."""

    def begin(server: Ollama, *words: str, **options: Any) -> Page:
        namespace = f"container:{server.container.id}"
        container = start(
            OLLAMA,
            ["serve", "--interval", "1", "--timeout", "2", "--quiet", "0", *words],
            entrypoint=["ollama-probe"],
            network_mode=namespace,
            pid_mode=namespace,
            **options,
        )
        page = Page(server.url.replace("11434", "11435"), container)
        page.wait_line("answering on")
        return page

    return begin


def test_a_required_model_is_warming_up_and_then_well(
    ollama: Start, pages: Pages, nvml: Nvml
) -> None:
    nvml.answer("device GPU-1 24576 9000 0")
    server = ollama(**QUIET)
    server.wait_listening()
    big = ("--model", "big", "--gpu", "off")
    page = pages(server, *big)
    page.wait_line("loading")
    assert page.codes() == (206, 200, 503)
    assert page.get("/health")[1]["status"] == "warming_up"
    page.wait_line(" healthy (ready|busy)")  # as fast as this machine is
    assert page.codes() == (200, 200, 200)


def test_health_has_what_people_ask_for(ollama: Start, pages: Pages, nvml: Nvml) -> None:
    server = ollama(**QUIET)
    server.wait_listening()
    server.generate("tiny")
    page = pages(server, volumes=nvml.volume)
    page.wait_line("healthy ready")
    code, body = page.get("/health")
    assert code == 200
    assert body["status"] == "healthy"
    assert (body["gpu_available"], body["model_loaded"]) == (True, True)
    assert (body["free_gpu_memory_gb"], body["total_gpu_memory_gb"]) == (15.21, 24.0)
    assert (body["watermark_gb"], body["below_watermark"]) == (0.5, False)
    assert body["models"][0]["name"] == "tiny:latest"


def test_a_card_that_others_have_filled_is_below_the_watermark(
    ollama: Start, pages: Pages, nvml: Nvml
) -> None:
    nvml.answer("device GPU-1 24576 24300 0")
    server = ollama(**QUIET)
    server.wait_listening()
    page = pages(server, volumes=nvml.volume)
    page.wait_line("healthy idle")
    assert page.codes() == (503, 200, 200)
    assert page.get("/health")[1]["below_watermark"] is True


def test_a_restart_is_asked_for_only_where_it_helps(ollama: Start, pages: Pages) -> None:
    server = ollama(**QUIET)
    server.wait_listening()
    server.generate("tiny")
    missing = pages(server, "--model", "nowhere")
    missing.wait_line("model_missing")
    assert missing.codes() == (503, 200, 503)
    missing.container.stop(timeout=5)
    page = pages(server)
    page.wait_line("healthy ready")
    server.freeze("ollama runner")
    page.wait_line("unhealthy stalled")
    assert page.codes() == (503, 503, 503)


def test_a_crowd_of_requests_is_no_crowd_of_generations(
    ollama: Start, pages: Pages, gateway: str
) -> None:
    server = ollama(**QUIET)
    server.wait_listening()
    server.request(model="tiny", keep_alive=-1)
    with in_front_of(server.url, gateway) as front:
        page = pages(server, "--host", front.url, "--interval", "2")
        page.wait_line("healthy ready")
        began = time.monotonic()
        limits = httpx.Limits(max_connections=50, max_keepalive_connections=50)
        with ThreadPoolExecutor(50) as crowd, httpx.Client(timeout=20, limits=limits) as client:
            codes = list(
                crowd.map(lambda _: client.get(f"{page.url}/health").status_code, range(1000))
            )
        took = time.monotonic() - began
    assert set(codes) == {200}
    assert len(front.generations) <= 2 + took / 2


def test_it_ends_at_once_when_asked_to(ollama: Start, pages: Pages) -> None:
    server = ollama(**QUIET)
    server.wait_listening()
    page = pages(server)
    page.wait_line("healthy idle")
    began = time.monotonic()
    page.container.stop(timeout=20)
    assert time.monotonic() - began < 10
    assert page.container.wait()["StatusCode"] == 0


def test_an_address_that_is_taken_is_one_clear_line(ollama: Start) -> None:
    server = ollama(**QUIET)
    server.wait_listening()
    code, text = server.probe("serve", "--listen", ":11434")
    assert code == 1
    assert text == "ollama-probe: --listen 0.0.0.0:11434: Address already in use\n"
