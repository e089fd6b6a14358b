"""The pytest plugin: fixtures that start real things, and remove them after the test."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.models.containers import Container

from testbed import models as model_files
from testbed import network, runs, twins
from testbed.autoheal import Autoheal
from testbed.command import remove_by_name
from testbed.containers import (
    AUTOHEAL,
    OLLAMA,
    SECOND,
    Workload,
    healthcheck,
    idle_command,
    remove,
)
from testbed.deadlines import scaled
from testbed.decode import Decode
from testbed.engines import PrivateEngine, private_engine
from testbed.nvml import Nvml
from testbed.ollama import Ollama, SharedOllama
from testbed.slow_disk import SlowDisk, slow_disk
from testbed.webhook import Webhook

PROBE_SECONDS = 2
"""The deadline of a check on a quiet machine."""

NEVER_SECONDS = 3600

GPUS = "/run/gpus"
"""Where a shared server sees this machine's temporary files, simulated GPUs among them."""

CHECK_LIMIT_SECONDS = 120
"""Docker ends no check of a test: the probe's own deadline does."""


@pytest.fixture(scope="session")
def engine() -> docker.DockerClient:
    """The engine of this machine, without what runs that are dead have left there."""
    client = docker.from_env()
    runs.directory()  # its end removes all of this run
    with runs.locked("leftovers", across_runs=True):
        runs.remove_leftovers(client)
    return client


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove all that this run has made, once every process of it has ended."""
    if os.environ.get("PYTEST_XDIST_WORKER") or not runs.directory_exists():
        return
    with suppress(docker.errors.DockerException):
        runs.remove(docker.from_env(), runs.RUN)
    shutil.rmtree(runs.directory(), ignore_errors=True)


@pytest.fixture(scope="session")
def models(engine: docker.DockerClient) -> str:
    """A volume with models; whichever process of this run comes first makes it."""
    volume = f"models-{runs.RUN}"
    done = runs.directory() / "models"
    with runs.locked("models"):
        if not done.exists():
            model_files.make_volume(engine, volume)
            done.touch()
    return volume


@pytest.fixture
def label() -> str:
    """A label of this test's own, so that its autoheal sees no other container."""
    return runs.unique("test")


@pytest.fixture
def name() -> Iterator[str]:
    """A name of this test's own; what bears it is removed after the test."""
    one = runs.unique("test")
    yield one
    remove_by_name(one)


@pytest.fixture
def start(engine: docker.DockerClient) -> Iterator[Callable[..., Container]]:
    """Starts containers."""
    containers: list[Container] = []

    def begin(image: str, command: list[str] | None = None, **options: Any) -> Container:
        labels = {**runs.LABELS, **(options.pop("labels", None) or {})}
        container = engine.containers.create(image, command, labels=labels, **options)
        containers.append(container)
        container.start()
        container.reload()
        return container

    yield begin
    for container in containers:
        remove(container)


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
        image: str = OLLAMA,
        **options: Any,
    ) -> Ollama:
        container = start(
            image,
            environment={**_probe_settings(), **(env or {})},
            labels={label: "true", **(labels or {})},
            volumes={models: {"bind": "/root/.ollama", "mode": "rw"}, **(volumes or {})},
            healthcheck={
                "test": ["CMD", "ollama-probe", "check", *check],
                "interval": int(interval * SECOND),
                "timeout": CHECK_LIMIT_SECONDS * SECOND,
                "retries": retries,
                "start_period": 5 * SECOND,
            },
            **options,
        )
        return Ollama(container)

    return begin


@pytest.fixture
def unchecked(ollama: Callable[..., Ollama]) -> Callable[..., Ollama]:
    """Starts Ollama of a test's own, whose checks the test runs itself."""

    def begin(env: dict[str, str] | None = None, **options: Any) -> Ollama:
        one = ollama(env, interval=NEVER_SECONDS, **options)
        one.wait_listening()
        return one

    return begin


@pytest.fixture(scope="session")
def twin_image(engine: docker.DockerClient) -> str:
    """The twin of today's Ollama with our probe in it; the first process of this run builds it."""
    done = runs.directory() / "twin"
    with runs.locked("twin"):
        if not done.exists():
            done.write_text(twins.build())
    return done.read_text()


@pytest.fixture
def twin(ollama: Callable[..., Ollama], twin_image: str) -> Callable[..., Ollama]:
    """As `ollama`, but a twin of today's Ollama, whose runner is a `llama-server`."""
    return partial(ollama, image=twin_image)


