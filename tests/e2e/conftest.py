"""A real Docker Engine with a real Ollama, and the images that `make up` built."""

from __future__ import annotations

import fcntl
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest
import requests
from docker.models.containers import Container

from probe.report import Reason, Verdict, parse
from scripts import small_model
from tests.nvml import Nvml

__all__ = [
    "autoheal",
    "engine",
    "gateway",
    "hook",
    "label",
    "models",
    "nvml",
    "ollama",
    "patient",
    "private_engine",
    "pytest_sessionfinish",
    "start",
]
"""What `import *` gives to the conftests of the other tests on an engine."""

OLLAMA = "ollama-autoheal/ollama"
AUTOHEAL = "ollama-autoheal/autoheal"
ROOT = Path(__file__).parents[2]

MODELS = f"e2e-models-{os.environ.setdefault('AUTOHEAL_TEST_RUN', uuid.uuid4().hex[:8])}"
"""One volume for all processes of this run."""

SECOND = 1_000_000_000
MILLISECOND = 1_000_000


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_log(container: Container, pattern: str, seconds: float = 120) -> None:
    """Wait until a line of a container's log matches."""
    follow = ["docker", "logs", "--follow", str(container.id)]
    with subprocess.Popen(follow, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as follower:
        assert follower.stdout is not None
        timer = threading.Timer(seconds, follower.kill)
        timer.start()
        try:
            if any(re.search(pattern, line.decode()) for line in follower.stdout):
                return
        finally:
            timer.cancel()
            follower.kill()
    container.reload()
    log, state = container.logs().decode(errors="replace"), container.status
    pytest.fail(f"it did not say {pattern!r} within {seconds:g} s and is {state}: {log}")


class Patient:
    """A container under test."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.name = str(container.name)

    @property
    def attributes(self) -> dict[str, Any]:
        client = self.container.client
        assert client is not None
        self.container = client.containers.get(self.name)  # by then perhaps another of that name
        return dict(self.container.attrs)

    @property
    def health(self) -> str:
        state = self.attributes["State"]
        return str(state["Health"]["Status"]) if "Health" in state else "not started yet"

    @property
    def checks(self) -> list[dict[str, Any]]:
        """The last ones, oldest first; none in a container that was made and not yet started."""
        return self.attributes["State"].get("Health", {}).get("Log") or []

    @property
    def lines(self) -> list[str]:
        """What the last checks printed, oldest first."""
        return [check["Output"].strip() for check in self.checks]

    @property
    def verdicts(self) -> list[Verdict]:
        return [v for v in map(parse, self.lines) if v is not None]

    @property
    def started_at(self) -> str:
        return str(self.attributes["State"]["StartedAt"])

    def wait(self, holds: Callable[[], bool], what: str, seconds: float = 60) -> None:
        """Wait until something holds, looking after each event of this container."""
        began = time.time()
        stream = self.container.client.events(  # type: ignore[union-attr]
            decode=True,
            filters={"container": self.container.id},
            since=int(began),
            until=int(began + seconds),
        )
        if holds():
            return
        for _ in stream:
            if holds():
                return
        pytest.fail(f"after {seconds} s not {what}: {self.health}, {self.lines}")

    def wait_health(self, status: str, reason: str | None = None, seconds: float = 60) -> None:
        def holds() -> bool:
            verdicts = self.verdicts
            return self.health == status and (
                reason is None or bool(verdicts and verdicts[-1].reason == reason)
            )

        self.wait(holds, f"{status} {reason or ''}", seconds)

    def wait_checks(self, count: int, seconds: float = 60) -> list[Verdict]:
        """Wait for so many more checks, and return their verdicts."""
        seen: dict[str, str] = {}
        first = {check["Start"] for check in self.checks}

        def holds() -> bool:
            for check in self.checks:
                if check["Start"] not in first:
                    seen[check["Start"]] = check["Output"]
            return len(seen) >= count

        self.wait(holds, f"{count} more checks", seconds)
        return [v for v in map(parse, seen.values()) if v is not None]

    def wait_restarted(self, before: str, seconds: float = 60) -> None:
        def holds() -> bool:
            state = self.attributes["State"]
            return bool(state["StartedAt"] != before and state["Running"])

        self.wait(holds, "restarted", seconds)

    def pids(self, words: str) -> list[int]:
        """Process ids, on this machine, of the container's processes with these words."""
        rows = self.container.top(ps_args="-eo pid,args")["Processes"]
        return [int(pid) for pid, args in rows if words in args]

    def freeze(self, words: str) -> None:
        pids = self.pids(words)
        assert pids, f"no process {words!r}"
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)

    def starve(self, words: str) -> None:
        """Leave processes only the CPU time that others do not want, and others want all."""
        for pid in self.pids(words):
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setscheduler(int(thread), os.SCHED_IDLE, os.sched_param(0))
        for _ in range(os.cpu_count() or 1):
            self.container.exec_run(["sh", "-c", "while :; do :; done"], detach=True)


