"""What observations mean, as tables: silence, priorities, required and other models."""

from __future__ import annotations

from dataclasses import replace

import pytest

from probe.judge import judge
from probe.memory import Memory
from probe.observation import Answer, Ask, LoadedModel, Observation, RunnerHealth, Slot
from probe.report import Reason, Remedy, render
from probe.settings import Settings
from tests.unit.rows import (
    ANSWERED,
    ANY,
    BUSY_GPU,
    EMPTY,
    ENGINE,
    FIRST,
    GIB,
    GPU,
    HALF,
    HANGS,
    INVISIBLE,
    KEPT,
    LOADING,
    NEVER,
    NOTHING,
    NOW,
    OLD,
    ON_CPU,
    OTHER,
    OTHER_RUNNER,
    PROVEN,
    REQUIRED,
    RUNNER,
    TO_RUNNER,
    TO_SERVER,
    TOKEN,
    UNANSWERED,
    USED_GPU,
    WORKS,
    asked,
    check,
    model,
    past,
    reasons,
    run,
    slots,
)

DELETED = Answer("error", 0.1, None, 404, "model 'tiny' not found")
LOST = Answer("error", 0.1, None, 500, "llama runner process has terminated")
REFUSED = Answer("error", 0.1, None, 400, "does not support what was asked")
NONSENSE = Answer("error", 0.1, None, 200, "not an answer of Ollama's")
NOTHING_IN_IT = Answer("error", 0.1, None, 200, "an answer without a token")
BROKEN_OFF = Answer("error", 0.1, message="the answer has no end")
FULL = Answer("error", 0.1, None, 503, "server busy, please try again")

BUSY_FOR_60 = Settings(busy_timeout=60)
BY_RUNNER = asked(TO_RUNNER, NOTHING)
ASKED_BOTH = (BY_RUNNER, UNANSWERED)
WORKED = (asked(TO_SERVER, NOTHING, 5.0),)
GONE = model(runner=None, health=None, gone=True)
SERVES = model(health=slots(Slot(0, is_processing=True, task=5)))
HIDDEN_HANGS = replace(HANGS, runner=ENGINE)


def answer(one: Answer, ask: Ask = TO_SERVER) -> Observation:
    """The model was asked, and this came of it."""
    return check(model(), to=(asked(ask, one),))


def silent_for(seconds: float) -> Memory:
    return past(silent_since=NOW - seconds)


def test_a_server_that_begins_another_process_meanwhile_is_at_work() -> None:
    """As for users who name other options by turns: each load can be longer than a check."""
    ended = asked(TO_SERVER, NOTHING, ended=True)
    verdict, memory = judge(check(model(), to=(ended,)), PROVEN, ANY, NOW)
    assert (verdict.healthy, verdict.reason) == (True, Reason.BUSY)
    again = check(model(runner=OTHER_RUNNER), to=(ended,))
    for later in range(10, 700, 10):
        verdict, memory = judge(again, memory, ANY, NOW + later)
        again = check(model(runner=replace(RUNNER, pid=20 + later)), to=(ended,))
        assert verdict.healthy, verdict


def test_what_a_living_runner_says_is_wrong_is_its_own_fault() -> None:
    wrong = asked(TO_RUNNER, Answer("error", 0.1, None, 500, "Compute error."))
    idle = model(health=slots(Slot(0)))
    lives = asked(TO_SERVER, NOTHING_IN_IT, runner=RUNNER)
    observation = check(idle, to=(wrong, lives))
    verdict, _ = judge(observation, PROVEN, ANY, NOW)
    assert (verdict.reason, verdict.remedy) == (Reason.STALLED, Remedy.RUNNER)
    assert verdict.message == "tiny:latest cannot be used: Compute error."
    assert verdict.readings["runner_pid"] == RUNNER.pid
    for others in (
        (asked(TO_SERVER, LOST),),
        (wrong, asked(TO_SERVER, LOST)),  # it has exited meanwhile: there is none to be ended
        (lives, wrong),  # the server was asked before, for another reason
        (asked(TO_RUNNER, REFUSED), lives),
    ):
        verdict, _ = judge(check(idle, to=others), PROVEN, ANY, NOW)
        assert verdict.remedy is Remedy.RESTART, others


