"""When a fault counts: at once, or when several checks in a row have found it. Pure."""

from __future__ import annotations

from dataclasses import replace

from probe.memory import Memory
from probe.report import Reason, Remedy, Verdict
from probe.settings import Settings

_AT_ONCE = (Reason.MISCONFIGURED, Reason.LOADING)
"""A setting is wrong at every check; and a load before the first healthy check is no fault."""


def counted(
    found: Verdict, past: Memory, memory: Memory, settings: Settings, now: float
) -> tuple[Verdict, Memory]:
    """What Docker is told of what a check found, and the memory after it.

    A fault that is not certain counts once as many checks in a row have found one as the settings
    say, over more than three times the time that a check may take. Until then it is a doubt. There
    is none before the first healthy check, which would end Docker's start period, and none about a
    server that Docker was told to be unhealthy. Where it was told what only an operator can mend,
    a fault that a restart would mend is counted from its own beginning, and left to the operator
    until then: that may have stood for hours, beside models that serve their users.

    Args:
        found: the verdict of this check by itself.
        past: what the checks before left.
        memory: what this check leaves otherwise.
        settings: the probe's settings.
        now: seconds of the monotonic clock.
    """
    if found.healthy:
        return found, without_fault(memory)
    other = found.remedy is not Remedy.OPERATOR and _waits_for_an_operator(past)
    begins = past.fault_since is None or (other and not (past.restart_checks or past.suspect))
    since = now if past.fault_since is None or begins else past.fault_since
    checks = 1 if begins else past.fault_checks + 1
    lasted = checks >= settings.retries and now - since > 3 * settings.timeout
    told = past.failed and not other
    doubted = may_be_doubted(found, settings) and past.proven and not (told or lasted)
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
