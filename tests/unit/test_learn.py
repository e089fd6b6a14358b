"""What one check remembers for the next, as tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from probe.learn import RECORDS, learn
from probe.memory import Memory, ModelMemory, SentLoad
from probe.observation import Answer, Ask, Asked, Observation, Slot
from probe.plan import routine
from probe.settings import Settings
from tests.unit.rows import (
    ANSWERED,
    ANY,
    FIRST,
    GIB,
    GPU,
    HANGS,
    IN_VRAM,
    KEPT,
    KNOWN,
    LOADING,
    NEVER,
    NOTHING,
    NOW,
    OLD,
    OTHER_ROW,
    OTHER_RUNNER,
    PROVEN,
    REQUIRED,
    RUNNER,
    TO_RUNNER,
    TO_SERVER,
    TOKEN,
    UNANSWERED,
    asked,
    check,
    model,
    past,
    run,
    slots,
)


def remembered(
    observation: Observation, memory: Memory = PROVEN, settings: Settings = ANY
) -> ModelMemory:
    return learn(observation, memory, settings, NOW).models["d1"]


# --- tokens -------------------------------------------------------------------------------

SLOT = Slot(0, task=9, held_tokens=2)
IN_SLOT = Ask("runner", slot=0)


def test_a_slot_that_we_have_used_is_free_for_us_again() -> None:
    first = check(model(health=slots(Slot(0))), to=(asked(IN_SLOT, TOKEN, slots=(SLOT,)),))
    later = model(health=slots(SLOT))
    _, memory = run(first)
    assert memory.models["d1"].own_tasks == ((0, 9),)
    assert routine(later, memory, ANY) == IN_SLOT
    _, memory = run(check(later), memory=memory, start=NOW + 15)
    assert memory.models["d1"].proven_at == NOW  # and not by a user since


def test_a_slot_that_a_user_has_used_after_us_is_theirs() -> None:
    first = check(model(health=slots(Slot(0))), to=(asked(IN_SLOT, TOKEN, slots=(SLOT,)),))
    used = model(health=slots(replace(SLOT, task=10, held_tokens=600)))
    _, memory = run(first)
    assert routine(used, memory, ANY) is None
    _, memory = run(check(used), memory=memory, start=NOW + 15)
    assert memory.models["d1"].proven_at == NOW + 15


def test_a_request_through_the_server_is_not_known_to_be_ours_by_its_slot() -> None:
    """The server chose it, and may have taken a user's."""
    one = check(model(health=slots(Slot(0))), to=(asked(TO_SERVER, TOKEN, slots=(SLOT,)),))
    assert remembered(one).own_tasks == ()


@pytest.mark.parametrize(
    ("to", "proven"),
    [
        ((ANSWERED,), True),
        ((asked(TO_RUNNER, NOTHING), ANSWERED), True),
        ((), False),
        ((UNANSWERED,), False),
        ((asked(TO_SERVER, Answer("error", status=400)),), False),
        # a request that generates nothing proves nothing
        ((asked(Ask("server", tokens=0, keep=True), TOKEN),), False),
    ],
)
def test_only_a_token_is_proof(to: tuple[Asked, ...], proven: bool) -> None:
    assert (remembered(check(model(), to=to)).proven_at == NOW) == proven


@pytest.mark.parametrize(
    "moved",
    [
        replace(IN_VRAM, expires_text="later", expires_at=NOW + 290),
        replace(KEPT, expires_text="for ever"),
    ],
)
def test_an_expiry_that_has_moved_is_no_proof(moved: object) -> None:
    one = model(moved)  # type: ignore[arg-type]
    assert remembered(check(one)).proven_at is None
    assert remembered(check(one, to=(replace(UNANSWERED, row=moved),))).proven_at is None  # type: ignore[arg-type]


def test_the_cpu_time_and_writes_of_our_own_request_are_not_taken_for_a_users() -> None:
    after = replace(OLD, cpu_seconds=53.0, writes=790)
    one = check(model(runner=OLD), to=(replace(ANSWERED, runner=after),))
    known = remembered(one)
    assert (known.runnable_seconds, known.writes) == (53.0, 790)


def test_what_a_runner_sends_while_it_is_loaded_is_not_taken_for_a_users_tokens() -> None:
    """The server asks it four times a second how far it is."""
    loaded = model(runner=replace(OLD, writes=760))
    _, memory = run(check(model(runner=OLD, health=LOADING)), check(loaded))
    assert memory.models["d1"].proven_at is None


