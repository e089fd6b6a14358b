"""The rules of ending a runner: which one, and when a check may do it by itself. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from probe.activity import CALM_SECONDS, READ_BYTES, seconds_since, was_at_work
from probe.learn import serves_users
from probe.loads import is_blocked
from probe.memory import Memory, ModelMemory
from probe.observation import Observation, Runner, Unending
from probe.plan import same_model
from probe.report import Reading, Reason, Remedy, Verdict
from probe.retries import CHECKS, without_fault
from probe.settings import Settings

RECENT_SECONDS = 30.0
"""What a check was certain of stands for no longer than this without another check."""

UNENDING_SECONDS = 20.0
"""A process that was killed has ended within this, however much memory it has to give back."""

WINDOW_SECONDS = 3600.0
MOST = 3
"""A check ends no more runners than this within that time: it does not help."""


def culprit(verdict: Verdict, observation: Observation, model: str | None = None) -> Runner | None:
    """The process whose end the verdict asks for; None where it asks for none.

    Args:
        verdict: what this check found.
        observation: what it rests on.
        model: a model whose runner is meant; None: that of any model.
    """
    if verdict.remedy is not Remedy.RUNNER:
        return None
    for one in (*observation.models, *observation.held_by):
        meant = model is None or same_model(one.row.name, model)
        if meant and one.runner and one.runner.pid == verdict.readings.get("runner_pid"):
            return one.runner
    return None


def with_unending(
    verdict: Verdict, observation: Observation, past: Memory, memory: Memory, now: float
) -> Verdict:
    """The verdict where a process was killed and has not ended: nothing may be restarted.

    While a driver holds it the kernel cannot end it, and a container that is stopped then neither
    ends nor starts again. If it is a runner, its server waits for it before it loads anything.

    Args:
        verdict: what was found otherwise.
        observation: what it rests on.
        past: what the checks before left.
        memory: what this check leaves.
        now: seconds of the monotonic clock.
    """
    if not observation.unending:
        return verdict
    since = memory.unending
    one = min(observation.unending, key=lambda left: (not left.runner, since[left.identity]))
    seconds = now - since[one.identity]
    model = next((m for m in past.models.values() if m.runner == one.identity), ModelMemory())
    noted = replace(verdict, readings={**verdict.readings, "unending": one.identity})
    # Without a memory nobody knows for how long.
    due, needs_time = seconds >= UNENDING_SECONDS or not past.kept, verdict.remedy is Remedy.NONE
    # One that runs, or waits for a CPU, was silent for want of one, for all that is known.
    hung = verdict.healthy and model.silent_since is not None and one.state != "R"
    if verdict.remedy is Remedy.OPERATOR:
        return noted
    if needs_time and (not one.runner or not past.kept or not (due or hung)):
        return noted
    if needs_time and due and _goes_on(verdict, observation, past, memory, one, model.name, now):
        return noted
    pid = one.identity.partition("/")[0]
    of_model = f" of {model.name}" if model.name else ""
    what = f"the runner{of_model} (process {pid} of the container)"
    what = what if one.runner else f"process {pid} of the container ({one.name})"
    words, remedy = f"{what} was killed, and has not ended yet", Remedy.NONE
    if due:
        state = f"state {one.state}, in {one.waits_in}" if one.waits_in else f"state {one.state}"
        words = f"{what} was killed {seconds:.0f} s ago and does not end ({state})"
        words += ". No restart of the container ends it: reset its GPU, or restart the machine"
        remedy = Remedy.OPERATOR
    if needs_time:
        readings: dict[str, Reading] = {**noted.readings, "model": model.name}
        return Verdict(False, Reason.STALLED, words, readings, remedy)
    return replace(noted, message=f"{words}; {verdict.message}", remedy=remedy, certain=False)


def with_blocked(verdict: Verdict, memory: Memory, now: float) -> Verdict:
    """The verdict where a load waits for a disk or a driver: nothing may be restarted.

    What it waits in may not let go of it, and then its container neither stops nor starts again.
    """
    load = memory.load
    if load is None or verdict.remedy is not Remedy.RESTART or not is_blocked(load, now):
        return verdict
    words = f"the process that loads {load.name} waits for a disk, or for a driver"
    message = f"{verdict.message}; nothing is restarted while {words}"
    return replace(verdict, message=message, remedy=Remedy.OPERATOR, certain=False)


def _goes_on(
    verdict: Verdict,
    observation: Observation,
    past: Memory,
    memory: Memory,
    one: Unending,
    model: str,
    now: float,
) -> bool:
    """Whether users are served, or a model is loaded, although a runner has not ended."""
    if memory.load is not None and memory.load.moved_at > memory.unending[one.identity]:
        return True
    if verdict.reason is Reason.BUSY and verdict.readings.get("model") != model:
        return True  # for as long as a model may be busy
    return any(
        serves_users(model, observation.asked.get(model.row.key, ()), past, now)
        for model in observation.models
    )


def with_words(
    verdict: Verdict,
    memory: Memory,
    words: str,
    remedy: Remedy,
    readings: Mapping[str, Reading] | None = None,
) -> tuple[Verdict, Memory]:
    """The verdict and the memory with what was done; a check that has no time repeats it.

    Args:
        verdict: what was found.
        memory: what the next check should know.
        words: what was done about it, or why nothing was.
        remedy: what would help now.
        readings: more of them.
    """
    message = f"{verdict.message}; {words}"
    readings = {**verdict.readings, **(readings or {})}
    verdict = replace(verdict, message=message, readings=readings, remedy=remedy)
    last = replace(memory.episodes[-1], message=verdict.message, remedy=str(remedy))
    return verdict, replace(memory, episodes=(*memory.episodes[:-1], last))


def with_suspect(
    memory: Memory, runner: Runner | None, now: float = 0.0, *, certain: bool = False
) -> Memory:
    """The memory after one more check that asks for the end of this runner; None: of none.

    Args:
        memory: after the check otherwise.
        runner: as the check found it at its beginning.
        now: seconds of the monotonic clock.
        certain: no other check has to find it again.
    """
    if runner is None:
        return replace(memory, suspect="", suspect_checks=0, certain_at=None)
    before = memory.suspect_checks if memory.suspect == runner.identity else 0
    return replace(
        memory,
        suspect=runner.identity,
        suspect_checks=before + 1,
        certain_at=now if certain else None,
        certain_counts=_counts(runner),
    )


def is_certain(memory: Memory, now: float) -> bool:
    """Whether the last check was certain of a runner, and is not long ago."""
    return memory.certain_at is not None and now - memory.certain_at <= RECENT_SECONDS


def has_rested(runner: Runner, memory: Memory, now: float, *, answers: bool) -> bool:
    """Whether a runner has done nothing since the check began that was certain of it.

    Args:
        runner: as it is now.
        memory: what the checks left.
        now: seconds of the monotonic clock.
        answers: for its health, which takes a moment each time; otherwise it must have done nothing
            at all.
    """
    if runner.identity != memory.suspect or runner.blocked:
        return False
    counts = memory.certain_counts
    since = [after - before for before, after in zip(counts, _counts(runner), strict=True)]
    ran, queued, read = since
    if not answers:
        rests = not runner.runnable and max(ran, queued) <= CALM_SECONDS
    else:
        rests = not was_at_work(ran, queued, seconds_since(memory, now))
    return rests and read <= READ_BYTES


def _counts(runner: Runner) -> tuple[float, ...]:
    return runner.cpu_seconds, runner.queued_seconds, float(runner.read_bytes or 0)


def is_due(memory: Memory) -> bool:
    """Whether enough checks in a row have asked for the end of one runner."""
    return memory.certain_at is not None or memory.suspect_checks >= CHECKS


def restart_checks(verdict: Verdict, past: Memory) -> int:
    """How many checks in a row have found that a restart would help, this one included.

    Those that ask for the end of a runner neither count nor end the row.
    """
    if verdict.remedy is Remedy.RUNNER:
        return past.restart_checks
    return past.restart_checks + 1 if verdict.remedy is Remedy.RESTART else 0


def restart_is_due(memory: Memory, settings: Settings, now: float) -> bool:
    """Whether enough checks in a row, over long enough, have found that a restart would help."""
    lasted = memory.fault_since is not None and now - memory.fault_since > 3 * settings.timeout
    return lasted and memory.restart_checks >= CHECKS


def is_spent(memory: Memory, now: float) -> bool:
    """Whether as many runners were ended as may be."""
    return sum(now - at < WINDOW_SECONDS for at in memory.ended) >= MOST


def with_end(memory: Memory, now: float) -> Memory:
    """The memory before a check ends a runner."""
    memory = replace(without_fault(with_suspect(memory, None)), restart_checks=0)
    return replace(memory, ended=(*memory.ended, now)[-MOST:])
