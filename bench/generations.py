"""The servers that a benchmark compares: containers of an image, and servers that run already.

`--image NAME=IMAGE` starts a container of an image with the probe in it (`Dockerfile.ollama`).
`--server NAME=URL` takes an `ollama serve` that runs on this machine, at a loopback address; its
checks run on this machine as `python -m probe check`. It should have models named `tiny`, `short`
(trained for 2,048 tokens), `mid` (seconds for a prompt of 600 tokens), `big` (seconds to load) and
`vector` (only embeds). A state whose model a server does not have is not run there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import httpx
import psutil
from docker.models.containers import Container

from probe import runners
from testbed import models
from testbed.containers import OLLAMA
from testbed.deadlines import LONG_SECONDS, Deadline, scaled
from testbed.decode import Decode
from testbed.models import volume_of_models
from testbed.nvml import Nvml
from testbed.ollama import Ollama
from testbed.runs import LABELS, unique

DEFAULT = ("0.9.3", OLLAMA)
"""Name and image of the generation that is measured when none is named."""

GPUS = "/run/gpus"
"""Where a container sees the NVML stand-in; a check loads it only where it is told to."""

INTERVAL_SECONDS = 8.0
"""Of the image's HEALTHCHECK."""

MORE_MODELS = {"short": (2, 128, 2048), "mid": (4, 512, 8192)}
"""Layers, width and trained context of the models that only benchmarks need."""

AT_RANDOM: dict[str, float] = {"temperature": 5, "top_k": 0, "top_p": 1, "repeat_penalty": 1}
"""Options of a user: some servers end an answer in which one token is repeated."""


@dataclass
class Generation:
    """One server, and where its checks run.

    Attributes:
        name: of its column.
        url: where this machine reaches it.
        pid: process id of `ollama serve` on this machine.
        container: None for a server that was running.
        nvml: the GPU that a check in the container can be shown.
        decode: the faults in the middle of a call that its runners can be given.
    """

    name: str
    url: str
    pid: int
    container: Container | None = None
    nvml: Nvml | None = None
    decode: Decode | None = None

    # --- its users ----------------------------------------------------------------------------

    def generate(
        self, model: str, prompt: str = "b c d", patience: float | None = None, **fields: Any
    ) -> dict[str, Any]:
        """A user's request, and the server's answer to it; given up after so many seconds."""
        options = {**AT_RANDOM, "num_predict": 1, **fields.pop("options", {})}
        body = {"model": model, "prompt": prompt, "stream": False, "options": options, **fields}
        return self._post("/api/generate", body, patience)

    def embed(self, model: str, pieces: int = 1, patience: float | None = None) -> dict[str, Any]:
        return self._post("/api/embed", {"model": model, "input": ["b c d"] * pieces}, patience)

    def loaded(self, timeout: float | None = None) -> dict[str, str]:
        """The name of every loaded model, and when it expires."""
        patience = timeout or scaled(LONG_SECONDS)
        rows = httpx.get(f"{self.url}/api/ps", timeout=patience).json()["models"]
        return {row["name"].removesuffix(":latest"): row["expires_at"] for row in rows}

    def installed(self) -> set[str]:
        rows = httpx.get(f"{self.url}/api/tags", timeout=scaled(LONG_SECONDS)).json()["models"]
        return {row["name"].removesuffix(":latest") for row in rows}

    def _post(
        self, path: str, body: dict[str, Any], patience: float | None = None
    ) -> dict[str, Any]:
        reply = httpx.post(self.url + path, json=body, timeout=patience or scaled(LONG_SECONDS))
        reply.raise_for_status()
        return dict(reply.json())

    # --- its processes ------------------------------------------------------------------------

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self.pid)

    @property
    def is_alive(self) -> bool:
        with suppress(psutil.Error):
            return self.process.status() != psutil.STATUS_ZOMBIE
        return False

    def runners(self, model: str = "") -> list[psutil.Process]:
        """The processes that serve a model, or all models."""
        found: list[psutil.Process] = []
        if not self.is_alive:
            return found
        weights = self._weights(model) if model else ""
        for process in self.process.children(recursive=True):
            with suppress(psutil.Error):
                words = " ".join(process.cmdline())
                if ("runner" in words or "llama-server" in words) and weights in words:
                    found.append(process)
        return found

    def identities(self, model: str = "") -> set[tuple[int, float]]:
        """What tells these processes from those of a later load."""
        return {(process.pid, process.create_time()) for process in self.runners(model)}

    def _weights(self, model: str) -> str:
        shown = self._post("/api/show", {"model": model})["modelfile"]
        [line] = [line for line in shown.splitlines() if line.startswith("FROM ")]
        return str(line).rpartition("/")[2]

    def reset(self) -> None:
        """Let everything go on that was stopped, and unload every model."""
        deadline = Deadline(LONG_SECONDS)
        with suppress(psutil.Error):
            self.process.resume()
        while True:
            for process in self.runners():
                with suppress(psutil.Error):
                    process.kill()
            for name in self.loaded():
                with suppress(httpx.HTTPError):
                    httpx.post(
                        f"{self.url}/api/generate",
                        json={"model": name, "keep_alive": 0},
                        timeout=scaled(LONG_SECONDS),
                    )
            if not self.loaded() and not self.runners():
                return
            assert not deadline.passed, (self.name, self.loaded())
            time.sleep(0.1)

    # --- its checks ---------------------------------------------------------------------------

    def probe(self, memory: str, env: dict[str, str]) -> tuple[int, str]:
        """One check as HEALTHCHECK runs it: exit code and output.

        Args:
            memory: name of a memory between checks, which a new name makes empty.
            env: settings.
        """
        directory = Path(tempfile.gettempdir(), memory)
        places = {"PROBE_STATE_DIR": str(directory), "PROBE_CACHE_DIR": str(directory)}
        env = {**places, "PROBE_RETRIES": "1", **env}
        if self.container is None:
            directory.mkdir(exist_ok=True)
            command = [sys.executable, "-m", "probe", "check"]
            environment = {**os.environ, "OLLAMA_HOST": self.url, **env}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            return done.returncode, (done.stdout + done.stderr).strip()
        self.container.exec_run(["mkdir", "-p", str(directory)])
        settings = [f"--env={name}={value}" for name, value in env.items()]
        done = subprocess.run(
            ["docker", "exec", *settings, str(self.container.name), "ollama-probe", "check"],
            capture_output=True,
            text=True,
        )
        return done.returncode, (done.stdout + done.stderr).strip()


