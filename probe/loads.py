"""The rules of loads: which to begin, how they go, and what a load that fails means.

Pure, like `judge.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace

from probe import vram
from probe.activity import has_served, was_at_work
from probe.memory import FailedLoad, Load, Memory, SentLoad
from probe.observation import Answer, Model, Observation, Runner, RunnerHealth
from probe.plan import same_model
from probe.report import Reading, Reason, Remedy, Verdict, unhealthy
from probe.settings import Settings

STILL_SECONDS = 120.0
"""A load that makes no progress for this long is stuck."""

BLOCKED_SECONDS = 60.0
"""So long ago it was seen to wait for a disk: that is what it still waits for."""

UNSEEN_SECONDS = 60.0
"""A longer time without a check counts as this: the container may have been paused."""

UNUSABLE_TRIES = 2
"""A required model is unusable when loading it has failed so often, in the same words."""

UNHEARD_TRIES = 3
"""The same for one that was asked for so often, whose loads all ended after the check."""

LOAD_STEP = (0.001, 1 << 20, 1 << 20)
"""The least progress that counts: of the runner's own measure, bytes read, bytes of memory."""

RETRY_SECONDS, LONGEST_RETRY_SECONDS = 120.0, 3600.0
"""A required model that could not be loaded is tried again after this, then twice as long."""

RECORDS = 32
"""How many failed loads and evictions are remembered."""

_UNUSABLE = {
    re.compile(pattern, re.IGNORECASE): advice
    for pattern, advice in (
        (r"invalid magic|unsupported file|gguf.*(corrupt|truncat)", "pull it again"),
        (r"may be incompatible with your version", "update Ollama, or try the version before"),
        (r"unable to load full model on gpu", "it is too large for this GPU"),
        (r"memory layout cannot be allocated", "it is too large for this machine"),
        (r"requires more system memory", "it is too large for this machine"),
        (r"resource limitations", "it is too large for this machine"),
        (r"model requires .* but only", "it is too large for this machine"),
        (r"llama-server.*(not found|no such file)", "the image lacks it: use another one"),
        (r"timed out waiting for llama-server", "try the version of Ollama before"),
        (r"unknown model architecture", "update Ollama"),
    )
}
"""What a server says of a model that it can never load, and what to do about it."""

_NO_VRAM = re.compile(r"out of memory|cudaMalloc failed|insufficient VRAM", re.IGNORECASE)


# --- what to load -------------------------------------------------------------------------


def load_next(
    missing: dict[str, str], models: tuple[Model, ...], memory: Memory, now: float
) -> str | None:
    """Which required model to load now, if any.

    None where one is being loaded, where the last try failed a short while ago, and where it
    would end another model that is in use or required. One that the last check saw or loaded waits
    for the next: between the end of one process and the start of another, for a user with other
    options, the server lists nothing, and on a GPU for seconds. It would load it again for ours.
    """
    if any(model.state == "loading" for model in models):
        return None
    loaded = [model.row.name for model in models]
    sent = memory.sent_load
    left = [past.name for past in memory.models.values()]
    left += [sent.name] if sent and not sent.tries and not sent.over else []
    for name, installed in missing.items():
        failed = memory.failed_loads.get(name)
        if sent and sent.tries and sent.name == name and now - sent.at < retry_after(sent.tries):
            continue  # it waits in the server's queue, or has ended while nobody listened
        if installed != "yes" or evicted_by(name, loaded, memory) is not None:
            continue
        if any(model.exits and same_model(name, model.row.name) for model in models):
            continue
        was_listed = any(same_model(name, one) for one in left)
        if memory.kept and was_listed and not any(same_model(name, row) for row in loaded):
            continue
        if failed is None or now - failed.last_at >= retry_after(failed.tries):
            return name
    return None


def retry_after(tries: int) -> float:
    """Seconds from a load that failed to the next try."""
    return min(RETRY_SECONDS * 2.0 ** (min(tries, 16) - 1), LONGEST_RETRY_SECONDS)


def evicted_by(name: str, loaded: list[str], memory: Memory) -> str | None:
    """A loaded model that does not fit into memory together with this one; None: none is known."""
    for pair in memory.evictions:
        for one, other in (pair, pair[::-1]):
            if same_model(one, name) and any(same_model(other, row) for row in loaded):
                return other
    return None


