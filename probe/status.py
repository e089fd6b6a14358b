"""`ollama-probe status`: what a check would see, on a terminal, without asking any model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from probe.devices import with_amd
from probe.gpu import GpuDevice, GpuReading
from probe.memory import Episode, Memory
from probe.observation import Observation, Seen
from probe.ollama import RunnerHealth
from probe.report import Verdict

BAR_LENGTH = 20
GIB = 1 << 30
MIB = 1 << 20


def page(verdict: Verdict, observation: Observation, memory: Memory, now: float) -> str:
    """The verdict, GPUs, models and last checks as text; `now` is on the monotonic clock."""
    return "\n".join(_lines(verdict, observation, memory, now))


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
        "gpus": [asdict(device) for device in _gpus(observation)],
        "models": [
            {
                "name": seen.model.name,
                "pid": seen.runner.pid if seen.runner else None,
                "state": _state(seen),
                "size_bytes": seen.model.size_bytes,
                "size_vram_bytes": seen.model.size_vram_bytes,
                "unloaded_in_seconds": _seconds_left(seen, now),
            }
            for seen in _all(observation)
        ],
        "checks": [asdict(episode) for episode in memory.episodes],
    }


def _lines(verdict: Verdict, observation: Observation, memory: Memory, now: float) -> Iterator[str]:
    yield f"{_coloured(verdict.healthy, verdict.reason)}  {verdict.message}"
    if verdict.remedy != "none":
        yield f"what helps: {verdict.remedy}"
    gpu, gpus = observation.gpu, _gpus(observation)
    yield ""
    yield click.style("GPUs", bold=True)
    if gpus:
        yield from map(_device, gpus)
    elif gpu is None:
        yield "  none is expected here"
    else:
        yield f"  {gpu.error or 'NVML sees none'}"
    yield ""
    yield click.style("Models", bold=True)
    models = _all(observation)
    if not models:
        yield "  none is loaded"
    width = max((len(seen.model.name) for seen in models), default=0)
    for seen in models:
        yield _model(seen, width, now)
    yield ""
    yield click.style("Checks", bold=True)
    if not memory.episodes:
        yield "  none since this container was started"
    yield from map(_episode, reversed(memory.episodes))


def _all(observation: Observation) -> tuple[Seen, ...]:
    """Every model that the server lists."""
    gone = (Seen(model, health=RunnerHealth("gone")) for model in observation.gone)
    return (*observation.seen, *observation.others, *gone)


def _gpus(observation: Observation) -> tuple[GpuDevice, ...]:
    """NVIDIA's, and AMD's, of which no check says anything."""
    return with_amd(observation.gpu or GpuReading()).devices


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


def _model(seen: Seen, width: int, now: float) -> str:
    model = seen.model
    share = model.size_vram_bytes / model.size_bytes if model.size_bytes else 0.0
    size = f"{share:4.0%} of {_size(model.size_bytes)} in VRAM"
    left = _seconds_left(seen, now)
    until = "stays loaded" if left is None else f"unloaded in {_duration(left)}"
    return f"  {model.name:{width}}  {_bar(share)}  {size}  {_state(seen)}, {until}"


def _state(seen: Seen) -> str:
    return seen.health.state if seen.health else "loaded"


def _seconds_left(seen: Seen, now: float) -> float | None:
    """Until it is unloaded; None when it never is."""
    left = seen.model.seconds_left(now)
    return None if left is None else round(left, 1)


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
