"""What a check may ask of a loaded model, as tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from probe.activity import identity, users_got_tokens
from probe.memory import Load, Memory, ModelMemory
from probe.observation import Answer, Ask, Dialect, LoadedModel, Model, Observation, Slot
from probe.plan import (
    DOUBT_SECONDS,
    doubt,
    free_slot,
    in_vain_seconds,
    is_required,
    is_suspected,
    is_suspicious,
    keep,
    may_stand,
    options_of,
    routine,
    same_model,
    suspicion,
)
from probe.settings import Settings
from tests.unit.rows import (
    ALWAYS,
    ANY,
    ENGINE,
    FIRST,
    HANGS,
    IN_VRAM,
    INVISIBLE,
    KEPT,
    KNOWN,
    LOADING,
    NEVER,
    NOTHING,
    NOW,
    OLD,
    ON_CPU,
    OPTIONS,
    OTHER,
    OTHER_RUNNER,
    PROVEN,
    REQUIRED,
    RUNNER,
    SILENT,
    TOKEN,
    UNKNOWN,
    WORKS,
    check,
    model,
    past,
    slots,
)

UNUSED, SERVING = Slot(0), Slot(0, is_processing=True, task=5, prompt_tokens=9)
THEIRS = Slot(0, task=5, held_tokens=600)
OURS = replace(THEIRS, held_tokens=2)
SECOND = Slot(1)
ALONE = past(unshared_text="then")
"""No user's conversation is in the model's prompt cache."""

EMBEDDER = replace(RUNNER, command=replace(RUNNER.command, embedding=True))
GONE = model(runner=None, health=None, gone=True)
SPEED = Settings(min_tokens_per_second=5.0)


def without(**options: object) -> Model:
    """A model whose command line lacks, or has, these."""
    command = replace(RUNNER.command, **options)  # type: ignore[arg-type]
    return model(runner=replace(RUNNER, command=command))


def queued(one: Model, seconds: float) -> Model:
    """The same with threads that have waited for a CPU for longer since the last check."""
    assert one.runner is not None
    waited = one.runner.queued_seconds + seconds
    return replace(one, runner=replace(one.runner, queued_seconds=waited))


@pytest.mark.parametrize(
    ("one", "memory", "settings", "ask"),
    [
        # the runner, where no slot has been used, or by us only
        (model(health=slots(UNUSED)), FIRST, ANY, Ask("runner", slot=0)),
        (model(health=slots(OURS)), past(own_tasks=((0, 5),)), ANY, Ask("runner", slot=0)),
        (model(health=slots(OURS, SECOND)), past(own_tasks=((0, 5),)), ANY, Ask("runner", slot=0)),
        # ... not beside a conversation: a new one would take its place, as ours is used later
        (model(health=slots(THEIRS, SECOND)), PROVEN, ANY, None),
        # ... nor in a slot that holds more than we asked for, whoever's request that was
        (model(health=slots(THEIRS)), past(own_tasks=((0, 5),)), ANY, None),
        # ... not in one that holds somebody's conversation, and not beside a request
        (model(health=slots(THEIRS)), PROVEN, ANY, None),
        (model(health=slots(THEIRS)), past(own_tasks=((0, 4),)), ANY, None),
        (model(health=slots(THEIRS)), past(own_tasks=((1, 5),)), ANY, None),
        (model(health=slots(SERVING, SECOND)), PROVEN, ANY, None),
        (model(health=slots()), PROVEN, ANY, None),
        # what another process was asked for is not known of this one
        (
            model(health=slots(THEIRS), runner=replace(RUNNER, started=2)),
            *(past(own_tasks=((0, 5),)), ANY, None),
        ),
        # a `llama-server` whose slots cannot be read is not asked
        (model(), ALONE, ANY, None),
        # where there are no slots: only while no user's request has been answered, and at rest
        (model(runner=OLD), ALONE, ANY, Ask("runner")),
        (model(runner=ENGINE), ALONE, ANY, Ask("runner")),
        (model(runner=OLD), PROVEN, ANY, None),
        (model(runner=OLD), FIRST, ANY, None),
        (model(replace(IN_VRAM, expires_text="later"), runner=OLD), ALONE, ANY, None),
        (model(runner=replace(OLD, cpu_seconds=50.2)), ALONE, ANY, None),
        # ... where to wait for a CPU is not to work for somebody
        (model(runner=replace(OLD, queued_seconds=0.2)), ALONE, ANY, Ask("runner")),
        (model(runner=replace(OLD, started=2)), ALONE, ANY, None),
        # an embedder has no prompt cache, and is asked at rest
        (model(runner=EMBEDDER), PROVEN, ANY, Ask("runner")),
        (model(runner=EMBEDDER), FIRST, ANY, None),
        (model(runner=replace(EMBEDDER, cpu_seconds=51.0)), PROVEN, ANY, None),
        (model(runner=EMBEDDER, health=slots(SERVING)), PROVEN, ANY, None),
        # the second token is the one whose speed is measured
        (model(health=slots(UNUSED)), FIRST, SPEED, Ask("runner", 2, slot=0)),
        # not while it loads, nor a runner that says nothing, is gone, or is not visible
        (model(health=LOADING), ALONE, ANY, None),
        (model(health=SILENT), ALONE, ANY, None),
        (model(health=UNKNOWN), ALONE, ANY, None),
        (GONE, ALONE, ANY, None),
        (INVISIBLE, past(runner="", unshared_text="then"), ANY, None),
        (without(port=None, dialect=Dialect.OLLAMA_RUNNER), ALONE, ANY, None),
        # nothing at all, or the server at each check with the options the model was loaded with
        (model(health=slots(UNUSED)), FIRST, NEVER, None),
        (model(runner=EMBEDDER), PROVEN, NEVER, None),
        (model(health=slots(THEIRS)), FIRST, ALWAYS, Ask("server", options=OPTIONS)),
        (model(), FIRST, replace(SPEED, generate="always"), Ask("server", 2, options=OPTIONS)),
        (model(health=LOADING), FIRST, ALWAYS, None),
        (GONE, FIRST, ALWAYS, None),
        # ... but never with others, for which the server would load it again
        (model(runner=ENGINE), FIRST, ALWAYS, Ask("runner")),
        (without(options_visible=False), FIRST, ALWAYS, Ask("runner")),
        (model(runner=OLD, clamped=True), FIRST, ALWAYS, Ask("runner")),
        # ... as far as a server on another machine lets us see
        (INVISIBLE, FIRST, ALWAYS, Ask("server")),
        (
            model(replace(IN_VRAM, context_length=2048), None, None),
            *(FIRST, ALWAYS, Ask("server", options={"num_ctx": 2048})),
        ),
    ],
)
def test_a_token_is_asked_for_only_where_it_costs_no_user_anything(
    one: Model, memory: Memory, settings: Settings, ask: Ask | None
) -> None:
    assert routine(one, memory, settings) == ask


QUIET = past(silent_since=NOW - 30)
MOVED = Slot(0, is_processing=True, task=6, prompt_tokens=50)


@pytest.mark.parametrize(
    ("one", "memory", "suspected"),
    [
        (model(), PROVEN, False),
        (HANGS, PROVEN, True),
        (HANGS, FIRST, True),
        (replace(HANGS, runnable_seconds=None), PROVEN, True),
        (WORKS, PROVEN, False),
        # work may not go on for ever unproven
        (WORKS, past(silent_since=NOW - 599), False),
        (WORKS, past(silent_since=NOW - 601), True),
        # a request of ours was left unanswered, and nothing has been heard since
        (model(), QUIET, True),
        (model(health=slots(UNUSED)), QUIET, True),
        (model(health=slots(MOVED)), past(silent_since=NOW - 30, tokens=()), False),
        (model(runner=replace(RUNNER, started=2)), QUIET, False),
        (model(health=LOADING), QUIET, False),
        (model(health=UNKNOWN), QUIET, False),
        (GONE, QUIET, False),
    ],
)
def test_a_model_is_suspected_when_it_says_nothing_or_has_left_us_unanswered(
    one: Model, memory: Memory, suspected: bool
) -> None:
    assert is_suspected(one, memory, ANY, NOW) == suspected


CALM = past(runnable_seconds=50.0)
OF_OLD = past(runner=OLD.identity)
UNLOADED = {"d2": ModelMemory(runner=OTHER_RUNNER.identity)}


@pytest.mark.parametrize(
    ("waits", "observation", "memory", "seconds"),
    [
        ((6.0,), check(model()), CALM, 6.0),
        ((4.0,), check(model()), CALM, 0.0),
        ((), check(model()), CALM, 0.0),
        ((900.0, 6.0, 4.0), check(model()), CALM, 6.0),  # the last of them who has waited
        ((6.0,), check(model(), GONE), CALM, 6.0),  # a process that has gone does nothing
        # nobody knows what the other one did, or it works
        ((6.0,), check(model(), OTHER), CALM, 0.0),
        ((6.0,), check(model()), past(cpu_seconds=48.0), 0.0),
        ((6.0,), check(model(runner=OTHER_RUNNER)), CALM, 0.0),
        # ... or would if it had a CPU, for which it waits a little in order to answer a check
        ((6.0,), check(queued(model(), 8.0)), CALM, 0.0),
        ((6.0,), check(queued(model(), 7.0)), CALM, 6.0),
        # ... or its runner gives users tokens, which costs a GPU's runner next to nothing
        ((6.0,), check(model(runner=replace(OLD, writes=800))), OF_OLD, 0.0),
        ((6.0,), check(model(runner=OLD)), OF_OLD, 6.0),
        # another one has just been unloaded, as for the sake of one that is about to be loaded
        ((6.0,), check(model()), replace(CALM, models={**CALM.models, **UNLOADED}), 0.0),
        # a model is loaded, or may be
        ((6.0,), check(model()), replace(CALM, load=Load("tiny")), 0.0),
        ((6.0,), check(model(), loading=((OTHER_RUNNER, LOADING),)), CALM, 0.0),
        ((6.0,), check(model(), strays=1), CALM, 0.0),
    ],
)
def test_a_user_waits_in_vain_while_no_model_does_anything(
    waits: tuple[float, ...], observation: Observation, memory: Memory, seconds: float
) -> None:
    assert in_vain_seconds(waits, observation, memory, NOW) == seconds


@pytest.mark.parametrize(
    ("one", "memory", "seconds", "suspected"),
    [
        (model(), PROVEN, 6.0, True),
        (model(), PROVEN, 0.0, False),
        (model(), replace(PROVEN, doubted_at=NOW - 599), 6.0, False),
        (model(), replace(PROVEN, doubted_at=NOW - 601), 6.0, True),
        # it has answered, and another one has not
        (model(), past(doubted_at=NOW - 599), 6.0, False),
        (model(), past(doubted_at=NOW - 601), 602.0, False),
        # the same one waits, for something else than this model, which has answered since
        (model(), replace(PROVEN, doubted_at=NOW - 601), 602.0, False),
        (model(health=LOADING), PROVEN, 6.0, False),
        (GONE, PROVEN, 6.0, False),
    ],
)
def test_a_model_is_suspected_while_a_user_waits_in_vain_and_then_left_in_peace(
    one: Model, memory: Memory, seconds: float, suspected: bool
) -> None:
    """A request of ours may cost another user."""
    assert is_suspected(one, memory, ANY, NOW, in_vain=seconds) is suspected


TWO_AT_WORK = (
    Slot(0, is_processing=True, task=5, prompt_tokens=9000),
    Slot(1, is_processing=True, task=6),
)
HALFWAY = model(health=slots(Slot(0, is_processing=True, task=5, decoded_tokens=40)))


@pytest.mark.parametrize(
    ("one", "memory", "suspected"),
    [
        (HALFWAY, past(tokens=((0, 5, 40),)), True),
        (HALFWAY, past(tokens=((0, 5, 39),)), False),  # it gives tokens
        (HALFWAY, past(tokens=((0, 4, 40),)), False),  # another request's
        (HALFWAY, past(tokens=((0, 5, 40),), cpu_seconds=48.0), False),  # it works
        # to answer checks it waits for a CPU on a crowded machine; starved it would do so always
        (queued(HALFWAY, 7.0), past(tokens=((0, 5, 40),)), True),
        (queued(HALFWAY, 8.0), past(tokens=((0, 5, 40),)), False),
        (HALFWAY, past(tokens=((0, 5, 40),), doubted_at=NOW - 60), False),  # it has answered then
        (HALFWAY, past(), False),
        (HALFWAY, FIRST, False),
        (model(health=slots(OURS)), past(tokens=((0, 5, -1),)), False),
        # one of its slots waits for the other
        (
            model(health=slots(*TWO_AT_WORK)),
            *(past(tokens=((0, 5, 4000), (1, 6, 0))), False),
        ),
        (model(health=slots(*TWO_AT_WORK)), past(tokens=((0, 5, 9000), (1, 6, 0))), True),
        # a thread that ended has taken along what it had waited
        (HALFWAY, past(tokens=((0, 5, 40),), runnable_seconds=60.0, cpu_seconds=48.0), False),
    ],
)
def test_a_model_is_suspected_that_stands_still_in_the_middle_of_an_answer(
    one: Model, memory: Memory, suspected: bool
) -> None:
    """Today's llama-server answers for its slots while the call hangs that computes."""
    assert is_suspected(one, memory, ANY, NOW) is suspected


