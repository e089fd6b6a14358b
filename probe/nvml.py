"""Read NVIDIA GPUs through NVML. The only file that imports `pynvml`."""

from __future__ import annotations

import glob
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from probe.gpu_reading import MADE_UP_UUID, WORK_PERCENT, GpuDevice, GpuFault, GpuReading
from probe.processes import all_visible

LIBRARY = "libnvidia-ml.so.1"
_LIBRARY_DIRS = (
    "/usr/local/nvidia/lib",
    "/usr/local/nvidia/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu/nvidia",  # Jetson, since JetPack 6
    "/usr/lib64",
    "/usr/lib",
    "/usr/lib/wsl/lib",
)
_WSL_NODE = "/dev/dxg"
_DEVICE_NODES = ("/dev/nvidia[0-9]*", "/dev/nvidiactl", _WSL_NODE)
_TEGRA_FILES = (
    "/dev/nvhost-*",
    "/dev/nvmap",
    "/dev/nvgpu",
    "/usr/lib/aarch64-linux-gnu/tegra",
    "/etc/nv_tegra_release",
)
_TEGRA_FAMILY = "/sys/devices/soc0/family"

_AMD_NODE = "/dev/kfd"
_RENDER_NODES = "/dev/dri/renderD*"
_NVIDIA_VENDOR = "0x10de"

_VULKAN = "OLLAMA_VULKAN"
_VULKAN_CHOSEN = "GGML_VK_VISIBLE_DEVICES"
_GO_FALSE = frozenset({"0", "f", "F", "false", "False", "FALSE"})
_CHOSEN = "CUDA_VISIBLE_DEVICES"
_FORCED = "OLLAMA_LLM_LIBRARY"

T = TypeVar("T")


def has_driver_library(env: Mapping[str, str], root: str = "") -> bool:
    """Whether NVML's library is where this container's loader searches.

    `NVIDIA_VISIBLE_DEVICES` is no evidence: with CDI it is `void`, and Ollama's image sets it to
    `all` on machines without a GPU.

    Args:
        env: `LD_LIBRARY_PATH` is read from it.
        root: a prefix of every path.
    """
    search = [d for d in env.get("LD_LIBRARY_PATH", "").split(":") if d]
    return any(os.path.exists(f"{root}{d}/{LIBRARY}") for d in (*search, *_LIBRARY_DIRS))


def is_likely(env: Mapping[str, str]) -> bool:
    """Whether something in this container speaks for a GPU, and nothing hides it."""
    return hidden_by(env) is None and (has_driver_library(env) or has_device_node())


def has_device_node(root: str = "") -> bool:
    """Whether this container has a device node of an NVIDIA GPU."""
    return any(glob.glob(root + pattern) for pattern in _DEVICE_NODES)


def is_tegra(root: str = "") -> bool:
    """Whether this is a Jetson, or another machine with NVIDIA's Tegra.

    NVML is missing there before JetPack 6 and answers only some questions since, so its failure
    says nothing about the GPU.
    """
    return any(glob.glob(root + pattern) for pattern in _TEGRA_FILES) or _text(
        root + _TEGRA_FAMILY
    ).lower().startswith("tegra")


def has_other_gpus(env: Mapping[str, str], root: str = "") -> bool:
    """Whether Ollama may use a GPU that NVML does not see: through AMD's driver or Vulkan.

    Ollama uses Vulkan by default since 0.30, and before only with `OLLAMA_VULKAN=1`. Both need a
    render node. NVIDIA's driver creates render nodes too, which CDI adds to the container; they
    belong to GPUs that NVML sees. An integrated GPU counts, although Ollama drops most of them:
    sysfs does not tell them apart.
    """
    if os.path.exists(root + _AMD_NODE):
        return True
    if env.get(_VULKAN) in _GO_FALSE or env.get(_VULKAN_CHOSEN) == "-1":
        return False
    names = (os.path.basename(node) for node in glob.glob(root + _RENDER_NODES))
    vendors = (_text(f"{root}/sys/class/drm/{name}/device/vendor") for name in names)
    return any(vendor != _NVIDIA_VENDOR for vendor in vendors)


