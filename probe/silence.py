"""The rules of models that do not answer: busy, or stalled, and in which process.

Pure, like `judge.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from probe.activity import (
    WORK_SHARE,
    is_idle,
    is_llama_server,
    is_processing,
    slots_of,
    still_serves,
)
from probe.gpu_reading import WORK_PERCENT
from probe.learn import is_unanswered, serves_users
from probe.memory import Memory, ModelMemory
from probe.observation import Asked, Dialect, Model, Observation
from probe.plan import (
    busy_timeout,
    failed_tries,
    is_loading,
    is_required,
    is_suspicious,
    may_be_loading,
    nobody_timeout,
    suspicion,
)
from probe.report import Reading, Reason, Remedy, Verdict, unhealthy
from probe.settings import Settings

IDLE_SHARE = 0.005
"""One that had less to run has done nothing, on a GPU neither: a GPU's work has to be started."""

REST_SECONDS = 1.5
"""One that holds up `/api/ps` has to have rested for this long."""

WAITED_SECONDS = 60.0
"""A user who waited in vain so long ago is still a sign: those who give up come again."""

_FAILURES = 3
"""More requests than this that fail within one check, one after the other, leave no doubt."""

RECOVERING = (Dialect.OLLAMA_RUNNER, Dialect.OLLAMA_ENGINE, Dialect.LLAMA_SERVER)
"""Where the server starts another runner when one has ended (measured on 0.9.3, 0.24.0, 0.34.2)."""


def of(
    model: Model,
    observation: Observation,
    past: Memory,
    memory: Memory,
    settings: Settings,
    now: float,
) -> Iterator[Verdict]:
    """A model does not answer: busy where work is being done; else it is stalled.

    No model is called stalled before a timed request to the server has failed, however long it
    works. Where none may be sent, it has to be silent for as long as a check may take, twice.
    """
    known = memory.models.get(model.row.key, ModelMemory())
    asked = observation.asked.get(model.row.key, ())
    served = serves_users(model, asked, past, now)
    fails = failed_tries(asked) > _FAILURES and not served
    for before, one in zip((None, *asked), asked, strict=False):
        if one.answer.outcome == "error" and one.ask.via == "server":
            for found in _refusal(model, before, one, settings):
                yield replace(found, certain=fails and found.remedy is Remedy.RUNNER)
    if known.silent_since is None or model.gone or model.state in ("loading", "unknown"):
        return
    unanswered = [one for one in asked if is_unanswered(one)]
    of_server = any(one.ask.via == "server" for one in unanswered)
    may_ask = (ask := suspicion(model, settings)) is not None and ask.via == "server"
    proves = of_server or (not may_ask and (bool(unanswered) or model.state == "silent"))
    what, waited, ran = _what_is_silent(model, unanswered)
    silent_for = now - known.silent_since
    readings = _readings(model, waited, silent_for)
    full = any(one.answer.queue_full for one in unanswered)
    # What came before a request stood still in the middle of this check is none of it.
    stands = model.stands and bool(asked) and still_serves(model, asked[-1].slots)
    served = served and not stands
    # A container is not healthy before its required models were ready once. A `llama-server` that
    # is listed has been.
    listed = is_llama_server(model)
    first = is_required(model, settings) and past.kept and not (past.proven or served or listed)
    others = [other for other in observation.models if other is not model]
    if model.state != "silent" and any(other.state == "silent" for other in others):
        # Up to 0.29 the server begins nothing while it waits for one runner to end.
        yield _busy(first, f"{what}; its runner answers, another model's does not", readings)
    elif (
        model.state == "ready"
        and is_loading(observation, memory)
        and silent_for <= busy_timeout(model, settings)
    ):
        yield _busy(first, f"{what}; a model is being loaded", readings)
    elif full or served or _is_replaced(unanswered) or _works(model, observation, waited, ran):
        longest = busy_timeout(model, settings)
        if silent_for > longest and proves:
            more = f"for more than {longest:g} s (PROBE_BUSY_TIMEOUT)"
            # It works, for all that is known: it is not ended alone.
            yield unhealthy(Reason.STALLED, f"{what}, {more}", **readings)
        else:
            yield _busy(first, f"{what}, but work is being done", readings)
    elif of_server or (proves and silent_for > 2 * settings.timeout):
        words = f"{what}, and nothing is being done"
        alone = model.state == "silent" or not any(_is_silent(other, memory) for other in others)
        certain = alone and of_server and _is_certain(model, unanswered, observation, now)
        found = _stalled(model, unanswered, words, readings, settings, alone=alone)
        yield replace(found, certain=certain)
    elif not observation.no_time:
        yield _busy(first, f"{what}; the next check asks again", readings)


