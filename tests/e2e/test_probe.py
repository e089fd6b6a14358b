"""The probe in our Ollama image, against a real server."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest
from docker.models.containers import Container

from probe.report import Reason
from scripts.engine import archive
from scripts.images import OLLAMA as OFFICIAL
from scripts.images import STANDIN_OLLAMA
from tests.e2e.conftest import OLLAMA, Ollama
from tests.nvml import HEALTHY, Nvml

Start = Callable[..., Ollama]


def test_an_empty_server_is_idle_and_stays_empty(ollama: Start) -> None:
    server = ollama(interval=0.2)
    verdicts = server.wait_checks(10)
    assert {v.reason for v in verdicts[1:]} == {Reason.IDLE}
    assert server.health == "healthy"
    assert server.loaded == []


def test_a_loaded_model_is_ready_and_the_line_has_its_time_to_first_token(ollama: Start) -> None:
    server = ollama()
    server.wait_health("healthy")
    server.generate("tiny")
    server.wait(
        lambda: server.verdicts[-1].readings.get("first_token_seconds") is not None, "asked"
    )
    verdict = server.verdicts[-1]
    assert verdict.reason is Reason.READY
    assert 0 < float(verdict.readings["first_token_seconds"] or 0) < 2
    assert verdict.message.startswith("tiny:latest gave its first token after ")


def test_a_frozen_runner_is_stalled_while_everything_else_answers(ollama: Start) -> None:
    server = ollama()
    server.wait_health("healthy")
    server.generate("tiny")
    server.freeze("ollama runner")
    server.wait_health("unhealthy", "stalled")
    assert server.loaded[0]["name"] == "tiny:latest"  # as if nothing was wrong


def test_a_frozen_runner_is_stalled_with_a_users_request_in_flight(ollama: Start) -> None:
    server = ollama()
    server.wait_health("healthy")
    with server.endless_request("tiny"):
        server.freeze("ollama runner")
        server.wait_health("unhealthy", "stalled")


def test_a_long_request_on_a_full_server_is_busy_not_stalled(ollama: Start) -> None:
    server = ollama({"OLLAMA_NUM_PARALLEL": "1"}, interval=0.5)
    server.wait_health("healthy")
    with server.endless_request("tiny"):
        verdicts = server.wait_checks(4)
    assert all(v.healthy for v in verdicts), verdicts
    assert verdicts[-1].reason is Reason.BUSY
    server.wait(lambda: server.verdicts[-1].reason is Reason.READY, "ready")


def test_a_load_longer_than_the_deadline_is_never_aborted(ollama: Start) -> None:
    server = ollama({"PROBE_TIMEOUT": "1"}, interval=0.3)
    server.wait_health("healthy")
    loading = threading.Thread(target=server.generate, args=("big",))
    loading.start()
    met = set()
    while loading.is_alive():
        [verdict] = server.wait_checks(1)
        assert verdict.healthy, verdict
        met.add(verdict.reason)
    loading.join()
    assert Reason.LOADING in met
    assert "aborting load" not in server.log


def test_a_required_model_is_loaded_by_checks_shorter_than_its_load(ollama: Start) -> None:
    server = ollama({"PROBE_MODEL": "big", "PROBE_TIMEOUT": "1"}, interval=0.3)
    server.wait(lambda: Reason.LOADING in {v.reason for v in server.verdicts}, "loading")
    server.wait_health("healthy", "ready")
    assert "aborting load" not in server.log
    assert server.seconds_left() > 1e9  # it is kept
    assert not server.pids("defunct")
    assert server.log.count("starting llama server") == 1


def test_a_users_model_keeps_its_options_its_process_and_its_expiry(ollama: Start) -> None:
    server = ollama(interval=0.3)
    server.wait_health("healthy")
    options = {"num_ctx": 1024, "num_batch": 64, "num_thread": 1}
    server.generate("tiny", **options)
    [before], left = server.pids("ollama runner"), server.seconds_left()
    began = time.monotonic()
    server.wait_checks(20)
    assert server.pids("ollama runner") == [before]
    assert left - server.seconds_left() == pytest.approx(time.monotonic() - began, abs=1)
    assert server.generate("tiny", **options)["load_duration"] < 200_000_000
    assert server.pids("ollama runner") == [before]


def test_options_that_cannot_be_repeated_cost_a_user_one_load_at_most(ollama: Start) -> None:
    """Whether use_mmap was asked for does not show from outside."""
    server = ollama(interval=0.3)
    server.wait_health("healthy")
    served = set()
    for _ in range(3):
        server.generate("tiny", use_mmap=True)
        served |= {*server.pids("ollama runner")}
        server.wait_checks(4)
        served |= {*server.pids("ollama runner")}
    assert len(served) <= 3  # the user's, ours once, the user's again


def test_a_user_who_comes_back_keeps_the_model_as_long_as_without_the_probe(ollama: Start) -> None:
    """A request's keep_alive holds for later requests that name none: ours must not."""
    server = ollama(interval=2)
    server.wait_health("healthy")
    server.generate("tiny")
    server.wait(lambda: "first_token_seconds" in server.verdicts[-1].readings, "asked")
    server.wait_checks(2)
    server.generate("tiny")
    server.wait_checks(2)  # one of them began after that
    assert server.seconds_left() == pytest.approx(300, abs=5)


