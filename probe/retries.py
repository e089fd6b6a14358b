"""When a fault counts: at once, or when several checks in a row have found it. Pure."""

from __future__ import annotations

from dataclasses import replace

from probe.memory import Memory
from probe.report import Reason, Verdict
from probe.settings import Settings


def counted(found: Verdict, past: Memory, settings: Settings, now: float) -> Verdict:
    """What Docker is told of a fault that was found; a healthy verdict is told as it is.

    A fault that is not certain counts once as many checks in a row have found it as the settings
    say, over more than twice the time that a check may take. Until then it is a doubt. There is
    none before the first healthy check, which would end Docker's start period, and none about a
    server that is unhealthy already.

    Args:
        found: the verdict of this check by itself.
        past: what the checks before left.
        settings: the probe's settings.
        now: seconds of the monotonic clock.
    """
    if found.healthy or found.certain or not past.proven or not may_be_doubted(found, settings):
        return found
    if past.episodes and not past.episodes[-1].healthy:
        return found
    since = now if past.fault_since is None else past.fault_since
    lasted = now - since > 2 * settings.timeout
    if past.fault_checks + 1 >= settings.retries and lasted:
        return found
    words = f"{found.message}; not certain yet, the next check looks again"
    return Verdict(True, Reason.BUSY, words, {**found.readings, "doubt": str(found.reason)})


def may_be_doubted(found: Verdict, settings: Settings) -> bool:
    """Whether a fault has to be found more than once."""
    wrong = found.reason is Reason.MISCONFIGURED
    return settings.retries > 1 and not (found.healthy or found.certain or wrong)


def with_fault(memory: Memory, found: Verdict, now: float) -> Memory:
    """The memory after one more check, whose verdict by itself was this."""
    if found.healthy:
        return replace(memory, fault_since=None, fault_checks=0)
    since = now if memory.fault_since is None else memory.fault_since
    return replace(memory, fault_since=since, fault_checks=memory.fault_checks + 1)