def held(observation: Observation, past: Memory, settings: Settings, now: float) -> Verdict | None:
    """What is said of a runner that holds up `/api/ps`; None: none is known to, or several.

    It is stalled when it did no work meanwhile, at all, or little in two checks in a row.
    """
    if len(observation.held_by) != 1:
        return None
    [model] = observation.held_by
    known = past.models.get(model.row.key, ModelMemory())
    waited, since = model.silent_seconds, known.held_since
    held_for = 0.0 if since is None else now - since
    readings = _readings(model, waited, held_for)
    what = f"the runner of {model.row.name} does not answer, and /api/ps waits for it"
    works = _works(model, observation, waited, model.runnable_seconds)
    if works and held_for > busy_timeout(model, settings):
        return unhealthy(Reason.STALLED, f"{what}, for {held_for:.0f} s", **readings)
    rests = waited >= REST_SECONDS and _rests(model, observation, waited, now)
    if rests or (since is not None and not works):
        return replace(_stalled(model, [], what, readings, settings), certain=rests)
    again = "but work is being done" if works else "the next check asks again"
    first = bool(settings.models) and not past.proven
    return _busy(first, f"{what}; {again}", readings)


def for_nobody(
    model: Model, observation: Observation, memory: Memory, settings: Settings, now: float
) -> Verdict | None:
    """A runner works on and on while no user is connected: nobody gets what it makes."""
    seconds, longest = nobody_seconds(model, memory, now), nobody_timeout(model, settings)
    if observation.clients is not False or slots_of(model) is None or seconds <= longest:
        return None
    name = model.row.name
    words = (
        f"the runner of {name} has worked for {seconds:.0f} s with no client connected to the "
        f"server, more than {longest:g} s (PROBE_NOBODY_TIMEOUT)"
    )
    readings: dict[str, Reading] = {"model": name, "nobody_seconds": round(seconds)}
    return _stalled(model, [], words, readings, settings)


def stopping(
    model: Model,
    observation: Observation,
    past: Memory,
    memory: Memory,
    settings: Settings,
    now: float,
) -> Verdict | None:
    """A model is being unloaded and does nothing: a request that does not end holds it, and users
    wait for it for as long (`ollama ps` says "Stopping...")."""
    seconds, longest = stopping_seconds(model, memory, now), settings.stopping_timeout
    waited_at = memory.waited_at
    if seconds <= longest or waited_at is None or now - waited_at > WAITED_SECONDS:
        return None
    if may_be_loading(observation, memory):
        return None
    for one in observation.models:
        # A restart would cut off another model's users. A GPU may read a long prompt of theirs.
        hidden = _may_wait_for_its_gpu(one) and not _gpus_rest(one, observation)
        if hidden or not is_idle(one, past, now):
            return None
    words = (
        f"{model.row.name} has been unloading for {seconds:.0f} s while users wait, more than "
        f"{longest:g} s (PROBE_STOPPING_TIMEOUT)"
    )
    readings: dict[str, Reading] = {
        "model": model.row.name,
        "stopping_seconds": round(seconds),
        "user_waits_seconds": round(observation.in_vain_seconds, 1),
    }
    return unhealthy(Reason.STALLED, words, **readings)


