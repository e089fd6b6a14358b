"""Models whose processes exit at each request. Pure, like `judge.py`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from probe.activity import identity, slots_of
from probe.memory import Memory, Served
from probe.observation import Asked, LoadedModel, Model, Observation
from probe.plan import CRASHES, CRASHES_SECONDS
from probe.report import Reading, Reason, Remedy, Verdict

RECORDS = 32
"""How many models are remembered."""


def learn_crashes(
    observation: Observation, memory: Memory, proven: Collection[str], now: float
) -> Memory:
    """What the next check should know of processes that have exited.

    Args:
        observation: what was seen.
        memory: what the checks before left.
        proven: by `LoadedModel.key`, models of which somebody has got a token since the last check.
        now: seconds of the monotonic clock.
    """
    found = {
        key: (times, at)
        for key, (times, at) in memory.crashes.items()
        if now - at < CRASHES_SECONDS
    }
    for model in observation.models:
        key, asked = model.row.key, observation.asked.get(model.row.key, ())
        if key in proven or _has_lived(model, memory):
            found.pop(key, None)
        elif any(map(_ended_its_runner, asked)) or _has_crashed(model, memory, now):
            # Once is no crash: the server may have ended it, to unload the model.
            found[key] = (found.get(key, (0, 0.0))[0] + 1, now)
    served = _served(observation, memory)
    keys = {model.row.name: model.row.key for model in observation.models}
    crashes = {
        key: crash
        for key, crash in found.items()
        # One that was made anew has its name, and another key.
        if key in served and keys.get(served[key].name, key) == key
    }
    return replace(memory, crashes=crashes, served=served)


def crashed(memory: Memory) -> Iterator[Verdict]:
    """Models whose processes exit at each request, loaded now or not: each was a new process."""
    for key, one in memory.served.items():
        times, _ = memory.crashes.get(key, (0, 0.0))
        if times >= CRASHES:
            words = (
                f"the runner of {one.name} exited at each of the last {times} requests that were "
                "seen: see the server's log (`docker logs`)"
            )
            readings: dict[str, Reading] = {"model": one.name}
            yield Verdict(False, Reason.STALLED, words, readings, remedy=Remedy.OPERATOR)


def _has_crashed(model: Model, memory: Memory, now: float) -> bool:
    """Whether a model's process has gone, and a request of somebody had come to its end by then.

    The server lists it all the same, until the next request, and moves its expiry with each. What
    it ends itself it lists no more when that has ended; and what is due it may be about to end.
    """
    known = memory.served.get(model.row.key)
    if known is None or not model.gone or model.exits or model.row.expires_at <= now:
        return False
    healed = known.runner == memory.suspect or bool(
        memory.ended and memory.ended[-1] >= (memory.checked_at or 0.0)
    )
    return not healed and _has_expiry_moved(model, known)


def _has_lived(model: Model, memory: Memory) -> bool:
    """Whether a process has lived through a request of somebody."""
    if any(slot.held_tokens and not slot.is_processing for slot in slots_of(model) or ()):
        return True
    known = memory.served.get(model.row.key)
    if known is None or model.runner is None or model.state != "ready":
        return False
    return known.runner == model.runner.identity and _has_expiry_moved(model, known)


def _has_expiry_moved(model: Model, known: Served) -> bool:
    """Whether a request has come to its end since a model was last seen, as far as is known."""
    return known.expires_text not in ("", model.row.expires_text)


def _ended_its_runner(asked: Asked) -> bool:
    """Whether a runner was asked itself, and its process has ended in the middle of that."""
    broke = asked.answer.outcome == "error" and asked.answer.status is None
    return broke and asked.ask.via == "runner" and asked.runner is None


def _served(observation: Observation, memory: Memory) -> dict[str, Served]:
    """Which process was last seen to serve each model, and the expiry that was written then."""
    served = dict(memory.served)
    for model in observation.models:
        if observation.no_time and not model.gone:
            continue  # what has come of its requests the next check will see
        row = latest_row(model, observation.asked.get(model.row.key, ()))
        # While a model is being loaded its expiry moves by itself.
        text = row.expires_text if model.gone or model.state == "ready" else ""
        before = served.pop(row.key, Served())
        served[row.key] = Served(row.name, identity(model) or before.runner, text)
    if (loaded := observation.load_row) is not None:  # a request of ours has moved its expiry
        served.pop(loaded.key, None)
        served[loaded.key] = Served(loaded.name, observation.load_runner, loaded.expires_text)
    return dict(list(served.items())[-RECORDS:])


def latest_row(model: Model, asked: tuple[Asked, ...]) -> LoadedModel:
    """What `/api/ps` said of a model last: a request of ours may have moved its expiry."""
    return next((one.row for one in reversed(asked) if one.row is not None), model.row)
