"""Models whose processes exit at each request. Pure, like `judge.py`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from probe.activity import identity, is_processing, past_of, slots_of
from probe.memory import Crashes, Memory, Served
from probe.observation import Asked, LoadedModel, Model, Observation, Slot
from probe.plan import CRASHES, CRASHES_SECONDS
from probe.report import Reading, Reason, Remedy, Verdict

RECORDS = 32
"""How many models are remembered."""

JITTER_SECONDS = 1.0
"""An expiry that is as far away as at the last check, give or take this, moves by itself."""


def learn_crashes(
    observation: Observation, memory: Memory, served: Collection[str], now: float
) -> Memory:
    """What the next check should know of processes that have exited.

    Args:
        observation: what was seen.
        memory: what the checks before left.
        served: by `LoadedModel.key`, models of which users have got tokens since the last check.
        now: seconds of the monotonic clock.
    """
    found = {key: one for key, one in memory.crashes.items() if now - one.at < CRASHES_SECONDS}
    for model in observation.models:
        key, asked = model.row.key, observation.asked.get(model.row.key, ())
        before = found.get(key, Crashes())
        of_user = _has_crashed(model, observation, memory, now)
        if _has_lived(model, memory, served, observation.began_at):
            found.pop(key, None)
        elif not before.of_users and any(map(_gave_a_token, asked)):
            found.pop(key, None)  # a token of ours is less than what users ask for
        elif of_user or any(map(_ended_its_runner, asked)):
            # Once is no crash: the server may have ended it, to unload the model.
            found[key] = Crashes(before.times + 1, now, before.of_users or of_user)
    known = _served(observation, memory)
    keys = {model.row.name: model.row.key for model in observation.models}
    crashes = {
        key: crash
        for key, crash in found.items()
        # One that was made anew has its name, and another key.
        if key in known and keys.get(known[key].name, key) == key
    }
    return replace(memory, crashes=crashes, served=known)


def crashed(memory: Memory) -> Iterator[Verdict]:
    """Models whose processes exit at each request, loaded now or not: each was a new process."""
    for key, one in memory.served.items():
        times = memory.crashes.get(key, Crashes()).times
        if times >= CRASHES:
            words = (
                f"the runner of {one.name} exited at each of the last {times} requests that were "
                "seen: see the server's log (`docker logs`)"
            )
            readings: dict[str, Reading] = {"model": one.name}
            yield Verdict(False, Reason.STALLED, words, readings, remedy=Remedy.OPERATOR)


def _has_crashed(model: Model, observation: Observation, memory: Memory, now: float) -> bool:
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
    return not healed and not _is_held(model, known, observation) and _has_moved(model, known)


def _is_held(model: Model, known: Served, observation: Observation) -> bool:
    """Whether a request may be open whose process has gone: then nobody has asked since.

    The server then loads the model for nobody, and not for us; where each request has just failed
    its expiry is as far away as well.
    """
    loaded = observation.load is not None and observation.load[1].outcome == "token"
    return not loaded and _moves_by_itself(model.row, known, observation.began_at)


def _has_lived(model: Model, memory: Memory, served: Collection[str], began_at: float) -> bool:
    """Whether a process has given a user a token, or has lived through a user's request."""
    slots = slots_of(model)
    if slots is None and model.row.key in served:
        return True
    past = past_of(model, memory)
    ours = past.own_tasks if past else ()
    if any(_holds_an_answer(slot) and (slot.id, slot.task) not in ours for slot in slots or ()):
        return True
    known = memory.served.get(model.row.key)
    if known is None or model.runner is None or model.state != "ready" or is_processing(model):
        return False
    lives = known.runner == model.runner.identity and _has_moved(model, known)
    return lives and not _moves_by_itself(model.row, known, began_at)


def _holds_an_answer(slot: Slot) -> bool:
    """Whether a slot has given a token: a prompt that is being read is none yet."""
    return slot.decoded_tokens > 0 if slot.is_processing else bool(slot.held_tokens)


def _has_moved(model: Model, known: Served) -> bool:
    """Whether a model's expiry has moved since it was last seen, as far as is known."""
    return known.expires_text not in ("", model.row.expires_text)


def _moves_by_itself(row: LoadedModel, known: Served, began_at: float) -> bool:
    """Whether an expiry is as far away as it was: so long as the first request of a process is
    open, whether that process is there or not, the server moves it at each look."""
    return abs(row.expires_at - began_at - known.expires_in) <= JITTER_SECONDS


def _gave_a_token(asked: Asked) -> bool:
    return bool(asked.ask.tokens) and asked.answer.outcome == "token"


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
        if model.gone and _is_held(model, before, observation):
            served[row.key] = before  # once it stands still its request has ended
            continue
        runner = identity(model) or before.runner
        served[row.key] = Served(row.name, runner, text, row.expires_at - observation.began_at)
    if (loaded := observation.load_row) is not None:  # a request of ours has moved its expiry
        served.pop(loaded.key, None)
        expires_in = loaded.expires_at - observation.began_at
        runner = observation.load_runner
        served[loaded.key] = Served(loaded.name, runner, loaded.expires_text, expires_in)
    return dict(list(served.items())[-RECORDS:])


def latest_row(model: Model, asked: tuple[Asked, ...]) -> LoadedModel:
    """What `/api/ps` said of a model last: a request of ours may have moved its expiry."""
    return next((one.row for one in reversed(asked) if one.row is not None), model.row)