class Ollama(Patient):
    """A container of our Ollama image."""

    @property
    def url(self) -> str:
        network = self.attributes["NetworkSettings"]["Networks"]["bridge"]
        return f"http://{network['IPAddress']}:11434"

    def generate(self, model: str, tokens: int = 1, **options: int) -> dict[str, Any]:
        """What a user does."""
        return self.request(model=model, options={"num_predict": tokens, **options})

    def request(self, **fields: Any) -> dict[str, Any]:
        """The same, with any field of the request."""
        body = {"prompt": "a b c", "stream": False, "options": {"num_predict": 1}, **fields}
        return self._post("/api/generate", body)

    def embed(self, model: str) -> dict[str, Any]:
        """What another user does."""
        return self._post("/api/embed", {"model": model, "input": "a b c"})

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        reply = httpx.post(self.url + path, json=body, timeout=120)
        reply.raise_for_status()
        return dict(reply.json())

    def probe(self, *words: str, **env: str) -> tuple[int, str]:
        """What a person runs in the container: exit code and output."""
        done = subprocess.run(
            [
                *("docker", "exec", *(f"--env={name}={value}" for name, value in env.items())),
                *(self.name, "ollama-probe", *words),
            ],
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout + done.stderr

    def wait_loaded(self) -> None:
        """Wait until a check saw its model loaded, if too slow for the check's deadline."""
        loaded = {Reason.READY, Reason.BUSY}
        self.wait(lambda: any(v.reason in loaded for v in self.verdicts), "loaded")

    def wait_listening(self) -> None:
        """Wait until it has begun to answer."""
        wait_log(self.container, "Listening on")

    @contextmanager
    def endless_request(self, model: str, **fields: Any) -> Iterator[None]:
        """A user's request that is being answered, token by token, until this ends."""
        body = {
            "model": model,
            "prompt": "a b c",
            "options": {"num_predict": 1_000_000, "num_ctx": 2048},
            **fields,
        }
        url, begun, over = f"{self.url}/api/generate", threading.Event(), threading.Event()

        def read() -> None:
            with (
                suppress(httpx.HTTPError),  # the server may be thrown away under it
                httpx.stream("POST", url, json=body, timeout=120) as reply,
            ):
                for _ in reply.iter_lines():
                    begun.set()
                    if over.is_set():
                        return

        threading.Thread(target=read, daemon=True).start()
        assert begun.wait(60)
        yield
        over.set()

    def long_prompt(self) -> None:
        """Begin a user's request that gives no token for minutes."""
        self.generate("big", num_ctx=8192)
        body = {"model": "big", "prompt": "a b c d " * 1500, "options": {"num_ctx": 8192}}

        def ask() -> None:
            with suppress(httpx.HTTPError):  # the server is thrown away under it
                self.request(**body)

        threading.Thread(target=ask, daemon=True).start()

    @property
    def loaded(self) -> list[dict[str, Any]]:
        return list(httpx.get(f"{self.url}/api/ps", timeout=10).json()["models"])

    def seconds_left(self, name: str = "") -> float:
        """Until a loaded model, or the only one, is unloaded."""
        [model] = [m for m in self.loaded if m["name"].startswith(name)]
        text = re.sub(r"(\.\d{6})\d+", r"\1", model["expires_at"])
        return datetime.fromisoformat(text).timestamp() - time.time()

    @property
    def log(self) -> str:
        return self.container.logs().decode(errors="replace")


class Autoheal:
    """`autoheal run` as a process of this machine."""

    def __init__(self, env: dict[str, str]) -> None:
        self.lines: list[str] = []
        self.env = env
        self._news = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "autoheal.cli", "run"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip())
                self._news.notify_all()

    def wait_line(self, pattern: str, seconds: float = 60, count: int = 1) -> str:
        """Wait until so many lines match, and return the last of them."""

        def matches() -> list[str]:
            return [line for line in self.lines if re.search(pattern, line)]

        with self._news:
            if not self._news.wait_for(lambda: len(matches()) >= count, seconds):
                pytest.fail(f"no line {pattern!r} within {seconds} s in {self.lines}")
            return matches()[-1]

    def wait_healthy(self, seconds: float = 20) -> None:
        """Wait until `autoheal health` says so."""
        deadline = time.monotonic() + seconds
        words = [sys.executable, "-m", "autoheal.cli", "health"]
        while subprocess.run(
            words, cwd=ROOT, env={**os.environ, **self.env}, stdout=subprocess.DEVNULL
        ).returncode:
            assert time.monotonic() < deadline

    def stop(self) -> float:
        """Send SIGTERM; returns the seconds until it was gone."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)
        return time.monotonic() - began


@pytest.fixture(scope="session")
def engine() -> docker.DockerClient:
    return docker.from_env()


def make_models(engine: docker.DockerClient, volume: str) -> None:
    """Make a volume with models.

    `tiny` loads at once, `big` takes seconds, `vector` only embeds, and `tuned` is `tiny` with
    an adapter, a system prompt and a context length of its own.
    """
    with tempfile.TemporaryDirectory() as directory:
        files = Path(directory)
        small_model.write(files / "tiny.gguf", 2, 128)
        small_model.write(files / "big.gguf", 16, 2048)
        small_model.write(files / "vector.gguf", 2, 128, embeds=True)
        small_model.write_adapter(files / "adapter.gguf", 2, 128)
        lines = {
            "tiny": ["FROM /models/tiny.gguf"],
            "big": ["FROM /models/big.gguf", "PARAMETER use_mmap false"],
            "vector": ["FROM /models/vector.gguf"],
            "tuned": [
                *("FROM /models/tiny.gguf", "ADAPTER /models/adapter.gguf"),
                *("SYSTEM You are tuned.", "PARAMETER num_ctx 1536"),
            ],
        }
        for name, words in lines.items():
            (files / name).write_text("\n".join(words) + "\n")
        engine.volumes.create(volume)
        container = engine.containers.run(
            OLLAMA,
            detach=True,
            volumes={
                volume: {"bind": "/root/.ollama", "mode": "rw"},
                directory: {"bind": "/models", "mode": "ro"},
            },
            healthcheck={"test": ["CMD", "ollama-probe", "check"], "interval": SECOND // 2},
        )
        try:
            Patient(container).wait_health("healthy")
            for name in lines:
                done = container.exec_run(["ollama", "create", name, "-f", f"/models/{name}"])
                assert done.exit_code == 0, done.output
        finally:
            container.remove(force=True, v=True)


@contextmanager
def volume_of_models(engine: docker.DockerClient, name: str) -> Iterator[str]:
    """A volume with models, removed at the end."""
    make_models(engine, name)
    try:
        yield name
    finally:
        engine.volumes.get(name).remove(force=True)


@pytest.fixture(scope="session")
def models(engine: docker.DockerClient) -> str:
    """The models of this run; whichever of its processes comes first makes them."""
    with open(Path(tempfile.gettempdir(), MODELS), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not engine.volumes.list(filters={"name": MODELS}):
            make_models(engine, MODELS)
    return MODELS


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove the models, once every process has ended."""
    if os.environ.get("PYTEST_XDIST_WORKER"):
        return
    Path(tempfile.gettempdir(), MODELS).unlink(missing_ok=True)
    with suppress(docker.errors.DockerException):
        docker.from_env().volumes.get(MODELS).remove(force=True)