class User:
    """A user whose request is being answered, for as long as this is not over.

    Attributes:
        failed: what went wrong with it meanwhile.
        tokens: how many have come.
    """

    def __init__(self, generation: Generation, model: str, again: bool, **fields: Any) -> None:
        self.failed = ""
        self.tokens = 0
        self.over = threading.Event()
        self.ended = threading.Event()
        options = {**AT_RANDOM, **fields.pop("options", {})}
        body = {"model": model, "prompt": "b c d", "options": options, **fields}
        arguments = (f"{generation.url}/api/generate", body, again)
        threading.Thread(target=self._ask, args=arguments, daemon=True).start()

    def _ask(self, url: str, body: dict[str, Any], again: bool) -> None:
        try:
            while not self.over.is_set():
                with httpx.stream("POST", url, json=body, timeout=3600) as reply:
                    for line in reply.iter_lines():
                        if '"error"' in line:
                            raise httpx.HTTPError(line)
                        self.tokens += 1
                        if self.over.is_set():
                            return
                if not again:
                    return
        except httpx.HTTPError as error:
            if not self.over.is_set():
                self.failed = str(error) or type(error).__name__
        finally:
            self.ended.set()

    def wait(self, tokens: int) -> None:
        """Wait until so many have come."""
        deadline = Deadline(LONG_SECONDS)
        while self.tokens < tokens:
            assert not deadline.passed, self.tokens
            assert not self.failed, self.failed
            time.sleep(0.05)


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser of the options that name generations."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--image", action="append", default=[], metavar="NAME=IMAGE")
    parser.add_argument("--server", action="append", default=[], metavar="NAME=URL")
    return parser


def generations(
    options: argparse.Namespace, healthcheck: dict[str, Any] | None = None, **env: str
) -> Iterator[Generation]:
    """The generations that the options name, one after the other.

    Args:
        options: as `arguments` gives them.
        healthcheck: what differs from the one of the images; None: Docker checks nothing.
        env: settings of the containers.
    """
    images: Sequence[str] = options.image or ([] if options.server else ["=".join(DEFAULT)])
    engine = docker.from_env()
    for text in images:
        name, _, image = text.partition("=")
        with _container_of(engine, name, image, healthcheck or {"test": ["NONE"]}, env) as one:
            yield one
    for text in options.server:
        name, _, url = text.partition("=")
        pid = runners.server_pid(httpx.URL(url).port or 80)
        if pid is None:
            sys.exit(f"--server {text}: no `ollama serve` of this machine listens there")
        yield Generation(name, url, pid)


@contextmanager
def _container_of(
    engine: docker.DockerClient,
    name: str,
    image: str,
    healthcheck: dict[str, Any],
    env: dict[str, str],
) -> Iterator[Generation]:
    with (
        tempfile.TemporaryDirectory() as directory,
        volume_of_models(engine, unique("bench")) as volume,
    ):
        nvml = Nvml(Path(directory))
        files, faults = Path(directory, "models"), Path(directory, "decode")
        files.mkdir()
        faults.mkdir()
        decode = Decode(faults)
        for model, (layers, width, context) in MORE_MODELS.items():
            models.write(files / f"{model}.gguf", layers, width, context)
            (files / model).write_text(f"FROM /models/{model}.gguf\n")
        models.create(engine, volume, files, MORE_MODELS)  # a twin creates none
        container = engine.containers.run(
            image,
            detach=True,
            labels=LABELS,
            # The default since 0.10; before, it depended on the memory that is free.
            environment={"OLLAMA_NUM_PARALLEL": "1", **decode.env, **env},
            volumes={
                volume: {"bind": "/root/.ollama", "mode": "rw"},
                directory: {"bind": GPUS, "mode": "ro"},
                **decode.volume,
            },
            healthcheck=healthcheck,
        )
        try:
            server = Ollama(container)
            server.wait_listening()
            pid = int(server.attributes["State"]["Pid"])
            yield Generation(name, server.url, pid, container, nvml, decode)
        finally:
            container.remove(force=True, v=True)
