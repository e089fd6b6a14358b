"""What the next check should know of this one. Pure, like `judge.py`."""

from __future__ import annotations

from dataclasses import replace

from probe.activity import (
    has_only_ours,
    has_served,
    identity,
    is_calm,
    is_idle,
    past_of,
    progress_of,
    seconds_since,
    slots_of,
    users_got_tokens,
    was_calm,
)
from probe.crashes import latest_row, learn_crashes
from probe.loads import learn_load, learn_loads
from probe.memory import Episode, Memory, ModelMemory
from probe.observation import Asked, Model, Observation
from probe.plan import (
    DOUBT_SECONDS,
    doubt,
    is_doubted,
    is_suspected,
    same_model,
    shape_of,
    suspicion,
)
from probe.report import Verdict
from probe.settings import Settings

RECORDS = 32
"""How many kinds of models and failed loads are remembered."""

EPISODES = 10
MESSAGE_LENGTH = 300


def learn(observation: Observation, memory: Memory, settings: Settings, now: float) -> Memory:
    """Everything the next check should know that does not depend on the verdict."""
    free = _free_bytes(observation, memory)
    if observation.api_error is not None:
        load = learn_load(observation, memory, now) if observation.loading else memory.load
        # What was counted then is compared with what is counted at the next check.
        held = {model.row.key: model.silent_seconds for model in observation.held_by}
        models = {
            key: replace(past, held_since=past.held_since or now - held[key])
            if key in held
            else past
            for key, past in memory.models.items()
        }
        return replace(memory, free_bytes=free, load=load, models=models)
    if not observation.answered:
        return replace(memory, free_bytes=free)
    models, shares = {}, dict(memory.vram_percents)
    for model in observation.models:
        known = _model(model, observation, memory, settings, now)
        models[model.row.key] = known
        if model.state == "ready":
            shape = shape_of(model)
            best = max(shares.pop(shape, 0.0), model.row.vram_percent or 0.0)
            shares[shape] = best
    memory = learn_loads(observation, memory, now)
    shares = dict(list(shares.items())[-RECORDS:])
    listed = _listed(observation, memory)
    served = {
        model.row.key
        for model in observation.models
        if serves_users(model, observation.asked.get(model.row.key, ()), memory, now)
    }
    memory = learn_crashes(observation, memory, served, now)
    memory = _with_waiting(observation, memory, settings, now)
    memory = replace(memory, vram_percents=shares, free_bytes=free, listed=listed)
    if observation.no_time:
        # What was known stands; the next check will see more.
        return replace(
            memory,
            checked_at=observation.began_at if memory.checked_at is None else memory.checked_at,
            models={key: m for key, m in models.items() if key in memory.models or m.silent_since},
        )
    return replace(
        memory,
        checked_at=observation.began_at,
        models=models,
        version=observation.version,
    )


def _with_waiting(
    observation: Observation, memory: Memory, settings: Settings, now: float
) -> Memory:
    """The memory with what was seen and asked of users who wait in vain."""
    in_vain = observation.in_vain_seconds
    wanted = [m for m in observation.models if m.state == "ready" and doubt(m, settings)]
    asked = [observation.asked.get(model.row.key, ()) for model in wanted]
    # One that has not answered is suspected for that.
    answered = all(asked) and not any(is_unanswered(one) for each in asked for one in each)
    doubted = is_doubted(memory, observation.began_at, in_vain) and bool(asked) and answered
    return replace(
        memory,
        # Who has waited for longer may have gone without a word, or never have asked.
        waited_at=now if 0 < in_vain <= DOUBT_SECONDS else memory.waited_at,
        doubted_at=now if doubted else memory.doubted_at,
    )


def _listed(observation: Observation, memory: Memory) -> tuple[str, ...]:
    """Runners that were listed: one of them without a row is no load."""
    now = [identity(model) for model in observation.models if model.runner is not None]
    return tuple(dict.fromkeys((*memory.listed, *now)))[-RECORDS:]


# --- one model ----------------------------------------------------------------------------