@pytest.fixture
def label() -> str:
    """A label of this test's own, so that its autoheal sees no other container."""
    return f"e2e-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def start(engine: docker.DockerClient) -> Iterator[Callable[..., Container]]:
    """Starts containers, and removes them after the test."""
    containers: list[Container] = []

    def begin(image: str, command: list[str] | None = None, **options: Any) -> Container:
        container = engine.containers.create(image, command, **options)
        containers.append(container)
        container.start()
        container.reload()
        return container

    yield begin
    for container in containers:
        with suppress(docker.errors.NotFound):
            engine.api.remove_container(str(container.name), force=True, v=True)


@pytest.fixture
def ollama(start: Callable[..., Container], models: str, label: str) -> Callable[..., Ollama]:
    """Starts Ollama with a HEALTHCHECK fast enough for a test."""

    def begin(
        env: dict[str, str] | None = None,
        *,
        check: tuple[str, ...] = (),
        interval: float = 1,
        retries: int = 2,
        volumes: dict[str, dict[str, str]] | None = None,
        labels: dict[str, str] | None = None,
        **options: Any,
    ) -> Ollama:
        container = start(
            OLLAMA,
            environment={"PROBE_TIMEOUT": "2", "PROBE_QUIET": "0", **(env or {})},
            labels={label: "true", **(labels or {})},
            volumes={models: {"bind": "/root/.ollama", "mode": "rw"}, **(volumes or {})},
            healthcheck={
                "test": ["CMD", "ollama-probe", "check", *check],
                "interval": int(interval * SECOND),
                "timeout": 10 * SECOND,
                "retries": retries,
                "start_period": 5 * SECOND,
            },
            **options,
        )
        return Ollama(container)

    return begin


