"""`ollama-probe status`: what a check would see, on a terminal, without asking any model."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import click

from probe import nvml
from probe.devices import with_amd
from probe.generations import TESTED, describe, runners_of
from probe.gpu_reading import GpuDevice, GpuReading
from probe.gpus import NEVER_USED
from probe.memory import Episode, Memory
from probe.observation import Model, Observation
from probe.report import Verdict
from probe.settings import Settings

BAR_LENGTH = 20
GIB = 1 << 30
MIB = 1 << 20

_NEVER_USED = (
    "no model has been in VRAM here: where the GPU has to be used, set PROBE_GPU=required, or a "
    "model on the CPU is no fault"
)


def page(
    verdict: Verdict,
    observation: Observation,
    memory: Memory,
    now: float,
    settings: Settings,
    notes: Sequence[str] = (),
) -> str:
    """The verdict, GPUs, models and last checks as text.

    Args:
        verdict: what the check means.
        observation: what it saw.
        memory: what the checks before have left.
        now: seconds of the monotonic clock.
        settings: with which it was made.
        notes: what is odd about the settings, a line each.
    """
    lines = [*_lines(verdict, observation, memory, now, settings)]
    if notes:
        lines += ["", click.style("Settings", bold=True), *(f"  {note}" for note in notes)]
    return "\n".join(lines)


def as_json(
    verdict: Verdict, observation: Observation, memory: Memory, now: float
) -> dict[str, Any]:
    """The same as plain data."""
    return {
        "status": "healthy" if verdict.healthy else "unhealthy",
        "reason": verdict.reason,
        "remedy": verdict.remedy,
        "message": verdict.message,
        "readings": verdict.readings,
        "server": {
            "version": observation.version,
            "runners": runners_of(observation.version),
            "tested": observation.version in TESTED,
        },
        "gpus": [asdict(device) for device in _gpus(observation)],
        "models": [
            {
                "name": model.row.name,
                "pid": model.runner.pid if model.runner else None,
                "state": _state(model),
                "size_bytes": model.row.size_bytes,
                "size_vram_bytes": model.row.size_vram_bytes,
                "unloaded_in_seconds": _expires_in(model, now),
            }
            for model in observation.models
        ],
        "checks": [asdict(episode) for episode in memory.episodes],
    }


def memory_notes(settings: Settings) -> list[str]:
    """Why checks remember nothing here, in one line; empty where they can."""
    path = os.path.join(settings.state_dir, f"ollama-probe-status-{os.getpid()}")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        os.unlink(path)
    except OSError as error:
        where = f"PROBE_STATE_DIR={settings.state_dir}"
        return [f"{where}: checks remember nothing ({error.strerror})"]
    return []


def _lines(
    verdict: Verdict, observation: Observation, memory: Memory, now: float, settings: Settings
) -> Iterator[str]:
    yield f"{_coloured(verdict.healthy, verdict.reason)}  {verdict.message}"
    if verdict.remedy != "none":
        yield f"what helps: {verdict.remedy}"
    gpu, gpus = observation.gpu, _gpus(observation)
    if observation.api_error is None:
        yield ""
        yield click.style("Server", bold=True)
        yield f"  {describe(observation.version)}"
    yield ""
    yield click.style("GPUs", bold=True)
    if gpus:
        yield from map(_device, gpus)
    elif gpu is None:
        yield f"  {_why_not_read(settings)}"
    else:
        yield f"  {gpu.error or 'NVML sees none'}"
    if verdict.readings.get("gpu") == NEVER_USED:
        yield click.style(f"  {_NEVER_USED}", fg="yellow", bold=True)
    yield ""
    yield click.style("Models", bold=True)
    models = observation.models
    if not models and observation.api_error is not None:
        yield "  unknown: the server does not answer"
    elif not models:
        yield "  none is loaded"
    width = max((len(model.row.name) for model in models), default=0)
    for model in models:
        yield _model(model, width, now)
    yield ""
    yield click.style("Checks", bold=True)
    if not memory.episodes:
        yield "  none since this container was started"
    yield from map(_episode, reversed(memory.episodes))


def _gpus(observation: Observation) -> tuple[GpuDevice, ...]:
    """NVIDIA's, and AMD's, of which no check says anything."""
    return with_amd(observation.gpu or GpuReading()).devices


def _why_not_read(settings: Settings) -> str:
    """Why no GPU was read."""
    if settings.gpu == "off":
        return "not checked: PROBE_GPU=off"
    if hidden := nvml.hidden_by(os.environ):
        return f"none expected: {hidden} hides them from Ollama"
    if nvml.has_driver_library(os.environ) or nvml.has_device_node():
        return "not read: the check ran out of time"
    return "none expected: no NVIDIA driver library or device in this container"


def _device(device: GpuDevice) -> str:
    use = "" if device.utilization_percent is None else f"  {device.utilization_percent:3} % used"
    if device.temperature_celsius is not None:
        use += f"  {device.temperature_celsius:g} °C"
    if device.power_draw_watts is not None:
        use += f"  {device.power_draw_watts:.0f} W"
    if device.throttle_reasons:
        use += f"  slowed down: {', '.join(device.throttle_reasons)}"
    total, used = device.memory_total_bytes, device.memory_used_bytes
    if total is None or used is None:
        return f"  {device.name}{use}  (does not tell its memory)  {device.uuid}"
    memory = f"{_size(used)} of {_size(total)}"
    return f"  {device.name}  {_bar(used / total)}  {memory}{use}  {device.uuid}"


def _model(model: Model, width: int, now: float) -> str:
    row = model.row
    share = row.size_vram_bytes / row.size_bytes if row.size_bytes else 0.0
    size = f"{share:4.0%} of {_size(row.size_bytes)} in VRAM"
    remaining = _expires_in(model, now)
    until = "stays loaded" if remaining is None else f"unloaded in {_duration(remaining)}"
    return f"  {row.name:{width}}  {_bar(share)}  {size}  {_state(model)}, {until}"


def _state(model: Model) -> str:
    """Its runner's state, in one word."""
    if model.gone:
        return "gone"
    return model.health.state if model.health else "loaded"


def _expires_in(model: Model, now: float) -> float | None:
    """Until it is unloaded; None when it never is."""
    remaining = model.row.expires_in(now)
    return None if remaining is None else round(remaining, 1)


def _episode(episode: Episode) -> str:
    began, ended = (
        time.strftime("%m-%d %H:%M:%S", time.localtime(at))
        for at in (episode.began_at, episode.ended_at)
    )
    checks = "1 check" if episode.checks == 1 else f"{episode.checks} checks"
    reason = _coloured(episode.healthy, episode.reason)
    return f"  {began} to {ended[6:]}  {reason}  {checks}: {episode.message}"


def _coloured(healthy: bool, reason: str) -> str:
    return click.style(
        f"{'healthy' if healthy else 'unhealthy'} {reason}", fg="green" if healthy else "red"
    )


def _bar(share: float) -> str:
    full = round(min(max(share, 0.0), 1.0) * BAR_LENGTH)
    return "█" * full + "░" * (BAR_LENGTH - full)


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )
