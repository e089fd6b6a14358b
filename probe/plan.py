"""What a check may ask, and of whom, so that it costs no user anything.

Pure, like `judge.py`: plain data in, plain data out. `docs/harmless.md` has the reasons.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from probe.activity import (
    WORK_SHARE,
    has_only_ours,
    has_served,
    identity,
    is_calm,
    is_idle,
    is_llama_server,
    is_processing,
    past_of,
    slots_of,
    stands_still,
)
from probe.memory import Crashes, Memory, ModelMemory
from probe.observation import Answer, Ask, Asked, Dialect, Model, Observation, Slot
from probe.settings import Settings

BUSY_SECONDS, BUSY_SECONDS_ON_CPU = 600.0, 3600.0
"""How long a model may be busy with nothing to show for it; longer with nothing of it in VRAM:
a long prompt takes longer there, and there is no driver to hang in."""

WAIT_SECONDS = 5.0
"""A user who has waited for an answer for this long, while no model did anything, raises a doubt:
more often than that, users who give up and come again would not be seen."""

DOUBT_SECONDS = 600.0
"""A model is asked for that no more often than this: a token of ours may cost another user."""

CRASHES, CRASHES_SECONDS = 3, 3600.0
"""A model whose runner has ended at so many requests in a row is asked for nothing more, until the
last of them is so long ago."""


def routine(model: Model, memory: Memory, settings: Settings) -> Ask | None:
    """What is asked of a model of which nothing is suspected; None: nothing, it would cost a user.

    A token takes a conversation's place in the prompt cache, which can cost its user minutes. So
    it is asked of the runner itself, and only where there is a slot that holds nobody's
    conversation. With `always` the server is asked, as a plain health check does.
    """
    if model.gone or model.state != "ready" or _is_mlx(model) or crashes(model, memory):
        return None
    tokens = 1 if settings.min_tokens_per_second is None else 2
    if settings.generate == "always":
        return _always(model, tokens)
    if settings.generate == "never" or model.runner is None:
        return None
    past = past_of(model, memory)
    if model.runner.command.port is None or model.clamped is None:
        return None  # whether it only embeds is not known either
    if model.runner.command.embedding:  # has no prompt cache
        return Ask("runner") if is_calm(model, past) else None
    slots = slots_of(model)
    if slots is not None:
        free = free_slot(slots, past)
        return None if free is None else Ask("runner", tokens, slot=free)
    if model.runner.command.dialect is Dialect.LLAMA_SERVER or past is None:
        return None
    unshared = past.unshared_text == model.row.expires_text
    return Ask("runner", tokens) if unshared and is_calm(model, past) else None


def _always(model: Model, tokens: int) -> Ask:
    options = options_of(model)
    if options is None and model.runner is not None:
        return Ask("runner", tokens)  # the server would load it again for other options
    context = model.row.context_length
    if options is None:
        options = {} if context is None else {"num_ctx": context}
    return Ask("server", tokens, options=options)


def is_suspected(
    model: Model, memory: Memory, settings: Settings, now: float, *, in_vain: float = 0.0
) -> bool:
    """Whether something seems to be wrong with a model, so that a token of ours may cost a user.

    Its runner is silent and does no work, or does some for too long, or stands still in the middle
    of some; or it has left a request of ours unanswered, and nothing has been heard from it since;
    or a user has waited `in_vain` for so many seconds, and came after the last of whom that was
    said.
    """
    past = past_of(model, memory)
    doubted_at = past.doubted_at if past else None
    since_doubted = math.inf if doubted_at is None else now - doubted_at
    if model.stands and since_doubted >= DOUBT_SECONDS:
        return True
    if model.state == "ready" and past is not None:
        if stands_still(model, memory, now) and since_doubted >= DOUBT_SECONDS:
            return True
        if is_doubted(memory, now, in_vain) and since_doubted >= max(DOUBT_SECONDS, in_vain):
            return True
    silent_since = past.silent_since if past else None
    if model.state == "silent":
        ran = model.runnable_seconds
        idle = ran is None or ran < WORK_SHARE * model.silent_seconds
        return idle or now - (silent_since or now) > busy_timeout(model, settings)
    return (
        model.state == "ready" and silent_since is not None and not has_served(model, memory, now)
    )


def may_stand(model: Model, memory: Memory, now: float, *, gpus_rest: bool) -> bool:
    """Whether it matters if a model that serves a request has nothing to run.

    Only where it does not wait for a GPU, and not where an answer has refuted that shortly before.

    Args:
        model: as it was read.
        memory: what the checks before left.
        now: seconds of the monotonic clock.
        gpus_rest: no GPU that Ollama may use is in use.
    """
    past = past_of(model, memory)
    if (model.row.size_vram_bytes and not gpus_rest) or not is_processing(model):
        return False
    if past is None or past.doubted_at is None or past.silent_since is not None:
        return True
    return now - past.doubted_at >= DOUBT_SECONDS


def is_doubted(memory: Memory, now: float, in_vain: float) -> bool:
    """Whether a user who waits is a ground to ask: only now and then, and once for the same one."""
    since = math.inf if memory.doubted_at is None else now - memory.doubted_at
    return in_vain > 0 and since >= max(DOUBT_SECONDS, in_vain)


def in_vain_seconds(
    waits: tuple[float, ...], observation: Observation, memory: Memory, now: float
) -> float:
    """For how long a user has waited while no model does anything, and none is being loaded.

    Of several it is the one who came last, of those who have waited for long enough.

    Args:
        waits: of all users, in seconds.
        observation: what was read.
        memory: what the checks before left.
        now: seconds of the monotonic clock.
    """
    if may_be_loading(observation, memory):
        return 0.0
    listed = {model.row.key for model in observation.models if model.gone}
    listed |= {identity(model) for model in observation.models}
    if any(key not in listed and past.runner not in listed for key, past in memory.models.items()):
        return 0.0  # one was unloaded, perhaps for the sake of another
    if not all(is_idle(model, memory, now) for model in observation.models):
        return 0.0
    return min((one for one in waits if one >= WAIT_SECONDS), default=0.0)


def is_loading(observation: Observation, memory: Memory) -> bool:
    """Whether a model is being loaded, for which requests for others may have to wait."""
    return memory.load is not None or sees_load(observation)


def may_be_loading(observation: Observation, memory: Memory) -> bool:
    """The same, or not listed: up to 0.29 a process that serves no model may be one that loads."""
    return is_loading(observation, memory) or observation.strays > 0


def sees_load(observation: Observation) -> bool:
    """The same, as far as this check has seen."""
    states = [model.state for model in observation.models]
    return bool(observation.loading) or "loading" in states


def is_suspicious(answer: Answer) -> bool:
    """Whether what a runner itself has answered is a ground to ask the server."""
    if answer.outcome == "silent":
        return True
    # Without a status its connection broke: the runner has gone, as when its model is unloaded.
    return answer.outcome == "error" and answer.status is not None and answer.status >= 500


def has_failed(asked: Asked) -> bool:
    """Whether a runner, or the server for it, has said that it cannot do what it was asked.

    Since 0.30 a server may say so by a 200 without a token.
    """
    answer = asked.answer
    refused = answer.status is None or 400 <= answer.status < 500 or answer.queue_full
    return answer.outcome == "error" and not refused


def failed_tries(asked: Iterable[Asked]) -> int:
    """How many requests for tokens have failed; 0 where one of them has not."""
    tries = [one for one in asked if one.ask.tokens]
    return len(tries) if all(map(has_failed, tries)) else 0


def suspicion(model: Model, settings: Settings) -> Ask | None:
    """What is asked about a model that is suspected: the server, which alone can prove a stall.

    Where the options that the model was loaded with are not visible the server would load it
    again, so its runner is asked, if that says anything. None: nothing may be asked.
    """
    if settings.generate == "never" or model.gone or _is_mlx(model):
        return None
    options = options_of(model)
    if options is not None:
        return Ask("server", options=options)
    if model.clamped is None:  # whether it only embeds is not known either
        return None
    return Ask("runner") if model.state == "ready" and model.runner is not None else None


def crashes(model: Model, memory: Memory) -> bool:
    """Whether requests, several in a row, have ended the runners of a model."""
    return memory.crashes.get(model.row.key, Crashes()).times >= CRASHES


def doubt(model: Model, settings: Settings) -> Ask | None:
    """What is asked of a model while a user waits in vain.

    Since 0.30 its runner has shown that it works, so what may hang is the server's schedule: a
    request for no token goes that way, and takes no conversation's place in the prompt cache.
    """
    ask = suspicion(model, settings)
    if ask is None or not is_llama_server(model) or is_processing(model):
        return ask
    return replace(ask, tokens=0) if ask.via == "server" else None


def _is_mlx(model: Model) -> bool:
    """Whether it is of a kind that the probe cannot ask: its runner's requests are not known."""
    return model.runner is not None and model.runner.command.dialect is Dialect.MLX