@pytest.mark.parametrize(
    ("one", "ask"),
    [
        # it takes no place in the prompt cache; that the runner works is known
        (model(), Ask("server", tokens=0, options=OPTIONS)),
        (model(runner=OLD), Ask("server", options=OPTIONS)),
        (model(runner=ENGINE), Ask("runner")),
        (without(options_visible=False), None),
        (HALFWAY, Ask("server", options=OPTIONS)),
        (INVISIBLE, None),
    ],
)
def test_what_is_asked_for_a_user_who_waits_is_what_may_hang(one: Model, ask: Ask | None) -> None:
    assert doubt(one, ANY) == ask


@pytest.mark.parametrize(
    ("one", "memory", "expected"),
    [
        (model(ON_CPU, slots(Slot(0, True))), FIRST, True),
        (model(ON_CPU, slots(Slot(0, True))), past(doubted_at=NOW - DOUBT_SECONDS), True),
        (model(ON_CPU, slots(Slot(0, True))), past(doubted_at=NOW - 30), False),
        # ... and the request of then has not been answered
        (
            model(ON_CPU, slots(Slot(0, True))),
            past(doubted_at=NOW - 30, silent_since=NOW - 30),
            True,
        ),
        (model(ON_CPU, slots(Slot(0))), FIRST, False),
        (model(ON_CPU), FIRST, False),
    ],
)
def test_whether_a_model_stands_still_matters_where_nothing_else_explains_it(
    one: Model, memory: Memory, expected: bool
) -> None:
    assert may_stand(one, memory, NOW, gpus_rest=False) is expected


