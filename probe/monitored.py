"""What `OllamaGPUMonitor` returns: the shapes, and how readings become them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypedDict

from probe.gpu_reading import GpuDevice
from probe.observation import LoadedModel, Runner

_BITS = {"b": 1, "B": 8, "KB": 8 << 10, "MB": 8 << 20, "GB": 8 << 30, "TB": 8 << 40}

ALERTS: Mapping[str, tuple[str, float]] = {
    "used_memory_ratio": ("high_memory_usage", 0.9),
    "gpu_utilization": ("high_utilization", 100.0),
    "temperature": ("high_temperature", 85.0),
    "power_ratio": ("high_power", 1.0),
}
"""What of a GPU can be too high: the name of such an alert, and the default threshold."""

Unit = Literal["b", "B", "KB", "MB", "GB", "TB"]


class GpuStatus(TypedDict):
    """One GPU; a value that it does not give is None. Memory is in `unit`."""

    gpu_id: int
    gpu_name: str
    gpu_uuid: str
    total_memory: float | None
    used_memory: float | None
    free_memory: float | None
    used_memory_ratio: float
    free_memory_ratio: float
    gpu_utilization: int | None
    temperature: float | None
    power_usage: float | None
    power_limit: float | None
    power_ratio: float | None
    ecc_errors: int | None
    throttle_reasons: list[str] | None
    processes: list[dict[str, Any]]
    unit: str


class OllamaProcess(TypedDict):
    """One loaded model, as `ollama ps` shows it, and the same in numbers."""

    name: str
    id: str
    size: str
    processor: str
    until: str
    size_bytes: int
    size_vram_bytes: int
    vram_ratio: float
    unloaded_in_seconds: float | None


class ModelUsage(TypedDict):
    """One loaded model and the GPU that holds most of it.

    `gpu_match_quality` is `exact` where the model's own process says so, or where there is but
    one GPU; `low` for a guess; None where no GPU holds any of it.
    """

    model_name: str
    model_id: str
    size: str
    processor: str
    until: str
    gpu_info: GpuStatus | None
    gpu_match_quality: str | None
    pid: int | None


def convert(value: float | None, src_unit: Unit, target_unit: Unit) -> float:
    """Between "b" (bits), "B", "KB", "MB", "GB" and "TB", in steps of 1024; None counts as 0.

    Raises:
        ValueError: for a unit that there is not, or a value that is no number.
    """
    from_bits, to_bits = bits(src_unit, "src_unit"), bits(target_unit, "target_unit")
    try:
        return float(value or 0) * from_bits / to_bits
    except (TypeError, ValueError):
        raise ValueError(f"value {value!r}: must be a number") from None


def bits(unit: str, name: str) -> int:
    """How many bits a unit has; raises `ValueError`, with `name`, where there is no such unit."""
    try:
        return _BITS[unit]
    except (KeyError, TypeError):
        raise ValueError(f"{name}={unit!r}: must be one of {', '.join(_BITS)}") from None


def place(
    model: LoadedModel, runner: Runner | None, gpus: Sequence[GpuDevice]
) -> tuple[int | None, bool]:
    """On which of the GPUs most of a model is, and whether that is known or guessed."""
    if not model.size_vram_bytes or not gpus:
        return None, True
    held = [
        sum(p.memory_bytes or 0 for p in gpu.processes or () if runner and p.pid == runner.pid)
        for gpu in gpus
    ]
    if any(held):
        return held.index(max(held)), True
    used = [gpu.memory_used_bytes or 0 for gpu in gpus]
    return used.index(max(used)), len(gpus) == 1


def gpu_status(gpu: GpuDevice, position: int, unit: Unit) -> GpuStatus:
    """One GPU; `position` is its number where it does not say its own."""
    total, used = gpu.memory_total_bytes, gpu.memory_used_bytes
    known = total is not None and used is not None
    ratio = (used or 0) / total if known and total else 0.0
    power, limit = gpu.power_draw_watts, gpu.power_limit_watts
    index = position if gpu.index is None else gpu.index

    def size(count: int | None) -> float | None:
        return None if count is None else convert(count, "B", unit)

    return {
        "gpu_id": index,
        "gpu_name": gpu.name,
        "gpu_uuid": gpu.uuid,
        "total_memory": size(total),
        "used_memory": size(used),
        "free_memory": size((total or 0) - (used or 0)) if known else None,
        "used_memory_ratio": ratio,
        "free_memory_ratio": 1 - ratio if known else 0.0,
        "gpu_utilization": gpu.utilization_percent,
        "temperature": gpu.temperature_celsius,
        "power_usage": power,
        "power_limit": limit,
        "power_ratio": power / limit if power is not None and limit else None,
        "ecc_errors": gpu.ecc_errors,
        "throttle_reasons": None if gpu.throttle_reasons is None else list(gpu.throttle_reasons),
        "processes": [
            {
                "pid": one.pid,
                "name": one.name,
                "used_memory": size(one.memory_bytes),
                "utilization": one.utilization_percent,
            }
            for one in gpu.processes or ()
        ],
        "unit": unit,
    }


def process(model: LoadedModel) -> OllamaProcess:
    """One loaded model."""
    left = model.expires_in(time.monotonic())
    return {
        "name": model.name,
        "id": model.digest[:12],
        "size": _human_size(model.size_bytes),
        "processor": _processor(model),
        "until": "Forever" if left is None else _human_time(left),
        "size_bytes": model.size_bytes,
        "size_vram_bytes": model.size_vram_bytes,
        "vram_ratio": model.size_vram_bytes / model.size_bytes if model.size_bytes else 0.0,
        "unloaded_in_seconds": None if left is None else round(left, 1),
    }


def _processor(model: LoadedModel) -> str:
    """As `ollama ps` words it."""
    if not model.size_vram_bytes:
        return "100% CPU"
    if model.size_vram_bytes >= model.size_bytes:
        return "100% GPU"
    on_cpu = round(100 * (1 - model.size_vram_bytes / model.size_bytes))
    return f"{on_cpu}%/{100 - on_cpu}% CPU/GPU"


def _human_size(count: float) -> str:
    """As `ollama ps` words it, in steps of 1000."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _human_time(seconds: float) -> str:
    if seconds <= 0:
        return "Stopping..."
    for size, unit in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = round(seconds / size)
            return f"{count} {unit}{'s' if count > 1 else ''} from now"
    return f"{seconds:.0f} seconds from now"