def busy_timeout(model: Model, settings: Settings) -> float:
    """For how many seconds a model may be too busy to answer."""
    return _longest(model, settings.busy_timeout)


def nobody_timeout(model: Model, settings: Settings) -> float:
    """For how many seconds a model may work for nobody, as it reads a prompt to its end."""
    return _longest(model, settings.nobody_timeout)


def _longest(model: Model, limit: float | None) -> float:
    if limit is not None:
        return limit
    return BUSY_SECONDS if model.row.size_vram_bytes else BUSY_SECONDS_ON_CPU


def keep(model: Model, memory: Memory, settings: Settings, now: float) -> Ask | None:
    """How a required model is kept loaded; None: it is, or its options are not visible.

    Not at the first sight of its process: where users with options of their own take turns, the
    server would load it again for ours, and throw that load away when we give up.
    """
    options = options_of(model)
    if (
        model.gone
        or (memory.kept and past_of(model, memory) is None)
        or model.state != "ready"
        or options is None
        or not is_required(model, settings)
        or model.row.expires_in(now) is None
    ):
        return None
    return Ask("server", tokens=0, keep=True, options=options)


def is_required(model: Model, settings: Settings) -> bool:
    """Whether this is a model that the settings want."""
    return names_required(model.row.name, settings)


def names_required(name: str, settings: Settings) -> bool:
    """The same of a model of this name."""
    return any(same_model(wanted, name) for wanted in settings.models)