def test_a_model_in_vram_may_wait_for_its_gpu() -> None:
    one = model(IN_VRAM, slots(Slot(0, True)))
    assert may_stand(one, FIRST, NOW, gpus_rest=True)
    assert not may_stand(one, FIRST, NOW, gpus_rest=False)


def test_a_model_of_whose_request_nothing_comes_is_suspected_at_once_and_then_left_in_peace() -> (
    None
):
    one = model(health=slots(Slot(0, True, task=4, decoded_tokens=2)), stands=True)
    assert is_suspected(one, FIRST, ANY, NOW)
    assert is_suspected(one, past(), ANY, NOW)
    assert not is_suspected(one, past(doubted_at=NOW - DOUBT_SECONDS + 1), ANY, NOW)
    assert is_suspected(one, past(doubted_at=NOW - DOUBT_SECONDS), ANY, NOW)


@pytest.mark.parametrize(
    ("one", "settings", "ask"),
    [
        (HANGS, ANY, Ask("server", options=OPTIONS)),
        (model(runner=OLD, health=SILENT), ANY, Ask("server", options=OPTIONS)),
        (HANGS, NEVER, None),
        (GONE, ANY, None),
        # with options that do not show nothing is asked through the server
        (model(runner=ENGINE, health=SILENT), ANY, None),
        (model(runner=ENGINE), ANY, Ask("runner")),
        (model(health=SILENT, clamped=True), ANY, None),
        (INVISIBLE, ANY, None),
        (INVISIBLE, ALWAYS, None),
    ],
)
def test_of_a_model_that_is_suspected_the_server_is_asked_if_it_can_be(
    one: Model, settings: Settings, ask: Ask | None
) -> None:
    assert suspicion(one, settings) == ask