def is_under_way(model: Model, memory: Memory) -> bool:
    """Whether the last check saw a model being loaded, by the process that serves it now."""
    load, runner = memory.load, model.runner
    if load is None or runner is None or not same_model(load.name, model.row.name):
        return False
    return load.runner in ("", runner.identity)


# --- what to remember ---------------------------------------------------------------------


def learn_loads(observation: Observation, memory: Memory, now: float) -> Memory:
    """What the next check should know of loads."""
    loaded = [model.row.name for model in observation.models]
    there = [model for model in observation.models if not model.gone]
    ready = [model.row.name for model in there if model.state == "ready"]
    failed = {
        name: how
        for name, how in memory.failed_loads.items()
        if not any(same_model(name, row) for row in ready)
    }
    pairs = dict.fromkeys((*memory.evictions, *_evicted(loaded, memory.sent_load, now)))
    evictions = [
        pair
        for pair in pairs
        if not all(any(same_model(one, row) for row in ready) for one in pair)
    ]
    sent = memory.sent_load
    loads = observation.loading or any(model.state == "loading" for model in there)
    is_there = sent is not None and any(same_model(sent.name, row) for row in ready)
    if is_there and not observation.no_time:
        sent = None
    elif sent is not None and not loads and not observation.no_time:
        sent = replace(sent, over=True)  # remembered so that it is not sent again at once
    if observation.load is not None:
        name, answer = observation.load
        tries = sent.tries if sent is not None and sent.name == name else 0
        rows = [m.row for m in observation.models if not same_model(m.row.name, name)]
        beside = {row.name: row.expires_at for row in rows}
        tries = tries + 1 if answer.outcome == "silent" else 0
        sent = SentLoad(name, now, beside, tries, runner=observation.load_runner)
        if answer.outcome == "token":
            failed.pop(name, None)
        elif answer.outcome == "error" and not answer.queue_full:
            failed[name] = _failed(answer, failed.get(name), now)
    return replace(
        memory,
        load=learn_load(observation, memory, now),
        sent_load=sent,
        failed_loads=dict(list(failed.items())[-RECORDS:]),
        evictions=tuple(evictions)[-RECORDS:],
    )


def _evicted(loaded: list[str], sent: SentLoad | None, now: float) -> Iterator[tuple[str, str]]:
    """The model that we asked for, with each that is gone for it, whether it could be loaded."""
    if sent is None or sent.over:
        return
    for name, expires_at in sent.beside.items():
        if expires_at > now and not any(same_model(name, row) for row in loaded):
            yield sent.name, name


def _failed(answer: Answer, before: FailedLoad | None, now: float) -> FailedLoad:
    words, by_server = answer.message, answer.status is None or answer.status >= 500
    if before is None or _without_numbers(before.words) != _without_numbers(words):
        return FailedLoad(words, now, now, by_server=by_server)
    return replace(before, words=words, last_at=now, tries=before.tries + 1, by_server=by_server)


def _without_numbers(words: str) -> str:
    """A server that lacks memory says how much there is, which is never the same."""
    return re.sub(r"[\d.]+", "", words)


def learn_load(observation: Observation, memory: Memory, now: float) -> Load | None:
    """The load that is under way, by whomever it was asked for."""
    before = _without_gap(memory.load, now)
    load = _load_now(observation, replace(memory, load=before), now)
    return replace(load, seen_at=now) if load else None


