"""`OllamaGPUMonitor` on a real Ollama, with a simulated GPU: what its users' programs see."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ollama as ollama_library
import pytest

from probe.monitor import OllamaGPUMonitor
from tests.e2e.conftest import ROOT, Ollama
from tests.nvml import Nvml

PRELUDE = """
import json, sys, probe.monitor
sys.modules["ollama_gpu_monitor"] = probe.monitor
from probe.monitor import OllamaGPUMonitor
"""

CALL_THE_API = """
from fastapi.testclient import TestClient
with TestClient(app) as client:
    for page in ("status", "processes", "gpu"):
        print(json.dumps(client.get(f"/api/ollama/{page}").json()))
"""

USE_THE_EXTENSION = """
print(json.dumps(ExtendedOllamaMonitor(alert_threshold=0.1).check_alerts()))
"""

EXAMPLES = dict(
    re.findall(
        r"## (.+?)\n\n```python\n(.*?)```",
        Path(__file__).with_name("monitor_examples.md").read_text(),
        re.DOTALL,
    )
)

NOBODY = "http://127.0.0.1:1"
"""Where no server listens."""

GPUS = (
    "device GPU-1 24576 9000 37",
    f"process {os.getpid()} 8000 30",
    "detail 61 210000 350000 0 0",
    "device GPU-2 24576 100 0",
)


class World:
    """A server with a loaded model, and two GPUs; programs run in it."""

    def __init__(self, ollama: Ollama, nvml: Nvml, directory: Path) -> None:
        self.ollama, self.directory = ollama, directory
        self.env = {
            **os.environ,
            "OLLAMA_HOST": ollama.url,
            "LD_LIBRARY_PATH": str(nvml.directory),
            "PYTHONPATH": str(ROOT),
        }

    def run(self, program: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PRELUDE + program],
            env=self.env,
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def world(ollama: Callable[..., Ollama], nvml: Nvml, tmp_path: Path) -> World:
    nvml.answer(*GPUS)
    one = ollama()
    one.wait_listening()
    one.generate("tiny")
    return World(one, nvml, tmp_path)


def test_the_programs_that_people_have_run_unchanged(world: World) -> None:
    text = world.run(EXAMPLES["Quick Start"])
    assert "tiny:latest" in text
    assert "100% CPU" in text
    assert "GPU 0: Simulated GPU" in text

    assert "8.79/24.00 GB (36.6%)" in world.run(EXAMPLES["Synchronous Usage"])
    stored = json.loads((world.directory / "ollama_status.json").read_text())
    assert [one["name"] for one in stored["ollama_processes"]] == ["tiny:latest"]
    assert [one["gpu_id"] for one in stored["gpu_status"]] == [0, 1]

    assert '"name": "tiny:latest"' in world.run(EXAMPLES["Asynchronous Usage"])

    pages = world.run(EXAMPLES["API Integration"] + CALL_THE_API).splitlines()
    status, processes, gpus = map(json.loads, pages)
    assert status["errors"] == {}
    assert processes["processes"][0]["name"] == "tiny:latest"
    assert gpus["gpu_info"][0]["used_memory"] == 9000

    [alert] = json.loads(world.run(EXAMPLES["Extending the Class"] + USE_THE_EXTENSION))
    assert (alert["type"], alert["gpu_id"]) == ("high_memory_usage", 0)
    world.run(EXAMPLES["Debugging"])


def test_what_it_says_is_what_the_server_and_nvml_say(world: World) -> None:
    said = json.loads(world.run("print(OllamaGPUMonitor().to_json())"))
    [row], [shown] = world.ollama.loaded, said["ollama_processes"]
    assert shown["size_bytes"] == row["size"]
    assert shown["size_vram_bytes"] == row["size_vram"]
    assert shown["id"] == row["digest"][:12]
    assert shown["until"] in ("4 minutes from now", "5 minutes from now")
    first, second = said["gpu_status"]
    assert (first["used_memory"], first["total_memory"], first["unit"]) == (9000, 24576, "MB")
    assert (first["temperature"], first["power_usage"], first["power_limit"]) == (61, 210, 350)
    assert first["processes"][0]["pid"] == os.getpid()
    assert (second["temperature"], second["power_usage"]) == (None, None)  # it does not tell
    [usage] = said["model_gpu_usage"]
    assert usage["gpu_info"] is None  # it runs on the CPU


@pytest.mark.parametrize("kind", [ollama_library.Client, ollama_library.AsyncClient])
def test_a_client_of_ollamas_library_is_asked_from_both_worlds(world: World, kind: Any) -> None:
    client = kind(host=world.ollama.url)
    with OllamaGPUMonitor(client, cache_duration=0) as monitor:
        assert [one["name"] for one in monitor.get_ollama_processes()] == ["tiny:latest"]
        for _ in range(2):  # each time in an event loop of its own
            names = [one["name"] for one in asyncio.run(monitor.async_get_ollama_processes())]
            assert names == ["tiny:latest"]
            client = kind(host=world.ollama.url)
            monitor.ollama_client = client


def test_a_server_that_is_gone_is_an_error_that_is_named_and_gpus_are_still_shown(
    world: World,
) -> None:
    world.env["OLLAMA_HOST"] = NOBODY
    program = "m = OllamaGPUMonitor(retry_attempts=2, retry_delay=0.1)\nprint(m.to_json())\n"
    said = json.loads(world.run(program))
    assert said["ollama_processes"] == []
    assert "/api/ps" in said["errors"]["ollama"]
    assert len(said["gpu_status"]) == 2


def test_readings_are_kept_for_a_while_and_a_callers_changes_to_them_are_not(
    world: World,
) -> None:
    monitor = OllamaGPUMonitor(
        ollama_library.Client(host=world.ollama.url), cache_duration=60, retry_attempts=1
    )
    monitor.get_ollama_processes()[0]["name"] = "changed"
    monitor.ollama_client = ollama_library.Client(host=NOBODY)
    assert [one["name"] for one in monitor.get_ollama_processes()] == ["tiny:latest"]
    assert monitor.get_ollama_processes(force_refresh=True) == []


def test_a_background_refresh_ends_with_its_owner() -> None:
    def threads() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name == "ollama-gpu-monitor"]

    def begin() -> OllamaGPUMonitor:
        return OllamaGPUMonitor(
            enable_background_refresh=True, background_refresh_interval=60, retry_attempts=1
        )

    with begin():
        assert len(threads()) == 1
    assert threads() == []
    monitor = begin()
    monitor._stop_background_refresh()
    assert threads() == []
    forgotten = begin()
    owner, [thread] = weakref.ref(forgotten), threads()
    del forgotten
    while owner() is not None:  # a refresh under way still holds it
        gc.collect()
        thread.join(0.01)
    thread.join(10)
    assert not thread.is_alive()