def _model(
    model: Model, observation: Observation, memory: Memory, settings: Settings, now: float
) -> ModelMemory:
    asked = observation.asked.get(model.row.key, ())
    past = past_of(model, memory)
    began, in_vain = observation.began_at, observation.in_vain_seconds
    doubted = bool(asked) and is_suspected(model, memory, settings, began, in_vain=in_vain)
    doubted_at = now if doubted else None
    if model.gone and model.row.key in memory.models:
        # So that it is known to be gone at the next check.
        due_since = _due_since(model, observation, memory, now)
        return replace(memory.models[model.row.key], due_since=due_since)
    if observation.no_time and past is not None:
        silent_since = _silent_since(model, asked, past, memory, settings, now, no_time=True)
        return replace(
            past,
            silent_since=silent_since,
            nobodys=() if observation.clients else past.nobodys,
            due_since=None,
            doubted_at=doubted_at or past.doubted_at,
        )
    row = latest_row(model, asked)
    runner = next((one.runner for one in reversed(asked) if one.runner is not None), model.runner)
    slots = next(
        # While a request of ours is unanswered those of before stand, to tell what came since.
        (one.slots for one in reversed(asked) if one.slots is not None and not is_unanswered(one)),
        slots_of(model),
    )
    known = past or ModelMemory(room_bytes=_room(model, observation, memory))
    return replace(
        known,
        name=model.row.name,
        runner=identity(model),
        clamped=model.clamped,
        only_embeds=model.runner is not None and model.runner.command.embedding,
        expires_text=row.expires_text,
        expires_at=row.expires_at,
        proven_at=now if is_proven(model, asked, memory, now) else known.proven_at,
        unshared_text=_unshared(model, asked, row.expires_text, past, memory, settings),
        own_tasks=_own_tasks(asked, past),
        # While they cannot be read those of before stand, to be compared with later ones.
        tokens=known.tokens if slots is None else tuple(map(progress_of, slots)),
        nobodys=_nobodys(model, observation, known, now),
        runnable_seconds=runner.runnable_seconds if runner else None,
        cpu_seconds=runner.cpu_seconds if runner else None,
        # While it loads the server asks a runner how far it is, and its answers are no tokens.
        writes=runner.writes if runner and model.state != "loading" else None,
        doubted_at=doubted_at or known.doubted_at,
        due_since=_due_since(model, observation, memory, now),
        silent_since=_silent_since(model, asked, past, memory, settings, now),
        held_since=None,
        slow_checks=_slow_checks(model, asked, observation, memory, settings, now),
        vram_percent=max(known.vram_percent, model.row.vram_percent or 0.0),
        vram_bytes=model.row.size_vram_bytes,
    )


def _due_since(model: Model, observation: Observation, memory: Memory, now: float) -> float | None:
    """Since when a model that ought to be unloaded has done nothing, as checks have seen it."""
    rests = (model.gone or model.state == "ready") and is_idle(model, memory, now)
    if observation.no_time or not rests or model.row.expires_at >= now:
        return None
    since = memory.models.get(model.row.key, ModelMemory()).due_since
    return now if since is None else since


def is_proven(model: Model, asked: tuple[Asked, ...], memory: Memory, now: float) -> bool:
    """Whether a token has proven a model since the last check: to us, or to a user."""
    if any(one.ask.tokens and one.answer.outcome == "token" for one in asked):
        return True
    return serves_users(model, asked, memory, now)


def serves_users(model: Model, asked: tuple[Asked, ...], memory: Memory, now: float) -> bool:
    """Whether users have got tokens since the last check, or while we waited."""
    if not asked or any(one.answer.outcome == "token" for one in asked):
        return has_served(model, memory, now)
    after, past = asked[-1], past_of(model, memory)
    runner, slots = after.runner or model.runner, after.slots or slots_of(model)
    return users_got_tokens(runner, slots, past, seconds_since(memory, now))


def _nobodys(
    model: Model, observation: Observation, past: ModelMemory, now: float
) -> tuple[tuple[int, int, float], ...]:
    """The slots that work while no user is connected to the server, and since when they do."""
    slots = slots_of(model)
    if observation.clients is not False:
        return ()
    if slots is None:
        return past.nobodys
    since = {(slot, task): began for slot, task, began in past.nobodys}
    working = [(one.id, one.task or 0) for one in slots if one.is_processing]
    return tuple((slot, task, since.get((slot, task), now)) for slot, task in working)