@pytest.mark.parametrize(
    ("answer", "suspicious"),
    [
        (TOKEN, False),
        (NOTHING, True),
        (Answer("error", status=500), True),
        (Answer("error", message="the connection broke"), False),  # it may have been unloaded
        (Answer("error", status=503), True),
        (Answer("error", status=400), False),
    ],
)
def test_a_runner_that_fails_is_a_ground_to_ask_the_server(
    answer: Answer, suspicious: bool
) -> None:
    assert is_suspicious(answer) == suspicious


@pytest.mark.parametrize(
    ("one", "options"),
    [
        (model(), OPTIONS),
        (without(num_batch=None), {"num_ctx": 1024}),
        (without(num_thread=3), OPTIONS),  # the number that the server takes by itself
        (
            model(
                runner=replace(
                    RUNNER, default_threads=False, command=replace(RUNNER.command, num_thread=3)
                )
            ),
            {**OPTIONS, "num_thread": 3},
        ),
        (without(num_ctx=None), None),
        (without(options_visible=False), None),
        (model(clamped=True), None),
        (model(clamped=None), None),  # unknown
        (model(runner=ENGINE), None),
        (model(replace(IN_VRAM, context_length=2048), runner=ENGINE), None),
        (INVISIBLE, None),
    ],
)
def test_the_options_of_a_model_are_known_only_where_all_of_them_show(
    one: Model, options: dict[str, int] | None
) -> None:
    assert options_of(one) == options


