"""The probe in our Ollama image, against a real server."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docker
import httpx
import pytest
from docker.models.containers import Container

from probe.report import Reason
from scripts.engine import archive
from scripts.images import OLLAMA as OFFICIAL
from scripts.images import STANDIN_OLLAMA
from tests.e2e.conftest import OLLAMA, Ollama, free_port
from tests.front import Front, in_front_of
from tests.nvml import HEALTHY, Nvml

SLACK = 3.0
"""What a busy machine may take between two looks; a model that is kept stays minutes longer."""

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


def test_a_long_prompt_on_a_full_server_is_busy_not_stalled(ollama: Start) -> None:
    server = ollama({"OLLAMA_NUM_PARALLEL": "1"}, interval=0.5)
    server.wait_health("healthy")
    server.long_prompt()
    server.wait(lambda: server.verdicts[-1].reason is Reason.BUSY, "busy")
    assert [v for v in server.wait_checks(3) if not v.healthy] == []


@pytest.mark.alone
def test_nothing_is_asked_for_as_long_as_users_get_tokens(ollama: Start) -> None:
    server = ollama({"OLLAMA_NUM_PARALLEL": "1"}, interval=6)
    server.wait_health("healthy")
    with server.endless_request("tiny"):
        server.wait(lambda: "gives a user tokens" in server.verdicts[-1].message, "left alone")
        before = server.log.count("/api/generate")
        verdicts = server.wait_checks(3)
        assert server.log.count("/api/generate") == before
    assert {v.reason for v in verdicts} == {Reason.READY}


@pytest.mark.alone
def test_a_time_that_a_long_answer_named_is_kept_to(ollama: Start) -> None:
    server = ollama({"OLLAMA_NUM_PARALLEL": "2", "PROBE_QUIET": "3"}, interval=6)
    server.wait_health("healthy")
    server.request(model="tiny", keep_alive=60, options={"num_predict": 1, "num_ctx": 2048})
    with server.endless_request("tiny", keep_alive=600):
        server.wait_checks(3)
    server.wait(lambda: server.seconds_left() > 500, "kept for as long")


def test_a_runner_that_others_leave_no_cpu_is_busy_not_stalled(ollama: Start) -> None:
    server = ollama({"OLLAMA_NUM_PARALLEL": "1", "PROBE_TIMEOUT": "4"}, interval=0.5)
    server.wait_health("healthy")
    server.long_prompt()
    server.starve("ollama runner")
    verdicts = server.wait_checks(4)
    assert [v for v in verdicts if not v.healthy] == []
    assert verdicts[-1].reason is Reason.BUSY


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


@pytest.mark.alone
def test_a_required_model_is_loaded_by_checks_shorter_than_its_load(ollama: Start) -> None:
    server = ollama({"PROBE_MODEL": "big", "PROBE_TIMEOUT": "1"}, interval=0.3)
    server.wait(lambda: Reason.LOADING in {v.reason for v in server.verdicts}, "loading")
    server.wait_loaded()
    assert "aborting load" not in server.log
    assert server.seconds_left() > 1e9  # it is kept
    assert not server.pids("defunct")
    assert server.log.count("starting llama server") == 1


USES = {
    "options of its own": ("tiny", {"num_ctx": 1024, "num_batch": 64, "num_thread": 1}, {}),
    "a larger context": ("tiny", {"num_ctx": 3000}, {}),
    "one slot": ("tiny", {"num_ctx": 2048}, {"OLLAMA_NUM_PARALLEL": "1"}),
    "five slots": ("tiny", {"num_ctx": 2048}, {"OLLAMA_NUM_PARALLEL": "5"}),
    "another default": ("tiny", {}, {"OLLAMA_CONTEXT_LENGTH": "1234", "OLLAMA_KEEP_ALIVE": "7m"}),
    "flash attention": ("tiny", {}, {"OLLAMA_FLASH_ATTENTION": "1"}),
    "an adapter and a system prompt": ("tuned", {}, {}),
    "an adapter and options": ("tuned", {"num_ctx": 700}, {}),
}


@pytest.mark.parametrize("use", USES)
def test_a_users_model_keeps_its_options_its_process_and_its_expiry(
    ollama: Start, use: str
) -> None:
    model, options, env = USES[use]
    server = ollama(env, interval=0.3)
    server.wait_health("healthy")
    server.generate(model, **options)
    [before], left = server.pids("ollama runner"), server.seconds_left()
    began = time.monotonic()
    verdicts = server.wait_checks(8)
    assert any("first_token_seconds" in verdict.readings for verdict in verdicts)  # it was asked
    assert server.pids("ollama runner") == [before]
    assert left - server.seconds_left() == pytest.approx(time.monotonic() - began, abs=SLACK)
    server.generate(model, **options)
    assert server.pids("ollama runner") == [before]


def test_a_model_that_only_embeds_is_proven_by_an_embedding(ollama: Start) -> None:
    server = ollama(interval=0.3)
    server.wait_health("healthy")
    server.embed("vector")
    [before], left, began = server.pids("ollama runner"), server.seconds_left(), time.monotonic()
    server.wait(lambda: "gave an embedding after" in server.verdicts[-1].message, "asked")
    server.wait_checks(4)
    assert server.pids("ollama runner") == [before]
    assert left - server.seconds_left() == pytest.approx(time.monotonic() - began, abs=SLACK)


def test_a_required_model_that_only_embeds_is_loaded_and_kept(ollama: Start) -> None:
    server = ollama({"PROBE_MODEL": "vector"})
    server.wait_health("healthy", "ready")
    assert server.seconds_left() > 1e9


def test_two_models_are_each_asked_and_the_frozen_one_is_named(ollama: Start) -> None:
    server = ollama()
    server.wait_health("healthy")
    server.generate("tiny")
    others = set(server.pids("ollama runner"))
    server.embed("vector")
    server.wait(lambda: server.verdicts[-1].message.count("gave") == 2, "both asked")
    [vector] = set(server.pids("ollama runner")) - others
    os.kill(vector, signal.SIGSTOP)
    server.wait_health("unhealthy", "stalled")
    assert "the runner of vector:latest has not answered" in server.lines[-1]


@pytest.mark.alone
def test_after_a_users_request_a_model_is_asked_for_nothing(ollama: Start, gateway: str) -> None:
    """The request has proven it, and the user's conversation stays in the prompt cache."""
    upstream = ollama({"PROBE_TIMEOUT": "2"}, interval=3600, retries=9)
    upstream.wait_listening()
    with in_front_of(upstream.url, gateway) as front:
        server = ollama({"PROBE_QUIET": "60"}, check=("--host", front.url), interval=0.3)
        server.wait_checks(1)
        upstream.generate("tiny")
        server.wait(lambda: server.verdicts[-1].reason is Reason.READY, "ready")
        prompt = "a b c d e f g h i j " * 40
        first = upstream.request(model="tiny", prompt=prompt)
        server.wait_checks(4)
        again = upstream.request(model="tiny", prompt=prompt)
        assert front.generations == []
        assert "answered a user's request" in server.verdicts[-1].message
        # all but a token was in the cache
        assert again["prompt_eval_duration"] < first["prompt_eval_duration"] / 2


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
    server = ollama({"PROBE_QUIET": "6"}, interval=2)
    server.wait_health("healthy")
    server.generate("tiny")
    server.wait(lambda: "first_token_seconds" in server.verdicts[-1].readings, "asked")
    server.wait_checks(2)
    server.generate("tiny")
    began = time.monotonic()
    server.wait_checks(2)  # one of them began after that
    assert server.seconds_left() == pytest.approx(300 - (time.monotonic() - began), abs=SLACK)


