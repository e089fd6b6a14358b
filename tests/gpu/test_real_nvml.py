"""`nvml.py` against `nvidia-smi`, on a real GPU, under a process that takes and frees VRAM."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from probe.gpu_reading import GpuReading
from probe.nvml import read

MIB = 1 << 20
TAKEN_BYTES = 2 << 30
SAME_BYTES = 64 * MIB
"""What may change between two looks at a GPU that others use too."""

pytestmark = pytest.mark.skipif(
    shutil.which("nvidia-smi") is None
    or subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True).stdout[:3] != b"GPU",
    reason="there is no NVIDIA GPU in this machine",
)

# Holds VRAM through the driver's own library until its input ends.
HOLDER = f"""
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
def call(name, *arguments):
    code = getattr(cuda, name)(*arguments)
    assert code == 0, (name, code)
device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
call("cuInit", 0)
call("cuDeviceGet", ctypes.byref(device), 0)
call("cuCtxCreate_v2", ctypes.byref(context), 0, device)
call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t({TAKEN_BYTES}))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def vram_held() -> Iterator[None]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield


def nvidia_smi(*fields: str) -> list[list[str]]:
    """One row for each GPU."""
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [[value.strip() for value in row.split(",")] for row in done.stdout.splitlines()]


def reading() -> GpuReading:
    found = read(os.environ)
    assert found.fault is None, found.error
    return found


def test_every_gpu_is_there_with_its_name_and_memory() -> None:
    rows = nvidia_smi("uuid", "name", "memory.total")
    assert [
        [d.uuid, d.name, str((d.memory_total_bytes or 0) // MIB)] for d in reading().devices
    ] == rows


def used() -> int:
    """Bytes in use on the first GPU, on which `nvidia-smi` and we agree."""
    ours = reading().devices[0].memory_used_bytes
    theirs = int(nvidia_smi("memory.used")[0][0]) * MIB
    assert ours == pytest.approx(theirs, abs=SAME_BYTES)
    return ours or 0


def test_memory_in_use_rises_and_falls_with_a_process_that_takes_and_frees_it() -> None:
    before = used()
    with vram_held():
        during = used()
        assert during - before > TAKEN_BYTES - SAME_BYTES
    assert used() < during - TAKEN_BYTES + SAME_BYTES


def test_utilization_is_a_percentage_where_nvidia_smi_has_one() -> None:
    for device, [theirs] in zip(reading().devices, nvidia_smi("utilization.gpu"), strict=True):
        assert (device.utilization_percent is not None) == theirs.isdigit()
        assert 0 <= (device.utilization_percent or 0) <= 100