def _silent_since(
    model: Model,
    asked: tuple[Asked, ...],
    past: ModelMemory | None,
    memory: Memory,
    settings: Settings,
    now: float,
    *,
    no_time: bool = False,
) -> float | None:
    """Since when nothing has been heard of a model; None: something has.

    A request that was left unanswered is not forgotten before a later one is answered.
    """
    if any(one.ask.tokens and one.answer.outcome == "token" for one in asked):
        return None
    since = past.silent_since if past else None
    if since is not None and serves_users(model, asked, memory, now):
        since = None
    if model.state == "silent" or any(is_unanswered(one) for one in asked):
        waited = model.silent_seconds or (asked[-1].answer.seconds if asked else 0.0)
        return now - waited if since is None else since
    if any(one.answer.outcome == "error" for one in asked):
        return None
    return since if no_time or suspicion(model, settings) is not None else None


def is_unanswered(asked: Asked) -> bool:
    """Whether a request of ours was let wait for longer than we could, or refused for others."""
    return asked.answer.outcome == "silent" or asked.answer.queue_full


def _unshared(
    model: Model,
    asked: tuple[Asked, ...],
    text: str,
    past: ModelMemory | None,
    memory: Memory,
    settings: Settings,
) -> str | None:
    """The expiry at which no user's conversation is in a model's prompt cache, if so."""
    sent = memory.sent_load
    ours = sent is not None and same_model(sent.name, model.row.name)
    if past is None or ours:
        # Just loaded for ever, by a request of ours that generates nothing.
        is_new = ours and model.state == "ready" and model.row.expires_in(0.0) is None
        return text if is_new else None
    if past.unshared_text != model.row.expires_text:
        return None
    return text if is_calm(model, past) else None


def _own_tasks(asked: tuple[Asked, ...], past: ModelMemory | None) -> tuple[tuple[int, int], ...]:
    """By slot, the number of our last request there, where it was the last one."""
    own = dict(past.own_tasks) if past else {}
    for one in asked:
        for slot in one.slots or ():
            # Read a moment later, a user's request may have begun there meanwhile.
            mine = one.ask.via == "runner" and slot.id == one.ask.slot and slot.task is not None
            if mine and has_only_ours(slot):
                own[slot.id] = slot.task or 0
    return tuple(own.items())


def _slow_checks(
    model: Model,
    asked: tuple[Asked, ...],
    observation: Observation,
    memory: Memory,
    settings: Settings,
    now: float,
) -> int:
    limit, past = settings.min_tokens_per_second, past_of(model, memory)
    before = past.slow_checks if past else 0
    rates = [a.answer.tokens_per_second for a in asked if a.answer.tokens_per_second is not None]
    if limit is None or not rates:
        return before
    if rates[-1] >= limit:
        return 0
    # Models share a GPU.
    calm = all(was_calm(one, memory, now) for one in observation.models)
    return before + 1 if calm else before


def _room(model: Model, observation: Observation, memory: Memory) -> int | None:
    """VRAM there was for a model before its process started, as the last check saw it.

    What models held that have gone since is room, too.
    """
    before = memory.models.get(model.row.key)
    if memory.free_bytes is None or (before and not (before.runner and model.runner)):
        return None  # it may be the process that the last check saw
    there = {(one.row.key, identity(one)) for one in observation.models}
    gone = (past for key, past in memory.models.items() if (key, past.runner) not in there)
    return memory.free_bytes + sum(past.vram_bytes for past in gone)


def _free_bytes(observation: Observation, memory: Memory) -> int | None:
    """VRAM that is free; while a model that is not listed is loaded, what was before that."""
    gpu = observation.gpu
    if observation.loading or (gpu is None and observation.no_time):
        return memory.free_bytes
    return gpu.largest_free_bytes if gpu is not None else None


# --- verdicts -----------------------------------------------------------------------------


def with_episode(
    episodes: tuple[Episode, ...], verdict: Verdict, time: float
) -> tuple[Episode, ...]:
    """The verdicts so far and this one, `time` in seconds since 1970."""
    message, reason = verdict.message[:MESSAGE_LENGTH], str(verdict.reason)
    one = Episode(time, time, 1, verdict.healthy, reason, message, str(verdict.remedy))
    if episodes and (episodes[-1].healthy, episodes[-1].reason) == (one.healthy, one.reason):
        last = episodes[-1]
        return (*episodes[:-1], replace(one, began_at=last.began_at, checks=last.checks + 1))
    return (*episodes, one)[-EPISODES:]
