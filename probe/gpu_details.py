"""What of a device no check needs: temperature, power, faults, processes. `gpu.py` asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from probe.gpu import GpuDevice, GpuProcess, given
from probe.processes import all_visible, name_of

THROTTLE_REASONS = {
    "nvmlClocksThrottleReasonSwPowerCap": "power_cap",
    "nvmlClocksThrottleReasonHwSlowdown": "hardware_slowdown",
    "nvmlClocksThrottleReasonSyncBoost": "sync_boost",
    "nvmlClocksThrottleReasonSwThermalSlowdown": "thermal",
    "nvmlClocksThrottleReasonHwThermalSlowdown": "hardware_thermal",
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": "power_brake",
}
"""Why a card is slower than it could be, by NVML's name of the bit: not those of a card that rests
or is as its owner has set it."""


def detailed(nvml: Any, device: GpuDevice, handle: Any, index: int) -> GpuDevice:
    """The same device with every detail; `index` is its place among this machine's."""

    def watts(ask: Callable[[Any], int]) -> float | None:
        milliwatts = given(nvml, partial(ask, handle))
        return None if milliwatts is None else milliwatts / 1000

    mask = given(nvml, partial(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle))
    ecc = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
    sensor = nvml.NVML_TEMPERATURE_GPU
    return replace(
        device,
        index=index,
        temperature_celsius=given(nvml, partial(nvml.nvmlDeviceGetTemperature, handle, sensor)),
        power_draw_watts=watts(nvml.nvmlDeviceGetPowerUsage),
        power_limit_watts=watts(nvml.nvmlDeviceGetPowerManagementLimit),
        ecc_errors=given(nvml, partial(nvml.nvmlDeviceGetTotalEccErrors, handle, *ecc)),
        throttle_reasons=None if mask is None else _throttle_reasons(nvml, mask),
        processes=_processes(nvml, handle),
    )


def _throttle_reasons(nvml: Any, mask: int) -> tuple[str, ...]:
    return tuple(word for bit, word in THROTTLE_REASONS.items() if mask & getattr(nvml, bit))


def _processes(nvml: Any, handle: Any) -> tuple[GpuProcess, ...]:
    visible_here, shares = all_visible(), _shares(nvml, handle)
    return tuple(
        GpuProcess(pid, held, shares.get(pid), name_of(pid) if visible_here else None)
        for pid, held in sorted(holders(nvml, handle).items())
    )


def holders(nvml: Any, handle: Any) -> dict[int, int | None]:
    """How much memory of a device each process holds, by its id."""
    found: dict[int, int | None] = {}
    for newer, older in (
        (
            nvml.nvmlDeviceGetComputeRunningProcesses_v3,
            nvml.nvmlDeviceGetComputeRunningProcesses_v2,
        ),
        (
            nvml.nvmlDeviceGetGraphicsRunningProcesses_v3,
            nvml.nvmlDeviceGetGraphicsRunningProcesses_v2,
        ),
    ):
        rows = given(nvml, partial(newer, handle))
        if rows is None:
            rows = given(nvml, partial(older, handle))
        for row in rows or ():
            found.setdefault(row.pid, row.usedGpuMemory)
    return found


def _shares(nvml: Any, handle: Any) -> dict[int, int]:
    """Which percentage of a device's time each process had in the last samples, by its id."""
    try:
        samples = given(nvml, partial(nvml.nvmlDeviceGetProcessUtilization, handle, 0))
    except nvml.NVMLError as error:
        # Neither having no sample yet is a fault, nor having none at all, which pynvml raises.
        if error.value not in (nvml.NVML_ERROR_NOT_FOUND, nvml.NVML_SUCCESS):
            raise
        samples = None
    newest = sorted(samples or (), key=lambda sample: sample.timeStamp)
    return {sample.pid: sample.smUtil for sample in newest}