@pytest.fixture
def patient(start: Callable[..., Container], label: str) -> Callable[..., Patient]:
    """Starts a container with no probe of ours: it is sick while the file /sick is there.

    It stops at once when asked to, unless it is stubborn.
    """

    def begin(
        *, labels: dict[str, str] | None = None, stubborn: bool = False, **options: Any
    ) -> Patient:
        trap = "" if stubborn else "trap 'exit 0' TERM; "
        settings = {
            "entrypoint": ["/bin/sh", "-c"],
            "command": [f"{trap}rm -f /sick; while :; do sleep 1000 & wait; done"],
            "labels": {label: "true"} if labels is None else labels,
            "healthcheck": {
                "test": ["CMD-SHELL", "test ! -e /sick || { echo feeling sick; exit 1; }"],
                "interval": SECOND // 4,
                "retries": 1,
                "start_period": MILLISECOND,  # not the image's own
            },
        }
        one = Patient(start(AUTOHEAL, **{**settings, **options}))
        one.wait_health("healthy")
        return one

    return begin


def fall_sick(patient: Patient) -> None:
    assert patient.container.exec_run(["touch", "/sick"]).exit_code == 0


@pytest.fixture
def autoheal(label: str, tmp_path: Path) -> Iterator[Callable[..., Autoheal]]:
    """Starts autoheal for this test's containers."""
    running: list[Autoheal] = []

    def begin(**env: str) -> Autoheal:
        one = Autoheal(
            {"AUTOHEAL_CONTAINER_LABEL": label, "AUTOHEAL_STATE_DIR": str(tmp_path), **env}
        )
        running.append(one)
        return one

    yield begin
    for one in running:
        one.process.kill()
        one.process.wait()


@pytest.fixture
def gateway(engine: docker.DockerClient) -> str:
    """This machine's address on the containers' bridge."""
    [config] = engine.networks.get("bridge").attrs["IPAM"]["Config"]
    first = next(ip_network(config["Subnet"]).hosts())
    return str(config.get("Gateway") or first)  # older engines do not name their own choice


@pytest.fixture
def nvml(tmp_path: Path) -> Nvml:
    """A simulated GPU; mount its `volume`."""
    if shutil.which("cc") is None:
        pytest.fail("no C compiler: `make test` installs one")
    return Nvml(tmp_path)


class PrivateEngine:
    """A Docker engine of this test's own, to be stopped and started at will."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = f"unix://{directory}/docker.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> docker.DockerClient:
        d = self.directory
        # Of one that was killed: older engines take its dead containerd for one that runs.
        (d / "exec/containerd/containerd.pid").unlink(missing_ok=True)
        with open(d / "log", "ab") as log:
            self.process = subprocess.Popen(
                [
                    # In a network namespace of its own: it would take this machine's bridge away.
                    *(
                        "unshare",
                        "--net",
                        "dockerd",
                        "--host",
                        self.socket,
                        "--pidfile",
                        f"{d}/pid",
                    ),
                    *("--data-root", f"{d}/data", "--exec-root", f"{d}/exec"),
                    *("--bridge", "none", "--iptables=false"),
                ],
                stdout=log,
                stderr=log,
            )
        client = docker.DockerClient(self.socket, version="1.41")
        for _ in range(300):
            try:
                client.ping()
                return client
            except (docker.errors.DockerException, requests.ConnectionError):
                assert self.process.poll() is None, (d / "log").read_text()[-2000:]
            time.sleep(0.1)  # an engine that starts has no event to wait for
        raise AssertionError("the engine did not start")

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(60)


@pytest.fixture
def private_engine() -> Iterator[PrivateEngine]:
    # Not in pytest's directory: a socket's path has at most 107 characters.
    directory = Path(tempfile.mkdtemp(prefix="autoheal-"))
    one = PrivateEngine(directory)
    yield one
    if one.process is not None and one.process.poll() is None:
        one.stop()
    shutil.rmtree(directory, ignore_errors=True)


class Hook:
    """A receiver of JSON by POST; what it was told, and where it listens."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.arrived = threading.Event()
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                hook.told.append(json.loads(self.rfile.read(length)))
                self.send_response(204)
                self.end_headers()
                hook.arrived.set()

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hook() -> Iterator[Hook]:
    one = Hook()
    yield one
    one.server.shutdown()
