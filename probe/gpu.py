"""NVML → `GpuReading`. The only file that imports `pynvml`."""

from __future__ import annotations

import glob
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

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

_AMD_NODE = "/dev/kfd"

_VULKAN = "OLLAMA_VULKAN"
_CHOSEN = "CUDA_VISIBLE_DEVICES"
_FORCED = "OLLAMA_LLM_LIBRARY"

T = TypeVar("T")


class GpuFault(StrEnum):
    """In which of its ways NVML failed."""

    LIBRARY_MISSING = "library_missing"
    DENIED = "denied"
    DRIVER_NOT_LOADED = "driver_not_loaded"
    VERSION_MISMATCH = "version_mismatch"
    UNKNOWN = "unknown"
    GPU_LOST = "gpu_lost"
    HANGS = "hangs"
    OTHER = "other"


@dataclass(frozen=True)
class GpuProcess:
    """One process that holds memory of a device; what is not given is None.

    Attributes:
        pid: its id as the host numbers it.
        memory_bytes: what it holds.
        utilization_percent: its share of the device's time, of late.
        name: what it is called, where the host's processes can be seen.
    """

    pid: int
    memory_bytes: int | None = None
    utilization_percent: int | None = None
    name: str | None = None


@dataclass(frozen=True)
class GpuDevice:
    """One device, or one MIG slice of a device. What it does not give is None.

    A reading without details gives only the first five.

    Attributes:
        uuid: names it for ever.
        name: its make.
        memory_total_bytes: all its memory, less what the driver keeps.
        memory_used_bytes: how much of that is in use.
        utilization_percent: share of the time in which it was at work, of late.
        index: its place among this machine's devices, as nvidia-smi counts them.
        temperature_celsius: of the chip.
        power_draw_watts: what it draws now.
        power_limit_watts: what it may draw.
        ecc_errors: memory errors since the driver was loaded that could not be corrected.
        throttle_reasons: why it runs slower than it could.
        processes: those that hold its memory; None where that was not asked.
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


@dataclass(frozen=True)
class GpuReading:
    """All devices that Ollama may use, or why there are none.

    Attributes:
        devices: what NVML listed.
        fault: in which way it failed; None when it did not.
        error: that in NVML's own words.
        hidden: a setting that hides every device from Ollama, as `NAME=value`.
        partial: Ollama may use GPUs of another maker's too, which NVML does not see.
        driver: the driver's version; None where that was not asked.
    """

    devices: tuple[GpuDevice, ...] = ()
    fault: GpuFault | None = None
    error: str = ""
    hidden: str | None = None
    partial: bool = False
    driver: str | None = None

    @property
    def memory_total_bytes(self) -> int | None:
        """Of all GPUs together; None when one does not say, as where memory is unified."""
        return None if self.partial else _sum(d.memory_total_bytes for d in self.devices)

    @property
    def memory_used_bytes(self) -> int | None:
        """Of all GPUs together; None when one does not say."""
        return None if self.partial else _sum(d.memory_used_bytes for d in self.devices)


def has_driver_library(env: Mapping[str, str]) -> bool:
    """Whether NVML's library is where the loader of this container would find it."""
    search = [d for d in env.get("LD_LIBRARY_PATH", "").split(":") if d]
    return any(os.path.exists(os.path.join(d, LIBRARY)) for d in (*search, *_LIBRARY_DIRS))


def has_device_node() -> bool:
    """Whether an NVIDIA device was given to this container."""
    return any(glob.glob(pattern) for pattern in _DEVICE_NODES)


def has_other_gpus(env: Mapping[str, str]) -> bool:
    """Whether Ollama may use GPUs that are not NVIDIA's: AMD's driver, or Vulkan, is here."""
    return os.path.exists(_AMD_NODE) or env.get(_VULKAN, "") not in ("", "0", "false")


def hidden_by(env: Mapping[str, str]) -> str | None:
    """The setting that hides every GPU from Ollama, as `NAME=value`; None when none does."""
    if env.get(_FORCED, "").startswith("cpu"):
        return f"{_FORCED}={env[_FORCED]}"
    chosen = env.get(_CHOSEN)
    if chosen is not None and chosen.split(",")[0].strip() in ("", "-1", "none", "NoDevFiles"):
        return f"{_CHOSEN}={chosen}"
    return None


def visible(devices: tuple[GpuDevice, ...], env: Mapping[str, str]) -> tuple[GpuDevice, ...]:
    """Those of the devices that `CUDA_VISIBLE_DEVICES` leaves to Ollama.

    Each of its entries is an index, or the beginning of a UUID, of a MIG slice's too. CUDA
    numbers unlike cards by speed and not by slot, so then an index chooses none from here.
    """
    chosen = env.get(_CHOSEN)
    if chosen is None:
        return devices
    whole = tuple(d for d in devices if not d.uuid.startswith("MIG-")) or devices
    alike = len({d.name for d in whole}) < 2 or env.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    found: list[GpuDevice] = []
    for entry in chosen.split(","):
        word = entry.strip()
        if word.isdigit():
            if not alike:
                return devices
            matching = [*whole[int(word) : int(word) + 1]]
        else:
            matching = [d for d in devices if word and d.uuid.startswith(word)][:1]
        if not matching:
            break  # CUDA ignores all that follows an entry it does not know
        found += matching
    return tuple(dict.fromkeys(found))