def test_a_time_that_a_user_names_for_a_model_kept_for_ever_is_kept_to(ollama: Start) -> None:
    server = ollama({"OLLAMA_NUM_PARALLEL": "2"})
    server.wait_health("healthy")
    server.request(model="tiny", keep_alive=-1, options={"num_ctx": 2048, "num_predict": 1})
    with server.endless_request("tiny", keep_alive=60):
        verdicts = server.wait_checks(2)
        assert any("gave its first token" in verdict.message for verdict in verdicts)
    server.wait(lambda: server.seconds_left() <= 60, "kept for as long as the user said", 10)


LOST = {
    "error 999": "this container has lost its GPU",
    "error 15": "the GPU or the host must be reset",
    "error 18": "the driver was updated under this container",
    "error 9": "the host's driver is not loaded",
    "broken 15": "NVML, GPU 0: GPU is lost",
    "hang 60": "did not answer in time: the driver is sick",
    "": "NVML no longer sees GPU-1",
}


def test_a_lost_gpu_says_how_it_was_lost_and_what_to_do(ollama: Start, nvml: Nvml) -> None:
    server = ollama(volumes=nvml.volume, interval=0.3)
    for answer, words in LOST.items():
        nvml.answer(HEALTHY)
        server.wait_health("healthy")
        nvml.answer(answer)
        server.wait_health("unhealthy", "gpu_lost")
        assert words in server.lines[-1]