def _load_now(observation: Observation, memory: Memory, now: float) -> Load | None:
    loads = [(m.row.name, m.runner, m.health) for m in observation.models if m.state == "loading"]
    loads += [(_name_of(r, memory), r, health) for r, health in observation.loading]
    asked = observation.load is not None and observation.load[1].outcome == "silent"
    unknown = any(model.state == "unknown" for model in observation.models)
    unheard = bool(observation.no_time) and (unknown or not observation.models)
    before = memory.load
    if not loads and not asked and not (unheard and before):
        return None
    if not loads:
        # Nothing shows how far it is: only its time limit bounds it.
        name = observation.load[0] if observation.load else before.name if before else ""
        load = before if before and same_model(before.name, name) else Load(name, now)
        waits = asked and _others_are_served(observation, memory, now)
        return replace(load, since=now if waits else load.since, moved_at=now)
    # One that is known goes on before one that has just begun.
    name, runner, health = next(
        (one for one in loads if before and same_model(one[0], before.name)), loads[0]
    )
    mark, process = _mark(runner, health), runner.identity if runner else ""
    if before is None or not same_model(before.name, name) or before.runner not in ("", process):
        return Load(name, now, now, mark, process, now)
    same = len(mark) == len(before.mark)  # else its process has become visible, or invisible
    grew = same and _has_grown(mark, before)
    if grew or not same or _has_worked(mark, before, now):
        # Memory that it gives back, and takes again, is no growth.
        mark = tuple(map(max, mark, before.mark)) if same else mark
        return Load(name, before.since, now, mark, process, now if grew else before.grew_at)
    blocked = runner is not None and runner.blocked
    return replace(before, blocked_at=now if blocked else before.blocked_at)


def _without_gap(load: Load | None, now: float) -> Load | None:
    """A load less the time in which no check could see whether it moves."""
    if load is None or load.seen_at is None or now - load.seen_at <= UNSEEN_SECONDS:
        return load
    gap = now - load.seen_at - UNSEEN_SECONDS
    since, moved_at, grew_at = load.since + gap, load.moved_at + gap, load.grew_at + gap
    return replace(load, since=since, moved_at=moved_at, grew_at=grew_at)


def _has_grown(mark: tuple[float, ...], before: Load) -> bool:
    """Whether a load has read or held more since its last mark, or says that it is further."""
    held = zip(mark[2:], before.mark[2:], LOAD_STEP, strict=False)
    return any(after - past >= step for after, past, step in held)


def _has_worked(mark: tuple[float, ...], before: Load, now: float) -> bool:
    """Whether its runner has had more to do than to answer for its health: one that waits for a
    disk for ever does that, and uses a little CPU time for it."""
    ran, queued, *_ = (after - past for after, past in zip(mark, before.mark, strict=True))
    return was_at_work(ran, queued, now - before.moved_at)


def _others_are_served(observation: Observation, memory: Memory, now: float) -> bool:
    """Whether users get tokens of other models: a load waits for these where there is no room."""
    return any(has_served(model, memory, now) for model in observation.models)


def _name_of(runner: Runner, memory: Memory) -> str:
    sent, weights = memory.sent_load, os.path.basename(runner.command.weights)
    return runner.command.model or (sent.name if sent else "") or weights or "a model"


def _mark(runner: Runner | None, health: RunnerHealth | None) -> tuple[float, ...]:
    progress = (health.progress if health else None) or 0.0
    if runner is None:
        return (0.0, 0.0, progress)
    held = (float(runner.read_bytes or 0), float(runner.memory_bytes))
    return (runner.cpu_seconds, runner.queued_seconds, progress, *held)


# --- what it means ------------------------------------------------------------------------


def missing(
    observation: Observation, memory: Memory, settings: Settings, now: float
) -> Iterator[Verdict]:
    """Required models that are not loaded, and no load of theirs is under way."""
    loaded = [model.row.name for model in observation.models]
    for name, installed in observation.missing.items():
        readings: dict[str, Reading] = {"model": name, "required": True}
        failed, other = memory.failed_loads.get(name), evicted_by(name, loaded, memory)
        if installed == "no":
            words = f"{name} is not on this server: run `ollama pull {name}` in it"
            yield unhealthy(Reason.MODEL_MISSING, words, **readings)
        elif installed == "cloud":
            words = f"PROBE_MODEL={name} runs in the cloud: there is nothing to keep loaded here"
            yield unhealthy(Reason.MISCONFIGURED, words, **readings)
        elif other is not None:
            words = (
                f"{name} and {other} do not fit into memory together: loading one ended the "
                "other, so it is not loaded again"
            )
            yield unhealthy(Reason.MISCONFIGURED, words, **readings)
        elif failed is not None:
            yield _failed_load(name, failed, observation, memory, now)
        elif observation.load is None or observation.load[0] != name:
            words = f"{name} is not loaded yet{_unheard(name, memory, now)}"
            if _is_in_vain(name, memory):
                advice = "see the server's log (`docker logs`)"
                yield unhealthy(Reason.MODEL_UNUSABLE, f"{words}; {advice}", **readings)
                continue
            yield Verdict(memory.proven, Reason.LOADING, words, readings)
        elif observation.load[1].queue_full:
            words = f"{name} is not loaded yet: the server's queue is full"
            yield Verdict(memory.proven, Reason.LOADING, words, readings)


