"""The rules. Pure: a sighting, what was done before, the policy and the time → a decision."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal
from zlib import crc32

from autoheal.incident import (
    PROBE_COMMAND,
    Action,
    Attempt,
    Check,
    Health,
    Incident,
    Sighting,
    seconds_of,
)
from autoheal.policy import Policy
from probe.report import Remedy, parse

LONGEST_BACKOFF_SECONDS = 600.0

JITTER = 0.25
"""By up to this share each wait is longer, so that what failed together is not tried together."""

TIMEOUTS_IN_A_ROW = 3
"""So many checks that Docker had to end show a fault, where our probe ends in time by itself."""

MOST_ENDED = 3
"""A runner is not ended after so many attempts within the window: ending it does not help."""

LOOK_SECONDS = 2.0
"""How soon a container is inspected again whose runner was ended."""

RECHECK_SECONDS = 10.0
"""How soon a container is inspected again whose last check has proven nothing."""

_TIMEOUT = re.compile(r"Health check exceeded timeout \([^)]*\)(?!: healthy )")
"""Docker's words; not those before a verdict that came too late and says healthy."""

_CANNOT_RUN = re.compile(
    "not found|no such file|permission denied|exec format error|OCI runtime exec failed"
    "|unable to start container process",
    re.IGNORECASE,
)
_SHELL_CANNOT_RUN = (126, 127)


class Verb(StrEnum):
    """What to do about a sighting."""

    IGNORE = "ignore"
    TELL = "tell"
    ASK = "ask"
    WAIT = "wait"
    GIVE_UP = "give up"
    ACT = "act"


@dataclass(frozen=True)
class Decision:
    """What to do, and why in words.

    Attributes:
        verb: ignore it, tell (write it down and leave it alone), ask for an operator, wait, give
            up, or act.
        cause: what is wrong with it, or why it is none of ours.
        note: what follows from that; empty where nothing has to be said.
        until: for WAIT, when to look again, in seconds of the wall clock.
        paused: for WAIT, somebody has asked for it.
        action: for ACT, what to do.
        rung: for ACT, where on the ladder that stands.
    """

    verb: Verb
    cause: str
    note: str = ""
    until: float = 0.0
    paused: bool = False
    action: Action = Action.NONE
    rung: int = 0

    @property
    def why(self) -> str:
        """Both, for the log and for people."""
        return f"{self.cause}; {self.note}" if self.note else self.cause


def decide(
    sighting: Sighting,
    incident: Incident,
    policy: Policy,
    now: float,
    *,
    itself: bool = False,
    paused_until: float | None = None,
) -> Decision:
    """What to do about a container.

    Args:
        sighting: the container now.
        incident: what was done for it before; a new one if nothing was.
        policy: how it wants to be treated.
        now: seconds of the wall clock.
        itself: it is the container that autoheal runs in.
        paused_until: until when nothing may be done to it; None when it may.
    """
    if not policy.watched:
        return Decision(Verb.IGNORE, "it is not labelled")
    if itself and not policy.itself:
        return Decision(Verb.IGNORE, "it is autoheal itself")
    if itself:  # nobody would be there to start the new one
        policy = replace(policy, action=None, ladder=(Action.RESTART,) * policy.max_attempts)
    last = incident.attempts[-1] if incident.attempts else None
    if _left_stopped(sighting, last):
        assert last is not None
        why = f"the last {last.action} left it stopped: {last.error}"
    elif sighting.state != "running":
        return Decision(Verb.IGNORE, f"it is {sighting.state}")
    elif sighting.health is Health.UNHEALTHY:
        why = reason_of(sighting)
        verdict = parse(sighting.line)
        if verdict is None or verdict.healthy:
            if has_our_probe(sighting) and (unproven := _unproven(sighting, why, now)):
                return unproven
        else:
            if verdict.remedy is Remedy.OPERATOR:
                words = "a restart would not help, this needs an operator"
                return Decision(Verb.ASK, why, words)
            if verdict.remedy is Remedy.NONE:
                return Decision(Verb.TELL, why, "it needs time, not a restart")
    elif sighting.complaint and sighting.health is not Health.STARTING:
        why = sighting.complaint
        verdict = parse(sighting.line)
        if verdict is not None and verdict.readings.get("unending"):
            words = "a process in it cannot be killed, so it cannot be stopped"
            return Decision(Verb.ASK, why, f"{words}: this needs an operator")
    else:
        return Decision(Verb.IGNORE, f"its health is {sighting.health}")
    if policy.action is Action.NONE:
        return Decision(Verb.ASK, why, "autoheal.action=none leaves it to an operator")
    if incident.given_up:
        return Decision(Verb.TELL, why, "given up until it is healthy again")
    return _next_step(sighting, incident, policy, now, why, paused_until)


