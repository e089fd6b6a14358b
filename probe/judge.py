"""The rules. Pure: plain data in, plain data out; time is part of the data.

`plan` says what a check may ask a loaded model without doing harm; `judge` says what the
answers mean. `docs/reasons.md` explains each reason to the people who meet it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from probe.gpu import GpuReading
from probe.memory import Memory, ModelMemory
from probe.ollama import FOREVER, Answer, LoadedModel, RunnerHealth, same_model
from probe.report import Reading, Reason, Verdict
from probe.runners import Runner
from probe.settings import Settings

TEN_YEARS_SECONDS = 10 * 365 * 86_400
"""A model that is unloaded later than this is never unloaded; Ollama writes 292 years."""

SAME_SECONDS = 1.0
"""Two lengths of time closer than this are taken for one."""

WORK_SHARE = 0.05
"""A runner that used less of one core than this while we waited did no work."""


@dataclass(frozen=True)
class Seen:
    """One loaded model and the process that serves it.

    Attributes:
        model: its row in `/api/ps`.
        runner: its process; None where it cannot be seen.
        health: what the runner says of itself; None where it cannot be asked.
        unfinished: its first request has not ended: its expiry still moves with the clock.
    """

    model: LoadedModel
    runner: Runner | None = None
    health: RunnerHealth | None = None
    unfinished: bool = False


@dataclass(frozen=True)
class Ask:
    """One request that does the model no harm; the arguments of `Server.generate`."""

    token: bool
    keep_alive_seconds: float
    options: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """What was asked of a model, and what came of it.

    Attributes:
        ask: the request.
        answer: how it ended.
        ended_at: when that was, in seconds of the monotonic clock.
        model: its row in `/api/ps` after it; None when it is gone.
        cpu_seconds: CPU time its runner used while we waited; None where it cannot be seen.
        reloaded: another process serves the model than before: our request made it load anew.
    """

    ask: Ask
    answer: Answer
    ended_at: float = 0.0
    model: LoadedModel | None = None
    cpu_seconds: float | None = None
    reloaded: bool = False


@dataclass(frozen=True)
class Observation:
    """All that one check saw.

    Attributes:
        gpu: NVML's reading; None when no GPU was looked for.
        api_error: why the server could not be asked; None when it could.
        installed: whether the required model is on the server; None when that was not asked.
        seen: the loaded models that matter to this check.
        asked: by model name, what was asked of it.
        loaded: how our request to load the required model ended; None when none was made.
        waited: seconds spent on a runner that said nothing.
        silent_cpu_seconds: CPU time that runners used meanwhile.
    """

    gpu: GpuReading | None = None
    api_error: str | None = None
    installed: bool | None = None
    seen: tuple[Seen, ...] = ()
    asked: dict[str, Asked] = field(default_factory=dict)
    loaded: Answer | None = None
    waited: float = 0.0
    silent_cpu_seconds: float = 0.0


def gpu_wanted(settings: Settings, memory: Memory, hint: bool) -> bool:
    """Whether to look for a GPU at all."""
    if settings.gpu == "auto":
        return hint or bool(memory.gpus)
    return settings.gpu == "required"


def plan(seen: Seen, memory: Memory, settings: Settings, now: float) -> Ask | None:
    """What may be asked of a loaded model now; None: nothing, without harm.

    A request makes the server load a model anew when its options differ from those that it
    was loaded with, moves the time at which it is unloaded, and sets for how long later
    requests keep it. So: the same options, and a `keep_alive` that ends where it ended.

    Args:
        now: seconds of the monotonic clock, as `LoadedModel.expires_at`.
    """
    if seen.health is not None and seen.health.state != "ready":
        return None  # a request would wait for the load, or make the server give the runner up
    if seen.runner is not None and seen.runner.shape in memory.opaque:
        return None  # a request of ours has made such a runner load anew before
    model, past, options = seen.model, _past(seen, memory), _options(seen)
    used = past is not None and _used_since(seen, past)
    remaining = model.expires_at - now
    if settings.model is not None and same_model(settings.model, model.name):
        return Ask(token=not used, keep_alive_seconds=FOREVER, options=options or {})
    if options is None:
        return None
    if remaining > TEN_YEARS_SECONDS:
        return None if used else Ask(True, FOREVER, options)
    if memory.checked_at is None:
        return None  # what users have set shows at the next check, and only then can be given back
    if past is not None and used:
        return _give_back(seen, past, memory, now, options)
    if remaining < settings.timeout + 2 * max(now - memory.checked_at, 1):
        return None  # it would be loaded again for us, or a user's time could not be given back
    until = model.expires_at if past is None or seen.unfinished else past.expires_at
    spent = 0.0 if past is None else past.token_seconds
    return Ask(token=True, keep_alive_seconds=until - now - spent, options=options)


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
    memory = _remember(observation, memory, settings, now)
    verdict = (
        _gpu_fault(observation, memory, settings)
        or _api_fault(observation, settings)
        or _loading(observation, memory, settings, now)
        or _silence(observation, memory, settings, now)
        or _fallback(observation, settings)
        or _well(observation, settings)
    )
    if verdict.healthy and verdict.reason is not Reason.LOADING:
        memory = replace(memory, proven=True)
    devices = observation.gpu.devices if observation.gpu else ()
    return verdict, replace(memory, gpus=_merged(memory.gpus, (d.uuid for d in devices)))


# --- plan ---------------------------------------------------------------------------------


def _past(seen: Seen, memory: Memory) -> ModelMemory | None:
    """What is known of this model, loaded by this process; another process has no past."""
    past = memory.models.get(seen.model.name)
    return past if past is not None and past.runner == _identity(seen) else None


def _identity(seen: Seen) -> str:
    return seen.runner.identity if seen.runner else ""


def _used_since(seen: Seen, past: ModelMemory) -> bool:
    """A user's request has completed since the last check, which proves the server well."""
    return seen.model.expires_text != past.left and not seen.unfinished