@pytest.mark.parametrize(
    ("observation", "memory", "settings", "reason", "healthy"),
    [
        # a server with nothing to complain of
        (Observation(), FIRST, ANY, "idle", True),
        (Observation(gpu=GPU), FIRST, ANY, "idle", True),
        (Observation(gpu=EMPTY), USED_GPU, ANY, "idle", True),  # unloaded: VRAM at 0 is right
        (check(model(), to=(ANSWERED,)), FIRST, ANY, "ready", True),
        (check(model(), to=(ANSWERED,), gpu=GPU), USED_GPU, ANY, "ready", True),
        (check(model()), PROVEN, ANY, "ready", True),
        (check(INVISIBLE), FIRST, ANY, "ready", True),
        (check(INVISIBLE), FIRST, REQUIRED, "ready", True),
        (check(GONE), PROVEN, ANY, "idle", True),
        (check(GONE, OTHER), PROVEN, ANY, "ready", True),
        (check(model(replace(KEPT, size_bytes=0))), FIRST, ANY, "ready", True),
        # a request that does not do what was asked is no fault, nor what a runner itself refuses
        (answer(REFUSED), FIRST, ANY, "ready", True),
        (answer(LOST, TO_RUNNER), FIRST, ANY, "ready", True),
        # stalled: the server itself has not answered in time, and nothing is being done
        (check(model(), to=(UNANSWERED,)), PROVEN, ANY, "stalled", False),
        (check(model(), to=(UNANSWERED,)), FIRST, ANY, "stalled", False),
        (check(HANGS, to=(UNANSWERED,)), PROVEN, ANY, "stalled", False),
        (check(model(), to=ASKED_BOTH), PROVEN, ANY, "stalled", False),
        # ... and before that none is, whatever was read, or the runner itself was asked for
        (check(HANGS), PROVEN, ANY, "busy", True),
        (check(HANGS), silent_for(9999), ANY, "busy", True),
        (check(WORKS), silent_for(9999), ANY, "busy", True),
        (check(model(), to=(BY_RUNNER,)), silent_for(9999), ANY, "busy", True),
        # ... where it may not be asked, twice the time of a check has to pass
        (check(HIDDEN_HANGS), PROVEN, ANY, "busy", True),
        (check(HIDDEN_HANGS), silent_for(19), ANY, "busy", True),
        (check(HIDDEN_HANGS), silent_for(21), ANY, "stalled", False),
        (check(HANGS), silent_for(21), NEVER, "stalled", False),
        (check(model(runner=ENGINE), to=(BY_RUNNER,)), silent_for(19), ANY, "busy", True),
        (
            check(model(runner=ENGINE), to=(BY_RUNNER,), gpu=GPU),
            *(silent_for(21), ANY, "stalled", False),
        ),
        (check(replace(WORKS, runner=ENGINE)), silent_for(599), ANY, "busy", True),
        (check(replace(WORKS, runner=ENGINE)), silent_for(601), ANY, "stalled", False),
        # busy: work is being done, and not for ever
        (check(model(), to=WORKED), PROVEN, ANY, "busy", True),
        (check(model(), to=WORKED), silent_for(599), ANY, "busy", True),
        (check(model(), to=WORKED), silent_for(601), ANY, "stalled", False),
        (check(WORKS), PROVEN, ANY, "busy", True),
        # not before a required model was ready once: a container's start period would end
        (check(replace(WORKS, runner=OLD)), FIRST, REQUIRED, "loading", False),
        (check(model(runner=OLD), to=WORKED), FIRST, REQUIRED, "loading", False),
        (check(WORKS), FIRST, REQUIRED, "busy", True),  # a llama-server is listed when it is ready
        (check(replace(WORKS, runner=OLD)), Memory(kept=False), REQUIRED, "busy", True),
        (check(WORKS), PROVEN, REQUIRED, "busy", True),
        (check(WORKS), FIRST, ANY, "busy", True),
        (
            check(model(), to=(asked(TO_SERVER, NOTHING, None),), gpu=BUSY_GPU),
            *(PROVEN, ANY, "busy", True),
        ),
        (
            check(model(), to=(asked(TO_SERVER, NOTHING, 0.2),), gpu=BUSY_GPU),
            *(PROVEN, ANY, "busy", True),
        ),
        (
            check(model(), to=(asked(TO_SERVER, NOTHING, 0.2),), gpu=GPU),
            *(PROVEN, ANY, "stalled", False),
        ),
        # a runner that does nothing at all is not the one that works on the GPU
        (check(model(), to=(UNANSWERED,), gpu=BUSY_GPU), PROVEN, ANY, "stalled", False),
        # ... longer where no GPU is at work, and as long as was asked for
        (check(model(ON_CPU), to=WORKED), silent_for(3599), ANY, "busy", True),
        (check(model(ON_CPU), to=WORKED), silent_for(3601), ANY, "stalled", False),
        (check(model(HALF), to=WORKED), silent_for(601), ANY, "stalled", False),
        (check(model(ON_CPU), to=WORKED), silent_for(61), BUSY_FOR_60, "stalled", False),
        # while another model is loaded, requests for this one wait behind that
        (
            check(model(), to=(UNANSWERED,), loading=((OTHER_RUNNER, LOADING),)),
            *(silent_for(60), ANY, "loading", True),
        ),
        (
            check(model(), to=(UNANSWERED,), loading=((OTHER_RUNNER, LOADING),)),
            *(silent_for(601), ANY, "stalled", False),
        ),
        # up to 0.29 a runner that answers may be in a long batch: only its GPU shows
        (check(model(runner=OLD), to=(UNANSWERED,), gpu=BUSY_GPU), PROVEN, ANY, "busy", True),
        (check(model(runner=OLD), to=(UNANSWERED,)), PROVEN, ANY, "busy", True),
        (check(model(runner=OLD), to=(UNANSWERED,)), silent_for(601), ANY, "stalled", False),
        (check(model(runner=OLD), to=(UNANSWERED,), gpu=GPU), PROVEN, ANY, "stalled", False),
        (check(model(ON_CPU, runner=OLD), to=(UNANSWERED,)), PROVEN, ANY, "stalled", False),
        # ... and since 0.30 one of which a slot works
        (check(SERVES, to=(UNANSWERED,), gpu=BUSY_GPU), PROVEN, ANY, "busy", True),
        (check(SERVES, to=(UNANSWERED,), gpu=GPU), PROVEN, ANY, "stalled", False),
        # a full queue is busy, and not for ever either
        (answer(FULL), PROVEN, ANY, "busy", True),
        (answer(FULL), silent_for(599), ANY, "busy", True),
        (answer(FULL), silent_for(601), ANY, "stalled", False),
        # what a server cannot do although the model is loaded
        (answer(LOST), PROVEN, ANY, "stalled", False),
        (answer(NONSENSE), PROVEN, ANY, "stalled", False),
        (answer(BROKEN_OFF), PROVEN, ANY, "stalled", False),
        (answer(DELETED), PROVEN, REQUIRED, "model_missing", False),
        (answer(DELETED), PROVEN, ANY, "ready", True),  # deleted while loaded: missed by nobody
        # the server
        (Observation(api_error="/api/ps: refused"), PROVEN, ANY, "api_down", False),
        (Observation(api_error="/api/ps: refused"), FIRST, ANY, "api_down", False),
    ],
)
def test_a_server_is_judged(
    observation: Observation, memory: Memory, settings: Settings, reason: str, healthy: bool
) -> None:
    verdict, _ = judge(observation, memory, settings, NOW)
    assert (verdict.reason, verdict.healthy) == (Reason(reason), healthy), verdict.message