def test_after_a_time_without_an_answer_writes_are_compared_over_all_of_it() -> None:
    """Other probes go on asking the runner meanwhile."""
    down = Observation(api_error="refused")
    later = check(model(runner=replace(OLD, writes=760)))
    first = check(model(runner=OLD))
    _, memory = run(first, *[down] * 10, later)
    assert memory.models["d1"].proven_at is None
    _, memory = run(first, later)
    assert memory.models["d1"].proven_at == NOW + 15


# --- silence ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("observation", "memory", "settings", "since"),
    [
        (check(HANGS), PROVEN, ANY, NOW - 2.4),
        (check(model(), to=(UNANSWERED,)), PROVEN, ANY, NOW - 9.7),
        (check(model(), to=(UNANSWERED,)), past(silent_since=NOW - 99), ANY, NOW - 99),
        (check(model()), past(silent_since=NOW - 99), ANY, NOW - 99),
        (check(model(), no_time="for more"), past(silent_since=NOW - 99), ANY, NOW - 99),
        (check(model(), no_time="for more"), past(silent_since=NOW - 99), NEVER, NOW - 99),
        # something was heard
        (check(model()), PROVEN, ANY, None),
        (check(model(), to=(ANSWERED,)), past(silent_since=NOW - 99), ANY, None),
        (
            check(model(), to=(asked(TO_SERVER, Answer("error", status=400)),)),
            *(past(silent_since=NOW - 99), ANY, None),
        ),
        # ... or nothing can be asked: what is read is all there is
        (check(model()), past(silent_since=NOW - 99), NEVER, None),
        # another process has no past
        (check(model(runner=replace(RUNNER, pid=8))), past(silent_since=NOW - 99), ANY, None),
    ],
)
def test_a_silence_lasts_until_something_is_heard(
    observation: Observation, memory: Memory, settings: Settings, since: float | None
) -> None:
    expected = None if since is None else pytest.approx(since)
    assert remembered(observation, memory, settings).silent_since == expected


# --- whose conversation is in the prompt cache --------------------------------------------

SENT = replace(PROVEN, models={}, sent_load=SentLoad("tiny", NOW - 15))
OURS = model(KEPT, runner=OLD)


def test_a_model_that_we_have_loaded_holds_nobodys_conversation_until_it_is_used() -> None:
    known = remembered(check(OURS), SENT, REQUIRED)
    assert known.unshared_text == "then"
    memory = replace(SENT, models={"d1": known}, sent_load=None)
    assert routine(OURS, memory, REQUIRED) == TO_RUNNER
    used = model(replace(KEPT, expires_text="later"), runner=OLD)
    assert remembered(check(used), memory, REQUIRED).unshared_text is None


@pytest.mark.parametrize(
    ("one", "memory"),
    [
        (OURS, replace(SENT, sent_load=None)),  # loaded by somebody else
        (OURS, replace(SENT, sent_load=SentLoad("other", NOW - 15))),
        (model(runner=OLD), SENT),  # a user has named a time for it already
        (OURS, replace(SENT, sent_load=None, models={"d1": KNOWN})),
        (model(KEPT, runner=OLD, health=LOADING), SENT),
    ],
)
def test_a_model_that_users_may_have_used_is_shared(one: object, memory: Memory) -> None:
    assert remembered(check(one), memory).unshared_text is None  # type: ignore[arg-type]


def test_a_load_of_ours_that_takes_several_checks_is_ours_when_it_is_done() -> None:
    """While it loads, its expiry is made up anew by each answer."""
    loads = [
        check(model(replace(KEPT, expires_text=str(n)), runner=OLD, health=LOADING))
        for n in range(3)
    ]
    _, memory = run(*loads, check(OURS), memory=SENT, settings=REQUIRED)
    assert memory.models["d1"].unshared_text == "then"


def test_a_process_that_a_user_has_started_later_is_not_ours() -> None:
    """With OLLAMA_KEEP_ALIVE=-1 theirs are kept for ever, too."""
    theirs = check(model(KEPT, runner=replace(OLD, pid=9)))
    _, memory = run(check(OURS), theirs, theirs, memory=SENT, settings=REQUIRED)
    assert memory.models["d1"].unshared_text is None


def test_a_model_of_ours_is_shared_once_a_user_has_used_it_whatever_else_is_loaded() -> None:
    beside = model(OTHER_ROW, LOADING, OTHER_RUNNER)
    used = model(replace(KEPT, expires_text="later"), runner=replace(OLD, cpu_seconds=55.0))
    _, memory = run(
        *(check(OURS, beside), check(used, beside), check(used)), memory=SENT, settings=REQUIRED
    )
    assert memory.models["d1"].unshared_text is None


