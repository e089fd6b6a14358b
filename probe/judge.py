"""The rules: what an observation means. Pure: plain data in, plain data out; time is an argument.

`plan.py` has the rules of what a check may ask, `learn.py` those of what the next check should
know; `docs/reasons.md` explains each reason to the people who meet it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from probe.gpu import GpuFault, GpuReading
from probe.learn import WORK_SHARE, lags, learn, serves_users, vram_percent, with_episode
from probe.memory import Memory, Record
from probe.observation import Asked, Observation, Seen
from probe.ollama import Answer, LoadedModel
from probe.plan import gives_tokens, is_required, past_of
from probe.report import Reading, Reason, Verdict, short_time
from probe.settings import Settings

IDLE_SHARE = 0.005
"""One that had less to run has done nothing, on a GPU neither: a GPU's work has to be started."""

WORK_PERCENT = 5
"""A GPU that is used more than this does somebody's work."""

BUSY_SECONDS, BUSY_SECONDS_ON_CPU = 600.0, 3600.0
"""How long a model may be busy with nothing to show for it; longer with nothing of it in VRAM:
a long prompt takes longer there, and there is no driver to hang in."""

STILL_SECONDS = 120.0
"""A load that makes no progress for this long is stuck."""

WEIGHTS_SHARE = 0.75
"""At least so much of the weights that Ollama says are in VRAM must be in use there."""

CLAIM_SHARE = 0.5
"""The same for what it claims in all, which is an estimate and known to be too high by a third."""

OTHERS_SHARE = 0.05
"""VRAM in use that no model of this server claims is others' when it is more than this of all."""

_NO_MEMORY = re.compile(r"requires more system memory")
_NO_VRAM = re.compile(r"out of memory|cudaMalloc failed|insufficient VRAM", re.IGNORECASE)


def gpu_wanted(settings: Settings, memory: Memory, hint: bool) -> bool:
    """Whether to look for a GPU at all; `hint`: something in this container speaks for one."""
    if settings.gpu == "auto":
        return hint or bool(memory.gpus)
    return settings.gpu == "required"


def judge(
    observation: Observation, memory: Memory, settings: Settings, now: float
) -> tuple[Verdict, Memory]:
    """What an observation means, and what the next check should know.

    Args:
        observation: what was seen.
        memory: what the checks before left.
        settings: the probe's settings.
        now: seconds of the monotonic clock.
    """
    past, memory = memory, learn(observation, memory, settings, now)
    verdict = (
        _gpu_fault(observation, memory, settings)
        or _api_fault(observation, settings)
        or _loading(observation, memory, settings, now)
        or _of_models(observation, past, memory, settings, now)
    )
    if verdict.healthy and verdict.reason is not Reason.LOADING:
        memory = replace(memory, proven=True)
    devices = observation.gpu.devices if observation.gpu else ()
    gpus = tuple(dict.fromkeys((*memory.gpus, *(d.uuid for d in devices))))
    episodes = with_episode(memory.episodes, verdict, now + observation.clock)
    return verdict, replace(memory, gpus=gpus, episodes=episodes)


def _of_models(
    observation: Observation, past: Memory, memory: Memory, settings: Settings, now: float
) -> Verdict:
    """The server is as it should be: it is its models that make the verdict."""
    silences = list(_silences(observation, past, memory, settings, now))
    return (
        next((silence for silence in silences if not silence.healthy), None)
        or _mismatch(observation, past)
        or _residency(observation, memory, settings)
        # Busy comes after where a model is: one that fell back on the CPU is busy all the time.
        or next(iter(silences), None)
        or _slow(observation, memory, settings)
        or _well(observation, past, memory, now)
    )


# --- the GPU ------------------------------------------------------------------------------

