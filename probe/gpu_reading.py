"""What a check reads of GPUs, as plain data."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

MADE_UP_UUID = "index-"
"""Begins the name of a device that has no UUID; its number among the devices follows."""

WORK_PERCENT = 5
"""A GPU that is used more than this does somebody's work."""


class GpuFault(StrEnum):
    """How NVML failed."""

    LIBRARY_MISSING = "library_missing"
    DENIED = "denied"
    DRIVER_NOT_LOADED = "driver_not_loaded"
    VERSION_MISMATCH = "version_mismatch"
    UNKNOWN = "unknown"
    GPU_LOST = "gpu_lost"
    HANGS = "hangs"
    OTHER = "other"


_INCONCLUSIVE_ON_TEGRA = (
    None,
    GpuFault.LIBRARY_MISSING,
    GpuFault.DRIVER_NOT_LOADED,
    GpuFault.OTHER,
)


@dataclass(frozen=True)
class GpuProcess:
    """One process that holds memory of a device. What NVML does not give is None.

    Attributes:
        pid: process id in the host's PID namespace.
        memory_bytes: memory it holds.
        utilization_percent: its recent share of the device's time.
        name: its command name, where the host's processes are visible.
    """

    pid: int
    memory_bytes: int | None = None
    utilization_percent: int | None = None
    name: str | None = None


@dataclass(frozen=True)
class GpuDevice:
    """One device, or one MIG slice of a device. What the device does not give is None.

    A reading without details has only the first five.

    Attributes:
        uuid: permanent identifier; `index-0` and so on where the device has no UUID.
        name: product name.
        memory_total_bytes: memory without the driver's reserve; None where memory is unified.
        memory_used_bytes: memory in use; None where memory is unified.
        utilization_percent: recent share of time in which it was working.
        index: its number among this machine's devices, as in nvidia-smi.
        temperature_celsius: temperature of the chip.
        power_draw_watts: power it draws now.
        power_limit_watts: power it may draw.
        ecc_errors: uncorrectable memory errors since the driver was loaded.
        throttle_reasons: why it runs slower than it could.
        processes: processes that hold its memory; None where they were not read.
    """

    uuid: str
    name: str
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    utilization_percent: int | None = None
    index: int | None = None
    temperature_celsius: float | None = None
    power_draw_watts: float | None = None
    power_limit_watts: float | None = None
    ecc_errors: int | None = None
    throttle_reasons: tuple[str, ...] | None = None
    processes: tuple[GpuProcess, ...] | None = None

    @property
    def has_uuid(self) -> bool:
        """Whether `uuid` identifies the device itself, and not only its place."""
        return not self.uuid.startswith(MADE_UP_UUID)


@dataclass(frozen=True)
class GpuReading:
    """All devices that Ollama may use, or why there are none.

    Attributes:
        devices: devices that NVML listed.
        fault: how NVML failed; None if it did not.
        error: NVML's own message.
        hidden: a setting that hides every device from Ollama, as `NAME=value`.
        partial: Ollama may also use GPUs that NVML does not see.
        driver: the driver's version, such as `550.54.15`; None where NVML does not give it.
        held: bytes of GPU memory that each process holds, by process id, over all devices. None
            outside the host's PID namespace, where NVML's process ids mean other processes, and
            where a device does not give them. Known on unified memory too.
        tegra: this machine is a Jetson, or has another Tegra.
        rest: every GPU that Ollama may use was read, and none works. Never said of a Jetson or in
            WSL, where NVML may say 0 % of one that works.
    """

    devices: tuple[GpuDevice, ...] = ()
    fault: GpuFault | None = None
    error: str = ""
    hidden: str | None = None
    partial: bool = False
    driver: str | None = None
    held: Mapping[int, int] | None = None
    tegra: bool = False
    rest: bool = False

    @property
    def inconclusive(self) -> bool:
        """Whether it says nothing about the GPU: on a Jetson, NVML may be missing or incomplete."""
        return self.tegra and not self.devices and self.fault in _INCONCLUSIVE_ON_TEGRA

    @property
    def memory_total_bytes(self) -> int | None:
        """Memory of all GPUs together; None where one does not give it, or is not seen."""
        return None if self.partial else _sum(d.memory_total_bytes for d in self.devices)

    @property
    def memory_used_bytes(self) -> int | None:
        """Memory in use on all GPUs together; None where one does not give it, or is not seen."""
        return None if self.partial else _sum(d.memory_used_bytes for d in self.devices)

    @property
    def largest_free_bytes(self) -> int | None:
        """On the GPU with most of it: what fits there fits; None when one does not say."""
        if self.partial or not self.devices:
            return None
        free = []
        for device in self.devices:
            if device.memory_total_bytes is None or device.memory_used_bytes is None:
                return None
            free.append(max(device.memory_total_bytes - device.memory_used_bytes, 0))
        return max(free)

    @property
    def memory_free_bytes(self) -> int | None:
        """Of all GPUs together; None when one does not say."""
        total, used = self.memory_total_bytes, self.memory_used_bytes
        return None if total is None or used is None else max(total - used, 0)


def _sum(values: Iterator[int | None]) -> int | None:
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total