def hidden_by(env: Mapping[str, str]) -> str | None:
    """Return the setting that hides every GPU from Ollama, as `NAME=value`; None if none does."""
    if env.get(_FORCED, "").startswith("cpu"):
        return f"{_FORCED}={env[_FORCED]}"
    chosen = env.get(_CHOSEN)
    if chosen is not None and chosen.split(",")[0].strip() in ("", "-1", "none", "NoDevFiles"):
        return f"{_CHOSEN}={chosen}"
    return None


def visible(devices: tuple[GpuDevice, ...], env: Mapping[str, str]) -> tuple[GpuDevice, ...]:
    """Return the devices that `CUDA_VISIBLE_DEVICES` leaves to Ollama.

    Each entry is an index or the beginning of a UUID, of a MIG slice too. All devices are returned
    where an entry cannot be resolved: CUDA numbers different models by speed, not by slot, and a
    device may have no UUID.
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
        elif word and not all(d.has_uuid for d in devices):
            return devices
        else:
            matching = [d for d in devices if word and d.uuid.startswith(word)][:1]
        if not matching:
            break  # CUDA ignores everything after an unknown entry
        found += matching
    return tuple(dict.fromkeys(found))


class BackgroundRead:
    """One `read` in a thread of its own, because an NVML call can hang on a broken driver.

    While one read hangs, no other is started: it would hang too, and threads would pile up. What it
    gives at last is the reading of both.
    """

    _hanging: BackgroundRead | None = None

    def __init__(self, env: Mapping[str, str], *, details: bool = False) -> None:
        self._reading: GpuReading | None = None
        self._error: Exception | None = None
        run = (env, details)
        self._thread: threading.Thread = threading.Thread(target=self._run, args=run, daemon=True)
        before = BackgroundRead._hanging
        self._one = before if before is not None and before._thread.is_alive() else self
        if self._one is self:
            self._thread.start()

    def result(self, timeout: float) -> GpuReading:
        """Return the reading, or one with `GpuFault.HANGS` after `timeout` seconds.

        Raises:
            Exception: what the thread raised: a bug of the probe, which no restart would help.
        """
        one = self._one
        one._thread.join(max(timeout, 0))
        BackgroundRead._hanging = one if one._thread.is_alive() else None
        if one._error is not None:
            raise one._error
        hangs = GpuReading(fault=GpuFault.HANGS, error="NVML hangs: it did not answer in time")
        return one._reading or hangs

    def _run(self, env: Mapping[str, str], details: bool) -> None:
        try:
            self._reading = read(env, details=details)
        except Exception as error:
            self._error = error


def read(env: Mapping[str, str], *, details: bool = False, root: str = "") -> GpuReading:
    """Read every device. Never raises; may hang on a broken driver (see `BackgroundRead`).

    Args:
        env: Ollama's environment, which may restrict its devices; an empty one returns them all.
        details: also read temperature, power, errors and processes, which no check needs.
        root: a prefix of the paths in /dev, /proc and /sys.
    """
    import pynvml

    tegra = is_tegra(root)
    count_processes = all_visible(f"{root}/proc")
    if details or count_processes:
        from probe.nvml_details import detailed, holders

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
            held: dict[int, int] | None = {} if count_processes else None
            denied: pynvml.NVMLError | None = None
            for index in range(pynvml.nvmlDeviceGetCount()):
                where = f"NVML, GPU {index}"
                try:
                    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                    for device, part in _devices(pynvml, handle, index):
                        devices.append(detailed(pynvml, device, part, index) if details else device)
                        if held is not None:
                            held = _with(held, holders(pynvml, part))
                except pynvml.NVMLError_NoPermission as error:
                    denied = error  # it belongs to another container
            if denied is not None and not devices:
                raise denied
            partial = has_other_gpus(env, root)
            unknown = partial or tegra or os.path.exists(root + _WSL_NODE)
            return GpuReading(
                visible(tuple(devices), env),
                hidden=hidden_by(env),
                partial=partial,
                rest=not unknown and _all_rest(devices),
                driver=given(pynvml, pynvml.nvmlSystemGetDriverVersion),
                held=held,
                tegra=tegra,
            )
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        fault = faults.get(error.value, GpuFault.OTHER)
        return GpuReading(fault=fault, error=f"{where}: {error}", tegra=tegra)


def _all_rest(devices: list[GpuDevice]) -> bool:
    """Whether no device works, those that are hidden from CUDA included: Vulkan may use them."""
    use = [device.utilization_percent for device in devices]
    return bool(use) and all(percent is not None and percent < WORK_PERCENT for percent in use)


def processes() -> frozenset[int] | None:
    """Return the host's ids of all processes that hold GPU memory; None if NVML fails.

    Meaningful only in the host's PID namespace. May hang on a broken driver.
    """
    import pynvml

    from probe.nvml_details import holders

    try:
        pynvml.nvmlInit()
        try:
            found: set[int] = set()
            for index in range(pynvml.nvmlDeviceGetCount()):
                found.update(holders(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index)) or ())
            return frozenset(found)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None


def _with(held: dict[int, int], more: Mapping[int, int | None] | None) -> dict[int, int] | None:
    """Add what each process holds of one more device; None where that is not known."""
    if more is None:
        return None
    total = dict(held)
    for pid, size in more.items():
        if size is None:
            return None
        total[pid] = total.get(pid, 0) + size
    return total


def _devices(nvml: Any, handle: Any, index: int) -> Iterator[tuple[GpuDevice, Any]]:
    """Yield a device, or its MIG slices if it has any, each with its handle."""
    slices = 0
    mode = given(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle)[0])
    if mode == nvml.NVML_DEVICE_MIG_ENABLE:
        for place in range(given(nvml, lambda: nvml.nvmlDeviceGetMaxMigDeviceCount(handle)) or 0):
            try:
                part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
            except nvml.NVMLError_NotFound:
                continue  # no slice in this place
            slices += 1
            yield _device(nvml, part, f"{index}-slice-{place}"), part
    if not slices:
        yield _device(nvml, handle, str(index)), handle


def _device(nvml: Any, handle: Any, place: str) -> GpuDevice:
    memory = given(nvml, lambda: _memory(nvml, handle))
    total, used = (memory.total, memory.used) if memory is not None else (0, 0)
    return GpuDevice(
        # A Jetson and some vGPUs have none.
        uuid=given(nvml, lambda: nvml.nvmlDeviceGetUUID(handle)) or MADE_UP_UUID + place,
        name=given(nvml, lambda: nvml.nvmlDeviceGetName(handle)) or "",
        memory_total_bytes=total or None,
        memory_used_bytes=used if total else None,
        utilization_percent=given(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
    )


def _memory(nvml: Any, handle: Any) -> Any:
    """Read memory as nvidia-smi counts it: without the driver's reserve, if NVML has that."""
    try:
        return nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except (nvml.NVMLError_FunctionNotFound, nvml.NVMLError_ArgumentVersionMismatch):
        return nvml.nvmlDeviceGetMemoryInfo(handle)


def given(nvml: Any, ask: Callable[[], T]) -> T | None:
    """Return NVML's answer, or None where this device or container is not given one."""
    try:
        return ask()
    except (
        nvml.NVMLError_NotSupported,  # MIG slices, unified memory, older cards
        nvml.NVMLError_NoPermission,  # a MIG slice's parent (nvidia-container-toolkit 842)
        nvml.NVMLError_FunctionNotFound,  # older drivers
        nvml.NVMLError_InvalidArgument,  # a question about a device, asked about a slice
    ):
        return None


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
