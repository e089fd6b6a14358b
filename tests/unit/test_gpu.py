"""Which GPUs are Ollama's, and what of NVML reaches a reading."""

from __future__ import annotations

import pytest

from probe.gpu import GpuDevice, hidden_by, visible

A, B = GpuDevice("GPU-aa-1", "card"), GpuDevice("GPU-bb-2", "card")
OTHER = GpuDevice("GPU-cc-3", "another card")
SLICE = GpuDevice("MIG-dd-4", "card MIG 1g.10gb")


@pytest.mark.parametrize(
    ("chosen", "devices", "left"),
    [
        (None, (A, B), (A, B)),
        ("0", (A, B), (A,)),
        ("1", (A, B), (B,)),
        ("1,0", (A, B), (B, A)),
        ("GPU-bb", (A, B), (B,)),
        ("GPU-bb-2,GPU-aa-1", (A, B), (B, A)),
        ("MIG-dd", (A, SLICE), (SLICE,)),
        ("0", (SLICE,), (SLICE,)),
        # CUDA ignores all that follows an entry it does not know
        ("0,7,1", (A, B), (A,)),
        ("GPU-zz,0", (A, B), ()),
        # it numbers unlike cards by speed, which does not show from here
        ("1", (A, OTHER), (A, OTHER)),
    ],
)
def test_ollama_has_the_gpus_that_cuda_visible_devices_leaves_to_it(
    chosen: str | None, devices: tuple[GpuDevice, ...], left: tuple[GpuDevice, ...]
) -> None:
    env = {} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}
    assert visible(devices, env) == left


def test_an_index_counts_by_slot_where_cuda_is_told_to() -> None:
    env = {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert visible((A, OTHER), env) == (OTHER,)


@pytest.mark.parametrize(
    ("env", "hidden"),
    [
        ({}, None),
        ({"CUDA_VISIBLE_DEVICES": "0"}, None),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, "CUDA_VISIBLE_DEVICES=-1"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES="),
        ({"OLLAMA_LLM_LIBRARY": "cpu_avx2"}, "OLLAMA_LLM_LIBRARY=cpu_avx2"),
        ({"OLLAMA_LLM_LIBRARY": "cuda_v12"}, None),
    ],
)
def test_a_setting_that_hides_every_gpu_from_ollama_is_found(
    env: dict[str, str], hidden: str | None
) -> None:
    assert hidden_by(env) == hidden