def test_a_lost_gpu_is_gpu_lost(ollama: Start, nvml: Nvml) -> None:
    server = ollama(volumes=nvml.volume)
    server.wait_health("healthy")
    nvml.answer("error 999")
    server.wait_health("unhealthy", "gpu_lost")
    assert "NVML: Unknown Error" in server.lines[-1]
    nvml.answer(HEALTHY)
    server.wait_health("healthy")
    nvml.answer("")
    server.wait_health("unhealthy", "gpu_lost")
    assert "no longer sees GPU-1" in server.lines[-1]


def test_an_nvml_that_hangs_does_not_hang_the_check(ollama: Start, nvml: Nvml) -> None:
    nvml.answer("hang 60")
    server = ollama(volumes=nvml.volume)
    server.wait_health("unhealthy", "gpu_lost")
    assert "did not answer in time" in server.lines[-1]


def test_a_model_wholly_on_the_cpu_beside_a_gpu_is_cpu_fallback(ollama: Start, nvml: Nvml) -> None:
    server = ollama(volumes=nvml.volume)
    server.wait_health("healthy")
    server.generate("tiny")
    server.wait_health("unhealthy", "cpu_fallback")


def test_a_loaded_model_that_a_user_deleted_is_no_fault(ollama: Start) -> None:
    server = ollama()
    server.wait_health("healthy")
    server.container.exec_run(["ollama", "cp", "tiny", "passing"])
    server.generate("passing")
    server.container.exec_run(["ollama", "rm", "passing"])
    verdicts = server.wait_checks(3)
    assert all(v.healthy for v in verdicts), verdicts


def test_a_required_model_that_is_not_there_is_model_missing(ollama: Start) -> None:
    server = ollama({"PROBE_MODEL": "nowhere"})
    server.wait_health("unhealthy", "model_missing", seconds=90)
    assert "ollama pull nowhere" in server.lines[-1]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--timeout", "soon"], "--timeout='soon': must be a number of seconds from 1 to 300"),
        (["--tiemout", "5"], "No such option '--tiemout'"),
        (["--host", "ftp://x"], "--host='ftp://x': must be an address as Ollama takes it"),
    ],
)
def test_a_bad_setting_is_one_line_that_says_what_where_and_what_is_allowed(
    start: Callable[..., Container], words: list[str], problem: str
) -> None:
    container = start(OLLAMA, ["check", *words], entrypoint=["ollama-probe"])
    assert container.wait()["StatusCode"] == 1
    line = container.logs().decode()
    assert line.startswith(f"unhealthy misconfigured (operator): {problem}")
    assert line.count("\n") == 1


@pytest.fixture(scope="module")
def bare(engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image with the probe and nothing else: no C library, no shell, no Python."""
    directory = tmp_path_factory.mktemp("bare")
    (directory / "Dockerfile").write_text(f"FROM scratch\nCOPY --from={OLLAMA} /opt/ /opt/\n")
    yield from _built(engine, directory, "ollama-autoheal-e2e/bare")


@pytest.fixture(scope="module")
def glibc_231(
    engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The probe beside glibc 2.31, the oldest that is promised."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("no mmdebstrap to fetch Debian 11's C library with")
    directory = tmp_path_factory.mktemp("glibc")
    options = ["--quiet", "--variant=extract", "--include=libc6,libc-bin"]
    subprocess.run(
        ["mmdebstrap", *options, "bullseye", directory / "libc.tar", archive()], check=True
    )
    (directory / "Dockerfile").write_text(
        f"FROM scratch\nADD libc.tar /\nCOPY --from={OLLAMA} /opt/ /opt/\n"
    )
    yield from _built(engine, directory, "ollama-autoheal-e2e/glibc-2.31")


def _built(engine: docker.DockerClient, directory: Path, tag: str) -> Iterator[str]:
    subprocess.run(["docker", "build", "--quiet", "--tag", tag, directory], check=True)
    yield tag
    engine.images.remove(tag, force=True)


@pytest.mark.parametrize("image", ["bare", "glibc_231"])
def test_the_probe_needs_nothing_of_the_image_it_is_baked_into(
    start: Callable[..., Container], request: pytest.FixtureRequest, nvml: Nvml, image: str
) -> None:
    """Not its C library, not root, not a file system that can be written."""
    nvml.answer("error 15")
    nvml.directory.chmod(0o755)
    for volumes, words in (({}, "api_down (restart)"), (nvml.volume, "NVML: GPU is lost")):
        container = start(
            request.getfixturevalue(image),
            ["check"],
            entrypoint=["/opt/ollama-probe/bin/ollama-probe"],
            environment={"LD_LIBRARY_PATH": "/usr/local/nvidia/lib"},
            volumes=volumes,
            user="12345:12345",
            read_only=True,
            network_mode="none",
            cap_drop=["ALL"],
        )
        assert container.wait()["StatusCode"] == 1
        assert words in container.logs().decode()


def test_nothing_else_about_ollamas_image_changes(engine: docker.DockerClient) -> None:
    ours = engine.images.get(OLLAMA)
    base = engine.images.get(os.environ.get("OLLAMA_IMAGE") or _base_image(engine))
    changed = {
        key
        for key, value in ours.attrs["Config"].items()
        if value != base.attrs["Config"].get(key) and key not in ("Image", "Labels")
    }
    assert changed == {"Healthcheck"}
    layers = base.attrs["RootFS"]["Layers"]
    assert ours.attrs["RootFS"]["Layers"][: len(layers)] == layers


def _base_image(engine: docker.DockerClient) -> str:
    here = {tag for image in engine.images.list() for tag in image.tags}
    return OFFICIAL if OFFICIAL in here else STANDIN_OLLAMA