def has_our_probe(sighting: Sighting) -> bool:
    """Whether its health check is our probe: its command says so, or a line that it printed."""
    outputs = (sighting.line, *(check.output for check in sighting.checks))
    return PROBE_COMMAND in " ".join(sighting.test) or any(map(parse, outputs))


def _unproven(sighting: Sighting, why: str, now: float) -> Decision | None:
    """What to do where the last output of our probe's check is no verdict against the server.

    Such output proves nothing: the probe may be missing from the image, or was killed. Only
    timeouts in a row are acted on, because a check that hangs can mean a container that does.

    Returns:
        None where there were enough of them.
    """
    started = seconds_of(sighting.started_at)
    recent = [check for check in sighting.checks if check.at >= started][-TIMEOUTS_IN_A_ROW:]
    timeouts = _timeouts_at_the_end(recent)
    if timeouts == TIMEOUTS_IN_A_ROW:
        return None
    if recent and not timeouts and _cannot_run(recent[-1]):
        return Decision(Verb.ASK, why, "the health check cannot be run, which needs an operator")
    if len(recent) == TIMEOUTS_IN_A_ROW and all(map(_is_useless, recent)):
        words = "the health check gives no verdict, which needs an operator"
        return Decision(Verb.ASK, why, words)
    what = f"timeout {timeouts} of {TIMEOUTS_IN_A_ROW}" if timeouts else "no verdict"
    return Decision(
        Verb.WAIT,
        f"{why} ({what}), which proves nothing yet",
        f"inspected again in {RECHECK_SECONDS:g} s",
        now + RECHECK_SECONDS,
    )


def _timeouts_at_the_end(checks: Sequence[Check]) -> int:
    """How many of the last checks ended by Docker's timeout, without one that did not."""
    count = 0
    for check in reversed(checks):
        if check.exit_code != -1 or _TIMEOUT.match(check.output) is None:
            break
        count += 1
    return count


def _cannot_run(check: Check) -> bool:
    """Whether the check's program could not be run at all."""
    return check.exit_code in _SHELL_CANNOT_RUN or bool(_CANNOT_RUN.search(check.output))


def _is_useless(check: Check) -> bool:
    """Whether the check failed without a verdict that says why."""
    verdict = parse(check.output)
    return check.exit_code != 0 and (verdict is None or verdict.healthy)