def _options(seen: Seen) -> dict[str, int] | None:
    """The options that the model was loaded with, as far as they show; None when none does."""
    runner = seen.runner
    num_ctx = seen.model.context_length or (runner.num_ctx if runner else None)
    if num_ctx is None:
        return None
    options = {"num_ctx": num_ctx}
    if runner is not None and runner.num_batch is not None:
        options["num_batch"] = runner.num_batch
    if runner is not None and runner.num_thread is not None:
        options["num_thread"] = runner.num_thread
    return options


def _give_back(
    seen: Seen, past: ModelMemory, memory: Memory, now: float, options: dict[str, int]
) -> Ask | None:
    """After a user's request, undo what our last `keep_alive` did to the time it keeps the model.

    Ollama keeps a request's `keep_alive` for all later requests that name none. A user who
    named none got the time that we had set; one that named his own got that.
    """
    if past.lent_seconds is None:
        return None
    known = (past.session_seconds, past.lent_seconds)
    if _session(seen.model.expires_at, known, memory, now) != past.lent_seconds:
        return None
    used_at = seen.model.expires_at - past.lent_seconds
    return Ask(False, max(used_at + past.session_seconds - now, 0), options)


def _session(
    expires_at: float, known: tuple[float | None, ...], memory: Memory, now: float
) -> float:
    """For how long the last request keeps the model, if it ended between the last check and now.

    Args:
        known: what it may be, likeliest first. One that fits is taken, else the shortest that
            fits, so that a model is never kept for longer than its users asked for.
    """
    shortest = expires_at - now
    if memory.checked_at is not None:
        longest = expires_at - memory.checked_at
        for seconds in known:
            if seconds is not None and shortest - SAME_SECONDS <= seconds <= longest + SAME_SECONDS:
                return seconds
    return shortest


# --- judge --------------------------------------------------------------------------------


def _gpu_fault(observation: Observation, memory: Memory, settings: Settings) -> Verdict | None:
    gpu = observation.gpu
    if gpu is None:
        return None
    if gpu.denied:
        return _fault(Reason.MISCONFIGURED, f"{gpu.error}: this user may not use the GPU")
    if gpu.library_missing and not memory.gpus:
        return _fault(
            Reason.MISCONFIGURED,
            f"a GPU is expected, but NVML's library is not in this container ({gpu.error}): "
            "give it the GPU (--gpus all) with NVIDIA_DRIVER_CAPABILITIES=compute,utility, "
            "or set PROBE_GPU=off",
        )
    if gpu.error is not None:
        return _fault(Reason.GPU_LOST, gpu.error)
    there = {device.uuid for device in gpu.devices}
    lost = [uuid for uuid in memory.gpus if uuid not in there]
    if lost:
        return _fault(
            Reason.GPU_LOST, f"NVML no longer sees {', '.join(lost)}", gpus=len(gpu.devices)
        )
    if not there and settings.gpu == "required":
        return _fault(Reason.GPU_LOST, "a GPU is required and NVML sees none", gpus=0)
    return None


def _api_fault(observation: Observation, settings: Settings) -> Verdict | None:
    if observation.api_error is not None:
        return _fault(Reason.API_DOWN, observation.api_error)
    if observation.installed is False:
        return _fault(
            Reason.MODEL_MISSING,
            f"{settings.model} is not on this server: run `ollama pull {settings.model}` in it",
            model=settings.model,
        )
    return None


