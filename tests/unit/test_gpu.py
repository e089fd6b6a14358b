"""Which GPUs are Ollama's, and what of NVML reaches a reading."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from probe.gpu import GpuDevice, GpuFault, GpuReading, hidden_by, visible
from tests.nvml import Nvml

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


@pytest.fixture
def nvml(tmp_path: Path) -> Nvml:
    if shutil.which("cc") is None:
        pytest.fail("no C compiler: `make test` installs one")
    return Nvml(tmp_path)


def reading(nvml: Nvml, details: bool = False, **env: str) -> GpuReading:
    """What the real pynvml makes of it, in a process of its own."""
    script = (
        "import os, pickle, sys\nfrom probe.gpu import read\n"
        f"sys.stdout.buffer.write(pickle.dumps(read(os.environ, details={details})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "LD_LIBRARY_PATH": str(nvml.directory), **env},
        stdout=subprocess.PIPE,
        check=True,
    )
    result = pickle.loads(done.stdout)
    assert isinstance(result, GpuReading)
    return result


def test_a_device_is_read_as_nvidia_smi_reads_it_without_what_the_driver_keeps(nvml: Nvml) -> None:
    nvml.answer("device GPU-1 24576 9000 42", "reserved 300")
    name = "Simulated GPU"
    assert reading(nvml).devices == (GpuDevice("GPU-1", name, 24576 << 20, 9000 << 20, 42),)


def test_in_detail_a_device_tells_its_temperature_power_faults_and_processes(nvml: Nvml) -> None:
    nvml.answer(
        *("device GPU-1 24576 9000 42", "detail 61 210500 350000 2 44"),
        *(f"process {os.getpid()} 8000 30", "device GPU-2 24576 0 0"),
    )
    found = reading(nvml, details=True)
    first, second = found.devices
    assert (first.temperature_celsius, first.power_draw_watts) == (61, 210.5)
    assert (first.power_limit_watts, first.ecc_errors, first.index) == (350, 2, 0)
    assert first.throttle_reasons == ("power_cap", "hardware_thermal")
    assert first.processes is not None
    [process] = first.processes
    assert (process.pid, process.memory_bytes) == (os.getpid(), 8000 << 20)
    assert process.utilization_percent == 30
    # what a device does not give is a value too
    assert (second.temperature_celsius, second.power_draw_watts) == (None, None)
    assert (second.ecc_errors, second.throttle_reasons, second.processes) == (None, None, ())
    assert (second.index, found.driver) == (1, "550.54.15")


def test_an_old_driver_is_read_as_far_as_it_goes(nvml: Nvml) -> None:
    nvml.answer("device GPU-1 24576 9000 42", "reserved 300", "old")
    [device] = reading(nvml).devices
    assert device.memory_used_bytes == 9300 << 20


def test_the_slices_of_a_device_stand_in_its_place(nvml: Nvml) -> None:
    nvml.answer("device GPU-1 80000 0 0", "slice MIG-1 10000 500", "slice MIG-2 10000 0")
    found = reading(nvml)
    assert [d.uuid for d in found.devices] == ["MIG-1", "MIG-2"]
    assert found.devices[0].utilization_percent is None
    assert (found.memory_total_bytes, found.memory_used_bytes) == (20000 << 20, 500 << 20)
    assert [d.uuid for d in reading(nvml, CUDA_VISIBLE_DEVICES="MIG-2").devices] == ["MIG-2"]


def test_a_device_without_memory_of_its_own_has_no_memory_reading(nvml: Nvml) -> None:
    nvml.answer("device GPU-1 24576 9000 0", "unified GPU-2")
    found = reading(nvml)
    assert found.devices[1].memory_total_bytes is None
    assert found.memory_used_bytes is None


def test_a_device_of_another_containers_is_left_out(nvml: Nvml) -> None:
    nvml.answer("broken 4", "device GPU-1 24576 9000 0")
    assert [d.uuid for d in reading(nvml).devices] == ["GPU-1"]
    nvml.answer("broken 4")
    assert reading(nvml).fault is GpuFault.DENIED


@pytest.mark.parametrize(
    ("answer", "fault", "words"),
    [
        ("error 999", GpuFault.UNKNOWN, "NVML: Unknown Error"),
        ("error 9", GpuFault.DRIVER_NOT_LOADED, "NVML: Driver Not Loaded"),
        (
            "error 18",
            GpuFault.VERSION_MISMATCH,
            "NVML: RM has detected an NVML/RM version mismatch",
        ),
        ("error 4", GpuFault.DENIED, "NVML: Insufficient Permissions"),
        ("error 10", GpuFault.OTHER, "NVML: "),
        ("broken 15", GpuFault.GPU_LOST, "NVML, GPU 0: GPU is lost"),
    ],
)
def test_each_way_to_fail_is_told_apart(
    nvml: Nvml, answer: str, fault: GpuFault, words: str
) -> None:
    nvml.answer(answer)
    found = reading(nvml)
    assert found.fault is fault
    assert words in found.error


def test_a_container_without_the_library_says_so(tmp_path: Path) -> None:
    found = reading(Nvml(tmp_path), LD_LIBRARY_PATH="/nowhere")
    assert found.fault is GpuFault.LIBRARY_MISSING


def test_while_a_look_hangs_no_other_is_begun(nvml: Nvml) -> None:
    nvml.answer("hang 60")
    script = (
        "import os, threading\nfrom probe.gpu import Look\n"
        "for _ in range(3):\n    print(Look(os.environ).result(0.2).fault)\n"
        "print(threading.active_count(), flush=True)\nos._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "LD_LIBRARY_PATH": str(nvml.directory)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["hangs", "hangs", "hangs", "2"]
