"""A runner that ends whenever it is asked for a token."""

from __future__ import annotations

from dataclasses import replace

import pytest

from probe.judge import judge
from probe.memory import Crashes, Memory
from probe.observation import Answer, Ask, Asked, Observation, RunnerHealth, Slot
from probe.plan import CRASHES, CRASHES_SECONDS, routine
from probe.report import Reason, Remedy
from tests.unit.rows import (
    ANY,
    FIRST,
    IN_VRAM,
    NOW,
    OTHER_RUNNER,
    PROVEN,
    READY,
    REQUIRED,
    RUNNER,
    TOKEN,
    check,
    model,
    reasons,
    run,
    slots,
)

BROKE = Answer("error", 0.3, message="Server disconnected without sending a response.")
REFUSED = Answer("error", 0.3, None, 500, "failed to decode")
IN_SLOT = Ask("runner", slot=0)


def crash(number: int, answer: Answer = BROKE) -> Observation:
    """A new process every time, which has ended at our request."""
    fresh = model(health=slots(Slot(0)), runner=replace(RUNNER, pid=number))
    return check(fresh, to=(Asked(IN_SLOT, answer),))


def listed(number: int) -> Observation:
    return check(model(health=slots(Slot(0)), runner=replace(RUNNER, pid=number)))


def test_a_required_model_that_ends_at_each_of_several_requests_is_stalled_for_an_operator() -> (
    None
):
    """Each was a new process, so that a restart is no more than that."""
    numbers = range(20, 20 + CRASHES)
    verdicts, memory = run(*map(crash, numbers), memory=PROVEN, settings=REQUIRED)
    assert reasons(verdicts) == ["ready", "ready", "stalled"]
    assert verdicts[-1].remedy is Remedy.OPERATOR
    assert "exited at each of the last 3 requests" in verdicts[-1].message
    # It is asked no more, and stays so until somebody gets a token of it.
    again, memory = judge(listed(40), memory, REQUIRED, NOW + 60)
    assert again.reason is Reason.STALLED
    assert routine(listed(40).models[0], memory, ANY) is None


def test_of_a_model_that_nobody_requires_it_is_a_reading() -> None:
    verdicts, _ = run(*map(crash, range(20, 20 + CRASHES)), memory=PROVEN)
    assert verdicts[-1].healthy
    assert "exited at each of the last 3 requests" in str(verdicts[-1].readings["noted"])


def gone(number: int, expires_in: float = 300.0) -> Observation:
    """Its process has gone, and so many requests have ended by now."""
    row = replace(IN_VRAM, expires_text=f"after {number}", expires_at=NOW + expires_in)
    return check(model(row, None, None, gone=True))


@pytest.mark.parametrize("between", ["nothing", "unlisted", "a new process"])
def test_a_required_model_that_ends_at_each_request_of_users_is_stalled_too(between: str) -> None:
    """It has no time to answer a check, which meets it by chance, and mostly while it is loaded."""
    seen = []
    for number in range(CRASHES):
        seen += [Observation()] if between == "unlisted" else []
        seen += [listed(30 + number)] if between == "a new process" else []
        seen += [gone(number)]
    verdicts, memory = run(listed(20), *seen, memory=PROVEN, settings=REQUIRED)
    assert [verdict.reason for verdict in verdicts].index(Reason.STALLED) == len(seen)
    assert verdicts[-1].remedy is Remedy.OPERATOR
    # ... whatever a check meets, until it has answered somebody
    for later in (Observation(missing={"tiny": "yes"}), listed(40), gone(CRASHES - 1)):
        again, memory = judge(later, memory, REQUIRED, NOW + 60)
        assert (again.healthy, again.reason) == (False, Reason.STALLED)
    answered = check(model(health=slots(Slot(0, task=9, held_tokens=4))))
    verdict, memory = judge(answered, memory, REQUIRED, NOW + 70)
    assert (verdict.reason, memory.crashes) == (Reason.READY, {})


def test_a_model_that_ends_at_users_requests_and_not_at_ours_is_found() -> None:
    """Of users come long prompts and images, of us one token; and we load the model again."""
    seen: list[Observation] = []
    for number in range(CRASHES):
        runner = replace(RUNNER, pid=40 + number)
        answers = (Asked(IN_SLOT, TOKEN, runner=runner, slots=(Slot(0, task=1, held_tokens=3),)),)
        seen.append(check(model(health=slots(Slot(0)), runner=runner), to=answers))
        seen.append(check(model(health=slots(Slot(0, task=1, held_tokens=3)), runner=runner)))
        seen.append(gone(number))
    verdicts, _ = run(listed(20), *seen, memory=PROVEN, settings=REQUIRED)
    assert reasons(verdicts).index("stalled") == len(seen)