def stopping_seconds(model: Model, memory: Memory, now: float) -> float:
    """For how long a model that ought to be unloaded has been seen to do nothing."""
    since = memory.models.get(model.row.key, ModelMemory()).due_since
    return 0.0 if since is None else now - since


def nobody_seconds(model: Model, memory: Memory, now: float) -> float:
    """For how long a model has worked for nobody; 0 where it does not."""
    known = memory.models.get(model.row.key, ModelMemory())
    return max((now - since for _, _, since in known.nobodys), default=0.0)


def _readings(model: Model, waited: float, silent_for: float) -> dict[str, Reading]:
    return {
        "model": model.row.name,
        "waited_seconds": round(waited, 1),
        "silent_seconds": round(silent_for, 1),
    }


def _busy(first: bool, message: str, readings: dict[str, Reading]) -> Verdict:
    """Healthy, unless a required model is waited for the first time (`first`)."""
    reason = Reason.LOADING if first else Reason.BUSY
    return Verdict(not first, reason, message, readings)


def _stalled(
    model: Model,
    failed: list[Asked],
    message: str,
    readings: dict[str, Reading],
    settings: Settings,
    *,
    alone: bool = True,
) -> Verdict:
    """A model is stalled; where its runner is the culprit, ending that one is enough.

    `alone`: no other model can be what it waits for.
    """
    runner = model.runner
    slots = slots_of(model)
    # One that answers, and has nothing to do, is not what a request waits for.
    free = slots is not None and not any(slot.is_processing for slot in slots)
    idle = free and not any(one.ask.via == "runner" for one in failed)
    idle = idle or (slots is None and not alone)
    recovers = runner is not None and runner.command.dialect in RECOVERING
    if runner is None or not recovers or idle or not settings.is_local:
        return unhealthy(Reason.STALLED, message, **readings)
    readings = {**readings, "runner_pid": runner.pid}
    return Verdict(False, Reason.STALLED, message, readings, remedy=Remedy.RUNNER)


def _is_silent(model: Model, memory: Memory) -> bool:
    known = memory.models.get(model.row.key)
    return known is not None and known.silent_since is not None


def _what_is_silent(model: Model, unanswered: list[Asked]) -> tuple[str, float, float | None]:
    """What did not answer, for how many seconds, and for how many of these the runner ran."""
    name = model.row.name
    if any(one.answer.queue_full for one in unanswered):
        return f"the queue for {name} is full", unanswered[-1].answer.seconds, None
    if not unanswered and model.state != "silent":
        return f"{name} left a request unanswered, and has given no token since", 0.0, None
    if not unanswered:
        waited = model.silent_seconds
        words = f"the runner of {name} has not answered for {waited:.1f} s, while /api/ps does"
        return words, waited, model.runnable_seconds
    waited = sum(one.answer.seconds for one in unanswered)
    ran = [one.runnable_seconds for one in unanswered if one.runnable_seconds is not None]
    words = f"{name} gave no token within {waited:.1f} s, while /api/ps answers"
    return words, waited, max(ran) if ran else None


def _refusal(
    model: Model, before: Asked | None, asked: Asked, settings: Settings
) -> Iterator[Verdict]:
    name, answer = model.row.name, asked.answer
    readings: dict[str, Reading] = {"model": name, "http_status": answer.status}
    if answer.status == 404 and is_required(model, settings):
        yield unhealthy(Reason.MODEL_MISSING, f"{name}: {answer.message}", **readings)
    elif answer.status is None or not (400 <= answer.status < 500 or answer.queue_full):
        words = f"{name} cannot be used: {answer.message}"
        if before is not None and _said_so(before) and asked.runner is not None:
            words = f"{name} cannot be used: {before.answer.message}"
            yield _stalled(model, [before], words, readings, settings)
        else:
            yield unhealthy(Reason.STALLED, words, **readings)


