"""The rules of VRAM: whether a model is where it should be.

Pure, like `judge.py`.
"""

from __future__ import annotations

from probe.activity import past_of
from probe.gpu_reading import GpuReading
from probe.memory import Memory, ModelMemory
from probe.observation import Dialect, Model, Observation
from probe.plan import is_required, shape_of
from probe.report import Reason, Verdict, unhealthy
from probe.settings import Settings

WEIGHTS_SHARE = 0.75
"""At least so much of the weights that Ollama says are in VRAM must be in use there."""

CLAIM_SHARE = 0.5
"""The same for what it claims in all, which is an estimate and known to be too high by a third."""

RESERVE_BYTES = 3 << 29
"""llama.cpp leaves 1 GiB of each GPU free, and a projector takes some more (1.5 GiB)."""

ALL_LAYERS = 256
"""No model has so many layers: who asks for more of them on a GPU asks for all."""

MARGIN_SHARE = 0.15
"""A model fits where this share of its size more is free: Ollama's own estimate is as rough."""

FELL_PERCENT = 10.0
"""A model's share in VRAM has fallen when it is lower than it was by more than this."""


def mismatch(model: Model, observation: Observation, past: Memory) -> Verdict | None:
    """The server says that a model is in VRAM, and NVML does not see that.

    Decided by what the model's own process holds, where NVML shows it; else by what is in use by
    everybody, of which a model in VRAM is a part.
    """
    gpu, row = observation.gpu, model.row
    if gpu is None or not gpu.devices or not row.size_vram_bytes or not row.size_bytes:
        return None
    if gpu.hidden is not None or _on_cpu_by_choice(model):
        return None  # where it parses no sizes, the server counts the whole file as VRAM
    if not _was_loaded(model, past):
        return None
    needed = _needed(model)
    if gpu.held is not None and model.runner is not None:
        held = gpu.held.get(model.runner.pid, 0)
        if held >= needed:
            return None
        where = f"NVML sees {_gib(held)} in use by its process"
    else:
        used = gpu.memory_used_bytes
        others = sum(
            _needed(one)
            for one in observation.models
            if one is not model and _was_loaded(one, past) and not _on_cpu_by_choice(one)
        )
        if used is None or used >= needed + others:
            return None
        held, where = used, f"NVML sees {_gib(used)} in use by all processes"
    return unhealthy(
        Reason.VRAM_MISMATCH,
        f"Ollama says that {_gib(row.size_vram_bytes)} of {row.name} are in VRAM, {where}: "
        "the model runs elsewhere",
        model=row.name,
        claimed_bytes=row.size_vram_bytes,
        gpu_memory_used_bytes=held,
    )


def _was_loaded(model: Model, past: Memory) -> bool:
    """Whether it was there before the GPU was read: else its memory may have come since."""
    return past_of(model, past) is not None and not model.gone and model.state != "loading"


def _needed(model: Model) -> float:
    """VRAM that a model holds at least, if what the server says of it is true."""
    row, weights = model.row, model.runner.blob_bytes if model.runner else None
    if not row.size_bytes:
        return 0.0
    if not weights:
        return CLAIM_SHARE * row.size_vram_bytes
    held = WEIGHTS_SHARE * weights * row.size_vram_bytes / row.size_bytes
    # Some weights stay on the CPU even where the server says all are in VRAM (Gemma 3n's).
    return min(held, CLAIM_SHARE * row.size_vram_bytes)


def residency(
    model: Model, observation: Observation, past: Memory, memory: Memory, settings: Settings
) -> Verdict | None:
    """A model is outside VRAM and would fit there, and nothing asked for that."""
    gpu, row, share = observation.gpu, model.row, model.row.vram_percent
    if gpu is None or not gpu.devices or gpu.hidden is not None or share is None:
        return None
    if model.gone or model.state == "loading" or _is_chosen(model, settings):
        return None
    if settings.min_vram is not None:
        return _below_minimum(model, share, observation, past, settings)
    wanted = _wanted(model, share, gpu, past, memory, settings)
    free = gpu.largest_free_bytes
    if wanted is None or free is None:
        return None
    what = f"{row.name} has {share:g}% of its memory in VRAM"
    was = past.vram_percents.get(shape_of(model))
    what += f", it had {was:g}%" if was else ""
    room, needed, outside = _room_of(model, share, wanted, memory)
    if free >= outside * (1 + MARGIN_SHARE) + RESERVE_BYTES and room is not None and room >= needed:
        words = f"{what}, and {_gib(free)} of VRAM are free"
        return unhealthy(Reason.CPU_FALLBACK, words, model=row.name, vram_percent=share)
    return _taken(what, model, outside, observation)


def unproven(
    model: Model, observation: Observation, past: Memory, memory: Memory, settings: Settings
) -> str | None:
    """Why it is no fault that a model is outside VRAM, where it would fit now; None: it is not."""
    gpu, share = observation.gpu, model.row.vram_percent
    if gpu is None or gpu.hidden is not None or share is None or model.gone:
        return None
    wanted = _wanted(model, share, gpu, past, memory, settings)
    if wanted is None or _is_chosen(model, settings) or settings.min_vram is not None:
        return None
    room, needed, _ = _room_of(model, share, wanted, memory)
    what = f"{share:g}% of {model.row.name} in VRAM"
    if room is None or gpu.largest_free_bytes is None:
        return f"{what}, and it is not known whether there was room when it was loaded"
    return f"{what}: there was no room when it was loaded" if room < needed else None


