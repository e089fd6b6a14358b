"""autoheal's rules, as a table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autoheal.decide import (
    RECHECK_SECONDS,
    after_sighting,
    backoff,
    decide,
    has_our_probe,
    not_before,
    outcome,
)
from autoheal.incident import (
    SWARM_SERVICE_ID,
    SWARM_SERVICE_NAME,
    Action,
    Attempt,
    Check,
    Health,
    Incident,
    Sighting,
)
from autoheal.policy import Policy
from probe.report import Reason, Verdict, render

NOW = 100_000.0
SICK = Sighting("c0ffee", "ollama", "running", Health.UNHEALTHY)
WELL = replace(SICK, health=Health.HEALTHY)
FRESH = Incident("ollama", "c0ffee", opened=NOW)
IMAGE = {"com.docker.compose.project": "p", "com.docker.compose.service": "s"}
COMPOSE = {**IMAGE, "com.docker.compose.container-number": "1"}
OF_COMPOSE = replace(SICK, labels=COMPOSE)
SWARM = replace(SICK, name="s.1.x", labels={SWARM_SERVICE_ID: "x", SWARM_SERVICE_NAME: "s"})
RESTART, RECREATE, REDEPLOY = Action.RESTART, Action.RECREATE, Action.REDEPLOY
END = "redeploy", 3
LADDER = (RESTART, RESTART, RECREATE, REDEPLOY)
WATCHED = Policy(watched=True, ladder=LADDER)
USUAL = Policy(watched=True)
"""With the ladder that holds by default, which begins with the runner."""


def line(reason: Reason | str, healthy: bool = False) -> str:
    return render(Verdict(healthy, reason, "words"))


def says(reason: str, remedy: str) -> Sighting:
    """A container whose probe, perhaps of another version, wrote this remedy."""
    return replace(SICK, line=f"unhealthy {reason} ({remedy}): words {{}}")


def tried(*rungs: int, ago: float = 10_000, error: str | None = None) -> Incident:
    """An incident with attempts at these rungs, the last of which ended so long ago."""
    attempts = tuple(Attempt(NOW - ago, LADDER[r], r, NOW - ago, error) for r in rungs)
    return replace(FRESH, opened=NOW - ago, attempts=attempts)


def after_the_runner(ago: float = 1000, **more: Any) -> Incident:
    """An incident in which the stuck runner was ended so long ago."""
    attempt = Attempt(NOW - ago - 5, Action.RUNNER, 0, NOW - ago, **more)
    return replace(FRESH, opened=NOW - ago - 5, attempts=(attempt,))


def stalls(model: str, remedy: str = "runner") -> Sighting:
    """A container in which this model gives no token."""
    return replace(SICK, line=f'unhealthy stalled ({remedy}): words {{"model":"{model}"}}')


def after_the_runners_of(*models: str, ago: float = 1000, **more: Any) -> Incident:
    """An incident in which their runners were ended, the last one so long ago."""
    incident = after_the_runner(ago)
    attempts = tuple(replace(incident.attempts[0], model=one, **more) for one in models)
    return replace(incident, attempts=attempts)


def refused_after(incident: Incident) -> Incident:
    """The same, and the probe has just refused to end another one."""
    refused = Attempt(NOW - 0.5, Action.RUNNER, 0, NOW - 0.1, refused=True, checked=2)
    return replace(incident, attempts=(*incident.attempts, refused))


def left_stopped(ago: float) -> Incident:
    attempt = Attempt(NOW - ago, RESTART, 0, NOW - ago, "no", "a")
    return replace(FRESH, attempts=(attempt,))


@pytest.mark.parametrize(
    ("sighting", "incident", "policy", "verb"),
    [
        (SICK, FRESH, WATCHED, "act"),
        (SICK, FRESH, Policy(watched=False), "ignore"),
        # what its own check says
        (replace(SICK, line="feeling sick"), FRESH, WATCHED, "act"),
        (replace(SICK, line=line(Reason.STALLED)), FRESH, WATCHED, "act"),
        (replace(SICK, line=line(Reason.API_DOWN)), FRESH, WATCHED, "act"),
        (replace(SICK, line=line(Reason.GPU_LOST)), FRESH, WATCHED, "act"),
        (replace(SICK, line=line(Reason.MODEL_MISSING)), FRESH, WATCHED, "ask"),
        (replace(SICK, line=line(Reason.MISCONFIGURED)), FRESH, WATCHED, "ask"),
        (replace(SICK, line=line(Reason.VRAM_TAKEN)), FRESH, WATCHED, "ask"),
        (replace(SICK, line=line(Reason.MODEL_UNUSABLE)), FRESH, WATCHED, "ask"),
        (replace(SICK, line=line(Reason.LOADING)), FRESH, WATCHED, "tell"),
        # what it says would help goes before what its reason means here
        (says("stalled", "operator"), FRESH, WATCHED, "ask"),
        (says("stalled", "none"), FRESH, WATCHED, "tell"),
        (says("stalled", "reboot"), FRESH, WATCHED, "ask"),
        (says("power_lost", "restart"), FRESH, WATCHED, "act"),
        (says("power_lost", "operator"), FRESH, WATCHED, "ask"),
        (says("power_lost", "reboot"), FRESH, WATCHED, "ask"),
        (replace(SICK, line="unhealthy power_lost: words {}"), FRESH, WATCHED, "tell"),
        # never one that is well, or that somebody has in hand
        (WELL, FRESH, WATCHED, "ignore"),
        (replace(SICK, health=Health.STARTING), FRESH, WATCHED, "ignore"),
        (replace(SICK, health=Health.NONE), FRESH, WATCHED, "ignore"),
        (replace(SICK, state="created"), FRESH, WATCHED, "ignore"),
        (replace(SICK, state="exited"), FRESH, WATCHED, "ignore"),
        (replace(SICK, state="paused"), FRESH, WATCHED, "ignore"),
        (replace(SICK, state="restarting"), FRESH, WATCHED, "ignore"),
        (replace(SICK, state="removing"), FRESH, WATCHED, "ignore"),
        # over a limit of its resources
        (replace(WELL, complaint="over_limit"), FRESH, WATCHED, "act"),
        (replace(WELL, health=Health.NONE, complaint="over_limit"), FRESH, WATCHED, "act"),
        (replace(WELL, health=Health.STARTING, complaint="x"), FRESH, WATCHED, "ignore"),
        (replace(WELL, state="paused", complaint="over_limit"), FRESH, WATCHED, "ignore"),
        (
            replace(WELL, complaint="x", line='healthy ready: words {"unending":"7/1"}'),
            *(FRESH, WATCHED, "ask"),
        ),
        # not at once again
        (SICK, tried(0, ago=9), WATCHED, "wait"),
        (SICK, tried(0, ago=13), WATCHED, "act"),
        # a clock that was set back is no reason to wait for hours
        (SICK, tried(0, ago=-100_000), WATCHED, "act"),
        # an attempt that left it stopped is ours to follow; a person's stop is not
        (replace(SICK, state="exited", finished_at="a"), left_stopped(13), WATCHED, "act"),
        (replace(SICK, state="exited", finished_at="a"), left_stopped(1), WATCHED, "wait"),
        (replace(SICK, state="exited", finished_at="b"), left_stopped(13), WATCHED, "ignore"),
        # its own wishes
        (SICK, FRESH, replace(WATCHED, action=Action.NONE), "ask"),
        (SICK, FRESH, replace(WATCHED, dry_run=True), "tell"),
        (SICK, FRESH, replace(WATCHED, delay=30), "wait"),
        (SICK, replace(FRESH, opened=NOW - 31), replace(WATCHED, delay=30), "act"),
        # Swarm has the first try
        (SWARM, FRESH, WATCHED, "wait"),
        (SWARM, replace(FRESH, opened=NOW - 11), WATCHED, "act"),
        # the end
        (SICK, tried(0, 1, 2), WATCHED, "give up"),
        (OF_COMPOSE, tried(0, 1, 2), WATCHED, "act"),
        (OF_COMPOSE, tried(0, 1, 2, 3), WATCHED, "give up"),
        (SICK, replace(tried(0), given_up=True), WATCHED, "tell"),
        # the budget counts closed incidents too, and only the window
        (SICK, replace(FRESH, spent=(NOW - 60,) * 10), WATCHED, "give up"),
        (SICK, replace(FRESH, spent=(NOW - 3601,) * 10), WATCHED, "act"),
        (SICK, tried(0), replace(WATCHED, action=RESTART, max_attempts=1), "act"),
        (SICK, tried(0, ago=60), replace(WATCHED, action=RESTART, max_attempts=1), "give up"),
        # nothing that could be done to it
        # an image that Compose built has labels, too, which its containers inherit
        (replace(SICK, labels=IMAGE), FRESH, replace(WATCHED, action=REDEPLOY), "ask"),
        (SWARM, FRESH, replace(WATCHED, ladder=(RESTART,)), "ask"),
        (replace(SICK, auto_remove=True), FRESH, replace(WATCHED, action=RECREATE), "ask"),
        (SICK, FRESH, replace(WATCHED, action=REDEPLOY), "ask"),
    ],
)
def test_a_sighting_is_decided(
    sighting: Sighting, incident: Incident, policy: Policy, verb: str
) -> None:
    decision = decide(sighting, incident, policy, NOW)
    assert decision.verb == verb, decision.why


OURS = ("CMD", "/usr/local/bin/ollama-probe", "check")
OTHERS = ("CMD-SHELL", "curl --fail localhost:11434")
STARTED_AT = "1970-01-02T03:30:00.123456789Z"  # NOW - 1000
TIMEOUT = (-1, "Health check exceeded timeout (15s)")
READY = (0, line(Reason.READY, healthy=True))
STALLED = (1, line(Reason.STALLED))
NO_FILE = (
    -1,
    "OCI runtime exec failed: exec failed: unable to start container process: exec: "
    '"/usr/local/bin/ollama-probe": stat /usr/local/bin/ollama-probe: no such file or directory: '
    "unknown",
)
NOT_EXECUTABLE = (
    -1,
    "OCI runtime exec failed: exec failed: unable to start container process: exec: "
    '"/x/probe": permission denied: unknown',
)
CRASHED = (137, "")


def checked(*checks: tuple[int, str], test: tuple[str, ...] = OURS, since: float = 900) -> Sighting:
    """An unhealthy container with these checks in its log, the first of them so long ago."""
    log = tuple(
        Check(NOW - since + 15 * number, code, output)
        for number, (code, output) in enumerate(checks)
    )
    line = log[-1].output if log else ""
    return replace(SICK, line=line, test=test, checks=log, started_at=STARTED_AT)


@pytest.mark.parametrize(
    ("sighting", "verb"),
    [
        # a verdict of ours counts, whatever was before it
        (checked(STALLED), "act"),
        (checked(TIMEOUT, STALLED), "act"),
        (checked(NO_FILE, STALLED), "act"),
        (checked((-1, f"{TIMEOUT[1]}: {STALLED[1]}")), "act"),
        # Docker's own words count from the third in a row
        (checked(TIMEOUT), "wait"),
        (checked(TIMEOUT, TIMEOUT), "wait"),
        (checked(STALLED, TIMEOUT, TIMEOUT), "wait"),
        (checked(TIMEOUT, TIMEOUT, STALLED, TIMEOUT), "wait"),
        (checked(TIMEOUT, TIMEOUT, TIMEOUT), "act"),
        (checked(READY, TIMEOUT, TIMEOUT, TIMEOUT), "act"),
        (checked(*[(-1, f"{TIMEOUT[1]}: Traceback")] * 3), "act"),
        # three that were made since it started: the log outlives a restart
        (checked(*[TIMEOUT] * 5, since=1040), "wait"),
        (checked(*[TIMEOUT] * 5, since=1020), "act"),
        # a check that was out of time after it had found the server healthy
        (checked(*[(-1, f"{TIMEOUT[1]}: {READY[1]}")] * 2), "wait"),
        (checked(*[(-1, f"{TIMEOUT[1]}: {READY[1]}")] * 3), "ask"),
        (checked(*[(137, READY[1])] * 2), "wait"),
        (checked(*[(137, READY[1])] * 3), "ask"),
        # a check that cannot be run
        (checked(NO_FILE), "ask"),
        (checked(*[NO_FILE] * 3), "ask"),
        (checked(NOT_EXECUTABLE), "ask"),
        (checked((1, "exec /usr/local/bin/ollama-probe: exec format error\n")), "ask"),
        (checked((127, "/bin/sh: 1: ollama-probe: not found\n")), "ask"),
        (checked((126, "/bin/sh: 1: /opt/ollama-probe/bin/x: Permission denied\n")), "ask"),
        (checked((1, "/bin/sh: ollama-probe: not found\n")), "ask"),
        (checked((127, "")), "ask"),
        # anything else proves nothing, and does not stay unnoticed
        (checked(CRASHED), "wait"),
        (checked(CRASHED, CRASHED), "wait"),
        (checked(READY, READY, CRASHED), "wait"),
        (checked((0, ""), (0, ""), TIMEOUT), "wait"),
        (checked(CRASHED, CRASHED, CRASHED), "ask"),
        (checked(TIMEOUT, CRASHED, TIMEOUT), "ask"),
        (checked((1, "Fatal Python error: init_fs_encoding")), "wait"),
        (checked(), "wait"),
        # without our probe any failure counts
        (checked(TIMEOUT, test=OTHERS), "act"),
        (checked(NO_FILE, test=OTHERS), "act"),
        (checked((127, "/bin/sh: curl: not found"), test=OTHERS), "act"),
        (checked(test=()), "act"),
        # its command does not name the probe, but what it printed once does
        (checked(STALLED, TIMEOUT, test=("CMD", "/check.sh")), "wait"),
        (checked(READY, NO_FILE, test=("CMD", "/check.sh")), "ask"),
    ],
)
def test_output_that_is_no_verdict_of_our_probe_proves_nothing(
    sighting: Sighting, verb: str
) -> None:
    decision = decide(sighting, FRESH, WATCHED, NOW)
    assert decision.verb == verb, decision.why


def test_a_container_that_has_proven_nothing_is_soon_inspected_again() -> None:
    decision = decide(checked(TIMEOUT), FRESH, WATCHED, NOW)
    assert decision.until == NOW + RECHECK_SECONDS
    assert "1 of 3" in decision.why


def test_a_check_that_cannot_be_run_is_named() -> None:
    why = decide(checked(NO_FILE), FRESH, WATCHED, NOW).why
    assert "no such file or directory" in why
    assert why.endswith("the health check cannot be run, which needs an operator")


@pytest.mark.parametrize(
    ("sighting", "ours"),
    [
        (SICK, False),
        (checked(test=OURS), True),
        (checked(test=("CMD-SHELL", "/opt/ollama-probe/bin/ollama-probe check || exit 1")), True),
        (checked(CRASHED, test=OTHERS), False),
        (checked(READY, CRASHED, test=OTHERS), True),
        (replace(SICK, line=READY[1]), True),
    ],
)
def test_our_probe_is_known_by_its_command_or_by_what_it_printed(
    sighting: Sighting, ours: bool
) -> None:
    assert has_our_probe(sighting) is ours


@pytest.mark.parametrize(
    ("sighting", "incident", "policy", "action", "rung"),
    [
        (SICK, FRESH, WATCHED, "restart", 0),
        (SICK, tried(0), WATCHED, "restart", 1),
        (SICK, tried(0, 1), WATCHED, "recreate", 2),
        (OF_COMPOSE, tried(0, 1, 2), WATCHED, "redeploy", 3),
        # a lost GPU: a restart first, then a new container
        (replace(SICK, line=line(Reason.GPU_LOST)), FRESH, WATCHED, "restart", 0),
        (replace(SICK, line=line(Reason.CPU_FALLBACK)), tried(0, 1), WATCHED, "recreate", 2),
        (says("stalled", "runner"), FRESH, WATCHED, "restart", 0),
        # only what is stuck is ended, where the probe says so; a restart is next
        (says("stalled", "runner"), FRESH, USUAL, "runner", 0),
        (says("stalled", "runner"), after_the_runner(), USUAL, "restart", 1),
        (says("stalled", "runner"), after_the_runner(refused=True), USUAL, "runner", 0),
        (says("api_down", "restart"), after_the_runner(refused=True), USUAL, "restart", 1),
        # one model's runner after the other; a model that hangs again needs more than that
        (stalls("b"), after_the_runners_of("a"), USUAL, "runner", 0),
        (stalls("a"), after_the_runners_of("a"), USUAL, "restart", 1),
        (stalls("a"), after_the_runners_of("a", "b"), USUAL, "restart", 1),
        (stalls("c"), after_the_runners_of("a", "b"), USUAL, "runner", 0),
        (stalls("d"), after_the_runners_of("a", "b", "c"), USUAL, "restart", 1),
        (stalls("b", "restart"), after_the_runners_of("a"), USUAL, "restart", 1),
        (stalls("b"), after_the_runners_of("a", error="no"), USUAL, "restart", 1),
        # nor where whose it was is not known
        (stalls("b"), after_the_runner(), USUAL, "restart", 1),
        (says("stalled", "runner"), after_the_runners_of("a"), USUAL, "restart", 1),
        (says("stalled", "restart"), FRESH, USUAL, "restart", 1),
        # where it comes back and back, ending it does not help
        (says("stalled", "runner"), replace(FRESH, spent=(NOW - 60,) * 2), USUAL, "runner", 0),
        (says("stalled", "runner"), replace(FRESH, spent=(NOW - 60,) * 3), USUAL, "restart", 1),
        (says("stalled", "runner"), replace(FRESH, spent=(NOW - 3601,) * 3), USUAL, "runner", 0),
        (says("api_down", "restart"), after_the_runner(), USUAL, "restart", 1),
        (SICK, FRESH, USUAL, "restart", 1),
        (replace(SICK, line="feeling sick"), FRESH, USUAL, "restart", 1),
        (replace(SICK, complaint="over_limit", health=Health.HEALTHY), FRESH, USUAL, "restart", 1),
        (replace(SWARM, line=says("stalled", "runner").line), tried(0), USUAL, "redeploy", 4),
        (says("stalled", "runner"), FRESH, replace(USUAL, action=RESTART), "restart", 0),
        (says("api_down", "restart"), FRESH, replace(USUAL, action=Action.RUNNER), None, 0),
        # an older probe wants a new container at once
        (says("gpu_lost", "recreate"), FRESH, WATCHED, "recreate", 2),
        (says("cpu_fallback", "recreate"), tried(0), WATCHED, "recreate", 2),
        (replace(OF_COMPOSE, line=says("gpu_lost", "recreate").line), tried(2), WATCHED, *END),
        # where there is nothing stronger, what there is
        (says("gpu_lost", "recreate"), FRESH, replace(WATCHED, action=RESTART), "restart", 0),
        (replace(says("gpu_lost", "recreate"), auto_remove=True), FRESH, WATCHED, "restart", 0),
        # what cannot be done to it is stepped over
        (replace(SICK, auto_remove=True), FRESH, replace(WATCHED, ladder=LADDER[2:]), None, 0),
        (replace(SWARM, name="s"), tried(0), WATCHED, "redeploy", 3),
        (SICK, tried(0, 0, 0), replace(WATCHED, ladder=(RESTART, Action.STOP)), "stop", 1),
    ],
)
def test_the_ladder_is_climbed(
    sighting: Sighting, incident: Incident, policy: Policy, action: str | None, rung: int
) -> None:
    decision = decide(sighting, incident, policy, NOW)
    assert (decision.action, decision.rung) == (action or Action.NONE, rung), decision.why


@pytest.mark.parametrize(
    ("checks", "incident", "verb"),
    [
        # what was seen before the runner ended proves nothing, nor what was under way then
        ((1, 2), after_the_runner(20, checked=2), "wait"),
        ((1, 2, 3), after_the_runner(20, checked=2), "wait"),
        ((1, 2, 3, 4), after_the_runner(20, checked=2), "act"),
        ((4, 5, 6, 7, 8), after_the_runner(20, checked=2), "act"),
        # whether it was ended, refused or failed
        ((1, 2, 3), after_the_runner(20, checked=2, error="no"), "wait"),
        ((1, 2, 3), after_the_runner(20, checked=2, refused=True), "wait"),
        # the engine's clock is not ours
        ((9e9, 9e9 + 1), after_the_runner(20, checked=9e9), "wait"),
        ((9e9, 9e9 + 1, 9e9 + 2), after_the_runner(20, checked=9e9), "act"),
        # an earlier life of autoheal's knew which check was the last; and checks may stop
        ((1, 2, 3, 4), after_the_runner(20), "wait"),
        ((1, 2), after_the_runner(91, checked=2), "act"),
        ((1, 2), after_the_runner(91), "act"),
    ],
)
def test_after_a_runner_was_ended_only_a_new_check_leads_further(
    checks: tuple[float, ...], incident: Incident, verb: str
) -> None:
    log = tuple(Check(at, 1, says("stalled", "runner").line) for at in checks)
    sick = replace(says("stalled", "runner"), checks=log, check_seconds=90)
    assert decide(sick, incident, USUAL, NOW).verb == verb


def just_ended(*models: str, **more: Any) -> Incident:
    """An incident in which the last of their runners was ended a second ago, after check 2."""
    return after_the_runners_of(*models, ago=1, checked=2, **more)


@pytest.mark.parametrize(
    ("model", "checks", "incident", "policy", "verb"),
    [
        # the runner of another model waits for one new check, and for no backoff
        ("b", 2, just_ended("a"), USUAL, "wait"),
        ("b", 3, just_ended("a"), USUAL, "act"),
        ("a", 3, just_ended("a"), USUAL, "wait"),
        # anything else than a runner does: that check may have begun before the end
        ("b", 3, replace(just_ended("a"), spent=(NOW - 60,) * 2), USUAL, "wait"),
        ("b", 3, just_ended("a"), replace(USUAL, ladder=LADDER), "wait"),
        ("d", 3, just_ended("a", "b", "c"), USUAL, "wait"),
        # so does one that its probe has just refused to end, and one where it ended another again
        ("b", 3, refused_after(just_ended("a")), USUAL, "wait"),
        ("b", 3, refused_after(just_ended("a")), replace(USUAL, action=Action.RUNNER), "wait"),
        ("b", 3, just_ended("a", "a"), replace(USUAL, action=Action.RUNNER), "wait"),
    ],
)
def test_only_another_models_runner_waits_for_no_second_check(
    model: str, checks: int, incident: Incident, policy: Policy, verb: str
) -> None:
    log = tuple(Check(at + 1, 1, stalls(model).line) for at in range(checks))
    sick = replace(stalls(model), checks=log, check_seconds=90)
    assert decide(sick, incident, policy, NOW).verb == verb


@pytest.mark.parametrize("model", ['["x"]', "{}", "1", '""', "null"])
def test_a_model_that_is_no_name_is_no_other_one(model: str) -> None:
    odd = replace(SICK, line=f'unhealthy stalled (runner): words {{"model":{model}}}')
    assert decide(odd, after_the_runners_of("a"), USUAL, NOW).action == "restart"


def test_autoheal_itself_is_left_alone_unless_told() -> None:
    assert decide(SICK, FRESH, WATCHED, NOW, itself=True).verb == "ignore"
    told = replace(WATCHED, itself=True, action=RECREATE)
    decision = decide(SICK, FRESH, told, NOW, itself=True)
    # nobody would be there to start the new one
    assert (decision.verb, decision.action) == ("act", "restart")


def test_a_pause_is_waited_for() -> None:
    decision = decide(SICK, FRESH, WATCHED, NOW, paused_until=NOW + 500)
    assert (decision.verb, decision.until) == ("wait", NOW + 500)


def test_the_wait_doubles_up_to_ten_minutes_and_a_quarter() -> None:
    for attempts, least in ((1, 10), (2, 20), (3, 40), (7, 600), (5000, 600)):
        assert least <= backoff(attempts, 10, "ollama") <= least * 1.25
    assert backoff(1, 3600, "ollama") >= 3600


def test_what_fell_sick_together_is_not_tried_again_together() -> None:
    assert len({backoff(1, 10, f"c{n}") for n in range(100)}) == 100


def test_a_wait_is_counted_from_the_end_of_the_attempt() -> None:
    slow = replace(FRESH, attempts=(Attempt(NOW - 100, RESTART, 0, NOW - 4),))
    assert not_before(SICK, slow, WATCHED) == NOW - 4 + backoff(1, 10, "ollama")


@pytest.mark.parametrize(
    ("incident", "sighting", "how"),
    [
        (replace(tried(0), healthy_since=NOW - 61), WELL, "healed"),
        (replace(tried(0), healthy_since=NOW - 61), SICK, "healed"),
        (replace(tried(0), healthy_since=NOW - 59), WELL, None),
        (tried(0), WELL, None),
        (replace(FRESH, healthy_since=NOW - 61), WELL, "recovered"),
        (replace(tried(0), given_up=True, healthy_since=NOW - 61), WELL, "recovered"),
        (tried(0), replace(SICK, id="other"), "replaced"),
        (tried(0), replace(SWARM, id="other"), None),
    ],
)
def test_an_incident_is_over_when_it_stayed_well_or_was_made_anew(
    incident: Incident, sighting: Sighting, how: str | None
) -> None:
    assert outcome(incident, sighting, WATCHED, NOW) == how


def test_a_relapse_before_it_has_settled_belongs_to_the_same_incident() -> None:
    well = after_sighting(tried(0), WELL, NOW)
    assert well.healthy_since == NOW
    assert after_sighting(well, WELL, NOW + 5) is well
    sick = after_sighting(well, SICK, NOW + 30)
    assert sick.healthy_since is None
    assert sick.attempts == tried(0).attempts


def test_one_over_a_limit_is_not_well() -> None:
    assert after_sighting(tried(0), replace(WELL, complaint="x"), NOW).healthy_since is None