def _said_so(asked: Asked) -> bool:
    """Whether a runner itself has answered that it cannot do what was asked."""
    refused = is_suspicious(asked.answer) and asked.answer.status is not None
    return asked.ask.via == "runner" and refused


def _is_replaced(unanswered: list[Asked]) -> bool:
    """Whether a model's process has ended while the server was asked: it begins another one, as for
    a user who names other options."""
    return any(one.ended and one.ask.via == "server" for one in unanswered)


def _is_certain(
    model: Model, unanswered: list[Asked], observation: Observation, now: float
) -> bool:
    """Whether a runner was silent before a request was left unanswered, and after it, and did
    nothing at all throughout; or answered, and was in the middle of the same request all the while.

    The latter also where a client reads no more, which holds up all others and may go on.
    """
    last = unanswered[-1]
    stands = model.stands and last.taken and still_serves(model, last.slots)
    known = model.state == "silent" and model.runnable_seconds is not None
    if model.runner is None or not (stands or (known and last.still_silent)):
        return False
    runner, ran, waited = model.runner, model.runnable_seconds or 0.0, model.silent_seconds
    for one in unanswered:
        # One that has gone may have been replaced by one that loads.
        if one.runner is None or one.runnable_seconds is None:
            return False
        both, ran = runner.and_then(one.runner), ran + one.runnable_seconds
        # One that answers for its health has something to run for a moment.
        runner = replace(both, runnable=runner.runnable and one.runner.runnable) if stands else both
        waited += one.answer.seconds
    model = replace(model, runner=runner, runnable_seconds=ran)
    return _rests(model, observation, waited, now)


def _rests(model: Model, observation: Observation, waited: float, now: float) -> bool:
    """Whether a silent runner did nothing at all, nor waited for a disk, nor did a GPU work.

    Its loop is also silent while it reads a batch of a prompt, for minutes on a slow CPU. And a
    check that has outlived its deadline was stopped itself, as with its container (`docker pause`)
    or with the whole machine.
    """
    runner, ran = model.runner, model.runnable_seconds
    if runner is None or runner.blocked or runner.runnable:
        return False
    if model.state != "silent" and not model.stands:
        return False
    if not _gpus_rest(model, observation):
        return False
    # One that computes by itself would have had all of a CPU to run on.
    share = WORK_SHARE if model.stands else IDLE_SHARE
    return ran is not None and ran < share * waited and now <= observation.ends_at


def _gpus_rest(model: Model, observation: Observation) -> bool:
    """Whether no GPU works, as far as that concerns a model; where it is not known, one may."""
    gpu = observation.gpu
    if any(percent is not None and percent >= WORK_PERCENT for percent in _gpu_use(observation)):
        return False
    return not model.row.size_vram_bytes or (gpu is not None and gpu.rest)


def _gpu_use(observation: Observation) -> list[int | None]:
    """In percent, of each GPU; None: not known."""
    devices = observation.gpu.devices if observation.gpu else ()
    return [device.utilization_percent for device in devices]


def _may_wait_for_its_gpu(model: Model) -> bool:
    """Whether a runner that answers may be in a long batch, of which nothing but its GPU shows.

    Since 0.30 one that answers is in none, unless one of its slots works.
    """
    if model.runner is None or (is_llama_server(model) and not is_processing(model)):
        return False
    return model.state == "ready" and model.row.size_vram_bytes > 0


def _works(
    model: Model, observation: Observation, waited: float, runnable_seconds: float | None
) -> bool:
    """Whether the runner, or else the GPU, had work to do meanwhile."""
    if runnable_seconds is not None:
        if runnable_seconds >= WORK_SHARE * waited:
            return True
        if runnable_seconds < IDLE_SHARE * waited and not _may_wait_for_its_gpu(model):
            return False
    use = _gpu_use(observation)
    if runnable_seconds is not None and (not use or None in use):
        # A little work on a CPU keeps a GPU busy, and how busy that is nobody says.
        return model.row.size_vram_bytes > 0
    return any((percent or 0) >= WORK_PERCENT for percent in use)