def test_an_idle_unload_is_right_and_vram_at_0_then(ollama: Start, nvml: Nvml) -> None:
    server = ollama({"OLLAMA_KEEP_ALIVE": "2s"}, volumes=nvml.volume, interval=0.5)
    server.wait_health("healthy")
    server.generate("tiny")
    nvml.answer("device GPU-1 24576 0 0")
    server.wait(lambda: server.loaded == [], "unloaded")
    assert server.wait_checks(2)[-1].reason is Reason.IDLE
    assert server.health == "healthy"


@pytest.fixture
def in_vram(ollama: Start, gateway: str) -> Iterator[tuple[Ollama, Front]]:
    """A server with `tiny` loaded, that seems to be all in VRAM."""
    upstream = ollama(interval=3600)
    upstream.wait_listening()
    upstream.request(model="tiny", keep_alive=-1)
    with in_front_of(upstream.url, gateway) as front:
        front.vram_share = 1.0
        yield upstream, front


def test_a_model_that_leaves_vram_is_cpu_fallback_and_one_that_never_was_there_is_not(
    ollama: Start, nvml: Nvml, in_vram: tuple[Ollama, Front]
) -> None:
    _, front = in_vram
    front.vram_share = 0.0
    server = ollama(check=("--host", front.url), volumes=nvml.volume, interval=0.3)
    server.wait_health("healthy", "ready")
    front.vram_share = 1.0
    server.wait_checks(2)
    front.vram_share = 0.0
    server.wait_health("unhealthy", "cpu_fallback")
    front.vram_share = 0.5  # another model took its part: no fault by default
    server.wait_health("healthy", "ready")


def test_a_required_model_on_the_cpu_beside_a_gpu_is_cpu_fallback(
    ollama: Start, nvml: Nvml
) -> None:
    server = ollama({"PROBE_MODEL": "tiny"}, volumes=nvml.volume)
    server.wait_health("unhealthy", "cpu_fallback", seconds=90)


def test_a_model_that_fell_back_on_the_cpu_is_so_however_busy_it_is(
    ollama: Start, nvml: Nvml
) -> None:
    env = {"OLLAMA_NUM_PARALLEL": "1", "PROBE_MODEL": "tiny"}
    server = ollama(env, volumes=nvml.volume, interval=0.5)
    server.wait_listening()
    with server.endless_request("tiny"):
        verdicts = server.wait_checks(4)
    assert verdicts[-1].reason is Reason.CPU_FALLBACK


def test_a_required_model_that_others_keep_out_of_vram_is_vram_taken(
    ollama: Start, nvml: Nvml
) -> None:
    nvml.answer("device GPU-1 24576 24574 90")
    server = ollama({"PROBE_MODEL": "tiny"}, volumes=nvml.volume)
    server.wait_health("unhealthy", "vram_taken", seconds=90)
    assert "(operator)" in server.lines[-1]


def test_a_claim_that_nvml_does_not_see_is_vram_mismatch(
    ollama: Start, nvml: Nvml, in_vram: tuple[Ollama, Front]
) -> None:
    _, front = in_vram
    server = ollama(check=("--host", front.url), volumes=nvml.volume, interval=0.3)
    server.wait_health("healthy", "ready")
    nvml.answer("device GPU-1 24576 0 0")
    server.wait_health("unhealthy", "vram_mismatch")


def test_a_model_whose_process_was_killed_is_neither_missed_in_vram_nor_loaded_again(
    ollama: Start, nvml: Nvml
) -> None:
    """The server goes on listing it, and loads it again when somebody wants it."""
    url = f"http://127.0.0.1:{free_port()}"
    with in_front_of(url, "127.0.0.1") as front:
        front.vram_share, front.context_length = 1.0, 2048
        server = ollama(
            {"OLLAMA_HOST": url},
            check=("--host", front.url),
            volumes=nvml.volume,
            network_mode="host",
        )
        server.wait_health("healthy")
        body = {"model": "tiny", "options": {"num_ctx": 2048, "num_predict": 1}, "keep_alive": -1}
        assert httpx.post(f"{url}/api/generate", json=body, timeout=60).status_code == 200
        server.wait(lambda: "first_token_seconds" in server.verdicts[-1].readings, "asked")
        server.wait_checks(1)  # so that none is asking when it is killed
        [runner] = server.pids("ollama runner")
        os.kill(runner, signal.SIGKILL)
        nvml.answer("device GPU-1 24576 0 0")
        asked = len(front.asked)
        verdicts = server.wait_checks(4)
        assert [v for v in verdicts if not v.healthy] == []
        assert "the process of tiny:latest is gone" in verdicts[-1].message
        assert front.asked[asked:] == []
        assert server.pids("ollama runner") == []
        _, shown = server.probe("status", "--host", front.url)
        assert re.search(r"^  tiny:latest .* gone, stays loaded$", shown, re.MULTILINE)


