"""The plain data of healing: what is seen, what is done about it, what is said of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

SWARM_SERVICE_ID = "com.docker.swarm.service.id"
SWARM_SERVICE_NAME = "com.docker.swarm.service.name"
STACK = "com.docker.stack.namespace"
COMPOSE_PROJECT = "com.docker.compose.project"
COMPOSE_SERVICE = "com.docker.compose.service"
COMPOSE_NUMBER = "com.docker.compose.container-number"
"""Only containers that Compose made have it; the others come with an image that it built, too."""

COMPOSE_ONE_OFF = "com.docker.compose.oneoff"

PROBE_COMMAND = "ollama-probe"
"""A HEALTHCHECK whose command names it runs our probe."""


class Health(StrEnum):
    """A container's health as Docker reports it."""

    NONE = "none"
    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


class Action(StrEnum):
    """What may be done about a container, from the mildest to the strongest."""

    NONE = "none"
    RUNNER = "runner"
    RESTART = "restart"
    RECREATE = "recreate"
    REDEPLOY = "redeploy"
    STOP = "stop"

    @property
    def noun(self) -> str:
        """What it is called in a sentence, after `the`."""
        return "end of the stuck runner" if self is Action.RUNNER else self.value


class News(StrEnum):
    """What people are told of."""

    HEALED = "healed"
    FAILED = "failed"
    GIVEN_UP = "given_up"
    OPERATOR = "operator"
    DEGRADED = "degraded"


@dataclass(frozen=True)
class Check:
    """One entry of a container's health log.

    Attributes:
        at: when the check began, in seconds of the wall clock.
        exit_code: its own, or -1 where Docker ended it or could not run it.
        output: what it printed, or Docker's words.
    """

    at: float
    exit_code: int
    output: str


@dataclass(frozen=True)
class Sighting:
    """One container at one moment.

    Attributes:
        id: its full id.
        name: without the leading slash.
        state: Docker's word: running, paused, restarting, exited, ...
        health: as its HEALTHCHECK says.
        line: the output of its last check.
        test: the command of its HEALTHCHECK, as Docker has it (`CMD`, ...); empty without one.
        checks: its health log, oldest first. Docker keeps five, those of earlier starts too.
        check_seconds: after so long a health check is over that begins from now on.
        started_at: when it last started, as Docker writes it.
        finished_at: when it last stopped, as Docker writes it.
        labels: all of them.
        auto_remove: it goes away when it stops (`docker run --rm`).
        complaint: which of the limits of its resources it is over; empty when it is over none.
    """

    id: str
    name: str
    state: str
    health: Health
    line: str = ""
    test: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    check_seconds: float = 60.0
    started_at: str = ""
    finished_at: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    auto_remove: bool = False
    complaint: str = ""

    @property
    def subject(self) -> str:
        """What an incident is about: the container by its name, or its Swarm service by its."""
        return self.labels.get(SWARM_SERVICE_NAME, self.name) if self.is_swarm_task else self.name

    @property
    def is_swarm_task(self) -> bool:
        return SWARM_SERVICE_ID in self.labels

    @property
    def is_of_compose(self) -> bool:
        return is_of_compose(self.labels)


@dataclass(frozen=True)
class Neighbour:
    """A container as a possible follower of another.

    Attributes:
        id: its full id.
        name: without the leading slash.
        state: Docker's word.
        labels: all of them.
        shares: ids of the containers whose network, PID or IPC namespace it is in.
    """

    id: str
    name: str
    state: str
    labels: Mapping[str, str] = field(default_factory=dict)
    shares: frozenset[str] = frozenset()


def is_of_compose(labels: Mapping[str, str]) -> bool:
    """Whether a container is one of a Compose service (and not of `docker compose run`)."""
    needed = {COMPOSE_PROJECT, COMPOSE_SERVICE, COMPOSE_NUMBER}
    return needed <= labels.keys() and labels.get(COMPOSE_ONE_OFF, "").lower() != "true"


def seconds_of(moment: str) -> float:
    """A moment as Docker writes it, in seconds of the wall clock; 0 for one that never was."""
    try:
        return max(datetime.fromisoformat(moment).timestamp(), 0.0)
    except ValueError:
        return 0.0


@dataclass(frozen=True)
class Attempt:
    """One try at healing.

    Attributes:
        at: when it began, in seconds of the wall clock: it must outlive a restart.
        action: what was done.
        rung: where on the ladder that stood, from 0.
        ended: when it was over; None while it is under way.
        error: why it failed; None when it did not.
        left_stopped: the container's `finished_at`, when the failure left it stopped.
        refused: there was no runner that had to be ended.
        model: whose runner was ended; empty where none was, or that is not known.
        checked: after a runner was to be ended, when the newest health check had begun, by the
            engine's clock; None where that is not known. Not kept in the ledger.
    """

    at: float
    action: Action = Action.RESTART
    rung: int = 0
    ended: float | None = None
    error: str | None = None
    left_stopped: str | None = None
    refused: bool = False
    model: str = ""
    checked: float | None = None


@dataclass(frozen=True)
class Incident:
    """What was seen and done since a container was last well.

    Attributes:
        subject: the container's name, or that of its Swarm service.
        container: the id of the container that was last seen or made.
        opened: when it was first seen unhealthy, in seconds of the wall clock.
        why: the reason then, in words.
        attempts: oldest first.
        spent: when earlier attempts at the same subject began, in incidents that are over.
        healthy_since: since when it is seen healthy again; None if it is not.
        given_up: no more is tried until it has been well.
        told: what was already said of it, so that it is said once.
        id: of its row in the ledger; 0 before it has one.
    """

    subject: str
    container: str = ""
    opened: float = 0.0
    why: str = ""
    attempts: tuple[Attempt, ...] = ()
    spent: tuple[float, ...] = ()
    healthy_since: float | None = None
    given_up: bool = False
    told: frozenset[str] = frozenset()
    id: int = 0