def test_a_runner_that_was_listed_is_known_whatever_there_was_no_time_for() -> None:
    """Without a row it is no load then."""
    memory = learn(check(model(), no_time="to ask"), FIRST, ANY, NOW)
    assert memory.listed == (RUNNER.identity,)


def test_a_runner_that_has_worked_for_somebody_is_shared() -> None:
    memory = past(unshared_text="then")
    worked = replace(OLD, cpu_seconds=51.0)
    assert remembered(check(model(runner=worked)), memory).unshared_text is None


def test_our_own_request_leaves_a_model_unshared_although_it_moves_the_expiry() -> None:
    row = replace(IN_VRAM, expires_text="later")
    after = replace(OLD, cpu_seconds=52.0)
    one = check(model(runner=OLD), to=(replace(ANSWERED, row=row, runner=after),))
    assert remembered(one, past(unshared_text="then")).unshared_text == "later"


def test_what_was_read_in_a_check_without_time_is_remembered() -> None:
    memory = learn(check(HANGS, gpu=GPU, no_time="to ask"), FIRST, ANY, NOW)
    assert memory.free_bytes == 15 * GIB
    assert memory.models["d1"].silent_since == pytest.approx(NOW - 2.4)
    later = learn(check(model(), no_time="to read the GPU"), memory, ANY, NOW + 15)
    assert later.free_bytes == 15 * GIB
    assert learn(check(model()), memory, ANY, NOW + 15).free_bytes is None


# --- bounds -------------------------------------------------------------------------------


def test_what_is_remembered_does_not_grow_for_ever() -> None:
    memory = FIRST
    for number in range(3 * RECORDS):
        row = replace(IN_VRAM, digest=f"d{number}", name=f"m{number}")
        one = check(model(row, runner=replace(RUNNER, pid=number)), version="0.33.0")
        memory = learn(one, memory, ANY, NOW + number)
    assert len(memory.models) == 1
    assert len(memory.vram_percents) == len(memory.listed) == RECORDS
    assert memory.listed[-1] == f"{3 * RECORDS - 1}/1"
    assert memory.version == "0.33.0"


def test_a_check_that_heard_nothing_leaves_everything_as_it_was() -> None:
    nothing = Observation(NOW, no_time="to ask the server", answered=False)
    assert learn(nothing, PROVEN, ANY, NOW) == PROVEN


# --- doubts -------------------------------------------------------------------------------

STANDS = model(health=slots(Slot(0, True, 9, 600, 5)))
STOOD = ((0, 9, 605),)


def test_a_doubt_is_remembered_where_it_was_asked_about() -> None:
    doubted = check(STANDS, to=(asked(TO_SERVER, TOKEN),))
    assert remembered(doubted, past(tokens=STOOD)).doubted_at == NOW


def test_a_request_that_is_about_no_doubt_does_not_put_the_next_one_off() -> None:
    """Else a required model that is kept at every check would never be asked about."""
    kept = check(STANDS, to=(asked(Ask("server", tokens=0, keep=True), TOKEN),))
    memory = past(tokens=STOOD, doubted_at=NOW - 60)
    assert remembered(kept, memory, REQUIRED).doubted_at == NOW - 60


def test_a_user_who_waits_is_remembered_and_when_that_was_asked_about() -> None:
    """Of the server, since the next model's process would know nothing of it."""
    waits = check(model(), to=(ANSWERED,), in_vain_seconds=6.0)
    after = learn(waits, PROVEN, ANY, NOW)
    assert (after.waited_at, after.doubted_at) == (NOW, NOW)
    assert after.models["d1"].doubted_at == NOW
    soon = learn(replace(waits, began_at=NOW + 60), after, ANY, NOW + 60)
    assert (soon.waited_at, soon.doubted_at) == (NOW + 60, NOW)
    in_vain = replace(waits, asked={"d1": (Asked(TO_SERVER, NOTHING),)})
    unanswered = learn(in_vain, PROVEN, ANY, NOW)  # it is suspected for that
    assert (unanswered.waited_at, unanswered.doubted_at) == (NOW, None)
    for_long = learn(replace(waits, in_vain_seconds=601.0), PROVEN, ANY, NOW)
    assert (for_long.waited_at, for_long.doubted_at) == (None, NOW)
    unasked = learn(check(model(), in_vain_seconds=6.0), PROVEN, ANY, NOW)
    assert (unasked.waited_at, unasked.doubted_at) == (NOW, None)