_GPU_ADVICE = {
    GpuFault.UNKNOWN: "this container has lost its GPU, as after `systemctl daemon-reload` on the "
    "host; it must be made again",
    GpuFault.GPU_LOST: "if a new container does not find it either, the GPU or the host must be "
    "reset",
    GpuFault.VERSION_MISMATCH: "the driver was updated under this container; if a new one does "
    "not help, restart the host",
    GpuFault.DRIVER_NOT_LOADED: "the host's driver is not loaded; see `nvidia-smi` there",
    GpuFault.HANGS: "the driver is sick; see `dmesg` on the host, which may have to be restarted",
    GpuFault.LIBRARY_MISSING: "it was here before; the container must be made again",
    GpuFault.OTHER: "see `nvidia-smi` on the host",
}


def _gpu_fault(observation: Observation, memory: Memory, settings: Settings) -> Verdict | None:
    gpu = observation.gpu
    if gpu is None:
        return None
    if gpu.fault is GpuFault.DENIED:
        return _fault(Reason.MISCONFIGURED, f"{gpu.error}: this user may not use the GPU")
    if gpu.fault is GpuFault.LIBRARY_MISSING and not memory.gpus:
        return _fault(
            Reason.MISCONFIGURED,
            f"a GPU is expected, but NVML's library is not in this container ({gpu.error}): "
            "give it the GPU (--gpus all) with NVIDIA_DRIVER_CAPABILITIES=compute,utility, "
            "or set PROBE_GPU=off",
        )
    if gpu.fault is not None:
        return _fault(
            Reason.GPU_LOST, f"{gpu.error}: {_GPU_ADVICE[gpu.fault]}", nvml=str(gpu.fault)
        )
    if gpu.hidden is not None:
        return _fault(
            Reason.MISCONFIGURED,
            f"PROBE_GPU=required, but {gpu.hidden} hides every GPU from Ollama",
        )
    there = {device.uuid for device in gpu.devices}
    lost = [uuid for uuid in memory.gpus if uuid not in there]
    if lost:
        advice = "it was here before; the container must be made again"
        return _fault(
            Reason.GPU_LOST, f"NVML no longer sees {', '.join(lost)}: {advice}", gpus=len(there)
        )
    if not there and settings.gpu == "required":
        return _fault(Reason.GPU_LOST, "a GPU is required and NVML sees none", gpus=0)
    return None


# --- the server ---------------------------------------------------------------------------


def _api_fault(observation: Observation, settings: Settings) -> Verdict | None:
    if observation.api_error is not None:
        return _fault(Reason.API_DOWN, observation.api_error)
    if observation.installed == "no":
        return _fault(
            Reason.MODEL_MISSING,
            f"{settings.model} is not on this server: run `ollama pull {settings.model}` in it",
            model=settings.model,
        )
    if observation.installed == "cloud":
        return _fault(
            Reason.MISCONFIGURED,
            f"PROBE_MODEL={settings.model} runs in the cloud: there is nothing to keep loaded here",
            model=settings.model,
        )
    return None


def _loading(
    observation: Observation, memory: Memory, settings: Settings, now: float
) -> Verdict | None:
    """A model is being loaded, by whomever. A load that goes on for too long is a stall."""
    load = memory.load
    if load is None:
        return None
    runners = [s for s in observation.seen if s.health and s.health.state == "loading"]
    name, done = settings.model or "", ""
    if runners and runners[0].health:
        name, done = runners[0].model.name, f" ({runners[0].health.progress:.0%})"
    readings: dict[str, Reading] = {"model": name, "load_seconds": round(now - load.since, 1)}
    if now - load.since > settings.load_timeout:
        return _fault(
            Reason.STALLED,
            f"{name} has been loading for {now - load.since:.0f} s, "
            f"more than PROBE_LOAD_TIMEOUT={settings.load_timeout:g}",
            **readings,
        )
    if now - load.moved_at > STILL_SECONDS:
        return _fault(
            Reason.STALLED,
            f"{name} is being loaded{done}, and has made no progress for "
            f"{now - load.moved_at:.0f} s",
            **readings,
        )
    return Verdict(
        # Nobody was promised a model where none is required.
        healthy=settings.model is None or memory.proven,
        reason=Reason.LOADING,
        message=f"{name} is being loaded{done}",
        readings=readings,
    )


