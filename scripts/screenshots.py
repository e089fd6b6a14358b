"""Take the pictures of docs/monitoring.md: python -m scripts.screenshots

A real engine, a real Ollama, a real heal; only the GPUs are simulated.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker

from scripts.say import ROOT
from testbed.autoheal import Autoheal
from testbed.browser import chromium
from testbed.containers import OLLAMA, SECOND
from testbed.faults import freeze
from testbed.models import volume_of_models
from testbed.network import free_port
from testbed.nvml import Nvml
from testbed.ollama import Ollama
from testbed.runs import LABELS

MINUTES = 5
PICTURES = (
    ("page.png", 1280, 900, "light"),
    ("page-dark.png", 1280, 900, "dark"),
    ("page-phone.png", 390, 844, "light"),
)


def take() -> None:
    engine = docker.from_env()
    label = f"picture-{uuid.uuid4().hex[:6]}"
    with (
        tempfile.TemporaryDirectory() as directory,
        volume_of_models(engine, label) as models,
        servers(engine, label, models, directory) as (server, nvml),
    ):
        web = f"127.0.0.1:{free_port()}"
        healer = Autoheal(
            {
                "AUTOHEAL_CONTAINER_LABEL": label,
                "AUTOHEAL_STATE_DIR": directory,
                "AUTOHEAL_WEB": web,
                "AUTOHEAL_NOTE": "third rack",
                "AUTOHEAL_SETTLE": "20",
                "LD_LIBRARY_PATH": str(nvml.directory),
            }
        )
        try:
            healer.wait_healthy()
            look(web, server, nvml)
        finally:
            healer.stop()


@contextmanager
def servers(
    engine: docker.DockerClient, label: str, models: str, directory: str
) -> Iterator[tuple[Ollama, Nvml]]:
    nvml = Nvml(Path(directory))
    answer(nvml, 0, [])
    containers = [
        engine.containers.run(
            OLLAMA,
            detach=True,
            name=name,
            labels={label: "true", **LABELS},
            environment={"PROBE_TIMEOUT": "2", "PROBE_GPU": "off"},
            volumes={models: {"bind": "/root/.ollama", "mode": "rw"}},
            healthcheck={
                "test": ["CMD", "ollama-probe", "check"],
                "interval": 2 * SECOND,
                "retries": 2,
                "start_period": 5 * SECOND,
            },
        )
        for name in ("ollama", "ollama-embeddings")
    ]
    try:
        first, second = map(Ollama, containers)
        first.wait_health("healthy")
        second.wait_health("healthy")
        second.embed("vector")
        yield first, nvml
    finally:
        for container in containers:
            container.remove(force=True, v=True)


def answer(nvml: Nvml, moment: int, pids: list[int]) -> None:
    """A GPU that works now and then, for these processes, and one that rests."""
    works = moment % 7 < 4
    held = (15400 if moment > 4 else 8900) // max(len(pids), 1)
    nvml.answer(
        f"device GPU-5a1c-9f7e 24576 {15800 if moment > 4 else 9300} {88 if works else 4}",
        f"detail {71 if works else 52} {318000 if works else 61000} 350000 0 {4 if works else 0}",
        *(f"process {pid} {held} {80 // len(pids) if works else 0}" for pid in pids),
        "device GPU-77d0-11b2 24576 310 0",
        "detail 38 22000 350000 0 0",
    )


def look(web: str, server: Ollama, nvml: Nvml) -> None:
    with chromium() as browser:
        watcher = browser.new_page()
        watcher.goto(f"http://{web}/")
        for moment in range(MINUTES * 6):
            answer(nvml, moment, server.pids("ollama runner"))
            if moment in (2, MINUTES * 3):
                server.generate("tiny")
                server.generate("big", num_ctx=512)
            if moment == 8:
                server.wait_health("healthy", "ready")
                freeze(server.pids("ollama runner")[0])
            time.sleep(10)
        for name, width, height, scheme in PICTURES:
            context = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme=scheme,  # type: ignore[arg-type]
                locale="en-GB",
            )
            page = context.new_page()
            page.goto(f"http://{web}/")
            page.wait_for_selector("#model-table tbody tr")
            page.locator("#timeline summary").first.click()
            page.wait_for_timeout(4000)
            page.screenshot(path=ROOT / "docs" / name, full_page=True)


if __name__ == "__main__":
    take()
