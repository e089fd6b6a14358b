"""The rules: what an observation means. Pure: plain data in, plain data out; time is an argument.

`plan.py` has the rules of what a check may ask, `vram.py` those of GPUs, `learn.py` those of what
the next check should know; `docs/reasons.md` explains each reason to the people who meet it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from probe import crashes, gpus, loads, retries, silence, vram
from probe.activity import past_of
from probe.healing import culprit, restart_checks, with_blocked, with_suspect, with_unending
from probe.learn import is_proven, learn, with_episode
from probe.memory import Memory, ModelMemory
from probe.observation import Answer, Asked, Model, Observation
from probe.plan import BUSY_SECONDS, names_required
from probe.report import Reading, Reason, Remedy, Verdict, short_time, unhealthy
from probe.settings import Settings

_OF_VRAM = (Reason.CPU_FALLBACK, Reason.VRAM_MISMATCH, Reason.VRAM_TAKEN)
"""What only the GPU and the list of loaded models together can change."""

UNHEALTHY_CHECKS = 3
"""Docker calls a container unhealthy after so many failures in a row, by default."""


def gpu_wanted(settings: Settings, memory: Memory, hint: bool) -> bool:
    """Whether to look for a GPU at all; `hint`: something in this container speaks for one."""
    if settings.gpu == "auto":
        return hint or bool(memory.gpus)
    return settings.gpu == "required"


def judge(
    observation: Observation,
    memory: Memory,
    settings: Settings,
    now: float,
    *,
    counts: bool = True,
) -> tuple[Verdict, Memory]:
    """What an observation means, and what the next check should know.

    Args:
        observation: what was seen.
        memory: what the checks before left.
        settings: the probe's settings.
        now: seconds of the monotonic clock.
        counts: Docker is told. If not, every fault is told as it was found, and this check is
            none of those in a row.
    """
    past = memory
    memory = _with_gpus(observation, past, learn(observation, past, settings, now), settings)
    before = _as_before(observation, past, settings, now) if observation.no_time else None
    gpu_lost = before is not None and before.reason is Reason.GPU_LOST
    of_gpus = gpus.fault(observation, past, memory, settings)
    verdict = (
        (of_gpus if _can_be_healed(of_gpus) else None)
        or _api_fault(observation, past, settings, now)
        or (None if observation.answered and not gpu_lost else before)
        or _of_models(observation, past, memory, settings, now, before)
    )
    if of_gpus and not _can_be_healed(verdict):
        verdict = of_gpus
    unending = {one.identity: past.unending.get(one.identity, now) for one in observation.unending}
    memory = replace(memory, unending=unending)
    found, verdict = verdict, with_unending(verdict, observation, past, memory, now)
    verdict = with_blocked(verdict, memory, now)
    if found is before and (found.healthy, found.remedy) == (verdict.healthy, verdict.remedy):
        memory = retries.without_fault(memory) if verdict.healthy and counts else memory
        unending = {**past.unending, **unending}  # what is repeated may rest on one that has ended
        since = past.no_time_since or now
        return verdict, replace(memory, no_time_since=since, unending=unending)
    if counts:
        suspect = culprit(verdict, observation)
        memory = with_suspect(memory, suspect, now, certain=verdict.certain)
        memory = replace(memory, restart_checks=restart_checks(verdict, past))
        verdict, memory = retries.counted(verdict, past, memory, settings, now)
    if verdict.healthy:
        memory = replace(memory, server_ended="")
    answered = observation.api_error is None
    if answered and verdict.healthy and verdict.reason is not Reason.LOADING:
        memory = replace(memory, proven=True)
    episodes = with_episode(memory.episodes, verdict, now + observation.clock)
    return verdict, replace(memory, episodes=episodes, no_time_since=None)


def _can_be_healed(verdict: Verdict | None) -> bool:
    return verdict is not None and verdict.remedy not in (Remedy.OPERATOR, Remedy.NONE)


def _with_gpus(
    observation: Observation, past: Memory, memory: Memory, settings: Settings
) -> Memory:
    """What was seen of the GPUs; a fault of theirs is counted before it is believed."""
    gpu, fault = observation.gpu, gpus.fault_of(observation, past, settings)
    if gpu is None or gpu.inconclusive:
        return replace(memory, gpu_faults=0, gpu_fault="") if gpu else memory
    again = memory.gpu_faults + 1 if fault and fault == memory.gpu_fault else int(bool(fault))
    seen = tuple(device.uuid for device in gpu.devices)
    known = past.gpus if fault or past.gpus_read else ()
    return replace(
        memory,
        gpus=tuple(dict.fromkeys((*known, *seen))),
        gpus_read=past.gpus_read or not fault,
        used_gpus=vram.used_gpus(observation, memory),
        gpu_faults=again,
        gpu_fault=fault,
    )


def _of_models(
    observation: Observation,
    past: Memory,
    memory: Memory,
    settings: Settings,
    now: float,
    before: Verdict | None,
) -> Verdict:
    """The server answers: its models make the verdict.

    Of several faults one that can be healed comes first. What needs an operator for a model that
    nobody requires is a reading.
    """
    found = list(_found(observation, past, memory, settings, now))
    faults = [one for one in found if not one.healthy]
    healable = min(filter(_can_be_healed, faults), key=lambda one: not one.certain, default=None)
    counts = [one for one in faults if _is_of_required(one, settings)]
    if verdict := healable or next(iter(counts), None):
        return _with_noted(verdict, faults)
    if before and before.reason in _OF_VRAM:
        return before
    if verdict := next((one for one in found if one.healthy), None):
        return _with_noted(verdict, faults)
    return before or _with_noted(_healthy(observation, past, memory, settings, now), faults)


def _is_of_required(verdict: Verdict, settings: Settings) -> bool:
    name = str(verdict.readings.get("model", ""))
    return bool(verdict.readings.get("required", names_required(name, settings)))


def _with_noted(verdict: Verdict, faults: list[Verdict]) -> Verdict:
    """The verdict, with what else was found among its readings."""
    noted = "; ".join(f"{one.reason}: {one.message}" for one in faults if one is not verdict)
    readings: dict[str, Reading] = {**verdict.readings, "noted": noted}
    return replace(verdict, readings=readings) if noted else verdict


def _found(
    observation: Observation, past: Memory, memory: Memory, settings: Settings, now: float
) -> Iterator[Verdict]:
    """All that is out of the ordinary, of the server's models."""
    yield from loads.loading(observation, memory, settings, now)
    yield from loads.missing(observation, memory, settings, now)
    for model in observation.models:
        if one := silence.stopping(model, observation, past, memory, settings, now):
            yield one  # before what says that the end of its runner would help
    for model in observation.models:
        yield from silence.of(model, observation, past, memory, settings, now)
    yield from crashes.crashed(memory)
    for model in observation.models:
        for one in (
            silence.for_nobody(model, observation, memory, settings, now),
            vram.mismatch(model, observation, past),
            vram.residency(model, observation, past, memory, settings),
            _slow(model, memory, settings),
        ):
            if one is not None:
                yield one