def process_lines(models: Sequence[LoadedModel]) -> Iterator[str]:
    """Loaded models as a table, as `ollama ps` prints them."""
    rows = list(map(process, models))
    if not rows:
        yield "NO OLLAMA PROCESSES RUNNING."
        return
    head = ("NAME", "ID", "SIZE", "PROCESSOR", "UNTIL")
    cells = [(r["name"], r["id"], r["size"], r["processor"], r["until"]) for r in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    yield "OLLAMA PROCESSES:"
    for row in (head, *cells):
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(padded).rstrip()


def gpu_lines(status: Sequence[GpuStatus], nothing: str) -> Iterator[str]:
    """GPUs as text; `nothing` says why there are none."""
    if not status:
        yield f"GPU STATUS: {nothing}"
        return
    yield "GPU STATUS:"
    for gpu in status:
        yield f"GPU {gpu['gpu_id']}: {gpu['gpu_name']}"
        used, total, ratio = gpu["used_memory"], gpu["total_memory"], gpu["used_memory_ratio"]
        if used is not None and total is not None:
            yield f"  Memory: {used:.2f}/{total:.2f} {gpu['unit']} ({ratio:.1%})"
        if gpu["gpu_utilization"] is not None:
            yield f"  Utilization: {gpu['gpu_utilization']}%"
        if gpu["temperature"] is not None:
            yield f"  Temperature: {gpu['temperature']:g}°C"
        if gpu["power_usage"] is not None and gpu["power_limit"] is not None:
            yield f"  Power: {gpu['power_usage']:.2f}W / {gpu['power_limit']:.2f}W"


def thresholds(given: Mapping[str, float | None]) -> dict[str, float | None]:
    """Every threshold, those that were given before the defaults; raises `ValueError`."""
    known: dict[str, float | None] = {key: default for key, (_, default) in ALERTS.items()}
    known["vram_ratio"] = 1.0
    for key in given:
        if key not in known:
            raise ValueError(f"alert_thresholds[{key!r}]: must be one of {', '.join(known)}")
    return {**known, **given}
