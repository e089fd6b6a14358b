"""What the runner of a model has done, and what has come of it since the last check.

Pure, like `judge.py`: plain data in, plain data out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from probe.memory import Memory, ModelMemory
from probe.observation import Dialect, Model, Runner, Slot

PROBE_WRITES, PROBE_WRITES_PER_SECOND = 4, 0.5
"""A runner that sends more often than this sends tokens: it answers probes less often."""

WORK_SHARE = 0.05
"""A runner with something to run for more than this of the time that we waited has done work."""

STARVED_SHARE = 0.5
"""A runner whose threads waited for a CPU for more than this of the time may have work to do; for
less, on a crowded machine, they wait to answer for its health: work waits or runs all the time."""

READ_BYTES = 1 << 20
"""A process that has read more than this has done work."""

OWN_TOKENS = 8
"""A request of ours leaves no more than this in a slot, its prompt included."""

CALM_SECONDS = 0.1
"""A runner that ran for no longer than this since the last check has served no user."""


def work_seconds(runner: Runner, later: Runner | None, seconds: float) -> float:
    """For how long of the seconds since a look a runner ran or waited, for a CPU or for a disk.

    Whoever has read more than a little meanwhile waits for a disk, as for weights that are mapped
    and not in memory yet. The kernel counts a wait for a CPU when it ends, which on a crowded
    machine is late: one that runs or waits at both looks is taken to have done so throughout.

    Args:
        runner: the process at that look.
        later: the same process now; None when it is gone.
        seconds: between the looks.
    """
    if later is None:
        return 0.0
    # A thread that ends takes along what it had waited.
    queued = max(later.queued_seconds - runner.queued_seconds, 0.0)
    # What waits at the end of it is not counted yet.
    starved = queued >= STARVED_SHARE * seconds or later.runnable
    counted = later.cpu_seconds - runner.cpu_seconds + (queued if starved else 0.0)
    if (later.read_bytes or 0) - (runner.read_bytes or 0) > READ_BYTES:
        return max(counted, seconds)
    return max(counted, seconds) if runner.runnable and later.runnable else counted


def was_at_work(ran: float, queued: float, seconds: float) -> bool:
    """Whether a process that ran, and waited for a CPU, for so many seconds of some has worked."""
    work = ran + (max(queued, 0.0) if queued >= STARVED_SHARE * seconds else 0.0)
    return work >= max(WORK_SHARE * seconds, CALM_SECONDS)


def past_of(model: Model, memory: Memory) -> ModelMemory | None:
    """What is known of this model, loaded by this process; another process has no past."""
    past = memory.models.get(model.row.key)
    return past if past is not None and past.runner == identity(model) else None


def identity(model: Model) -> str:
    """What names the process that serves a model; empty where it is not visible."""
    return model.runner.identity if model.runner else ""


def slots_of(model: Model) -> tuple[Slot, ...] | None:
    """The slots of a model's runner; None where they cannot be read."""
    return model.health.slots if model.health else None


def is_processing(model: Model) -> bool:
    """Whether its runner is known to be serving a request."""
    return any(slot.is_processing for slot in slots_of(model) or ())


def is_llama_server(model: Model) -> bool:
    """Whether a model is known to be served by a `llama-server`, as since 0.30."""
    return model.runner is not None and model.runner.command.dialect is Dialect.LLAMA_SERVER


def progress_of(slot: Slot) -> tuple[int, int, int]:
    """A slot, its last request, and how many tokens that has got so far; -1: it has ended."""
    count = slot.prompt_tokens + slot.decoded_tokens if slot.is_processing else -1
    return slot.id, -1 if slot.task is None else slot.task, count


def marks_of(slots: Iterable[Slot] | None) -> set[tuple[int, int, int]]:
    """How far each request is that is being served."""
    return {progress_of(slot) for slot in slots or () if slot.is_processing}


def has_only_ours(slot: Slot) -> bool:
    """Whether a slot is at rest and holds no more than a request of ours leaves there."""
    return not slot.is_processing and (slot.held_tokens or 0) <= OWN_TOKENS


def stands_still(model: Model, memory: Memory, now: float) -> bool:
    """Whether a request is being served and nothing has come of it since the last check.

    Today's `llama-server` answers for its slots while the call hangs that computes.
    """
    past, marks = past_of(model, memory), marks_of(slots_of(model))
    if past is None or not did_nothing(model, memory, now):
        return False
    return bool(marks) and marks <= set(past.tokens or ())