def same_model(a: str, b: str) -> bool:
    """Whether two names mean one model: the tag defaults to `latest`, the case does not matter."""
    return _full_name(a) == _full_name(b)


def _full_name(name: str) -> str:
    name = name.lower()
    return name if ":" in name.rpartition("/")[2] else name + ":latest"


def shape_of(model: Model) -> str:
    """The same for a model that is loaded with the same options."""
    command = model.runner.command if model.runner else None
    options = f"{command.num_ctx} {command.parallel}" if command else ""
    return f"{model.row.key} {model.row.context_length} {options}"


def options_of(model: Model) -> dict[str, int] | None:
    """The options that a model was loaded with; None where they are not visible.

    `context_length` of `/api/ps` is no option: a server clamps what was asked for to what the
    model was trained for, and takes the clamped number, sent back, for another one.
    """
    command = model.runner.command if model.runner else None
    if (
        command is None
        or not command.options_visible
        or command.num_ctx is None
        or model.clamped is not False
    ):
        return None
    options = {"num_ctx": command.num_ctx}
    if command.num_batch is not None:
        options["num_batch"] = command.num_batch
    if command.num_thread is not None and not (model.runner and model.runner.default_threads):
        options["num_thread"] = command.num_thread
    if command.use_mmap is not None:
        options["use_mmap"] = command.use_mmap
    return options


def free_slot(slots: tuple[Slot, ...], past: ModelMemory | None) -> int | None:
    """A slot for a token of ours, where no slot holds a user's conversation.

    Where one does, a token in another slot is not free either: ours would be the last used one,
    and a new conversation would take the place of the user's (measured on 0.34.2).
    """
    own = dict(past.own_tasks) if past else {}
    if not all(_holds_nothing(slot) or _is_own(slot, own.get(slot.id)) for slot in slots):
        return None
    return slots[0].id if slots else None


def _holds_nothing(slot: Slot) -> bool:
    """Whether a slot was never used, or its last request has left nothing, as one that failed."""
    return slot.task is None or (not slot.is_processing and slot.held_tokens == 0)


def _is_own(slot: Slot, task: int | None) -> bool:
    """Whether all that a slot holds is a request of ours."""
    return slot.task == task and has_only_ours(slot)
