"""The rules of GPUs: whether one is lost, and what is said of them.

Pure, like `judge.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from probe import vram
from probe.generations import parse_version
from probe.gpu_reading import MADE_UP_UUID, GpuFault, GpuReading
from probe.memory import Memory
from probe.observation import Observation
from probe.report import Reading, Reason, Verdict, unhealthy
from probe.settings import Settings

OLDEST_DRIVER = 550
"""Ollama ignores the GPUs of an older driver since 0.30.11 (ollama 17290)."""

REPEATED = 2
"""A fault of the GPU counts when so many checks in a row have found it: one slow call is none."""

NEVER_USED = "never used"
"""The reading of a GPU in which Ollama has had no model yet."""

_GPU_ADVICE = {
    GpuFault.UNKNOWN: "this container has lost its GPU, as after `systemctl daemon-reload` on the "
    "host; a restart gives it the device again",
    GpuFault.GPU_LOST: "if a restart does not help, the GPU or the host must be reset",
    GpuFault.VERSION_MISMATCH: "the driver was updated under this container; if a restart does "
    "not help, restart the host",
    GpuFault.DRIVER_NOT_LOADED: "the host's driver is not loaded; see `nvidia-smi` there",
    GpuFault.HANGS: "see `dmesg` on the host, which may have to be restarted",
    GpuFault.LIBRARY_MISSING: "it was here before; a restart gives it to the container again",
    GpuFault.OTHER: "see `nvidia-smi` on the host",
}


def fault_of(observation: Observation, memory: Memory, settings: Settings) -> str:
    """Which fault of the GPU a check has found, in one word; empty: none."""
    gpu = observation.gpu
    if gpu is None or gpu.inconclusive:
        return ""
    if gpu.fault is not None:
        return str(gpu.fault)
    return "missing" if _lost(gpu, memory) or _none_of(gpu, settings) else ""


def _lost(gpu: GpuReading, memory: Memory) -> list[str]:
    """Devices that were here and are not.

    After a restart of the container the same number of others is a card that was replaced.
    """
    there = {device.uuid for device in gpu.devices}
    known = [uuid for uuid in memory.gpus if not uuid.startswith(MADE_UP_UUID)]
    lost = [uuid for uuid in known if uuid not in there]
    replaced = not memory.gpus_read and len(there) >= len(memory.gpus)
    return [] if replaced else lost


def _none_of(gpu: GpuReading, settings: Settings) -> bool:
    return not gpu.devices and settings.gpu == "required"


def fault(
    observation: Observation, past: Memory, memory: Memory, settings: Settings
) -> Verdict | None:
    """What is wrong with the GPU itself.

    Args:
        observation: what this check observed.
        past: what the checks before left.
        memory: the same, with how often this fault was found.
        settings: the probe's settings.
    """
    gpu = observation.gpu
    if gpu is None or gpu.inconclusive:
        return None
    if gpu.fault is GpuFault.DENIED:
        return unhealthy(
            Reason.MISCONFIGURED,
            f"{gpu.error}: this user may not use the GPU; run Ollama as root, or let its user read "
            "and write /dev/nvidia*",
        )
    if gpu.fault is GpuFault.LIBRARY_MISSING and not past.gpus:
        return unhealthy(
            Reason.MISCONFIGURED,
            f"a GPU is expected, but NVML's library is not in this container ({gpu.error}): "
            "give it the GPU (--gpus all) with NVIDIA_DRIVER_CAPABILITIES=compute,utility, "
            "or set PROBE_GPU=off",
        )
    if gpu.hidden is not None and settings.gpu == "required":
        return unhealthy(
            Reason.MISCONFIGURED,
            f"PROBE_GPU=required, but {gpu.hidden} hides every GPU from Ollama",
        )
    driver = old_driver(observation)
    if driver is not None and settings.gpu == "required":
        return unhealthy(Reason.MISCONFIGURED, driver)
    if memory.gpu_faults < REPEATED and memory.kept:
        return None
    if gpu.fault is not None and settings.gpu == "auto" and not past.gpus:
        return None  # there may never have been one, only the library
    if gpu.fault is not None:
        return unhealthy(
            Reason.GPU_LOST, f"{gpu.error}: {_GPU_ADVICE[gpu.fault]}", nvml=str(gpu.fault)
        )
    lost = _lost(gpu, past)
    if lost:
        advice = "it was here before; a restart gives it to the container again"
        return unhealthy(
            Reason.GPU_LOST,
            f"NVML no longer sees {', '.join(lost)}: {advice}",
            gpus=len(gpu.devices),
        )
    if _none_of(gpu, settings):
        words = (
            "PROBE_GPU=required, but NVML sees no GPU: give the container one (--gpus all), and "
            "see `nvidia-smi` on the host"
        )
        return unhealthy(Reason.GPU_LOST, words, gpus=0)
    return None


def old_driver(observation: Observation) -> str | None:
    """What to say about a driver that the server is too new for; None: nothing."""
    gpu, version = observation.gpu, parse_version(observation.version)
    if gpu is None or gpu.driver is None or version is None or version < (0, 30, 11):
        return None
    if gpu.tegra:  # Ollama has libraries of their own for these
        return None
    major = re.match(r"\d+", gpu.driver)
    if major is None or int(major[0]) >= OLDEST_DRIVER:
        return None
    return (
        f"Ollama {observation.version} ignores GPUs of a driver older than {OLDEST_DRIVER}, and "
        f"this one is {gpu.driver}: update the driver on the host"
    )


def readings(
    observation: Observation, past: Memory, memory: Memory, settings: Settings
) -> Iterator[tuple[str, Reading]]:
    """Readings of the GPU, what is unknown included."""
    gpu = observation.gpu
    if gpu is None:
        return
    yield "gpus", len(gpu.devices)
    yield "gpu_memory_used_bytes", gpu.memory_used_bytes
    yield "gpu_memory_total_bytes", gpu.memory_total_bytes
    if gpu.inconclusive:
        yield "gpu", "not visible: NVML knows little of a Jetson"
    elif gpu.fault is not None:
        yield "gpu", f"{gpu.error} (found once)"
    elif gpu.devices and not any(device.uuid in memory.used_gpus for device in gpu.devices):
        yield "gpu", NEVER_USED
    elif gpu.devices and gpu.memory_used_bytes is None:
        yield "gpu", "memory not visible"
    if gpu.held is None and vram.others_hold(observation):
        yield "vram_mismatch", "unknown: others hold VRAM, too"
    words = [
        vram.unproven(model, observation, past, memory, settings) for model in observation.models
    ]
    if any(words):
        yield "outside_vram", "; ".join(filter(None, words))
    driver = old_driver(observation)
    if driver is not None:
        yield "driver", driver