def _silences(
    observation: Observation, past: Memory, memory: Memory, settings: Settings, now: float
) -> Iterator[Verdict]:
    """The server answers and models do not: busy where work is being done, else stalled."""
    if observation.loaded is not None and observation.loaded.outcome == "error":
        yield from _refusal(settings.model or "", observation.loaded, observation, settings)
    for seen in observation.seen:
        name, asked = seen.model.name, observation.asked.get(seen.model.name)
        if asked is not None and asked.answer.outcome == "error" and not asked.answer.queue_full:
            yield from _refusal(name, asked.answer, observation, settings)
            continue
        since = memory.models[name].busy_since
        if since is None:
            continue
        readings: dict[str, Reading] = {"model": name}
        still = ", but work is being done"
        if asked is not None and asked.answer.queue_full:
            what, still, works = f"{name}: the queue is full: {asked.answer.message}", "", True
            readings["http_status"] = asked.answer.status
        elif asked is not None and asked.answer.outcome == "silent":
            waited = asked.answer.seconds
            what = f"{name} gave no token within {waited:.1f} s, while /api/ps answers"
            runnable = None if seen.runner is None else seen.runner.ran(asked.runner, waited)
            works = _works(observation, waited, runnable) or serves_users(seen, asked, past, now)
            readings["waited_seconds"] = round(waited, 1)
        else:
            waited = observation.waited
            what = f"the runner of {name} has not answered for {waited:.1f} s, while /api/ps does"
            works = _works(observation, waited, observation.silent_runnable_seconds)
            readings["waited_seconds"] = round(waited, 1)
        if not works:
            yield _fault(Reason.STALLED, f"{what}, and nothing is being done", **readings)
            continue
        busy_for, longest = now - since, _busy_timeout(seen.model, settings)
        readings["busy_seconds"] = round(busy_for, 1)
        if busy_for > longest:
            more = f"for more than {longest:g} s (PROBE_BUSY_TIMEOUT)"
            yield _fault(Reason.STALLED, f"{what}, {more}", **readings)
        else:
            yield Verdict(True, Reason.BUSY, what + still, readings)


def _busy_timeout(model: LoadedModel, settings: Settings) -> float:
    if settings.busy_timeout is not None:
        return settings.busy_timeout
    return BUSY_SECONDS if model.size_vram_bytes else BUSY_SECONDS_ON_CPU


def _refusal(
    name: str, answer: Answer, observation: Observation, settings: Settings
) -> Iterator[Verdict]:
    readings: dict[str, Reading] = {"model": name, "http_status": answer.status}
    words = f"{name} cannot be used: {answer.message}"
    if answer.status == 404 and settings.model is not None:
        yield _fault(Reason.MODEL_MISSING, f"{name}: {answer.message}", **readings)
    elif answer.status == 503:
        yield Verdict(True, Reason.BUSY, f"{name}: the queue is full: {answer.message}", readings)
    elif answer.status is not None and 400 <= answer.status < 500:
        return  # it does not do what we asked, which is no fault
    elif _NO_MEMORY.search(answer.message):
        yield _fault(Reason.MISCONFIGURED, f"{words}: it is too large for this machine", **readings)
    elif _NO_VRAM.search(answer.message) and _others_bytes(observation):
        yield _fault(Reason.VRAM_TAKEN, f"{words}, and others hold the VRAM", **readings)
    else:
        yield _fault(Reason.STALLED, words, **readings)


