"""NVML → `GpuReading`. The only file that imports `pynvml`."""

from __future__ import annotations

import glob
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass

LIBRARY = "libnvidia-ml.so.1"
_LIBRARY_DIRS = (
    "/usr/local/nvidia/lib",
    "/usr/local/nvidia/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/lib/wsl/lib",
)
_DEVICE_NODES = ("/dev/nvidia[0-9]*", "/dev/nvidiactl", "/dev/dxg")


@dataclass(frozen=True)
class GpuDevice:
    """One device as NVML sees it. A value that it does not give is None."""

    uuid: str
    name: str
    memory_total_bytes: int
    memory_used_bytes: int
    utilization_percent: int | None = None


@dataclass(frozen=True)
class GpuReading:
    """All devices, or why there are none.

    Attributes:
        devices: what NVML listed.
        error: NVML's own words for what failed; None when nothing did.
        library_missing: the driver library is not in this container.
        denied: NVML works, and this user may not use it.
    """

    devices: tuple[GpuDevice, ...] = ()
    error: str | None = None
    library_missing: bool = False
    denied: bool = False


def has_driver_library(env: Mapping[str, str]) -> bool:
    """Whether NVML's library is where the loader of this container would find it."""
    search = [d for d in env.get("LD_LIBRARY_PATH", "").split(":") if d]
    return any(os.path.exists(os.path.join(d, LIBRARY)) for d in (*search, *_LIBRARY_DIRS))


def has_device_node() -> bool:
    """Whether an NVIDIA device was given to this container."""
    return any(glob.glob(pattern) for pattern in _DEVICE_NODES)


class Look:
    """One reading of NVML, taken in a thread of its own: on a sick driver a call can hang."""

    def __init__(self) -> None:
        self._reading: GpuReading | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def result(self, timeout: float) -> GpuReading:
        """The reading, or an error reading when NVML has not answered within `timeout` seconds."""
        self._thread.join(max(timeout, 0))
        return self._reading or GpuReading(error="NVML hangs: it did not answer in time")

    def _run(self) -> None:
        self._reading = read()


def read() -> GpuReading:
    """Ask NVML for every device. Never raises; may hang on a sick driver (see `Look`)."""
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            count = pynvml.nvmlDeviceGetCount()
            return GpuReading(tuple(_device(pynvml, i) for i in range(count)))
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError_LibraryNotFound as error:
        return GpuReading(error=_words(error), library_missing=True)
    except pynvml.NVMLError_NoPermission as error:
        return GpuReading(error=_words(error), denied=True)
    except pynvml.NVMLError as error:
        return GpuReading(error=_words(error))


def _device(pynvml, index: int) -> GpuDevice:  # type: ignore[no-untyped-def]
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    try:
        utilization = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
    except pynvml.NVMLError_NotSupported:  # MIG devices and some older cards
        utilization = None
    return GpuDevice(
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=pynvml.nvmlDeviceGetName(handle),
        memory_total_bytes=memory.total,
        memory_used_bytes=memory.used,
        utilization_percent=utilization,
    )


def _words(error: Exception) -> str:
    return f"NVML: {error}"
