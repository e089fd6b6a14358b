"""What a check may ask of a loaded model without doing harm.

Pure, like `judge.py`: plain data in, plain data out. `docs/harmless.md` has the reasons.
"""

from __future__ import annotations

from probe.memory import Memory, ModelMemory
from probe.observation import Ask, Seen
from probe.ollama import FOREVER, same_model
from probe.runners import Runner
from probe.settings import Settings

SAME_SECONDS = 1.0
"""Two lengths of time closer than this are taken for one."""

PROBE_WRITES, PROBE_WRITES_PER_SECOND = 4, 0.5
"""A model's process that sends more often than this sends tokens: it answers probes less often."""

CLOCK_JUMP_SECONDS = 1.0
"""The wall clock was set when it moved by more than this against the monotonic one."""


def plan(seen: Seen, memory: Memory, settings: Settings, now: float, clock: float) -> Ask | None:
    """What may be asked of a loaded model now; None: nothing, without harm.

    A request makes the server load a model anew when its options differ from those that it
    was loaded with, moves the time at which it is unloaded, sets for how long later requests
    keep it, and takes a conversation's place in the prompt cache. So: the same options, a
    `keep_alive` that ends where it ended (none for a model that is kept for ever: it stays so,
    unless a user names a time meanwhile), and no request while users are about.

    Args:
        seen: the model.
        memory: what the checks before left.
        settings: the probe's settings.
        now: seconds of the monotonic clock, as `LoadedModel.expires_at`.
        clock: what the wall clock is ahead of it.
    """
    if seen.health is not None and seen.health.state != "ready":
        return None  # a request would wait for the load, or make the server give the runner up
    if seen.runner is not None and seen.runner.shape in memory.opaque:
        return None  # a request of ours has made such a runner load anew before
    past, options = past_of(seen, memory), _options(seen)
    used = past is not None and used_since(seen, past)
    served = used or gives_tokens(seen.runner, past, memory, now)
    quiet = served or _recently_used(past, settings, now)
    tokens = 0 if quiet else 1 if settings.min_tokens_per_second is None else 2
    forever = seen.model.seconds_left(now) is None
    if is_required(seen, settings):
        return None if quiet and forever else Ask(tokens, FOREVER, options or {})
    if options is None:
        return None
    if forever:
        return None if quiet else Ask(tokens, None, options)
    expires_at = _expires_at(seen, past)
    if memory.checked_at is None:
        return None  # what users have set shows at the next check, and only then can be given back
    if past is None and not seen.unfinished:
        return None  # the request that loaded it has just proven it
    if past is not None and used:
        return None if clock_was_set(memory, clock) else _give_back(past, memory, now, seen)
    if quiet or expires_at - now < settings.timeout + 2 * max(now - memory.checked_at, 1):
        return None  # it would be loaded again for us, or a user's time could not be given back
    spent = 0.0 if past is None else past.token_seconds
    return Ask(tokens, expires_at - now - spent, options)


def is_required(seen: Seen, settings: Settings) -> bool:
    """Whether this is the model that the settings want."""
    return settings.model is not None and same_model(settings.model, seen.model.name)


def past_of(seen: Seen, memory: Memory) -> ModelMemory | None:
    """What is known of this model, loaded by this process; another process has no past."""
    past = memory.models.get(seen.model.name)
    return past if past is not None and past.runner == identity(seen) else None


def used_since(seen: Seen, past: ModelMemory) -> bool:
    """A user's request has completed since the last check, which proves the server well."""
    return seen.model.expires_text != past.left and not seen.unfinished


def gives_tokens(
    runner: Runner | None, past: ModelMemory | None, memory: Memory, now: float
) -> bool:
    """Whether a model has sent tokens to users since the last check, as far as can be seen."""
    if runner is None or runner.writes is None or past is None or past.writes is None:
        return False
    since = now - (memory.checked_at or now)
    return runner.writes - past.writes > PROBE_WRITES + PROBE_WRITES_PER_SECOND * since


def identity(seen: Seen) -> str:
    return seen.runner.identity if seen.runner else ""


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


def _recently_used(past: ModelMemory | None, settings: Settings, now: float) -> bool:
    return past is not None and past.used_at is not None and now - past.used_at < settings.quiet


def clock_was_set(memory: Memory, clock: float) -> bool:
    """The server writes times by the wall clock: what it wrote before is wrong by as much."""
    return memory.clock is not None and abs(clock - memory.clock) > CLOCK_JUMP_SECONDS


def _expires_at(seen: Seen, past: ModelMemory | None) -> float:
    """When it is to be unloaded, as users left it: at best by the clock that no one sets."""
    if past is None or seen.unfinished or used_since(seen, past):
        return seen.model.expires_at
    return past.expires_at


def _give_back(past: ModelMemory, memory: Memory, now: float, seen: Seen) -> Ask | None:
    """After a user's request, undo what our last `keep_alive` did to the time it keeps the model.

    Ollama keeps a request's `keep_alive` for all later requests that name none. A user who
    named none got the time that we had set; one that named his own got that.
    """
    if past.lent_seconds is None:
        return None
    known = (past.session_seconds, past.lent_seconds)
    if session_seconds(seen.model.expires_at, known, memory, now) != past.lent_seconds:
        return None
    used_at = seen.model.expires_at - past.lent_seconds
    return Ask(0, max(used_at + past.session_seconds - now, 0), _options(seen) or {})


def session_seconds(
    expires_at: float, known: tuple[float | None, ...], memory: Memory, now: float
) -> float:
    """For how long the last request keeps the model, if it ended between the last check and now.

    Args:
        expires_at: when the model is to be unloaded.
        known: what it may be, likeliest first. One that fits is taken, else the shortest that
            fits, so that a model is never kept for longer than its users asked for.
        memory: has the last check.
        now: this one.
    """
    shortest = expires_at - now
    if memory.checked_at is not None:
        longest = expires_at - memory.checked_at
        for seconds in known:
            if seconds is not None and shortest - SAME_SECONDS <= seconds <= longest + SAME_SECONDS:
                return seconds
    return shortest