def test_a_required_model_whose_process_was_killed_is_loaded_again_in_peace(ollama: Start) -> None:
    server = ollama({"PROBE_MODEL": "big", "PROBE_TIMEOUT": "2"}, interval=0.3, retries=9)
    server.wait_health("healthy")
    server.wait_checks(1)  # so that none is asking when it is killed
    [runner] = server.pids("ollama runner")
    os.kill(runner, signal.SIGKILL)
    verdicts = server.wait_checks(5)
    server.wait(lambda: server.verdicts[-1].reason in (Reason.READY, Reason.BUSY), "loaded")
    assert [v for v in verdicts if not v.healthy] == []
    assert server.pids("ollama runner") not in ([], [runner])
    assert "aborting load" not in server.log


def test_a_gpu_that_a_setting_hides_from_ollama_is_not_missed(ollama: Start, nvml: Nvml) -> None:
    env = {"CUDA_VISIBLE_DEVICES": "-1", "PROBE_MODEL": "tiny"}
    server = ollama(env, volumes=nvml.volume)
    server.wait_health("healthy", "ready")


def test_a_slice_of_a_gpu_that_is_gone_is_gpu_lost(ollama: Start, nvml: Nvml) -> None:
    nvml.answer("device GPU-1 80000 0 0", "slice MIG-1 10000 0", "slice MIG-2 10000 0")
    server = ollama({"CUDA_VISIBLE_DEVICES": "MIG-2"}, volumes=nvml.volume, interval=0.3)
    server.wait_health("healthy", "idle")
    nvml.answer("device GPU-1 80000 0 0", "slice MIG-2 10000 0")  # another container's
    server.wait_checks(2)
    assert server.health == "healthy"
    nvml.answer("device GPU-1 80000 0 0", "slice MIG-1 10000 0")
    server.wait_health("unhealthy", "gpu_lost")


def test_tokens_that_come_too_late_in_peace_are_slow(ollama: Start) -> None:
    env = {"PROBE_MAX_FIRST_TOKEN": "0.001", "PROBE_SLOW_CHECKS": "4"}
    server = ollama(env, interval=0.3)
    server.wait_health("healthy")
    server.request(model="tiny", keep_alive=-1)
    server.wait_health("unhealthy", "slow")
    assert "slow for" in server.lines[-1]


def test_checks_at_the_same_time_harm_nobody(ollama: Start) -> None:
    server = ollama({"PROBE_TIMEOUT": "20"}, interval=3600)
    server.wait_listening()
    server.probe("check")
    server.generate("tiny", num_ctx=1024)
    [before], left, began = server.pids("ollama runner"), server.seconds_left(), time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: server.probe("check"), range(24)))
    assert {code for code, _ in results} == {0}, results
    assert server.pids("ollama runner") == [before]
    assert left - server.seconds_left() == pytest.approx(time.monotonic() - began, abs=SLACK)


def test_a_place_for_memory_that_cannot_be_used_is_said_and_no_fault(ollama: Start) -> None:
    server = ollama({"PROBE_STATE_DIR": "/proc"}, read_only=True, tmpfs={"/tmp": ""})
    server.wait_health("healthy")
    assert "/proc/ollama-probe" in str(server.verdicts[-1].readings["memory"])


def test_status_shows_what_is_there_and_asks_nothing(ollama: Start, nvml: Nvml) -> None:
    server = ollama(volumes=nvml.volume, interval=0.5)
    server.wait_health("healthy")
    server.generate("tiny")
    server.wait(lambda: "gave" in server.verdicts[-1].message, "asked")
    code, text = server.probe("status")
    assert code == 0
    for words in (
        "healthy ready",
        "Simulated GPU",
        "8.8 GiB of 24.0 GiB",
        "0% of",
        "its first token",
    ):
        assert words in text
    shown = json.loads(server.probe("status", "--format", "json")[1])
    assert [model["name"] for model in shown["models"]] == ["tiny:latest"]
    assert shown["gpus"][0]["uuid"] == "GPU-1"
    assert [check["reason"] for check in shown["checks"]][-1] == "ready"
    server.freeze("ollama runner")
    code, text = server.probe("status")
    assert code == 1
    assert "unhealthy stalled" in text


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
