"""All GPUs of this machine with every detail: those that NVML names, then AMD's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from probe import amd
from probe.gpu_reading import GpuFault, GpuReading
from probe.nvml import BackgroundRead

TIMEOUT_SECONDS = 3.0


def read_all(env: Mapping[str, str], sysfs: str = "/sys") -> GpuReading:
    """Every GPU, or why there is none; never raises, and never hangs.

    Args:
        env: says which NVIDIA GPUs Ollama may use; an empty one leaves it all.
        sysfs: where the kernel shows AMD's.
    """
    return with_amd(BackgroundRead(env, details=True).result(TIMEOUT_SECONDS), sysfs)


def with_amd(reading: GpuReading, sysfs: str = "/sys") -> GpuReading:
    """A reading of NVML's, and AMD's GPUs behind its devices, counted on from them."""
    others = amd.devices(sysfs)
    if not others:
        return reading
    first = len(reading.devices)
    numbered = (replace(one, index=first + place) for place, one in enumerate(others))
    reading = replace(reading, devices=(*reading.devices, *numbered))
    if reading.fault is GpuFault.LIBRARY_MISSING:  # where all GPUs are AMD's
        return replace(reading, fault=None, error="")
    return reading