@pytest.mark.parametrize("progress", [True, False], ids=["llama-server", "ollama runner"])
def test_a_process_that_reads_a_prompt_has_lived_through_nothing(progress: bool) -> None:
    """While its first request is served the server moves the expiry at each look."""
    seen: list[Observation] = []
    for number in range(CRASHES):
        for look in range(3):
            at = NOW + len(seen) * 15 + 15  # as `run` has it
            row = replace(IN_VRAM, expires_text=f"{number} {look}", expires_at=at + 300)
            reads = slots(Slot(0, True, task=4, prompt_tokens=100 * look)) if progress else READY
            runner = replace(RUNNER, pid=40 + number)
            seen.append(check(model(row, reads, runner)))
        seen.append(gone(number, expires_in=9000))
    verdicts, memory = run(listed(20), *seen, memory=PROVEN, settings=REQUIRED)
    assert reasons(verdicts).index("stalled") == len(seen), memory.crashes


def test_a_process_that_has_gone_while_a_request_is_open_has_crashed_at_most_once() -> None:
    """A client that has stopped reading holds the row, and the server moves its expiry at each
    look: nobody has asked since."""
    seen = []
    for look in range(9):
        at = NOW + 15 + look * 15  # as `run` has it
        row = replace(IN_VRAM, expires_text=f"look {look}", expires_at=at + 200)
        seen.append(check(model(row, None, None, gone=True)))
    verdicts, memory = run(listed(20), *seen, memory=PROVEN, settings=REQUIRED)
    assert "stalled" not in reasons(verdicts)
    assert max((one.times for one in memory.crashes.values()), default=0) <= 1
    # ... until the request has come to its end
    _, memory = run(gone(1), gone(1), memory=memory, settings=REQUIRED, start=NOW + 15 * 10)
    assert [one.times for one in memory.crashes.values()] == [1]


def test_users_who_try_again_at_once_have_a_required_model_found_that_exits_each_time() -> None:
    """Its expiry is always as far away as after a request; but it can be loaded, and was."""
    seen = []
    for look in range(CRASHES):
        at = NOW + 15 + look * 15  # as `run` has it
        row = replace(IN_VRAM, expires_text=f"look {look}", expires_at=at + 200)
        one = check(model(row, None, None, gone=True), load=("tiny", TOKEN))
        seen.append(replace(one, missing={"tiny": "yes"}))
    verdicts, _ = run(listed(20), *seen, memory=PROVEN, settings=REQUIRED)
    assert verdicts[-1].reason is Reason.STALLED


def exits(number: int) -> Observation:
    [one] = gone(number).models
    return check(replace(one, exits=True))


@pytest.mark.parametrize(
    "seen",
    [
        [gone(1)] * 9,  # nobody has asked since
        [gone(number, expires_in=-1) for number in range(9)],  # the server is about to end it
        [exits(number) for number in range(9)],  # the server ends it, to load another one
    ],
    ids=["idle", "due", "unloaded"],
)
def test_a_process_that_has_gone_for_another_reason_has_not_crashed(
    seen: list[Observation],
) -> None:
    verdicts, memory = run(listed(20), *seen, memory=PROVEN, settings=REQUIRED)
    assert "stalled" not in reasons(verdicts)
    assert max((one.times for one in memory.crashes.values()), default=0) <= 1


def test_a_process_that_was_ended_because_it_hung_has_not_crashed() -> None:
    """Its user's request has come to an end with it."""
    _, memory = run(listed(20), memory=PROVEN, settings=REQUIRED)
    runner = listed(20).models[0].runner
    assert runner is not None
    for healed in (replace(memory, suspect=runner.identity), replace(memory, ended=(NOW,))):
        _, after = judge(gone(1), healed, REQUIRED, NOW + 8)
        assert after.crashes == {}
    _, after = judge(gone(1), memory, REQUIRED, NOW + 8)
    assert after.crashes != {}