def _unheard(name: str, memory: Memory, now: float) -> str:
    """What there is to say of loads that have ended while nobody listened."""
    sent = memory.sent_load
    if sent is None or sent.name != name or not sent.tries:
        return ""
    times = "once" if sent.tries == 1 else f"{sent.tries} times"
    again = max(retry_after(sent.tries) - (now - sent.at), 0)
    return f": the server was asked {times} and did not load it; it is asked again in {again:.0f} s"


def _is_in_vain(name: str, memory: Memory) -> bool:
    sent = memory.sent_load
    if sent is None or sent.name != name or not sent.over:
        return False
    # Beside another model it may have waited for the room that this one takes.
    return sent.tries >= UNHEARD_TRIES and not sent.beside


def _failed_load(
    name: str, failed: FailedLoad, observation: Observation, memory: Memory, now: float
) -> Verdict:
    readings: dict[str, Reading] = {"model": name, "required": True, "tries": failed.tries}
    words = f"{name} cannot be loaded: {failed.words}"
    advice = next((a for pattern, a in _UNUSABLE.items() if pattern.search(failed.words)), None)
    again = max(retry_after(failed.tries) - (now - failed.last_at), 0)
    later = f"it is tried again in {again:.0f} s"
    repeated, just_now = failed.tries >= UNUSABLE_TRIES, failed.last_at == now
    if _NO_VRAM.search(failed.words) and vram.others_hold(observation):
        return unhealthy(Reason.VRAM_TAKEN, f"{words}, and others hold the VRAM", **readings)
    if advice is None and failed.by_server and (repeated or just_now):
        return unhealthy(Reason.STALLED, f"{words}; {later}", **readings)
    if repeated and not (advice is None and failed.by_server):
        words = f"{words}: {advice}" if advice else words
        return unhealthy(Reason.MODEL_UNUSABLE, f"{words}; {later}", **readings)
    return Verdict(memory.proven, Reason.LOADING, f"{words}; {later}", readings)


def is_blocked(load: Load, now: float) -> bool:
    """Whether the process of a load waits for a disk, or for a driver, and has got nothing yet."""
    return load.blocked_at is not None and now - load.blocked_at <= BLOCKED_SECONDS


def loading(
    observation: Observation, memory: Memory, settings: Settings, now: float
) -> Iterator[Verdict]:
    """A model is being loaded, by whomever. A load that goes on for too long is a stall."""
    load = memory.load
    if load is None:
        return
    seen = [(m.runner, m.health) for m in observation.models if m.health and m.state == "loading"]
    seen += observation.loading
    if observation.no_time and not seen:
        return  # it may have ended since it was last seen
    progress = seen[0][1].progress if seen else None
    done = "" if progress is None else f" ({progress:.0%})"
    readings: dict[str, Reading] = {
        "model": load.name,
        "required": True,
        "load_seconds": round(now - load.since, 1),
    }
    words, still = "", now - load.moved_at
    if still > STILL_SECONDS:
        words = f"{load.name} is being loaded{done}, and has made no progress for {still:.0f} s"
    elif now - load.since > settings.load_timeout and now - load.grew_at > STILL_SECONDS:
        words = (
            f"{load.name} has been loading for {now - load.since:.0f} s, "
            f"more than PROBE_LOAD_TIMEOUT={settings.load_timeout:g}"
        )
    if words and is_blocked(load, now):  # a new process would wait for the same
        words = f"{words}: its process waits for a disk, or for a driver"
        yield Verdict(False, Reason.STALLED, words, readings, remedy=Remedy.OPERATOR)
    elif words:
        yield unhealthy(Reason.STALLED, words, **readings)
    else:
        yield Verdict(
            # Nobody was promised a model where none is required.
            healthy=not settings.models or memory.proven,
            reason=Reason.LOADING,
            message=f"{load.name} is being loaded{done}",
            readings=readings,
        )