def _next_step(
    sighting: Sighting,
    incident: Incident,
    policy: Policy,
    now: float,
    why: str,
    paused_until: float | None,
) -> Decision:
    last = incident.attempts[-1] if incident.attempts else None
    rung = next_rung(sighting, incident, policy, now)
    if rung is None and last is None:
        reasons = dict.fromkeys(filter(None, (why_not(one, sighting) for one in policy.rungs)))
        words = f"nothing on its ladder can be done to it: {' and '.join(reasons)}"
        return Decision(Verb.ASK, why, words)
    spent = spent_since(incident, now - policy.window)
    if rung is None or spent >= policy.max_attempts:
        what = (
            f"nothing on its ladder is left after {_times(len(incident.attempts))}"
            if rung is None
            else f"{_times(spent)} within {policy.window:g} s did not help"
        )
        return Decision(Verb.GIVE_UP, why, what)
    action = policy.rungs[rung]
    if paused_until is not None:
        return Decision(Verb.WAIT, why, "healing is paused", paused_until, paused=True)
    # Nothing was done about another model yet; that it is stuck, the probe finds again before.
    another = action is Action.RUNNER and _names_another(sighting, incident)
    if last is not None and not _is_judged(sighting, last, now, checks=1 if another else 2):
        words = "the next health checks show whether it helped"
        return Decision(Verb.WAIT, why, words, now + LOOK_SECONDS)
    until = 0.0 if another else not_before(sighting, incident, policy)
    clock_was_set_back = now < (last.at if last is not None else incident.opened)
    if now < until and not clock_was_set_back:
        words = f"the {action.noun} follows in {until - now:.0f} s"
        return Decision(Verb.WAIT, why, words, until)
    if policy.dry_run:
        return Decision(Verb.TELL, why, f"dry run: the {action.noun} would follow")
    return Decision(Verb.ACT, why, action=action, rung=rung)


def next_rung(sighting: Sighting, incident: Incident, policy: Policy, now: float) -> int | None:
    """Where to step on the ladder now; None at its end.

    A fault that only a new container cures steps over what is milder, if there is anything
    stronger; what cannot be done to this container is stepped over too, and so is the end of a
    runner that comes back again and again. A refusal has not taken its rung, nor has the end of
    another model's runner.
    """
    verdict = parse(sighting.line)
    last = incident.attempts[-1] if incident.attempts else None
    again = last is not None and (last.refused or _names_another(sighting, incident))
    first = 0 if last is None else last.rung + (not again)
    left = [
        (rung, action)
        for rung, action in enumerate(policy.rungs)
        if rung >= first and why_not(action, sighting) is None
    ]
    if verdict is not None and not verdict.healthy and verdict.remedy is Remedy.RECREATE:
        left = [(r, a) for r, a in left if a is not Action.RESTART] or left
    if policy.action is None and spent_since(incident, now - policy.window) >= MOST_ENDED:
        left = [(r, a) for r, a in left if a is not Action.RUNNER]
    return left[0][0] if left else None


def why_not(action: Action, sighting: Sighting) -> str | None:
    """Why an action cannot be done to a container without harm; None where it can."""
    if sighting.is_swarm_task:
        words = "Swarm owns its tasks, and only a redeploy goes through Swarm"
        return None if action is Action.REDEPLOY else words
    if action is Action.RUNNER and not _names_a_runner(sighting):
        return "its last check names no runner that has to be ended"
    if action is Action.REDEPLOY and not sighting.is_of_compose:
        return "it belongs to no Compose service"
    if action is Action.RECREATE and sighting.auto_remove:  # there would be no way back
        return "it is removed when it stops (--rm), so it cannot be recreated"
    return None


def _names_a_runner(sighting: Sighting) -> bool:
    """Whether the last check says that ending one runner would help; an older probe never does."""
    verdict = parse(sighting.line)
    return verdict is not None and not verdict.healthy and verdict.remedy is Remedy.RUNNER


def _names_another(sighting: Sighting, incident: Incident) -> bool:
    """Whether the last check names the runner of a model for which nothing was done yet.

    So it is only where nothing but others' runners were ended, each once: that has not failed to
    help it. A refusal may have been about it, and the check of before that.
    """
    verdict = parse(sighting.line)
    if verdict is None or not _names_a_runner(sighting) or not incident.attempts:
        return False
    attempts = [one for one in incident.attempts if not one.refused]
    ended = {one.model for one in attempts if one.action is Action.RUNNER}
    once = len(ended) == len(attempts) and all(one.error is None for one in attempts)
    named = verdict.readings.get("model")
    known = isinstance(named, str) and named != "" and "" not in ended and named not in ended
    return known and once and not incident.attempts[-1].refused


