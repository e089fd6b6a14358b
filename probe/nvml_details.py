"""Read what only the overview and the metrics need: temperature, power, errors, processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from probe.gpu_reading import GpuDevice, GpuProcess
from probe.nvml import given
from probe.processes import all_visible, name_of

THROTTLE_REASONS = {
    "nvmlClocksThrottleReasonSwPowerCap": "power_cap",
    "nvmlClocksThrottleReasonHwSlowdown": "hardware_slowdown",
    "nvmlClocksThrottleReasonSyncBoost": "sync_boost",
    "nvmlClocksThrottleReasonSwThermalSlowdown": "thermal",
    "nvmlClocksThrottleReasonHwThermalSlowdown": "hardware_thermal",
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": "power_brake",
}
"""Why a GPU runs slower than it could, by the name of NVML's bit. The bits of an idle GPU and of
clocks that its operator has set are left out."""


def detailed(nvml: Any, device: GpuDevice, handle: Any, index: int) -> GpuDevice:
    """Return the device with every detail; `index` is its number among this machine's devices."""

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


def _processes(nvml: Any, handle: Any) -> tuple[GpuProcess, ...] | None:
    held = holders(nvml, handle)
    if held is None:
        return None
    visible_here, shares = all_visible(), _shares(nvml, handle)
    return tuple(
        GpuProcess(pid, size, shares.get(pid), name_of(pid) if visible_here else None)
        for pid, size in sorted(held.items())
    )


def holders(nvml: Any, handle: Any) -> dict[int, int | None] | None:
    """Return the bytes of a device's memory that each process holds, by process id.

    A size is None where NVML does not give it; the whole is None where it does not list processes.
    """
    # Older drivers have only v2. The names are written out, or the image's bundle leaves them out.
    compute = _rows(
        nvml,
        handle,
        nvml.nvmlDeviceGetComputeRunningProcesses_v3,
        nvml.nvmlDeviceGetComputeRunningProcesses_v2,
    )
    if compute is None:
        return None
    found: dict[int, int | None] = {}
    graphics = _rows(
        nvml,
        handle,
        nvml.nvmlDeviceGetGraphicsRunningProcesses_v3,
        nvml.nvmlDeviceGetGraphicsRunningProcesses_v2,
    )
    # A process that does both is in both lists, each time with all that it holds.
    for row in (*compute, *(graphics or ())):
        found.setdefault(row.pid, row.usedGpuMemory)
    return found


def _rows(nvml: Any, handle: Any, *questions: Callable[[Any], list[Any]]) -> list[Any] | None:
    for ask in questions:
        rows = given(nvml, partial(ask, handle))
        if rows is not None:
            return rows
    return None


def _shares(nvml: Any, handle: Any) -> dict[int, int]:
    """Return each process's share of the device's time in percent, by process id."""
    try:
        samples = given(nvml, partial(nvml.nvmlDeviceGetProcessUtilization, handle, 0))
    except nvml.NVMLError as error:
        # Having no samples is no fault. pynvml raises NVML_SUCCESS for an empty list.
        if error.value not in (nvml.NVML_ERROR_NOT_FOUND, nvml.NVML_SUCCESS):
            raise
        samples = None
    newest = sorted(samples or (), key=lambda sample: sample.timeStamp)
    return {sample.pid: sample.smUtil for sample in newest}