@pytest.mark.parametrize(
    ("one", "settings", "ask"),
    [
        (model(), REQUIRED, Ask("server", tokens=0, keep=True, options=OPTIONS)),
        (model(), ANY, None),
        (model(), Settings(models=("other", "tiny:latest")), Ask("server", 0, None, True, OPTIONS)),
        (model(KEPT), REQUIRED, None),
        (model(health=LOADING), REQUIRED, None),
        (model(health=SILENT), REQUIRED, None),
        (model(runner=ENGINE), REQUIRED, None),
        (model(clamped=True), REQUIRED, None),
        (INVISIBLE, REQUIRED, None),
        (GONE, REQUIRED, None),
    ],
)
def test_only_a_required_model_is_kept_and_only_with_its_own_options(
    one: Model, settings: Settings, ask: Ask | None
) -> None:
    assert keep(one, past(runner=identity(one)), settings, NOW) == ask


def test_a_required_model_is_kept_once_a_second_check_sees_its_process() -> None:
    """With users' options that alternate it would cost a load, which is given up with ours."""
    ask = keep(model(), past(), REQUIRED, NOW)
    assert ask is not None
    assert keep(model(), FIRST, REQUIRED, NOW) is None
    assert keep(model(), past(runner="another"), REQUIRED, NOW) is None
    assert keep(model(), replace(FIRST, kept=False), REQUIRED, NOW) == ask  # no check knows more