def _works(observation: Observation, waited: float, runnable_seconds: float | None) -> bool:
    """Whether the runner, or else the GPU, had work to do meanwhile."""
    if runnable_seconds is not None:
        if runnable_seconds >= WORK_SHARE * waited:
            return True
        if runnable_seconds < IDLE_SHARE * waited:
            return False
    devices = observation.gpu.devices if observation.gpu else ()
    return any((device.utilization_percent or 0) >= WORK_PERCENT for device in devices)


# --- where a model is ---------------------------------------------------------------------


def _mismatch(observation: Observation, past: Memory) -> Verdict | None:
    """Ollama says that more is in VRAM than NVML sees in use there by anybody."""
    used = observation.gpu.memory_used_bytes if observation.gpu else None
    if used is None or observation.gpu is None or not observation.gpu.devices:
        return None
    needed = 0.0
    for seen in observation.seen:
        model, weights = seen.model, seen.runner.blob_bytes if seen.runner else None
        if not model.size_bytes or not model.size_vram_bytes:
            continue
        if past_of(seen, past) is None:
            return None  # it came to be while we looked
        share = model.size_vram_bytes / model.size_bytes
        needed += (
            WEIGHTS_SHARE * share * weights if weights else CLAIM_SHARE * model.size_vram_bytes
        )
    if used >= needed:
        return None
    return _fault(
        Reason.VRAM_MISMATCH,
        f"Ollama says that {_gib(observation.claimed_bytes)} are in VRAM, NVML sees "
        f"{_gib(used)} in use there by anybody: the work is done elsewhere",
        claimed_bytes=observation.claimed_bytes,
        gpu_memory_used_bytes=used,
    )


def _residency(observation: Observation, memory: Memory, settings: Settings) -> Verdict | None:
    """A model is outside VRAM while a GPU is there, and it was not meant so."""
    gpu = observation.gpu
    if gpu is None or not gpu.devices:
        return None
    for seen in observation.seen:
        model, share = seen.model, vram_percent(seen.model)
        if share is None or share >= settings.min_vram:
            continue
        if seen.runner is not None and seen.runner.model_on_cpu_by_choice:
            continue
        was = memory.records.get(model.name, Record()).vram_percent
        if not (is_required(seen, settings) or settings.gpu == "required") and (
            was < settings.min_vram
        ):
            continue
        what = (
            f"{model.name} has {share:g}% of its memory in VRAM, "
            f"{settings.min_vram:g}% are required"
        )
        readings: dict[str, Reading] = {"model": model.name, "vram_percent": share}
        total, others = gpu.memory_total_bytes, _others_bytes(observation)
        if total is not None and total < model.size_bytes * settings.min_vram / 100:
            return _fault(
                Reason.MISCONFIGURED,
                f"{what}, and all the VRAM there is has {_gib(total)} for its "
                f"{_gib(model.size_bytes)}: lower PROBE_MIN_VRAM_PERCENT or the model",
                **readings,
            )
        if others and _fits_without(others, model, gpu):
            return _fault(
                Reason.VRAM_TAKEN,
                f"{what}, and others hold {_gib(others)}: a restart would not bring it back",
                **readings,
                others_bytes=others,
            )
        return _fault(
            Reason.CPU_FALLBACK, f"{what} while NVML sees {len(gpu.devices)} GPU", **readings
        )
    return None


def _others_bytes(observation: Observation) -> int:
    """VRAM in use that neither this server's models nor what it left behind account for."""
    gpu = observation.gpu
    total = gpu.memory_total_bytes if gpu else None
    used = gpu.memory_used_bytes if gpu else None
    if total is None or used is None or observation.strays:
        return 0
    others = used - observation.claimed_bytes
    return others if others > OTHERS_SHARE * total else 0


def _fits_without(others: int, model: LoadedModel, gpu: GpuReading) -> bool:
    """Whether a model has no room in VRAM, and would have it if the others were gone."""
    free = (gpu.memory_total_bytes or 0) - (gpu.memory_used_bytes or 0)
    return free < model.size_bytes - model.size_vram_bytes <= free + others


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"