def still_serves(model: Model, slots: tuple[Slot, ...] | None) -> bool:
    """Whether nothing has come since of the requests that a model was serving, nor of another."""
    served = marks_of(slots_of(model))
    return bool(served) and marks_of(slots) == served


def seconds_since(memory: Memory, now: float) -> float:
    """How long ago the last check began; 0 where there was none."""
    return now - (memory.checked_at or now)


def has_served(model: Model, memory: Memory, now: float) -> bool:
    """Whether tokens of a model were counted for users since the last check."""
    past, seconds = past_of(model, memory), seconds_since(memory, now)
    return users_got_tokens(model.runner, slots_of(model), past, seconds)


def users_got_tokens(
    runner: Runner | None,
    slots: tuple[Slot, ...] | None,
    past: ModelMemory | None,
    seconds: float,
) -> bool:
    """Whether tokens were counted for users since the last check, prompts' tokens included.

    Args:
        runner: the model's process now.
        slots: its slots now.
        past: what the last check left.
        seconds: how long ago that was.
    """
    if past is None:
        return False
    if slots is not None and past.tokens is not None:
        return any(_moved(slot, past) for slot in slots)
    if runner is None or runner.writes is None or past.writes is None:
        return False
    if runner.command.dialect is Dialect.LLAMA_SERVER:
        return False  # it writes lines of its log, also of requests that it does not answer
    return runner.writes - past.writes > PROBE_WRITES + PROBE_WRITES_PER_SECOND * seconds


def _moved(slot: Slot, past: ModelMemory) -> bool:
    """Whether a request that is not ours has got tokens in a slot since the last check."""
    if slot.task is None or slot.task in (task for _, task in past.own_tasks):
        return False
    before = next((mark for mark in past.tokens or () if mark[:2] == (slot.id, slot.task)), None)
    tokens = progress_of(slot)[2] if slot.is_processing else slot.held_tokens or 0
    if past.silent_since is not None and tokens <= OWN_TOKENS:
        return False  # it may be the one of ours that was not answered
    if slot.is_processing:
        return tokens > (before[2] if before else 0)
    # Once it has ended, only what the slot holds shows that it got any.
    return tokens > 0 and (before is None or before[2] >= 0)


def is_calm(model: Model, past: ModelMemory | None) -> bool:
    """Whether the runner has had nothing to do since the last check, as far as can be seen.

    Its waiting for a CPU does not count: on a crowded machine to answer a check takes long.
    """
    if past is None or past.cpu_seconds is None or model.runner is None:
        return False
    return model.runner.cpu_seconds - past.cpu_seconds <= CALM_SECONDS and not is_processing(model)


def was_calm(model: Model, memory: Memory, now: float) -> bool:
    """Whether a model had next to nothing to do since the last check, as far as can be seen.

    Beside users' work a token takes longer, and that is no fault.
    """
    ran, queued = _ran_and_queued(model, memory)
    return ran + queued <= _little(memory, now) and not is_processing(model)


def is_idle(model: Model, memory: Memory, now: float) -> bool:
    """Whether a model has done nothing since the last check, and is not doing anything.

    One whose process has gone does nothing. What a GPU does shows only in `/slots`.
    """
    return model.gone or (
        did_nothing(model, memory, now)
        and not is_processing(model)
        and not has_served(model, memory, now)
    )


def did_nothing(model: Model, memory: Memory, now: float) -> bool:
    """Whether a model did next to nothing since the last check, although it got the CPU for it."""
    ran, queued = _ran_and_queued(model, memory)
    starved = max(STARVED_SHARE * seconds_since(memory, now), CALM_SECONDS)
    return ran <= _little(memory, now) and queued <= starved


def _little(memory: Memory, now: float) -> float:
    return max(WORK_SHARE * seconds_since(memory, now), CALM_SECONDS)


def _ran_and_queued(model: Model, memory: Memory) -> tuple[float, float]:
    """For how long a runner ran and waited for a CPU since the last check; infinite: not known."""
    past = past_of(model, memory)
    if past is None or past.runnable_seconds is None or model.runner is None:
        return math.inf, math.inf
    cpu_before = past.cpu_seconds or 0.0
    queued = model.runner.queued_seconds - (past.runnable_seconds - cpu_before)
    # A thread that has ended has taken along what it had waited for a CPU.
    return model.runner.cpu_seconds - cpu_before, max(queued, 0.0)