class Look:
    """One reading of NVML, taken in a thread of its own: on a sick driver a call can hang.

    While one hangs, no other is begun: it would hang as well, and they would pile up.
    """

    _hanging: threading.Thread | None = None

    def __init__(self, env: Mapping[str, str], *, details: bool = False) -> None:
        self._reading: GpuReading | None = None
        before = Look._hanging
        if before is not None and before.is_alive():
            self._thread = before
            return
        self._thread = threading.Thread(target=self._run, args=(env, details), daemon=True)
        self._thread.start()

    def result(self, timeout: float) -> GpuReading:
        """The reading, or one of a fault when NVML has not answered within `timeout` seconds."""
        self._thread.join(max(timeout, 0))
        Look._hanging = self._thread if self._thread.is_alive() else None
        hangs = GpuReading(fault=GpuFault.HANGS, error="NVML hangs: it did not answer in time")
        return self._reading or hangs

    def _run(self, env: Mapping[str, str], details: bool) -> None:
        self._reading = read(env, details=details)


def read(env: Mapping[str, str], *, details: bool = False) -> GpuReading:
    """Ask NVML for every device. Never raises; may hang on a sick driver (see `Look`).

    Args:
        env: says which devices Ollama may use; an empty one leaves it all.
        details: ask for temperature, power, faults and processes too, which no check needs.
    """
    import pynvml

    if details:
        from probe.gpu_details import detailed

    faults = {
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: GpuFault.LIBRARY_MISSING,
        pynvml.NVML_ERROR_NO_PERMISSION: GpuFault.DENIED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: GpuFault.DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: GpuFault.VERSION_MISMATCH,
        pynvml.NVML_ERROR_UNKNOWN: GpuFault.UNKNOWN,
        pynvml.NVML_ERROR_GPU_IS_LOST: GpuFault.GPU_LOST,
        pynvml.NVML_ERROR_RESET_REQUIRED: GpuFault.GPU_LOST,
    }
    where = "NVML"
    try:
        pynvml.nvmlInit()
        try:
            devices: list[GpuDevice] = []
            denied: pynvml.NVMLError | None = None
            for index in range(pynvml.nvmlDeviceGetCount()):
                where = f"NVML, GPU {index}"
                try:
                    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                    for device, part in _devices(pynvml, handle):
                        devices.append(detailed(pynvml, device, part, index) if details else device)
                except pynvml.NVMLError_NoPermission as error:
                    denied = error  # another container's
            if denied is not None and not devices:
                raise denied
            return GpuReading(
                visible(tuple(devices), env),
                hidden=hidden_by(env),
                partial=has_other_gpus(env),
                driver=given(pynvml, pynvml.nvmlSystemGetDriverVersion) if details else None,
            )
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        fault = faults.get(error.value, GpuFault.OTHER)
        return GpuReading(fault=fault, error=f"{where}: {error}")


def processes() -> frozenset[int] | None:
    """Ids of all processes that hold memory of a device, as the host numbers them.

    None when NVML fails. Outside of the host's PID namespace they are nobody's one could name.
    May hang on a sick driver.
    """
    import pynvml

    from probe.gpu_details import holders

    try:
        pynvml.nvmlInit()
        try:
            found: set[int] = set()
            for index in range(pynvml.nvmlDeviceGetCount()):
                found |= holders(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index)).keys()
            return frozenset(found)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None


def _devices(nvml: Any, handle: Any) -> Iterator[tuple[GpuDevice, Any]]:
    """A device, or its MIG slices where it has any, each with its handle."""
    slices = 0
    mode = given(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle)[0])
    if mode == nvml.NVML_DEVICE_MIG_ENABLE:
        for index in range(given(nvml, lambda: nvml.nvmlDeviceGetMaxMigDeviceCount(handle)) or 0):
            try:
                part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
            except nvml.NVMLError_NotFound:
                continue  # not every place for a slice is taken
            slices += 1
            yield _device(nvml, part), part
    if not slices:
        yield _device(nvml, handle), handle


def _device(nvml: Any, handle: Any) -> GpuDevice:
    memory = given(nvml, lambda: _memory(nvml, handle))
    total, used = (memory.total, memory.used) if memory is not None else (0, 0)
    return GpuDevice(
        uuid=nvml.nvmlDeviceGetUUID(handle),
        name=given(nvml, lambda: nvml.nvmlDeviceGetName(handle)) or "",
        memory_total_bytes=total or None,
        memory_used_bytes=used if total else None,
        utilization_percent=given(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
    )


def _memory(nvml: Any, handle: Any) -> Any:
    """As nvidia-smi counts: without what the driver reserves, where it can tell."""
    try:
        return nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except (nvml.NVMLError_FunctionNotFound, nvml.NVMLError_ArgumentVersionMismatch):
        return nvml.nvmlDeviceGetMemoryInfo(handle)


def given(nvml: Any, ask: Callable[[], T]) -> T | None:
    """What NVML answers, or None where this device or this container is not given that."""
    try:
        return ask()
    except (
        nvml.NVMLError_NotSupported,  # MIG slices, unified memory, older cards
        nvml.NVMLError_NoPermission,  # a MIG slice's parent (nvidia-container-toolkit 842)
        nvml.NVMLError_FunctionNotFound,  # older drivers
        nvml.NVMLError_InvalidArgument,  # a device's question, asked of a slice
    ):
        return None


def _sum(values: Iterator[int | None]) -> int | None:
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total