def test_what_moves_by_itself_while_a_model_is_loaded_tells_nothing() -> None:
    """A user who gives up during a load ends it."""
    row = replace(IN_VRAM, expires_text="at first", expires_at=NOW + 300)
    loads = check(model(row, health=RunnerHealth("loading")))
    _, memory = run(loads, gone(1), loads, gone(2), memory=PROVEN, settings=REQUIRED)
    assert memory.crashes == {}


def test_a_process_that_ended_after_our_own_load_has_not_crashed_at_a_request() -> None:
    kept = replace(IN_VRAM, expires_text="never", expires_at=NOW + 300)
    ours = replace(gone(0), load=("tiny", TOKEN), load_runner="9/9", load_row=kept)
    again = check(model(kept, None, None, gone=True))
    _, memory = run(listed(20), ours, again, memory=PROVEN, settings=REQUIRED)
    assert {key: one.times for key, one in memory.crashes.items()} == {"d1": 1}


def test_a_model_that_was_made_anew_has_not_crashed() -> None:
    _, memory = run(*map(crash, range(20, 20 + CRASHES)), memory=PROVEN, settings=REQUIRED)
    anew = check(model(replace(IN_VRAM, digest="d9"), health=slots(Slot(0))))
    verdict, memory = judge(anew, memory, REQUIRED, NOW + 60)
    assert (verdict.reason, memory.crashes) == (Reason.READY, {})


def test_a_process_that_was_killed_after_we_kept_its_model_loaded_has_not_crashed() -> None:
    """Our own request has moved its expiry, and was answered."""
    kept = replace(IN_VRAM, expires_text="never", expires_at=NOW + 300)
    loaded = replace(kept, expires_text="in five minutes")
    asked = Asked(Ask("server", tokens=0, keep=True), TOKEN, row=kept, runner=RUNNER)
    _, memory = run(
        check(model(loaded, health=slots(Slot(0))), to=(asked,)),
        check(model(kept, None, None, gone=True)),
        memory=PROVEN,
        settings=REQUIRED,
    )
    assert memory.crashes == {}


def test_crashes_of_an_hour_ago_count_no_more() -> None:
    _, memory = run(crash(20), crash(21), memory=PROVEN)
    verdict, memory = judge(crash(22), memory, REQUIRED, NOW + CRASHES_SECONDS + 60)
    assert verdict.healthy
    assert [one.times for one in memory.crashes.values()] == [1]


@pytest.mark.parametrize(
    "between",
    [
        check(model(health=slots(Slot(0))), to=(Asked(IN_SLOT, TOKEN, runner=RUNNER),)),
        check(model(health=slots(Slot(0, True, task=4, decoded_tokens=12)))),
        check(model(health=slots(Slot(0, task=1, held_tokens=9)), runner=OTHER_RUNNER)),
        check(model(replace(IN_VRAM, expires_text="later"))),
    ],
    ids=["a token for us", "tokens for a user", "tokens of a new process", "it lives after one"],
)
def test_a_token_ends_the_row_of_crashes(between: Observation) -> None:
    known = check(model(health=slots(Slot(0, True, task=4, decoded_tokens=2))))
    verdicts, memory = run(crash(20), crash(21), known, between, crash(22), memory=PROVEN)
    assert "stalled" not in reasons(verdicts)
    assert {key: one.times for key, one in memory.crashes.items()} == {"d1": 1}


def test_a_model_that_was_not_asked_keeps_its_count_and_other_models_have_theirs() -> None:
    _, memory = run(crash(20), Observation(), listed(21), memory=PROVEN)
    assert {key: one.times for key, one in memory.crashes.items()} == {"d1": 1}


@pytest.mark.parametrize(
    "one",
    [
        Asked(IN_SLOT, REFUSED),
        Asked(IN_SLOT, BROKE, runner=RUNNER),  # its process is still there
        Asked(Ask("server"), BROKE),  # it was the server that hung up
        Asked(IN_SLOT, Answer("silent", 9.7)),
    ],
)
def test_only_a_process_that_ends_at_a_request_has_crashed(one: Asked) -> None:
    _, memory = judge(check(model(), to=(one,)), PROVEN, ANY, NOW)
    assert memory.crashes == {}


def test_a_required_model_is_no_more_ended_by_us_again_and_again() -> None:
    """It would be loaded by one check, and ended by the next."""
    memory = replace(FIRST, proven=True, crashes={"d1": Crashes(CRASHES, NOW)})
    model_ = listed(20).models[0]
    assert routine(model_, Memory(), REQUIRED) is not None
    assert routine(model_, memory, REQUIRED) is None
