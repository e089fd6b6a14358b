"""`ollama-probe serve` beside a real server: what Kubernetes and load balancers ask."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.request import urlopen

import httpx
import pytest
from docker.models.containers import Container

from testbed import runner
from testbed.containers import OLLAMA, wait_log
from testbed.deadlines import scaled
from testbed.front import in_front_of
from testbed.nvml import Nvml
from testbed.ollama import Ollama

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
        reply = httpx.get(self.url + path, timeout=scaled(60))
        return reply.status_code, dict(reply.json())

    def health_code(self, _: int) -> int:
        """Status of /health, over a connection of its own, as each of a crowd has."""
        with urlopen(f"{self.url}/health", timeout=scaled(60)) as reply:
            return int(reply.status)

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
            ["serve", "--interval", "1", "--timeout", f"{scaled(2):.0f}", "--quiet", "0", *words],
            entrypoint=["ollama-probe"],
            network_mode=namespace,
            pid_mode=namespace,
            **options,
        )
        page = Page(server.url.replace("11434", "11435"), container)
        page.wait_line("answering on")
        return page

    return begin


def test_a_required_model_is_warming_up_and_then_healthy(ollama: Start, pages: Pages) -> None:
    server = ollama(**QUIET)
    server.wait_listening()
    big = ("--model", "big", "--gpu", "off")
    with ThreadPoolExecutor() as beside:
        # Or a fast machine has loaded it before a check ends.
        frozen = beside.submit(runner.freeze_first, server)
        page = pages(server, *big)
        frozen.result()
    page.wait_line("loading")
    assert page.codes() == (206, 200, 503)
    assert page.get("/health")[1]["status"] == "warming_up"
    server.thaw("ollama runner")
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
    missing.container.stop(timeout=int(scaled(60)))
    page = pages(server)
    page.wait_line("healthy ready")
    with server.endless_request("tiny"):
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
        with ThreadPoolExecutor(50) as crowd:
            codes = list(crowd.map(page.health_code, range(1000)))
        took = time.monotonic() - began
    assert set(codes) == {200}
    assert len(front.generations) <= 2 + took / 2


def test_it_ends_at_once_when_asked_to(ollama: Start, pages: Pages) -> None:
    server = ollama(**QUIET)
    server.wait_listening()
    page = pages(server)
    page.wait_line("healthy idle")
    page.container.stop(timeout=int(scaled(60)))
    assert page.container.wait()["StatusCode"] == 0  # and not 137, as after SIGKILL


def test_an_address_that_is_taken_is_one_clear_line(ollama: Start) -> None:
    server = ollama(**QUIET)
    server.wait_listening()
    code, text = server.probe("serve", "--listen", ":11434")
    assert code == 1
    assert text == "ollama-probe: --listen 0.0.0.0:11434: Address already in use\n"