def _loading(
    observation: Observation, memory: Memory, settings: Settings, now: float
) -> Verdict | None:
    """A model is being loaded, by whomever. A load that goes on for too long is a stall."""
    loading = [s for s in observation.seen if s.health and s.health.state == "loading"]
    asked = observation.loaded
    if loading:
        name, progress = loading[0].model.name, loading[0].health
        done = f" ({progress.progress:.0%})" if progress else ""
    elif asked is not None and asked.outcome == "silent":
        name, done = settings.model or "", ""
    else:
        return None
    since = now if memory.loading_since is None else memory.loading_since
    readings: dict[str, Reading] = {"model": name, "load_seconds": round(now - since, 1)}
    if now - since > settings.load_timeout:
        return _fault(
            Reason.STALLED,
            f"{name} has been loading for {now - since:.0f} s, "
            f"more than PROBE_LOAD_TIMEOUT={settings.load_timeout:g}",
            **readings,
        )
    return Verdict(
        # Nobody was promised a model where none is required.
        healthy=settings.model is None or memory.proven,
        reason=Reason.LOADING,
        message=f"{name} is being loaded{done}",
        readings=readings,
    )


def _silence(
    observation: Observation, memory: Memory, settings: Settings, now: float
) -> Verdict | None:
    """The server answers and a model does not: busy when work is being done, else stalled."""
    if observation.loaded is not None and observation.loaded.outcome == "error":
        return _refusal(settings.model or "", observation.loaded, settings)
    for seen in observation.seen:
        name, asked = seen.model.name, observation.asked.get(seen.model.name)
        if asked is not None and asked.answer.outcome == "error":
            verdict = _refusal(name, asked.answer, settings)
            if verdict is not None:
                return verdict
        if asked is not None and asked.answer.outcome == "silent":
            waited, cpu = asked.answer.seconds, asked.cpu_seconds
            what = f"{name} gave no token within {waited:.1f} s, while /api/ps answers"
        elif seen.health is not None and seen.health.state == "silent":
            waited, cpu = observation.waited, observation.silent_cpu_seconds
            what = f"the runner of {name} has not answered for {waited:.1f} s, while /api/ps does"
        else:
            continue
        busy_for = 0.0 if memory.busy_since is None else now - memory.busy_since
        readings: dict[str, Reading] = {"model": name, "waited_seconds": round(waited, 1)}
        if not _works(observation, waited, cpu):
            return _fault(Reason.STALLED, f"{what}, and nothing is being done", **readings)
        if busy_for > settings.busy_timeout:
            return _fault(
                Reason.STALLED,
                f"{what}, and it has been busy for {busy_for:.0f} s, "
                f"more than PROBE_BUSY_TIMEOUT={settings.busy_timeout:g}",
                **readings,
            )
        return Verdict(True, Reason.BUSY, f"{what}, but work is being done", readings)
    return None


def _refusal(name: str, answer: Answer, settings: Settings) -> Verdict | None:
    readings: dict[str, Reading] = {"model": name, "http_status": answer.status}
    if answer.status == 404 and settings.model is not None:
        return _fault(Reason.MODEL_MISSING, f"{name}: {answer.message}", **readings)
    if answer.status == 503:
        return Verdict(True, Reason.BUSY, f"{name}: the queue is full: {answer.message}", readings)
    if answer.status is not None and answer.status < 500:
        return None  # it does not do what we asked, which is no fault: an embedding model, say
    return _fault(Reason.STALLED, f"{name} cannot generate: {answer.message}", **readings)


def _works(observation: Observation, waited: float, cpu_seconds: float | None) -> bool:
    if cpu_seconds is not None and cpu_seconds >= WORK_SHARE * waited:
        return True
    devices = observation.gpu.devices if observation.gpu else ()
    return any(device.utilization_percent for device in devices)


def _fallback(observation: Observation, settings: Settings) -> Verdict | None:
    """A model is outside VRAM while a GPU is there, and nobody wanted it so."""
    if observation.gpu is None or not observation.gpu.devices:
        return None
    for seen in observation.seen:
        asked = observation.asked.get(seen.model.name)
        embeds = asked is not None and asked.answer.outcome == "error"
        by_choice = seen.runner is not None and seen.runner.model_on_cpu_by_choice
        share = _vram_percent(seen.model)
        if share is not None and share < settings.min_vram and not by_choice and not embeds:
            return _fault(
                Reason.CPU_FALLBACK,
                f"{seen.model.name} has {share:g}% of its memory in VRAM "
                f"({settings.min_vram:g}% are required) while NVML sees "
                f"{len(observation.gpu.devices)} GPU",
                model=seen.model.name,
                vram_percent=share,
            )
    return None