def _is_judged(sighting: Sighting, last: Attempt, now: float, *, checks: int = 2) -> bool:
    """Whether the sighting rests on a check that began after the last attempt.

    Where that ended a runner, and the container went on, its health is of before until then. The
    engine's clock may not be ours: its times are compared with each other only.

    Args:
        sighting: the container now.
        last: the last attempt.
        now: seconds of the wall clock.
        checks: so many have to be new; the first of them may have begun before.
    """
    ended = last.at if last.ended is None else last.ended
    if last.action is not Action.RUNNER or not ended <= now < ended + sighting.check_seconds:
        return True
    return last.checked is not None and sum(c.at > last.checked for c in sighting.checks) >= checks


def not_before(sighting: Sighting, incident: Incident, policy: Policy) -> float:
    """When the next attempt may begin, in seconds of the wall clock."""
    if incident.attempts:
        last = incident.attempts[-1]
        began = last.at if last.ended is None else last.ended
        return began + backoff(len(incident.attempts), policy.backoff, incident.subject)
    if sighting.is_swarm_task:  # Swarm replaces a sick task by itself; it has the first try
        return incident.opened + max(policy.delay, policy.backoff)
    return incident.opened + policy.delay


def backoff(attempts: int, first: float, subject: str) -> float:
    """Seconds from the end of the last attempt to the next.

    Args:
        attempts: how many there were.
        first: the wait after the first, which doubles with each one that follows.
        subject: whose waits these are; each has its own jitter.
    """
    wait = min(first * 2.0 ** min(attempts - 1, 32), max(first, LONGEST_BACKOFF_SECONDS))
    return wait * (1 + JITTER * crc32(f"{subject}/{attempts}".encode()) / 2**32)


def spent_since(incident: Incident, since: float) -> int:
    """How much of the budget is spent: attempts that began after `since`, closed incidents' too."""
    times = [*incident.spent, *(attempt.at for attempt in incident.attempts)]
    return sum(at > since for at in times)


def reason_of(sighting: Sighting) -> str:
    """Why the container is unhealthy, in the words of its own check."""
    line = " ".join(sighting.line.split())
    verdict = parse(line)
    if verdict is not None:
        return f"{verdict.reason}: {verdict.message}"
    return f"its health check says: {line[:200]}" if line else "its health check says nothing"


def outcome(
    incident: Incident, sighting: Sighting, policy: Policy, now: float
) -> Literal["healed", "recovered", "replaced"] | None:
    """How an incident has ended by now; None while it is open.

    `replaced`: somebody made the container anew. Otherwise it stayed well for the settle time:
    `healed` after an attempt of ours, `recovered` by itself or by a person's hand.
    """
    if incident.container not in ("", sighting.id) and not sighting.is_swarm_task:
        return "replaced"
    if incident.healthy_since is None or now - incident.healthy_since < policy.settle:
        return None
    done = any(not attempt.refused for attempt in incident.attempts)
    return "healed" if done and not incident.given_up else "recovered"


def after_sighting(incident: Incident, sighting: Sighting, now: float) -> Incident:
    """The incident with what a sighting says of its container's health."""
    well = (
        sighting.state == "running"
        and sighting.health in (Health.HEALTHY, Health.NONE)
        and not sighting.complaint
    )
    since = (incident.healthy_since or now) if well else None
    if (incident.container, incident.healthy_since) == (sighting.id, since):
        return incident
    return replace(incident, container=sighting.id, healthy_since=since)


def _left_stopped(sighting: Sighting, last: Attempt | None) -> bool:
    return (
        last is not None
        and last.left_stopped is not None
        and (sighting.state, sighting.finished_at) == ("exited", last.left_stopped)
    )


def _times(count: int) -> str:
    return "1 attempt" if count == 1 else f"{count} attempts"