def test_no_request_but_one_that_keeps_a_required_model_names_a_keep_alive() -> None:
    for settings in (ANY, ALWAYS):
        for one in (model(health=slots(UNUSED)), model(runner=OLD), INVISIBLE):
            ask = routine(one, ALONE, settings) or suspicion(one, settings)
            assert ask is None or not ask.keep


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("tiny", "tiny:latest", True),
        ("Tiny", "tiny:LATEST", True),
        ("tiny:1b", "tiny", False),
        ("host:5000/ns/tiny", "host:5000/ns/tiny:latest", True),
        ("ns/tiny", "tiny", False),
    ],
)
def test_two_names_mean_one_model_if_they_do_for_the_server(a: str, b: str, same: bool) -> None:
    assert same_model(a, b) == same
    required = is_required(model(LoadedModel(b)), Settings(models=("x", a)))
    assert required == same


MARKED = replace(KNOWN, tokens=((0, 5, 20),), own_tasks=((1, 9),))


@pytest.mark.parametrize(
    ("slot", "known", "got"),
    [
        # more tokens for the same request, or the first ones of another
        (Slot(0, True, 5, 20, 1), MARKED, True),
        (Slot(0, True, 5, 20, 0), MARKED, False),
        (Slot(0, True, 6, 1, 0), MARKED, True),
        (Slot(0, True, 6, 0, 0), MARKED, False),
        # a request that has ended since, and has left what it was given
        (Slot(0, False, 5, held_tokens=30), MARKED, True),
        (Slot(0, False, 6, held_tokens=30), MARKED, True),
        (Slot(0, False, 6, held_tokens=0), MARKED, False),  # it failed
        # ... but not one that had ended before, nor ours
        (Slot(0, False, 5, held_tokens=30), replace(KNOWN, tokens=((0, 5, -1),)), False),
        (Slot(1, False, 9, held_tokens=30), MARKED, False),
        (Slot(1, True, 9, 1, 1), MARKED, False),
        (Slot(0), MARKED, False),
        # one of ours that was given up may be served late: it proves no user
        (Slot(0, False, 6, held_tokens=2), replace(MARKED, silent_since=NOW - 30), False),
        (Slot(0, True, 6, 1, 1), replace(MARKED, silent_since=NOW - 30), False),
        (Slot(0, False, 6, held_tokens=30), replace(MARKED, silent_since=NOW - 30), True),
        # with nothing to compare, nothing is known
        (Slot(0, True, 5, 20, 1), None, False),
        (Slot(0, True, 5, 20, 1), KNOWN, False),
    ],
)
def test_users_have_got_tokens_where_a_slot_has_moved_that_is_not_ours(
    slot: Slot, known: ModelMemory | None, got: bool
) -> None:
    assert users_got_tokens(RUNNER, (slot,), known, 15) == got


@pytest.mark.parametrize(
    ("sent", "seconds", "got"), [(11, 15, False), (12, 15, True), (12, 60, False)]
)
def test_without_slots_what_a_runner_sends_shows_more_than_other_probes_ask_for(
    sent: int, seconds: float, got: bool
) -> None:
    runner = replace(OLD, writes=700 + sent)
    assert users_got_tokens(runner, None, KNOWN, seconds) == got


def test_the_log_that_a_llama_server_writes_is_not_taken_for_tokens() -> None:
    """It writes a line for each request that comes, while its inference hangs."""
    assert not users_got_tokens(replace(RUNNER, writes=9999), None, KNOWN, 15)
    assert not users_got_tokens(replace(OLD, writes=None), None, KNOWN, 15)
    assert not users_got_tokens(replace(OLD, writes=9999), None, replace(KNOWN, writes=None), 15)


def test_a_slot_is_free_only_if_it_holds_nobodys_conversation() -> None:
    assert free_slot((UNUSED, SECOND), None) == 0
    assert free_slot((THEIRS, SECOND), None) is None
    assert free_slot((THEIRS, SERVING), KNOWN) is None
    failed = replace(THEIRS, held_tokens=0)  # as its last request did: it may be that all do
    assert free_slot((failed, SECOND), None) == 0
    assert free_slot((failed, replace(SERVING, id=1)), None) is None
    assert free_slot((replace(THEIRS, held_tokens=None),), None) is None  # it does not say
    assert free_slot((replace(SERVING, held_tokens=0), SECOND), None) is None
