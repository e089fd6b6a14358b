"""What the next check should know of this one. Pure, like `judge.py`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from probe.memory import Episode, Load, Memory, ModelMemory, Record
from probe.observation import Asked, Observation, Seen
from probe.ollama import FOREVER, Answer, LoadedModel
from probe.plan import (
    SAME_SECONDS,
    clock_was_set,
    gives_tokens,
    identity,
    past_of,
    session_seconds,
    used_since,
)
from probe.report import Verdict, short_time
from probe.settings import Limit, Settings

WORK_SHARE = 0.05
"""A runner with something to run for more than this of the time that we waited has done work."""

LOAD_STEP = (0.001, 0.02, 1 << 20)
"""The least progress that counts: of the runner's own measure, runnable seconds, memory bytes."""

FAR = 5.0
"""A learned limit is the best that was seen, made worse by this factor."""

SHORT_SECONDS = 1.0
"""No first token that comes within this is slow by a learned limit: a GPU wakes up from idling."""

RECORDS = 32
EPISODES = 10
MESSAGE_LENGTH = 300


def learn(observation: Observation, memory: Memory, settings: Settings, now: float) -> Memory:
    """Everything the next check should know that does not depend on the verdict."""
    if observation.api_error is not None:
        return replace(memory, checked_at=observation.began_at)
    models, records, opaque = {}, dict(memory.records), dict.fromkeys(memory.opaque)
    for seen in observation.seen:
        name, asked = seen.model.name, observation.asked.get(seen.model.name)
        calm = _was_calm(seen, memory, now)
        record = _record(records.pop(name, Record()), seen, asked, settings, calm)
        models[name] = _model(seen, asked, memory, settings, now, observation.clock)
        records[name] = record
        if asked is not None and asked.reloaded and seen.runner is not None:
            opaque[seen.runner.shape] = None
    return replace(
        memory,
        checked_at=observation.began_at,
        clock=observation.clock,
        load=_load(observation, memory, now),
        models=models,
        records=dict(list(records.items())[-RECORDS:]),
        opaque=tuple(opaque),
    )


def _busy_since(seen: Seen, asked: Asked | None, memory: Memory, now: float) -> float | None:
    answer = None if asked is None else asked.answer
    silent = seen.health is not None and seen.health.state == "silent"
    if not (silent or (answer is not None and (answer.outcome == "silent" or answer.queue_full))):
        return None
    past = past_of(seen, memory)
    if past is None or past.busy_since is None or serves_users(seen, asked, memory, now):
        return now
    return past.busy_since


def serves_users(seen: Seen, asked: Asked | None, memory: Memory, now: float) -> bool:
    """Whether a user's request was completed while ours waited, or users get token by token."""
    if asked is None:
        return False
    after = asked.model or seen.model
    moved = after.expires_text != seen.model.expires_text and not seen.unfinished
    # The end of ours, which the server notes when we go away, moves it, too.
    if moved and _is_users(after, asked):
        return True
    return gives_tokens(asked.runner, past_of(seen, memory), memory, now)


def _was_calm(seen: Seen, memory: Memory, now: float) -> bool:
    """Whether the runner had nothing to do since the last check, as far as can be seen.

    Beside users' work a token takes longer, and that is no fault.
    """
    past = past_of(seen, memory)
    if (
        past is None
        or past.runnable_seconds is None
        or seen.runner is None
        or used_since(seen, past)
    ):
        return False
    used = seen.runner.runnable_seconds - past.runnable_seconds
    return used < WORK_SHARE * max(now - (memory.checked_at or now), 0.0) or used <= 0


def _record(
    record: Record, seen: Seen, asked: Asked | None, settings: Settings, calm: bool
) -> Record:
    share = vram_percent(seen.model) or 0.0
    if seen.health is None or seen.health.state == "ready":
        record = replace(record, vram_percent=max(record.vram_percent, share))
    if asked is None or not asked.ask.tokens or asked.answer.outcome != "token" or not calm:
        return record
    slow = any(lags(asked.answer, record, settings))
    best, rate = record.first_token_seconds, asked.answer.tokens_per_second
    return replace(
        record,
        first_token_seconds=min(asked.answer.seconds, best or asked.answer.seconds),
        tokens_per_second=max(rate or 0.0, record.tokens_per_second or 0.0) or None,
        slow_checks=record.slow_checks + 1 if slow else 0,
    )


def _load(observation: Observation, memory: Memory, now: float) -> Load | None:
    loading = [s for s in observation.seen if s.health and s.health.state == "loading"]
    asked = observation.loaded is not None and observation.loaded.outcome == "silent"
    if not loading and not asked:
        return None
    before = memory.load or Load(now, now)
    if not loading:
        return replace(before, moved_at=now)  # nothing shows how far it is: its budget bounds it
    mark = _mark(loading[0])
    steps = zip(mark, before.mark, LOAD_STEP, strict=False)
    if len(mark) == len(before.mark) and all(abs(a - b) < step for a, b, step in steps):
        return before
    return Load(before.since, now, mark)


