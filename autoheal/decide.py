"""The rules. Pure: a sighting, what was done before, the policy and the time → a decision."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from autoheal.settings import Policy
from probe.report import Remedy, parse

SETTLE_SECONDS = 60.0
"""A container that has stayed healthy for this long after a heal is well again."""

BACKOFF_SECONDS = 10.0
"""Wait before the second attempt of an incident; it doubles with each one that follows."""

LONGEST_BACKOFF_SECONDS = 600.0


class Health(StrEnum):
    """A container's health as Docker reports it."""

    NONE = "none"
    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True)
class Sighting:
    """One container at one moment.

    Attributes:
        id: its full id.
        name: without the leading slash.
        state: Docker's word: running, paused, restarting, exited, ...
        health: as its HEALTHCHECK says.
        line: the output of its last check.
        finished_at: when it last stopped, as Docker writes it.
        labels: all of them.
    """

    id: str
    name: str
    state: str
    health: Health
    line: str = ""
    finished_at: str = ""
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Attempt:
    """One try at healing.

    Attributes:
        at: when it began, in seconds of the monotonic clock.
        error: why it failed; None when it did not.
        left_stopped: the container's `finished_at`, when the failure left it stopped.
    """

    at: float
    error: str | None = None
    left_stopped: str | None = None


@dataclass(frozen=True)
class Incident:
    """What has been done for one container since it was last well.

    Attributes:
        attempts: oldest first.
        healthy_since: when it was first seen healthy after the last of them; None if not yet.
        told: what was already said of it, so that it is said once.
    """

    attempts: tuple[Attempt, ...] = ()
    healthy_since: float | None = None
    told: frozenset[str] = frozenset()


class Verb(StrEnum):
    """What to do about a sighting."""

    IGNORE = "ignore"
    TELL = "tell"
    WAIT = "wait"
    RESTART = "restart"


@dataclass(frozen=True)
class Decision:
    """What to do, and why in words.

    Attributes:
        verb: what to do.
        why: for the log.
        until: for WAIT, when to look again, in seconds of the monotonic clock.
    """

    verb: Verb
    why: str
    until: float = 0.0


def decide(
    sighting: Sighting, incident: Incident, policy: Policy, own_id: str | None, now: float
) -> Decision:
    """What to do about a container.

    Args:
        sighting: the container now.
        incident: what was done for it before.
        policy: how it wants to be treated.
        own_id: the id of the container that autoheal itself runs in, if it does.
        now: seconds of the monotonic clock.
    """
    if not policy.watched:
        return Decision(Verb.IGNORE, "it is not labelled")
    if sighting.id == own_id:
        return Decision(Verb.IGNORE, "it is autoheal itself")
    if "com.docker.swarm.service.id" in sighting.labels:
        return Decision(Verb.IGNORE, "it is a Swarm task, which Swarm replaces by itself")
    last = incident.attempts[-1] if incident.attempts else None
    if (
        last is not None
        and last.left_stopped is not None
        and (sighting.state, sighting.finished_at) == ("exited", last.left_stopped)
    ):
        why = f"the last restart left it stopped: {last.error}"
    elif sighting.state != "running":
        return Decision(Verb.IGNORE, f"it is {sighting.state}")
    elif sighting.health is not Health.UNHEALTHY:
        return Decision(Verb.IGNORE, f"its health is {sighting.health}")
    else:
        why = reason_of(sighting)
        verdict = parse(sighting.line)
        if verdict is not None and not verdict.healthy:
            if verdict.remedy is Remedy.OPERATOR:
                return Decision(Verb.TELL, f"{why}; no restart would help, a person is needed")
            if verdict.remedy is Remedy.NONE:
                return Decision(Verb.TELL, f"{why}; it needs time, not a restart")
    if last is not None:
        until = last.at + backoff(len(incident.attempts))
        if now < until:
            return Decision(
                Verb.WAIT,
                f"{why}; attempt {len(incident.attempts) + 1} follows in {until - now:.0f} s",
                until,
            )
    return Decision(Verb.RESTART, why)


def reason_of(sighting: Sighting) -> str:
    """Why the container is unhealthy, in the words of its own check."""
    line = " ".join(sighting.line.split())
    verdict = parse(line)
    if verdict is not None:
        return f"{verdict.reason}: {verdict.message}"
    return f"its health check says: {line[:200]}" if line else "its health check says nothing"


def backoff(attempts: int) -> float:
    """Seconds from the last attempt to the next, after so many of them."""
    if attempts < 1:
        return 0.0
    return float(min(BACKOFF_SECONDS * 2 ** (attempts - 1), LONGEST_BACKOFF_SECONDS))


def after_sighting(incident: Incident, sighting: Sighting, now: float) -> Incident:
    """The incident after a sighting: over once the container has stayed healthy long enough."""
    if sighting.health is not Health.HEALTHY or sighting.state != "running":
        if incident.healthy_since is None:
            return incident
        if now - incident.healthy_since >= SETTLE_SECONDS:
            return Incident()
        return Incident(incident.attempts, None, incident.told)
    if incident.healthy_since is None:
        return Incident(incident.attempts, now, frozenset())
    return incident