@pytest.fixture(params=["0.9.3", "twin"])
def each_ollama(request: pytest.FixtureRequest) -> Callable[..., Ollama]:
    """As `ollama`, once for each of the generations."""
    name = "ollama" if request.param == "0.9.3" else "twin"
    return request.getfixturevalue(name)  # type: ignore[no-any-return]


@pytest.fixture
def unchecked_twin(unchecked: Callable[..., Ollama], twin_image: str) -> Callable[..., Ollama]:
    """As `unchecked`, but a twin of today's Ollama."""
    return partial(unchecked, image=twin_image)


@pytest.fixture(scope="session")
def _shared(engine: docker.DockerClient, models: str) -> SharedOllama:
    """Removed at the end of the run."""
    container = engine.containers.run(
        OLLAMA,
        detach=True,
        labels=runs.LABELS,
        environment=_probe_settings(),
        volumes={
            models: {"bind": "/root/.ollama", "mode": "rw"},
            tempfile.gettempdir(): {"bind": GPUS, "mode": "ro"},
        },
        healthcheck={"test": ["NONE"]},
    )
    one = SharedOllama(container)
    one.wait_listening()
    return one


@pytest.fixture
def server(_shared: SharedOllama) -> Iterator[SharedOllama]:
    """An Ollama for tests that do not break it: nothing is loaded, and a test runs its checks."""
    _shared.begin()
    yield _shared
    _shared.unload()


@pytest.fixture
def gpu(server: SharedOllama, nvml: Nvml) -> Nvml:
    """The simulated GPU of that server's probe."""
    inside = f"{GPUS}/{nvml.directory.relative_to(tempfile.gettempdir())}"
    server.env["LD_LIBRARY_PATH"] = inside
    return nvml


def _probe_settings() -> dict[str, str]:
    """Every check has as long as it needs on this machine, and says at once what it has found."""
    return {"PROBE_TIMEOUT": f"{scaled(PROBE_SECONDS):.0f}", "PROBE_RETRIES": "1"}


@pytest.fixture
def workload(start: Callable[..., Container], label: str) -> Callable[..., Workload]:
    """Starts a container with no probe of ours, which `make_unhealthy` makes unhealthy.

    It stops at once when asked to, unless it is stubborn.
    """

    def begin(
        *, labels: dict[str, str] | None = None, stubborn: bool = False, **options: Any
    ) -> Workload:
        settings = {
            "entrypoint": ["/bin/sh", "-c"],
            "command": [idle_command(stops_at_once=not stubborn)],
            "labels": {label: "true"} if labels is None else labels,
            "healthcheck": healthcheck(),
        }
        one = Workload(start(AUTOHEAL, **{**settings, **options}))
        one.wait_health("healthy")
        return one

    return begin


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
        one.kill()
        print("\n".join(one.lines))  # shown with a test that fails
    with suppress(docker.errors.DockerException):  # a test without an engine has no leases
        runs.remove_leases(docker.from_env(), {one.process.pid for one in running})


@pytest.fixture
def make_up() -> Iterator[None]:
    """The services of `make up`, for one test at a time: there is one of each on a machine."""
    with runs.locked("make-up", across_runs=True):
        yield


@pytest.fixture
def gateway(engine: docker.DockerClient) -> str:
    """This machine's address on the containers' bridge."""
    return network.bridge_gateway(engine)


@pytest.fixture
def nvml(tmp_path: Path) -> Nvml:
    """A simulated GPU; mount its `volume`."""
    return Nvml(_made(tmp_path / "nvml"))


@pytest.fixture
def decode(tmp_path: Path) -> Decode:
    """Faults in the middle of a call; mount its `volume`, and set its `env`."""
    return Decode(_made(tmp_path / "decode"))


def _made(directory: Path) -> Path:
    """A directory of its own: one can be mounted in one place only."""
    directory.mkdir()
    return directory


@pytest.fixture(name="slow_disk")
def _slow_disk(engine: docker.DockerClient, models: str, tmp_path: Path) -> Iterator[SlowDisk]:
    """A disk with a model; mount its `volume`, and set its `env`."""
    with ExitStack() as stack:
        try:
            one = stack.enter_context(slow_disk(engine, tmp_path))
        except OSError as error:
            pytest.skip(f"this machine has no slow disk: {error}")
        yield one


@pytest.fixture(name="private_engine")
def _private_engine() -> Iterator[PrivateEngine]:
    """A Docker engine of this test's own, not started yet."""
    with private_engine() as one:
        yield one


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    """A receiver of webhooks on loopback."""
    one = Webhook()
    yield one
    one.close()
