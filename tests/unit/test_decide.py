"""autoheal's rules, as a table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autoheal.decide import (
    Attempt,
    Health,
    Incident,
    Sighting,
    Verb,
    after_sighting,
    backoff,
    decide,
)
from autoheal.settings import Policy
from probe.report import Reason, Verdict, render

NOW = 1000.0
WATCHED = Policy(watched=True)
SICK = Sighting("c0ffee", "ollama", "running", Health.UNHEALTHY)
FRESH = Incident()


def line(reason: Reason, healthy: bool = False) -> str:
    return render(Verdict(healthy, reason, "words"))


def tried(ago: float, error: str | None = None, left_stopped: str | None = None) -> Incident:
    return Incident((Attempt(NOW - ago, error, left_stopped),))


@pytest.mark.parametrize(
    ("sighting", "incident", "policy", "verb"),
    [
        (SICK, FRESH, WATCHED, "restart"),
        (SICK, FRESH, Policy(watched=False), "ignore"),
        # what its own check says
        (replace(SICK, line="feeling sick"), FRESH, WATCHED, "restart"),
        (replace(SICK, line=line(Reason.STALLED)), FRESH, WATCHED, "restart"),
        (replace(SICK, line=line(Reason.API_DOWN)), FRESH, WATCHED, "restart"),
        (replace(SICK, line=line(Reason.GPU_LOST)), FRESH, WATCHED, "restart"),
        (replace(SICK, line=line(Reason.MODEL_MISSING)), FRESH, WATCHED, "tell"),
        (replace(SICK, line=line(Reason.MISCONFIGURED)), FRESH, WATCHED, "tell"),
        (replace(SICK, line=line(Reason.VRAM_TAKEN)), FRESH, WATCHED, "tell"),
        (replace(SICK, line=line(Reason.LOADING)), FRESH, WATCHED, "tell"),
        # never one that is well, or that somebody has in hand
        (replace(SICK, health=Health.HEALTHY), FRESH, WATCHED, "ignore"),
        (replace(SICK, health=Health.STARTING), FRESH, WATCHED, "ignore"),
        (replace(SICK, health=Health.NONE), FRESH, WATCHED, "ignore"),
        (replace(SICK, state="exited"), FRESH, WATCHED, "ignore"),
        (replace(SICK, state="paused"), FRESH, WATCHED, "ignore"),
        (replace(SICK, state="restarting"), FRESH, WATCHED, "ignore"),
        (replace(SICK, state="removing"), FRESH, WATCHED, "ignore"),
        (replace(SICK, id="self"), FRESH, WATCHED, "ignore"),
        (replace(SICK, labels={"com.docker.swarm.service.id": "x"}), FRESH, WATCHED, "ignore"),
        # not at once again
        (SICK, tried(9), WATCHED, "wait"),
        (SICK, tried(11), WATCHED, "restart"),
        # a restart that left it stopped is ours to finish; a person's stop is not
        (replace(SICK, state="exited", finished_at="a"), tried(11, "no", "a"), WATCHED, "restart"),
        (replace(SICK, state="exited", finished_at="a"), tried(1, "no", "a"), WATCHED, "wait"),
        (replace(SICK, state="exited", finished_at="b"), tried(11, "no", "a"), WATCHED, "ignore"),
    ],
)
def test_a_sighting_is_decided(
    sighting: Sighting, incident: Incident, policy: Policy, verb: str
) -> None:
    decision = decide(sighting, incident, policy, "self", NOW)
    assert decision.verb is Verb(verb), decision.why


def test_the_wait_doubles_up_to_ten_minutes() -> None:
    assert [backoff(n) for n in (0, 1, 2, 3, 7, 50)] == [0, 10, 20, 40, 600, 600]


def test_a_wait_says_when_it_ends() -> None:
    assert decide(SICK, tried(4), WATCHED, None, NOW).until == NOW + 6


def test_an_incident_is_over_when_the_container_stayed_healthy_for_a_minute() -> None:
    well = replace(SICK, health=Health.HEALTHY)
    incident = after_sighting(tried(5), well, NOW)
    assert incident.attempts
    assert after_sighting(incident, SICK, NOW + 59).attempts
    assert after_sighting(incident, SICK, NOW + 61) == Incident()