STALLS = check(model(), to=(UNANSWERED,))


@pytest.mark.parametrize(
    "later",
    [
        check(HANGS),  # the next one has not got as far as the server
        check(model()),  # ... or has asked for nothing, and its runner answers for itself
        check(model(health=slots(Slot(0)))),
        check(model(), to=(BY_RUNNER,)),
        check(HANGS, to=(UNANSWERED,)),
        check(model(replace(KEPT, expires_text="later"))),  # our own request has moved it
        check(model(runner=replace(OLD, writes=704)), to=()),  # our own request was noted
        check(model(health=slots(Slot(0, task=1, held_tokens=2)))),  # ... or served too late
        check(model(), to=(asked(TO_SERVER, FULL),)),
    ],
)
def test_after_a_stall_a_model_is_not_called_ready_before_anything_has_answered(
    later: Observation,
) -> None:
    verdicts, memory = run(STALLS, *[later] * 5, memory=PROVEN)
    assert verdicts[0].reason is Reason.STALLED
    assert not {"ready", "idle"} & set(reasons(verdicts))
    assert memory.models["d1"].silent_since is not None
    assert memory.models["d1"].proven_at is None


@pytest.mark.parametrize(
    "answered",
    [
        check(model(), to=(ANSWERED,)),
        check(model(health=slots(Slot(0, True, 9, 600, 5)))),
        check(model(health=slots(Slot(0, False, 9, held_tokens=600)))),
    ],
    ids=["to us", "to a user", "to a user before"],
)
def test_a_token_ends_a_stall_for_us_or_for_a_user(answered: Observation) -> None:
    memory = past(silent_since=NOW - 100, tokens=((0, 8, -1),))
    verdicts, memory = run(answered, check(model(health=slots())), memory=memory)
    assert reasons(verdicts) == ["ready", "ready"]
    assert memory.models["d1"].proven_at == NOW