def _mark(seen: Seen) -> tuple[float, ...]:
    progress = seen.health.progress if seen.health else 0.0
    if seen.runner is None:
        return (progress,)
    return (progress, seen.runner.runnable_seconds, float(seen.runner.memory_bytes))


def with_episode(
    episodes: tuple[Episode, ...], verdict: Verdict, time: float
) -> tuple[Episode, ...]:
    """The verdicts so far and this one, `time` in seconds since 1970."""
    message, reason = verdict.message[:MESSAGE_LENGTH], str(verdict.reason)
    one = Episode(time, time, 1, verdict.healthy, reason, message)
    if episodes and (episodes[-1].healthy, episodes[-1].reason) == (one.healthy, one.reason):
        last = episodes[-1]
        return (*episodes[:-1], replace(one, began_at=last.began_at, checks=last.checks + 1))
    return (*episodes, one)[-EPISODES:]


def lags(answer: Answer, record: Record, settings: Settings) -> Iterator[str]:
    """In which ways an answer was too slow."""
    longest = _limit(settings.max_first_token, record.first_token_seconds, FAR)
    if settings.max_first_token == "learned" and longest is not None:
        longest = max(longest, SHORT_SECONDS)
    if longest is not None and answer.seconds > longest:
        yield f"its first token took {short_time(answer.seconds)}, more than {short_time(longest)}"
    fewest = _limit(settings.min_tokens_per_second, record.tokens_per_second, 1 / FAR)
    rate = answer.tokens_per_second
    if fewest is not None and rate is not None and rate < fewest:
        yield f"it makes {rate:.1f} tokens per second, fewer than {fewest:.1f}"


def _limit(setting: Limit, best: float | None, factor: float) -> float | None:
    if setting == "learned":
        return None if best is None else best * factor
    return setting


def vram_percent(model: LoadedModel) -> float | None:
    """How much of a model Ollama says is in VRAM; None where it says nothing of its size."""
    if model.size_bytes <= 0:
        return None
    return round(100 * model.size_vram_bytes / model.size_bytes, 1)


def _model(
    seen: Seen, asked: Asked | None, memory: Memory, settings: Settings, now: float, clock: float
) -> ModelMemory:
    """What the next check needs to know of a model; the arguments are those of `plan`."""
    past = past_of(seen, memory)
    kept = _as_users_left_it(seen, past, memory, settings, now, clock)
    runner = (asked.runner if asked is not None else None) or seen.runner
    kept = replace(
        kept,
        left=seen.model.expires_text,
        runnable_seconds=runner.runnable_seconds if runner else None,
        writes=runner.writes if runner else None,
        busy_since=_busy_since(seen, asked, memory, now),
    )
    if asked is None or asked.answer.outcome == "error":
        return kept
    left, lent = asked.model or seen.model, asked.ask.keep_alive_seconds
    theirs = _is_users(left, asked)
    if asked.ask.tokens == 0:
        kept = replace(kept, expires_at=left.expires_at)  # what we gave back
    elif asked.answer.outcome == "token":
        kept = replace(kept, token_seconds=asked.answer.seconds)
    # Where a user's request has ended since ours, the next check is to look again.
    return replace(kept, lent_seconds=lent, left="" if theirs else left.expires_text)


def _is_users(left: LoadedModel, asked: Asked) -> bool:
    """Whether a model's expiry is not the one that our request gave it."""
    lent = asked.ask.keep_alive_seconds
    if lent == FOREVER:
        return False
    if lent is None:
        return left.seconds_left(asked.ended_at) is not None
    return abs(left.expires_at - asked.ended_at - lent) > SAME_SECONDS


def _as_users_left_it(
    seen: Seen,
    past: ModelMemory | None,
    memory: Memory,
    settings: Settings,
    now: float,
    clock: float,
) -> ModelMemory:
    """What is known of a model before anything of this check's is asked of it."""
    expires_at = seen.model.expires_at
    if past is None:
        # One that was there before the first check may not have been used for long, and one whose
        # process is gone keeps its row for a while.
        before = memory.models.get(seen.model.name)
        moved = before is None or before.left != seen.model.expires_text
        fresh = moved and not seen.unfinished and memory.checked_at is not None
        session = session_seconds(expires_at, (settings.keep_alive,), memory, now)
        past = ModelMemory(identity(seen), expires_at, "", session, used_at=now if fresh else None)
    elif seen.unfinished:
        past = replace(past, session_seconds=expires_at - now, expires_at=expires_at)
    elif used_since(seen, past):
        known = (past.session_seconds, past.lent_seconds)
        named = session_seconds(expires_at, known, memory, now)
        past = replace(past, expires_at=expires_at, used_at=now)
        if named != past.lent_seconds:
            past = replace(past, session_seconds=named, lent_seconds=None)
    else:
        return past
    if clock_was_set(memory, clock):
        # Its expiry says nothing now. Left alone until a user comes, it is not kept too long.
        past = replace(past, expires_at=now, lent_seconds=None)
    return past
