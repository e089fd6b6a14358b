"""The rules of ending a runner: which one, and when a check may do it by itself. Pure."""

from __future__ import annotations

from dataclasses import replace

from probe.memory import Memory
from probe.observation import READ_BYTES, Observation, Runner
from probe.plan import CALM_SECONDS, same_model
from probe.report import Remedy, Verdict
from probe.retries import without_fault

CHECKS = 3
"""So many checks in a row have to ask for the end of a runner, where none is certain."""

RECENT_SECONDS = 30.0
"""What a check was certain of stands for no longer than this without another check."""

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


def has_rested(runner: Runner, memory: Memory, now: float) -> bool:
    """Whether a runner has done nothing since the check began that was certain of it.

    Args:
        runner: as it is now.
        memory: what the checks left.
        now: seconds of the monotonic clock.
    """
    if runner.identity != memory.suspect or memory.certain_at is None:
        return False
    if runner.blocked or runner.runnable or now - memory.certain_at > RECENT_SECONDS:
        return False
    counts = memory.certain_counts
    since = [after - before for before, after in zip(counts, _counts(runner), strict=True)]
    ran, queued, read = since
    return max(ran, queued) <= CALM_SECONDS and read <= READ_BYTES


def _counts(runner: Runner) -> tuple[float, ...]:
    return runner.cpu_seconds, runner.queued_seconds, float(runner.read_bytes or 0)


def is_due(memory: Memory) -> bool:
    """Whether enough checks in a row have asked for the end of one runner."""
    return memory.certain_at is not None or memory.suspect_checks >= CHECKS


def is_spent(memory: Memory, now: float) -> bool:
    """Whether as many runners were ended as may be."""
    return sum(now - at < WINDOW_SECONDS for at in memory.ended) >= MOST


def with_end(memory: Memory, now: float) -> Memory:
    """The memory before a check ends a runner."""
    memory = without_fault(with_suspect(memory, None))
    return replace(memory, ended=(*memory.ended, now)[-MOST:])