def test_a_time_of_silence_counts_from_its_beginning_and_ends_with_the_first_token() -> None:
    _, memory = run(check(model(), to=WORKED), check(WORKS), memory=PROVEN)
    assert memory.models["d1"].silent_since == pytest.approx(NOW - NOTHING.seconds)
    _, memory = run(check(model(), to=(ANSWERED,)), memory=memory, start=NOW + 30)
    assert memory.models["d1"].silent_since is None


def test_the_silence_of_one_model_is_not_that_of_another() -> None:
    other_works = replace(OTHER, health=WORKS.health, silent_seconds=2.4, runnable_seconds=2.0)
    observation = check(model(), other_works, to=(ANSWERED,))
    verdict, memory = judge(observation, silent_for(9999), ANY, NOW)
    assert verdict.reason is Reason.BUSY
    assert memory.models["d2"].silent_since == pytest.approx(NOW - 2.4)


def test_a_users_tokens_prolong_the_time_of_being_busy() -> None:
    serves = model(health=slots(Slot(0, True, 9, 600, 5)))
    memory = past(silent_since=NOW - 9999, tokens=((0, 9, 300),))
    verdict, _ = judge(check(serves, to=(UNANSWERED,)), memory, ANY, NOW)
    assert verdict.reason is Reason.BUSY


# --- several models -----------------------------------------------------------------------

OTHER_HANGS = replace(OTHER, health=HANGS.health, silent_seconds=2.4, runnable_seconds=0.0)
TINY, BOTH_REQUIRED = Settings(models=("tiny",)), Settings(models=("tiny", "other"))


def other(
    *to: tuple[Ask, Answer], tiny: tuple[Ask, Answer] | None = (TO_SERVER, TOKEN)
) -> Observation:
    """Two models, and what came of asking each."""
    answers = {"d2": tuple(asked(*one) for one in to)}
    if tiny is not None:
        answers["d1"] = (asked(*tiny),)
    return check(model(), OTHER_HANGS if to else OTHER, asked=answers)


@pytest.mark.parametrize(
    ("observation", "settings", "reason", "words"),
    [
        # every loaded model is judged, required or not, by the same rules
        (other(), TINY, "ready", "other:latest is loaded"),
        (other((TO_SERVER, NOTHING)), TINY, "stalled", "other:latest"),
        (other((TO_SERVER, NOTHING)), ANY, "stalled", "other:latest"),
        (other((TO_SERVER, LOST)), TINY, "stalled", "other:latest"),
        # what can be healed comes first
        (
            other((TO_SERVER, NOTHING), tiny=(TO_SERVER, DELETED)),
            *(BOTH_REQUIRED, "stalled", "other:latest"),
        ),
        (other(tiny=(TO_SERVER, DELETED)), BOTH_REQUIRED, "model_missing", "tiny"),
        (
            replace(other((TO_SERVER, NOTHING)), missing={"third": "no"}),
            *(Settings(models=("tiny", "third")), "stalled", "other:latest"),
        ),
        (
            replace(other(), missing={"third": "no"}),
            *(Settings(models=("tiny", "third")), "model_missing", "third"),
        ),
        # ... a fault before what is healthy, wherever it stands
        (
            check(WORKS, OTHER_HANGS, asked={"d2": (UNANSWERED,)}),
            *(ANY, "stalled", "other:latest"),
        ),
        (check(HANGS, OTHER, to=(UNANSWERED,)), ANY, "stalled", "tiny:latest"),
    ],
)
def test_of_several_models_what_can_be_healed_comes_first(
    observation: Observation, settings: Settings, reason: str, words: str
) -> None:
    verdict, _ = judge(observation, PROVEN, settings, NOW)
    assert verdict.reason is Reason(reason), verdict.message
    assert words in verdict.message


