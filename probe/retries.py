"""When a fault counts: at once, or when several checks in a row have found it. Pure."""

from __future__ import annotations

from dataclasses import replace

from probe.memory import Memory
from probe.report import Reason, Remedy, Verdict
from probe.settings import Settings

CHECKS = 3
"""So many checks in a row have to find that a process has to end, where none is certain."""

_AT_ONCE = (Reason.MISCONFIGURED, Reason.LOADING)
"""A setting is wrong at every check; and a load before the first healthy check is no fault."""


def counted(
    found: Verdict, past: Memory, memory: Memory, settings: Settings, now: float
) -> tuple[Verdict, Memory]:
    """What Docker is told of what a check found, and the memory after it.

    A fault that is not certain counts once as many checks in a row have found one as the settings
    say, over more than three times the time that a check may take. Until then it is a doubt. There
    is none before the first healthy check, which would end Docker's start period, and none about a
    server that Docker was told to be unhealthy. What a restart would mend is counted from its own
    beginning, and where Docker was told what only an operator can mend it is left to the operator
    until then, whatever the settings say: that may stand for hours, beside users who are served.

    Args:
        found: the verdict of this check by itself.
        past: what the checks before left.
        memory: what this check leaves otherwise.
        settings: the probe's settings.
        now: seconds of the monotonic clock.
    """
    if found.healthy:
        return found, without_fault(memory)
    heals = found.remedy not in (Remedy.OPERATOR, Remedy.NONE)
    other = heals and _waits_for_an_operator(past)
    goes_on = past.restart_checks or past.suspect or not heals
    since = past.fault_since if past.fault_since is not None and goes_on else now
    checks = past.fault_checks + 1 if goes_on else 1
    least = max(settings.retries, CHECKS) if other else settings.retries
    lasted = checks >= least and now - since > 3 * settings.timeout
    told = past.failed and not other
    doubtful = not found.certain if other else may_be_doubted(found, settings) and past.proven
    doubted = doubtful and not (told or lasted)
    memory = replace(memory, fault_since=since, fault_checks=checks, failed=other or not doubted)
    if not doubted:
        return found, memory
    words = f"{found.message}; not certain yet, the next check looks again"
    readings = {**found.readings, "doubt": str(found.reason)}
    if other:
        return Verdict(False, found.reason, words, readings, Remedy.OPERATOR), memory
    return Verdict(True, Reason.BUSY, words, readings), memory


def _waits_for_an_operator(past: Memory) -> bool:
    """Whether Docker was told that the server is unhealthy, and that an operator has to mend it."""
    last = past.episodes[-1] if past.episodes else None
    return past.failed and last is not None and last.remedy == Remedy.OPERATOR


def may_be_doubted(found: Verdict, settings: Settings) -> bool:
    """Whether a fault has to be found more than once."""
    at_once = found.healthy or found.certain or found.reason in _AT_ONCE
    return settings.retries > 1 and not at_once


def without_fault(memory: Memory) -> Memory:
    """The memory where whatever is found next has to be found anew."""
    return replace(memory, fault_since=None, fault_checks=0, failed=False)