def _as_before(observation: Observation, past: Memory, settings: Settings, now: float) -> Verdict:
    """The verdict of a check that ran out of its own time: what was found before, if it stands.

    An unhealthy one is repeated only where it has made the container unhealthy already.
    """
    words = f"this check had no time left {observation.no_time}"
    last = past.episodes[-1] if past.episodes else None
    unknown_for = now - (past.no_time_since or now)
    if unknown_for > (settings.busy_timeout or BUSY_SECONDS) or not (last or observation.answered):
        since = f"for {unknown_for:.0f} s" if last else "since this container was started"
        advice = (
            "give this container more CPU time, or raise PROBE_TIMEOUT "
            f"(now {settings.timeout:g} s; keep it below the timeout of the HEALTHCHECK)"
        )
        return unhealthy(
            Reason.MISCONFIGURED, f"{words}, and no check has had any {since}: {advice}"
        )
    reason = Reason.BUSY
    ended = bool(past.unending) and not observation.unending
    if last and not ended and not _has_ended(Reason(last.reason), observation, past):
        words = f"{words}; the last check that had time found {last.reason}: {last.message}"
        told = past.failed if settings.retries > 1 else last.checks >= UNHEALTHY_CHECKS
        if last.healthy or told:
            found = Reason(last.reason)
            remedy = Remedy(last.remedy) if last.remedy else found.remedy
            return Verdict(last.healthy, found, words, remedy=remedy)
        # Repeated, it would count as another failure, and this check has seen none.
    elif observation.models:
        reason = Reason.READY
    elif observation.answered and settings.models:
        reason = Reason.LOADING
    if settings.models and not past.proven:
        return Verdict(False, Reason.LOADING, words)
    return Verdict(True, reason, words)