def _well(observation: Observation, settings: Settings) -> Verdict:
    readings: dict[str, Reading] = {}
    if observation.gpu is not None:
        devices = observation.gpu.devices
        readings["gpus"] = len(devices)
        readings["gpu_memory_used_bytes"] = sum(device.memory_used_bytes for device in devices)
        readings["gpu_memory_total_bytes"] = sum(device.memory_total_bytes for device in devices)
    if observation.loaded is not None and observation.loaded.outcome == "token":
        seconds = observation.loaded.seconds
        readings |= {"model": settings.model, "first_token_seconds": round(seconds, 3)}
        message = f"{settings.model} was loaded and gave its first token after {seconds:.2f} s"
        return Verdict(True, Reason.READY, message, readings)
    if observation.loaded is not None:
        message = f"{settings.model} is on this server, but does not generate"
        return Verdict(True, Reason.READY, message, readings | {"model": settings.model})
    if not observation.seen:
        return Verdict(True, Reason.IDLE, "no model is loaded, and none is required", readings)
    words = []
    for seen in observation.seen:
        asked = observation.asked.get(seen.model.name)
        if asked is not None and asked.ask.token and asked.answer.outcome == "token":
            seconds = asked.answer.seconds
            words.append(f"{seen.model.name} gave its first token after {seconds:.2f} s")
            readings.setdefault("first_token_seconds", round(seconds, 3))
        elif asked is not None and asked.answer.outcome == "error":
            words.append(f"{seen.model.name} answers, but does not generate")
        else:
            words.append(f"{seen.model.name} {_why_not_asked(seen, asked)}")
    first = observation.seen[0].model
    readings |= {"model": first.name, "vram_percent": _vram_percent(first)}
    return Verdict(True, Reason.READY, "; ".join(words), readings)


def _why_not_asked(seen: Seen, asked: Asked | None) -> str:
    if asked is not None:
        return "answered a user's request since the last check"
    return "is loaded, and was left alone"


def _vram_percent(model: LoadedModel) -> float | None:
    if model.size_bytes <= 0:
        return None
    return round(100 * model.size_vram_bytes / model.size_bytes, 1)


def _fault(reason: Reason, message: str, **readings: Reading) -> Verdict:
    return Verdict(False, reason, message, readings)


# --- memory -------------------------------------------------------------------------------


def _remember(observation: Observation, memory: Memory, settings: Settings, now: float) -> Memory:
    """Everything the next check should know that does not depend on the verdict."""
    if observation.api_error is not None:
        return replace(memory, checked_at=now)
    models, opaque = {}, list(memory.opaque)
    loading = observation.loaded is not None and observation.loaded.outcome == "silent"
    silent = False
    for seen in observation.seen:
        past, asked = _past(seen, memory), observation.asked.get(seen.model.name)
        models[seen.model.name] = _model_memory(seen, past, asked, memory, settings, now)
        if asked is not None and asked.reloaded and seen.runner is not None:
            opaque.append(seen.runner.shape)
        loading = loading or (seen.health is not None and seen.health.state == "loading")
        silent = silent or (seen.health is not None and seen.health.state == "silent")
        silent = silent or (asked is not None and asked.answer.outcome == "silent")
    return replace(
        memory,
        checked_at=now,
        models=models,
        opaque=_merged(tuple(opaque), ()),
        loading_since=_since(memory.loading_since, loading, now),
        busy_since=_since(memory.busy_since, silent, now),
    )


def _since(before: float | None, holds: bool, now: float) -> float | None:
    if not holds:
        return None
    return now if before is None else min(before, now)


def _model_memory(
    seen: Seen,
    past: ModelMemory | None,
    asked: Asked | None,
    memory: Memory,
    settings: Settings,
    now: float,
) -> ModelMemory:
    model = seen.model
    if past is None:
        session = _session(model.expires_at, (settings.keep_alive,), memory, now)
        expires_at, lent, token = model.expires_at, None, 0.0
    else:
        session, expires_at = past.session_seconds, past.expires_at
        lent, token = past.lent_seconds, past.token_seconds
        if seen.unfinished:
            session, expires_at = model.expires_at - now, model.expires_at
        elif _used_since(seen, past):
            known = (past.session_seconds, past.lent_seconds)
            named = _session(model.expires_at, known, memory, now)
            expires_at = model.expires_at
            if named != lent:
                session, lent = named, None
    left = model
    if asked is not None and asked.answer.outcome != "error":
        left = asked.model or model
        lent = asked.ask.keep_alive_seconds
        if asked.ask.token:
            token = asked.answer.seconds if asked.answer.outcome == "token" else token
        else:
            expires_at = left.expires_at  # what we gave back
        if lent != FOREVER and abs(left.expires_at - asked.ended_at - lent) > SAME_SECONDS:
            left = replace(left, expires_text="")  # a user's request ended since ours: look again
    return ModelMemory(
        runner=_identity(seen),
        expires_at=expires_at,
        left=left.expires_text,
        session_seconds=session,
        lent_seconds=lent,
        token_seconds=token,
    )


def _merged(known: tuple[str, ...], more: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*known, *more)))
