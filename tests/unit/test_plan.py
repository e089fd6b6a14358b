"""What a check may ask of a loaded model, as tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from probe.learn import learn
from probe.memory import Memory, ModelMemory
from probe.observation import Ask, Asked, Observation, Seen
from probe.ollama import FOREVER
from probe.plan import plan
from probe.settings import Settings
from tests.unit.rows import (
    ANY,
    CLOCK,
    FIRST,
    IN_VRAM,
    KNOWN,
    LOADING,
    NOW,
    PROVEN,
    REQUIRED,
    RUNNER,
    SILENT,
    TOKEN,
    seen,
)


def past(**fields: object) -> Memory:
    """The last check left the model so, ten seconds ago."""
    model = replace(KNOWN, **fields)  # type: ignore[arg-type]
    return replace(PROVEN, checked_at=NOW - 10, models={"tiny:latest": model})


OPTIONS = {"num_ctx": 1024, "num_batch": 512}
LATER = replace(IN_VRAM, expires_text="later")
FOR_EVER = replace(IN_VRAM, expires_at=NOW + 9e9)


@pytest.mark.parametrize(
    ("one", "memory", "settings", "ask"),
    [
        # with the options it was loaded with, until the moment at which it ends anyway
        (seen(), past(), ANY, Ask(1, 200, OPTIONS)),
        (seen(), past(token_seconds=3.0), ANY, Ask(1, 197, OPTIONS)),
        (seen(), past(expires_at=NOW + 190), ANY, Ask(1, 190, OPTIONS)),
        (
            seen(replace(IN_VRAM, context_length=4096)),
            *(past(), ANY, Ask(1, 200, {"num_ctx": 4096, "num_batch": 512})),
        ),
        (
            seen(runner=replace(RUNNER, num_thread=3)),
            *(past(), ANY, Ask(1, 200, {**OPTIONS, "num_thread": 3})),
        ),
        # a server that says the context length itself, and whose runners say nothing
        (
            seen(replace(IN_VRAM, context_length=4096), runner=None),
            *(past(runner=""), ANY, Ask(1, 200, {"num_ctx": 4096})),
        ),
        # the second token is the one whose speed is measured
        (seen(), past(), Settings(min_tokens_per_second=5.0), Ask(2, 200, OPTIONS)),
        # not in a first check: for how long users keep the model, to give it back, shows later
        (seen(), FIRST, ANY, None),
        # not a model that a user's request has just loaded, unless that request still goes on
        (seen(), replace(PROVEN, models={}), ANY, None),
        (
            seen(replace(IN_VRAM, expires_at=NOW + 300), unfinished=True),
            *(replace(PROVEN, models={}), ANY, Ask(1, 300, OPTIONS)),
        ),
        # not while it loads, nor a runner that says nothing
        (seen(health=LOADING), past(), ANY, None),
        (seen(health=SILENT), past(), ANY, None),
        # not when its options cannot be known, or were shown to be not repeatable
        (Seen(IN_VRAM), past(runner=""), ANY, None),
        (seen(), replace(past(), opaque=(RUNNER.shape,)), ANY, None),
        # not when it is about to be unloaded: it could be loaded again for us
        (seen(), past(expires_at=NOW + 29), ANY, None),
        (seen(), past(expires_at=NOW + 31), ANY, Ask(1, 31, OPTIONS)),
        # not while users are about: their conversations are in the prompt cache
        (seen(), past(used_at=NOW - 59), ANY, None),
        (seen(), past(used_at=NOW - 61), ANY, Ask(1, 200, OPTIONS)),
        (seen(), past(used_at=NOW - 9), Settings(quiet=5.0), Ask(1, 200, OPTIONS)),
        # nor while they get tokens: more is sent than other probes ask for
        (seen(runner=replace(RUNNER, writes=710)), past(), ANY, None),
        (seen(runner=replace(RUNNER, writes=709)), past(), ANY, Ask(1, 200, OPTIONS)),
        (seen(runner=replace(RUNNER, writes=None)), past(), ANY, Ask(1, 200, OPTIONS)),
        (seen(runner=replace(RUNNER, writes=9)), past(writes=None), ANY, Ask(1, 200, OPTIONS)),
        (seen(runner=replace(RUNNER, writes=710)), past(), REQUIRED, Ask(0, FOREVER, OPTIONS)),
        # a model that is never unloaded stays so, unless a user names a time at the same moment
        (seen(FOR_EVER), FIRST, ANY, Ask(1, None, OPTIONS)),
        (seen(FOR_EVER), past(used_at=NOW - 9), ANY, None),
        # a user's request has proved it since; what we lent is given back, what he named is kept
        (seen(LATER), past(), ANY, None),
        (
            seen(replace(LATER, expires_at=NOW + 245)),
            *(past(lent_seconds=250.0), ANY, Ask(0, 295, OPTIONS)),
        ),
        (seen(replace(LATER, expires_at=NOW + 295)), past(lent_seconds=250.0), ANY, None),
        (seen(replace(LATER, expires_at=NOW + 55)), past(lent_seconds=250.0), ANY, None),
        # its first request goes on: its expiry moves with the clock, and proves nothing
        (
            seen(replace(LATER, expires_at=NOW + 300), unfinished=True),
            *(past(), ANY, Ask(1, 300, OPTIONS)),
        ),
        # the wall clock was set: what the server wrote by it is compared with nothing
        (seen(), replace(past(), clock=CLOCK - 3600), ANY, Ask(1, 200, OPTIONS)),
        (
            seen(replace(LATER, expires_at=NOW + 245)),
            *(replace(past(lent_seconds=250.0), clock=CLOCK - 3600), ANY, None),
        ),
        # a required model is kept for ever
        (seen(), past(), REQUIRED, Ask(1, FOREVER, OPTIONS)),
        (seen(LATER), past(), REQUIRED, Ask(0, FOREVER, OPTIONS)),
        (seen(FOR_EVER), past(used_at=NOW - 9), REQUIRED, None),
        (Seen(IN_VRAM), past(runner=""), REQUIRED, Ask(1, FOREVER, {})),
        (seen(), replace(past(), opaque=(RUNNER.shape,)), REQUIRED, None),
    ],
)
def test_a_model_is_asked_nothing_that_could_harm_it(
    one: Seen, memory: Memory, settings: Settings, ask: Ask | None
) -> None:
    assert plan(one, memory, settings, NOW, CLOCK) == ask


def remembered(one: Seen, asked: Asked | None, memory: Memory) -> ModelMemory:
    answers = {} if asked is None else {one.model.name: asked}
    observation = Observation(NOW, CLOCK, seen=(one,), asked=answers)
    return learn(observation, memory, ANY, NOW).models[one.model.name]


def test_a_user_whose_request_ended_within_ours_is_noticed_at_the_next_look() -> None:
    later = replace(LATER, expires_at=NOW + 290)
    asked = Asked(Ask(1, 200), TOKEN, NOW, model=later)
    model = remembered(seen(), asked, past())
    memory = replace(past(), checked_at=NOW, models={"tiny:latest": model})
    give_back = plan(seen(later), memory, ANY, NOW + 15, CLOCK)
    assert give_back is None or not give_back.tokens


def test_a_time_that_a_user_names_for_a_model_kept_for_ever_is_noticed_at_the_next_look() -> None:
    later = replace(LATER, expires_at=NOW + 60)
    asked = Asked(Ask(1, None), TOKEN, NOW, model=later)
    model = remembered(seen(FOR_EVER), asked, past())
    memory = replace(past(), checked_at=NOW, models={"tiny:latest": model})
    assert plan(seen(later), memory, ANY, NOW + 15, CLOCK) is None


def test_after_a_clock_was_set_a_model_with_a_new_expiry_is_left_alone_until_it_is_used() -> None:
    memory = replace(past(), clock=CLOCK - 3600)
    model = remembered(seen(replace(LATER, expires_at=NOW + 3800)), None, memory)
    memory = replace(past(), checked_at=NOW, models={"tiny:latest": model})
    for later in (20, 100, 1000):
        assert plan(seen(LATER), memory, ANY, NOW + later, CLOCK) is None


def test_the_cpu_time_that_our_own_request_took_is_not_taken_for_a_users() -> None:
    after = replace(RUNNER, cpu_seconds=53.0)
    asked = Asked(Ask(1, 200), TOKEN, NOW, model=IN_VRAM, runner=after)
    assert remembered(seen(), asked, past()).runnable_seconds == 53.0


def test_a_model_whose_process_is_gone_is_left_alone_and_not_taken_for_a_users_new_one() -> None:
    """Its row stays for a while, and a request of ours would load it again."""
    gone = Seen(IN_VRAM)
    assert plan(gone, past(), ANY, NOW, CLOCK) is None
    assert remembered(gone, None, past()).used_at is None