def test_what_else_was_found_is_among_the_readings() -> None:
    observation = replace(other((TO_SERVER, NOTHING)), missing={"third": "no"})
    verdict, _ = judge(observation, PROVEN, Settings(models=("tiny", "third")), NOW)
    assert "model_missing: third" in str(verdict.readings["noted"])


def test_two_rows_of_one_name_are_two_models() -> None:
    """It was created again while it was loaded."""
    again = model(replace(KEPT, digest="d9"), runner=OTHER_RUNNER)
    observation = check(model(), again, asked={"d9": (UNANSWERED,)})
    verdict, memory = judge(observation, PROVEN, ANY, NOW)
    assert verdict.reason is Reason.STALLED
    assert memory.models["d1"].silent_since is None
    assert memory.models["d9"].silent_since is not None


# --- words --------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", list(Reason))
def test_every_fault_has_a_remedy_and_a_load_none(reason: Reason) -> None:
    harmless = {Reason.READY, Reason.IDLE, Reason.BUSY, Reason.LOADING}
    assert (reason.remedy is Remedy.NONE) == (reason in harmless)


def test_a_verdict_that_rests_on_what_was_read_says_since_when_nothing_was_proven() -> None:
    verdicts, _ = run(check(model(), to=(ANSWERED,)), check(model()))
    assert "first token after 200 ms" in verdicts[0].message
    assert "not proven since" in verdicts[1].message
    verdict, _ = judge(check(model()), FIRST, ANY, NOW)
    assert "not proven yet" in verdict.message


def test_a_runner_that_is_not_visible_is_neither_gone_nor_a_fault() -> None:
    verdicts, _ = run(check(model()), *[check(INVISIBLE)] * 3)
    assert reasons(verdicts) == ["ready"] * 4
    assert "runner not visible" in verdicts[-1].message
    assert "gone" not in verdicts[-1].message


def test_a_request_that_keeps_a_model_is_not_said_to_have_given_a_token() -> None:
    kept = asked(Ask("server", tokens=0, keep=True), TOKEN)
    verdict, _ = judge(check(model(), to=(kept,)), FIRST, REQUIRED, NOW)
    assert "not proven yet" in verdict.message
    assert "first_token_seconds" not in verdict.readings


@pytest.mark.parametrize(
    ("observation", "proven"),
    [
        (Observation(), True),
        (check(model()), True),
        (check(WORKS), True),
        (check(model(), to=(UNANSWERED,)), False),
        (Observation(api_error="refused"), False),
        (Observation(missing={"tiny": "yes"}), False),
        (check(model(health=RunnerHealth("loading"))), False),
    ],
)
def test_a_server_was_well_once_when_something_but_a_load_was_found(
    observation: Observation, proven: bool
) -> None:
    _, memory = judge(observation, FIRST, ANY, NOW)
    assert memory.proven == proven


def test_a_process_that_is_gone_is_so_at_every_later_check() -> None:
    _, memory = run(check(GONE), check(GONE), memory=PROVEN)
    assert memory.models["d1"].runner == RUNNER.identity


def test_verdicts_that_are_alike_are_one_episode() -> None:
    ready, stalled = check(model(), to=(ANSWERED,)), check(model(), to=(UNANSWERED,))
    _, memory = run(ready, ready, stalled, ready, every=1)
    assert [(e.reason, e.checks, round(e.began_at - 1.7e9 - NOW)) for e in memory.episodes] == [
        ("ready", 2, 0),
        ("stalled", 1, 2),
        ("ready", 1, 3),
    ]


def test_the_line_of_many_models_fits_and_names_the_reason_first() -> None:
    rows = [LoadedModel(f"m{i}", GIB, GIB, digest=str(i)) for i in range(50)]
    verdict, _ = judge(check(*[model(row) for row in rows]), FIRST, ANY, NOW)
    assert render(verdict).startswith("healthy ready: m0 ")