def _has_ended(reason: Reason, observation: Observation, past: Memory) -> bool:
    """Whether the source of an earlier verdict has answered in this check, without repeating it."""
    states = [model.state for model in observation.models]
    if reason is Reason.API_DOWN:
        return observation.answered
    if reason is Reason.IDLE:
        return bool(states)
    if reason is Reason.LOADING:
        return set(states) == {"ready"}
    if reason is Reason.GPU_LOST:
        return observation.gpu is not None
    if reason in _OF_VRAM:
        return observation.gpu is not None and bool(states)
    if reason in (Reason.STALLED, Reason.SLOW) and observation.models and past.models:
        return all(past_of(model, past) is None for model in observation.models)
    return reason is Reason.MODEL_MISSING and bool(observation.missing)


# --- the server ---------------------------------------------------------------------------


def _api_fault(
    observation: Observation, past: Memory, settings: Settings, now: float
) -> Verdict | None:
    # Since 0.32.4 a server does not answer while it loads an MLX model.
    if observation.api_error is None or observation.loading:
        return None
    held = silence.held(observation, past, settings, now)
    return held or unhealthy(Reason.API_DOWN, observation.api_error)


# --- models that are too slow -------------------------------------------------------------


def _slow(model: Model, memory: Memory, settings: Settings) -> Verdict | None:
    """Tokens come, and slower than they should, for several checks in a row."""
    known, limit = memory.models.get(model.row.key, ModelMemory()), settings.min_tokens_per_second
    if limit is None or known.slow_checks < settings.slow_checks:
        return None
    return unhealthy(
        Reason.SLOW,
        f"{model.row.name} has been slow for {known.slow_checks} checks in a row: fewer than "
        f"{limit:g} tokens per second",
        model=model.row.name,
    )


# --- nothing is wrong ---------------------------------------------------------------------


def _healthy(
    observation: Observation,
    past: Memory,
    memory: Memory,
    settings: Settings,
    now: float,
) -> Verdict:
    readings = dict(gpus.readings(observation, past, memory, settings))
    if observation.load is not None and observation.load[1].outcome == "token":
        name, answer = observation.load
        message = f"{name} was loaded in {short_time(answer.seconds)}"
        return Verdict(True, Reason.READY, message, readings)
    if not observation.models:
        message = "no model is loaded, and none is required"
        return Verdict(True, Reason.IDLE, message, readings)
    words = []
    for model in observation.models:
        asked = observation.asked.get(model.row.key, ())
        known = memory.models.get(model.row.key, ModelMemory())
        words.append(f"{model.row.name} {_how_it_is(model, asked, known, past, observation, now)}")
        for one in asked:
            if one.ask.tokens and one.answer.outcome == "token":
                readings = _speed(one.answer) | readings
    first = observation.models[0].row
    readings |= {
        "model": first.name,
        "vram_percent": first.vram_percent,
        "models_loaded": len(observation.models),
        "models_bytes": sum(model.row.size_bytes for model in observation.models),
        "models_vram_bytes": observation.claimed_bytes,
    }
    if observation.in_vain_seconds:
        readings["user_waits_seconds"] = round(observation.in_vain_seconds, 1)
    nobody = max(silence.nobody_seconds(model, memory, now) for model in observation.models)
    readings |= {"nobody_seconds": round(nobody)} if nobody else {}
    stopping = max(silence.stopping_seconds(one, memory, now) for one in observation.models)
    readings |= {"stopping_seconds": round(stopping)} if stopping >= 1 else {}
    reason = Reason.IDLE if all(model.gone for model in observation.models) else Reason.READY
    return Verdict(True, reason, "; ".join(words), readings)


def _how_it_is(
    model: Model,
    asked: tuple[Asked, ...],
    known: ModelMemory,
    past: Memory,
    observation: Observation,
    now: float,
) -> str:
    if model.gone:
        return "is listed and its process is gone: the server loads it again when it is wanted"
    for one in asked:
        if one.ask.tokens and one.answer.outcome == "token":
            what = "an embedding" if one.answer.embedding else "its first token"
            return f"gave {what} after {short_time(one.answer.seconds)}"
        if one.answer.outcome == "error":
            return f"is loaded, and refused a request: {one.answer.message}"
    if is_proven(model, asked, past, now):
        return "gives users tokens"
    seen = "is loaded" if model.runner is not None else "is loaded (runner not visible)"
    if known.proven_at is None:
        return f"{seen}, not proven yet"
    at = time.strftime("%H:%M", time.localtime(known.proven_at + observation.clock))
    return f"{seen}, not proven since {at}"


def _speed(answer: Answer) -> dict[str, Reading]:
    speed: dict[str, Reading] = {"first_token_seconds": round(answer.seconds, 3)}
    if answer.tokens_per_second is not None:
        speed["tokens_per_second"] = round(answer.tokens_per_second, 1)
    return speed
