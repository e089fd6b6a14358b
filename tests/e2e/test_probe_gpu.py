"""The probe beside a GPU that is simulated at NVML's C ABI, against a real server."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator

import httpx
import pytest

from probe.report import Reason, Remedy
from testbed.deadlines import scaled
from testbed.front import Front, in_front_of
from testbed.network import free_port
from testbed.nvml import HEALTHY, Nvml
from testbed.ollama import Ollama, SharedOllama

Start = Callable[..., Ollama]


LOST = {
    "error 999": "this container has lost its GPU",
    "error 15": "the GPU or the host must be reset",
    "error 18": "the driver was updated under this container",
    "error 9": "the host's driver is not loaded",
    "broken 15": "NVML, GPU 0: GPU is lost",
    "hang 60": "did not answer in time: see `dmesg`",
    "": "NVML no longer sees GPU-1",
}


def test_a_lost_gpu_says_how_it_was_lost_and_what_to_do(server: SharedOllama, gpu: Nvml) -> None:
    for answer, words in LOST.items():
        gpu.answer(HEALTHY)
        server.check_until(lambda verdict: verdict.healthy)
        gpu.answer(answer)
        lost = server.check_until(lambda verdict: verdict.reason is Reason.GPU_LOST)[-1]
        assert words in lost.message


@pytest.fixture
def front(server: SharedOllama, gateway: str) -> Iterator[Front]:
    """Before a server with `tiny` loaded, which seems to be all in VRAM; checks ask there."""
    server.request(model="tiny", keep_alive=-1)
    with in_front_of(server.url, gateway) as one:
        one.vram_share = 1.0
        server.env["OLLAMA_HOST"] = one.url
        yield one


def test_an_idle_unload_is_right_and_vram_at_0_then(
    server: SharedOllama, gpu: Nvml, front: Front
) -> None:
    server.check_until(lambda verdict: verdict.reason is Reason.READY)
    server.unload()
    gpu.answer("device GPU-1 24576 0 0")
    verdicts = [server.check() for _ in range(3)]
    assert {v.reason for v in verdicts} == {Reason.IDLE}


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_a_model_that_comes_back_with_less_in_vram_though_there_is_room_is_cpu_fallback(
    server: SharedOllama, gpu: Nvml, front: Front, share: float
) -> None:
    server.check_until(lambda verdict: verdict.reason is Reason.READY)
    server.unload()
    server.check_until(lambda verdict: verdict.reason is Reason.IDLE)
    front.vram_share = share
    server.generate("tiny")
    fallen = server.check_until(lambda verdict: verdict.reason is Reason.CPU_FALLBACK)[-1]
    assert fallen.remedy is Remedy.RESTART
    assert "it had 100%" in fallen.message


def test_a_model_that_comes_back_with_less_in_vram_where_others_hold_it_is_healthy(
    server: SharedOllama, gpu: Nvml, front: Front
) -> None:
    server.check_until(lambda verdict: verdict.reason is Reason.READY)
    server.unload()
    gpu.answer("device GPU-1 24576 24574 90")
    server.check_until(lambda verdict: verdict.reason is Reason.IDLE)
    front.vram_share = 0.0
    server.generate("tiny")
    verdicts = [server.check() for _ in range(3)]
    assert [v for v in verdicts if not v.healthy] == []


def test_a_model_on_a_gpu_that_this_server_never_used_is_left_alone(
    server: SharedOllama, gpu: Nvml
) -> None:
    """It may be one that Ollama does not support."""
    server.check()
    server.generate("tiny")
    verdicts = [server.check() for _ in range(3)]
    assert all(v.healthy for v in verdicts)
    assert verdicts[-1].readings["gpu"] == "never used"


def test_a_model_on_the_cpu_beside_a_required_gpu_is_cpu_fallback(
    server: SharedOllama, gpu: Nvml
) -> None:
    server.env |= {"PROBE_GPU": "required", "PROBE_MODEL": "tiny"}
    server.check_until(lambda verdict: verdict.reason is Reason.CPU_FALLBACK)


def test_after_a_restart_that_found_no_gpu_the_model_on_the_cpu_is_cpu_fallback(
    unchecked: Start, nvml: Nvml, gateway: str
) -> None:
    """What the probe knew of GPUs survives a restart of the container (ollama 17069)."""
    server = unchecked(volumes=nvml.volume)
    server.generate("tiny")
    with in_front_of(server.url, gateway) as front:
        front.vram_share = 1.0
        server.check_until(lambda verdict: verdict.healthy, "--host", front.url)
        server.check("--host", front.url)
    server.container.restart(timeout=0)
    server.wait_listening()
    server.check_until(lambda verdict: verdict.reason is Reason.IDLE)
    server.generate("tiny")
    server.check_until(lambda verdict: verdict.reason is Reason.CPU_FALLBACK)


def test_a_model_that_fell_back_on_the_cpu_is_so_however_busy_it_is(
    unchecked: Start, nvml: Nvml
) -> None:
    env = {"OLLAMA_NUM_PARALLEL": "1", "PROBE_MODEL": "tiny", "PROBE_GPU": "required"}
    server = unchecked(env, volumes=nvml.volume)
    server.check_until(lambda verdict: verdict.reason is not Reason.LOADING)
    with server.endless_request("tiny", options={"num_predict": 1_000_000}):
        server.check_until(lambda verdict: verdict.reason is Reason.CPU_FALLBACK)
        assert server.check().reason is Reason.CPU_FALLBACK


def test_a_required_model_that_others_keep_out_of_vram_is_vram_taken(
    server: SharedOllama, gpu: Nvml
) -> None:
    gpu.answer("device GPU-1 24576 24574 90")
    server.env |= {"PROBE_MODEL": "tiny", "PROBE_GPU": "required"}
    taken = server.check_until(lambda verdict: verdict.reason is Reason.VRAM_TAKEN)[-1]
    assert taken.remedy is Remedy.OPERATOR


def test_a_claim_that_nvml_does_not_see_is_vram_mismatch(
    server: SharedOllama, gpu: Nvml, front: Front
) -> None:
    server.check_until(lambda verdict: verdict.reason is Reason.READY)
    gpu.answer("device GPU-1 24576 0 0")
    server.check_until(lambda verdict: verdict.reason is Reason.VRAM_MISMATCH)


def test_a_model_whose_process_was_killed_is_neither_missed_in_vram_nor_loaded_again(
    unchecked: Start, nvml: Nvml
) -> None:
    """The server goes on listing it, and loads it again when somebody wants it."""
    # On loopback, where the probe knows that the runners it sees are this server's.
    url = f"http://127.0.0.1:{free_port()}"
    server = unchecked({"OLLAMA_HOST": url}, volumes=nvml.volume, network_mode="host")
    with in_front_of(url, "127.0.0.1") as front:
        front.vram_share, front.context_length = 1.0, 2048
        host = ("--host", front.url)
        server.check(*host)
        body = {"model": "tiny", "options": {"num_ctx": 2048, "num_predict": 1}, "keep_alive": -1}
        reply = httpx.post(f"{url}/api/generate", json=body, timeout=scaled(60))
        assert reply.status_code == 200
        server.check(*host)
        [runner] = server.pids("ollama runner")
        os.kill(runner, signal.SIGKILL)
        nvml.answer("device GPU-1 24576 0 0")
        asked = len(front.asked)
        verdicts = [server.check(*host) for _ in range(4)]
        assert [v for v in verdicts if not v.healthy] == []
        assert "tiny:latest is listed and its process is gone" in verdicts[-1].message
        assert front.asked[asked:] == []
        assert server.pids("ollama runner") == []
        _, shown = server.probe("status", *host)
        assert re.search(r"^  tiny:latest .* gone, stays loaded$", shown, re.MULTILINE)


def test_a_gpu_that_a_setting_hides_from_ollama_is_not_missed(
    server: SharedOllama, gpu: Nvml
) -> None:
    server.env |= {"CUDA_VISIBLE_DEVICES": "-1", "PROBE_MODEL": "tiny"}
    server.check_until(lambda verdict: verdict.reason is Reason.READY)
    assert server.check().healthy


def test_a_slice_of_a_gpu_that_is_gone_is_gpu_lost(server: SharedOllama, gpu: Nvml) -> None:
    server.env["CUDA_VISIBLE_DEVICES"] = "MIG-2"
    gpu.answer("device GPU-1 80000 0 0", "slice MIG-1 10000 0", "slice MIG-2 10000 0")
    assert server.check().reason is Reason.IDLE
    gpu.answer("device GPU-1 80000 0 0", "slice MIG-2 10000 0")  # another container's
    assert {server.check().reason for _ in range(3)} == {Reason.IDLE}
    gpu.answer("device GPU-1 80000 0 0", "slice MIG-1 10000 0")
    server.check_until(lambda verdict: verdict.reason is Reason.GPU_LOST)