# --- how fast it is -----------------------------------------------------------------------


def _slow(observation: Observation, memory: Memory, settings: Settings) -> Verdict | None:
    """Tokens come, and slower than they should, for several checks in a row."""
    for seen in observation.seen:
        asked, record = observation.asked.get(seen.model.name), memory.records.get(seen.model.name)
        if asked is None or record is None or record.slow_checks < settings.slow_checks:
            continue
        behind = list(lags(asked.answer, record, settings))
        if behind:
            return _fault(
                Reason.SLOW,
                f"{seen.model.name} has been slow for {record.slow_checks} checks in a row: "
                + ", ".join(behind),
                model=seen.model.name,
                **_speed(asked.answer),
            )
    return None


def _speed(answer: Answer) -> dict[str, Reading]:
    speed: dict[str, Reading] = {"first_token_seconds": round(answer.seconds, 3)}
    if answer.tokens_per_second is not None:
        speed["tokens_per_second"] = round(answer.tokens_per_second, 1)
    return speed


# --- nothing is wrong ---------------------------------------------------------------------


def _well(observation: Observation, past: Memory, memory: Memory, now: float) -> Verdict:
    readings: dict[str, Reading] = {}
    if observation.gpu is not None:
        readings["gpus"] = len(observation.gpu.devices)
        readings["gpu_memory_used_bytes"] = observation.gpu.memory_used_bytes
        readings["gpu_memory_total_bytes"] = observation.gpu.memory_total_bytes
    if observation.loaded is not None and observation.loaded.outcome == "token":
        message = f"the required model was loaded and {_gave(observation.loaded)}"
        return Verdict(True, Reason.READY, message, readings | _speed(observation.loaded))
    if observation.loaded is not None:
        message = f"the required model is here, but is not for this: {observation.loaded.message}"
        return Verdict(True, Reason.READY, message, readings)
    gone = [
        f"the process of {model.name} is gone, and the server loads it again when it is wanted"
        for model in observation.gone
    ]
    if not observation.seen:
        words = gone or ["no model is loaded, and none is required"]
        return Verdict(True, Reason.IDLE, "; ".join(words), readings)
    words = []
    for seen in observation.seen:
        asked = observation.asked.get(seen.model.name)
        words.append(f"{seen.model.name} {_how_it_is(seen, asked, past, memory, now)}")
        if asked is not None and asked.ask.tokens and asked.answer.outcome == "token":
            readings = _speed(asked.answer) | readings
    first = observation.seen[0].model
    models = [one.model for one in (*observation.seen, *observation.others)]
    readings |= {
        "model": first.name,
        "vram_percent": vram_percent(first),
        "models_loaded": len(models),
        "models_bytes": sum(model.size_bytes for model in models),
        "models_vram_bytes": observation.claimed_bytes,
    }
    return Verdict(True, Reason.READY, "; ".join(words + gone), readings)


def _how_it_is(seen: Seen, asked: Asked | None, past: Memory, memory: Memory, now: float) -> str:
    if asked is not None and asked.answer.outcome == "error":
        return f"is loaded, and refused the request: {asked.answer.message}"
    if asked is not None and asked.ask.tokens:
        return _gave(asked.answer)
    used_at = memory.models[seen.model.name].used_at
    if used_at != now and gives_tokens(seen.runner, past_of(seen, past), past, now):
        return "gives a user tokens"
    if used_at is None:
        return "is loaded, and was left alone"
    if used_at == now:
        return "answered a user's request since the last check"
    return f"answered a user's request {now - used_at:.0f} s ago"


def _gave(answer: Answer) -> str:
    what = "an embedding" if answer.embedding else "its first token"
    return f"gave {what} after {short_time(answer.seconds)}"


def _fault(reason: Reason, message: str, **readings: Reading) -> Verdict:
    return Verdict(False, reason, message, readings)
