"""`OllamaGPUMonitor` on a real Ollama, with a simulated GPU: what its users' programs see."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import subprocess
import sys
import sysconfig
import threading
import venv
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ollama as ollama_library
import pytest

from probe.monitor import OllamaGPUMonitor
from scripts.say import run
from testbed.containers import ROOT
from testbed.deadlines import Deadline
from testbed.nvml import Nvml
from testbed.ollama import Ollama

IMPORT = "from ollama_gpu_monitor import OllamaGPUMonitor\n"
"""The first line of the documentation's Quick Start, on which its other programs build."""

CALL_THE_API = """
import json  # the documented program uses it, too, and does not import it
from fastapi.testclient import TestClient
with TestClient(app) as client:
    for page in ("status", "processes", "gpu"):
        print(json.dumps(client.get(f"/api/ollama/{page}").json()))
"""

USE_THE_EXTENSION = """
import json
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


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a virtual environment that has the distribution, and not this directory.

    Dependencies are those that the tests have; the wheel goes before them on the path.
    """
    directory = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run([*pip, "wheel", "--no-deps", "--wheel-dir", str(directory), str(ROOT)])
    [wheel] = directory.glob("*.whl")
    venv.create(directory / "venv", symlinks=True)
    python = directory / "venv/bin/python"
    run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)])
    [packages] = directory.glob("venv/lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


class World:
    """A server with a loaded model, and two GPUs; programs run in it."""

    def __init__(self, python: Path, ollama: Ollama, nvml: Nvml, directory: Path) -> None:
        self.python, self.ollama, self.directory = python, ollama, directory
        others = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.env = {**others, "OLLAMA_HOST": ollama.url, "LD_LIBRARY_PATH": str(nvml.directory)}

    def run(self, program: str) -> str:
        done = subprocess.run(
            [str(self.python), "-W", "ignore", "-c", program],
            env=self.env,
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def world(installed: Path, ollama: Callable[..., Ollama], nvml: Nvml, tmp_path: Path) -> World:
    nvml.answer(*GPUS)
    one = ollama()
    one.wait_listening()
    one.request(model="tiny", keep_alive="24h")
    return World(installed, one, nvml, tmp_path)


def test_the_documented_programs_run_unchanged_after_pip_install(world: World) -> None:
    text = world.run(EXAMPLES["Quick Start"])
    assert "tiny:latest" in text
    assert "100% CPU" in text
    assert "GPU 0: Simulated GPU" in text

    assert "8.79/24.00 GB (36.6%)" in world.run(IMPORT + EXAMPLES["Synchronous Usage"])
    stored = json.loads((world.directory / "ollama_status.json").read_text())
    assert [one["name"] for one in stored["ollama_processes"]] == ["tiny:latest"]
    assert [one["gpu_id"] for one in stored["gpu_status"]] == [0, 1]

    assert '"name": "tiny:latest"' in world.run(IMPORT + EXAMPLES["Asynchronous Usage"])

    pages = world.run(IMPORT + EXAMPLES["API Integration"] + CALL_THE_API).splitlines()
    status, processes, gpus = map(json.loads, pages)
    assert status["errors"] == {}
    assert processes["processes"][0]["name"] == "tiny:latest"
    assert gpus["gpu_info"][0]["used_memory"] == 9000

    [alert] = json.loads(world.run(IMPORT + EXAMPLES["Extending the Class"] + USE_THE_EXTENSION))
    assert (alert["type"], alert["gpu_id"]) == ("high_memory_usage", 0)
    world.run(IMPORT + EXAMPLES["Debugging"])


def test_what_it_says_is_what_the_server_and_nvml_say(world: World) -> None:
    said = json.loads(world.run(IMPORT + "print(OllamaGPUMonitor().to_json())"))
    [row], [shown] = world.ollama.loaded, said["ollama_processes"]
    assert shown["size_bytes"] == row["size"]
    assert shown["size_vram_bytes"] == row["size_vram"]
    assert shown["id"] == row["digest"][:12]
    assert shown["until"] in ("23 hours from now", "24 hours from now")
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
    said = json.loads(world.run(IMPORT + program))
    assert said["ollama_processes"] == []
    assert f"nothing listens at {NOBODY}" in said["errors"]["ollama"]
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


def test_a_background_refresh_ends_with_its_owner_whoever_keeps_its_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", NOBODY)  # pytest keeps what is logged of that

    def begin() -> tuple[OllamaGPUMonitor, threading.Thread]:
        before = threading.enumerate()
        monitor = OllamaGPUMonitor(
            enable_background_refresh=True, background_refresh_interval=3600, retry_attempts=1
        )
        named = (t for t in threading.enumerate() if t.name == "ollama-gpu-monitor")
        [thread] = set(named) - set(before)
        return monitor, thread

    monitor, thread = begin()
    with monitor:
        assert thread.is_alive()
    thread.join(60)  # what is being read is read to its end
    assert not thread.is_alive()
    monitor, thread = begin()
    monitor._stop_background_refresh()
    thread.join(60)
    assert not thread.is_alive()
    monitor, thread = begin()
    owner = weakref.ref(monitor)
    del monitor
    deadline = Deadline()
    while owner() is not None:  # a refresh under way still holds it
        assert not deadline.passed
        gc.collect()
        thread.join(0.01)
    thread.join(60)
    assert not thread.is_alive()