def _wanted(
    model: Model,
    share: float,
    gpu: GpuReading,
    past: Memory,
    memory: Memory,
    settings: Settings,
) -> float | None:
    """How much of a model should be in VRAM, in percent; None: no more than there is."""
    was = past.vram_percents.get(shape_of(model), 0.0)
    fell = was - share > FELL_PERCENT
    if not (fell or share == 0) or not _is_expected(model, gpu, memory, settings):
        return None
    return was if fell else 100.0


def _room_of(
    model: Model, share: float, wanted: float, memory: Memory
) -> tuple[int | None, float, float]:
    """VRAM there was before it was loaded, how much it needed, and how much of it is missing."""
    size = model.row.size_bytes
    room = memory.models.get(model.row.key, ModelMemory()).room_bytes
    needed = size * wanted / 100 * (1 + MARGIN_SHARE) + RESERVE_BYTES
    return room, needed, size * (wanted - share) / 100


def _taken(what: str, model: Model, outside: float, observation: Observation) -> Verdict | None:
    """Others hold the VRAM in which the rest of a model would fit."""
    free = observation.gpu.memory_free_bytes if observation.gpu else None
    others = _others_bytes(observation)
    if free is None or not others or not free < outside <= free + others:
        return None
    return unhealthy(
        Reason.VRAM_TAKEN,
        f"{what}, and others hold {_gib(others)}: a restart would not bring it back",
        model=model.row.name,
        vram_percent=model.row.vram_percent,
        others_bytes=others,
    )


def _is_expected(model: Model, gpu: GpuReading, memory: Memory, settings: Settings) -> bool:
    """Whether a model that is on the CPU should be in VRAM, as far as this server is known.

    One that has never used this GPU may not support it. Where options are not visible, a user
    may have chosen the CPU.
    """
    if settings.gpu == "required":
        return True
    visible = model.runner is not None and model.runner.command.dialect in (
        Dialect.OLLAMA_RUNNER,
        Dialect.LLAMA_SERVER,
    )
    return visible and any(device.uuid in memory.used_gpus for device in gpu.devices)


def _is_chosen(model: Model, settings: Settings) -> bool:
    """Whether fewer layers in VRAM were asked for than all, as far as can be seen.

    Up to Ollama 0.11 the server writes its own number, too, where it finds room for some layers.
    """
    command = model.runner.command if model.runner else None
    if command is None or command.num_gpu is None or command.num_gpu >= ALL_LAYERS:
        return False
    own = command.dialect is Dialect.OLLAMA_RUNNER and command.num_gpu > 0
    return not (own and settings.gpu == "required")


def _on_cpu_by_choice(model: Model) -> bool:
    return model.runner is not None and model.runner.command.num_gpu == 0


def _below_minimum(
    model: Model, share: float, observation: Observation, past: Memory, settings: Settings
) -> Verdict | None:
    """What PROBE_MIN_VRAM_PERCENT, set to a number, means for a model.

    It is meant for one that is required, or was there before.
    """
    row, gpu, minimum = model.row, observation.gpu, settings.min_vram or 0.0
    required = is_required(model, settings)
    was = past.vram_percents.get(shape_of(model), 0.0)
    expected = required or settings.gpu == "required" or was >= minimum
    if gpu is None or share >= minimum or not expected:
        return None
    what = f"{row.name} has {share:g}% of its memory in VRAM, {minimum:g}% are required"
    total, free = gpu.memory_total_bytes, gpu.memory_free_bytes
    if total is not None and total < row.size_bytes * minimum / 100:
        return unhealthy(
            Reason.MISCONFIGURED,
            f"{what}, but the GPUs have {_gib(total)} in all and it needs "
            f"{_gib(row.size_bytes)}: lower PROBE_MIN_VRAM_PERCENT, or use a smaller model",
            model=row.name,
            vram_percent=share,
        )
    outside = row.size_bytes - row.size_vram_bytes
    taken = _taken(what, model, outside, observation)
    if taken is not None:
        return taken
    if not required and free is not None and free < outside:
        return None  # this server's other models have the room
    count = len(gpu.devices)
    words = f"{what}, although NVML sees {count} GPU{'s' if count != 1 else ''}"
    return unhealthy(Reason.CPU_FALLBACK, words, model=row.name, vram_percent=share)


def used_gpus(observation: Observation, memory: Memory) -> tuple[str, ...]:
    """UUIDs of devices that this server has used: a model was in VRAM while they were there."""
    gpu = observation.gpu
    if gpu is None or not any(model.row.size_vram_bytes for model in observation.models):
        return memory.used_gpus
    used = gpu.memory_used_bytes
    if used is not None and used < sum(_needed(model) for model in observation.models):
        return memory.used_gpus  # the server says so, and NVML does not see it
    return tuple(dict.fromkeys((*memory.used_gpus, *(device.uuid for device in gpu.devices))))


def others_hold(observation: Observation) -> bool:
    """Whether others hold VRAM."""
    return _others_bytes(observation) > 0


_OTHERS_SHARE = 0.05
"""VRAM in use that no model of this server claims is others' when it is more than this of all."""


def _others_bytes(observation: Observation) -> int:
    """VRAM in use that neither this server's models nor its leftover processes account for."""
    gpu = observation.gpu
    total = gpu.memory_total_bytes if gpu else None
    used = gpu.memory_used_bytes if gpu else None
    if total is None or used is None or observation.strays or observation.loading:
        return 0
    others = used - observation.claimed_bytes
    return others if others > _OTHERS_SHARE * total else 0


def _gib(count: float) -> str:
    return f"{count / (1 << 30):.1f} GiB"
