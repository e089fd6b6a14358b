"""Loads: which to begin, how they go, and what one that fails means; as tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from probe.gpu_reading import GpuFault, GpuReading
from probe.judge import judge
from probe.loads import BLOCKED_SECONDS, STILL_SECONDS, is_under_way, load_next, retry_after
from probe.memory import FailedLoad, Load, Memory, SentLoad
from probe.observation import (
    Answer,
    Asked,
    CommandLine,
    Dialect,
    Model,
    Observation,
    Runner,
    RunnerHealth,
    Slot,
)
from probe.report import Reason, Remedy
from probe.settings import Settings
from tests.unit.rows import (
    ANY,
    EMPTY,
    FIRST,
    GIB,
    GPU_REQUIRED,
    KEPT,
    KNOWN,
    LOADING,
    NOW,
    OTHER,
    OTHER_ROW,
    OTHER_RUNNER,
    PROVEN,
    READY,
    REQUIRED,
    RUNNER,
    TO_SERVER,
    TOKEN,
    UNKNOWN,
    broken,
    check,
    device,
    model,
    reasons,
    run,
    slots,
)

TOO_LATE = Answer("silent", 9.7)
FULL = Answer("error", 0.1, None, 503, "server busy, please try again")
LOST = Answer("error", 0.1, None, 500, "llama runner process has terminated")
MAGIC = Answer("error", 0.1, None, 500, "invalid magic")
NO_VRAM = Answer("error", 0.1, None, 500, "llama runner: cudaMalloc failed: out of memory")
ODD = Answer("error", 0.1, None, 400, "something that this server does not do")
OTHERS = GpuReading((device(used=20),))
BOTH = Settings(models=("tiny", "other"))

UNLISTED = replace(RUNNER, pid=20)
"""Since 0.30 the process of a model that is loaded and not listed yet."""


def memory_of(words: str, tries: int, ago: float = 10, by_server: bool = True) -> Memory:
    failed = FailedLoad(words, NOW - 500, NOW - ago, tries, by_server)
    return replace(PROVEN, models={}, failed_loads={"tiny": failed})


def missing(answer: Answer | None = None, how: str = "yes", **more: object) -> Observation:
    """The required model is not loaded; what came of loading it."""
    load = None if answer is None else ("tiny", answer)
    observation = Observation(NOW, 1.7e9, missing={"tiny": how}, load=load)
    return replace(observation, **more)  # type: ignore[arg-type]


def under_way(seconds: float, still: float = 0, name: str = "tiny:latest") -> Memory:
    mark = (50.0, 0.0, 0.4, 0.0, 0.0)
    return replace(PROVEN, load=Load(name, NOW - seconds, NOW - still, mark, grew_at=NOW - seconds))


def unlisted(runner: Runner = UNLISTED, **more: object) -> Observation:
    loading = ((runner, RunnerHealth("loading")),)
    return replace(Observation(NOW, 1.7e9, loading=loading), **more)  # type: ignore[arg-type]


NAME = "sha256-a"
GONE = model(KEPT, health=None, runner=None, gone=True)

LOADS = check(model(health=LOADING))
MOVES = check(model(runner=replace(RUNNER, cpu_seconds=57), health=LOADING))
WAITS = check(model(runner=replace(RUNNER, queued_seconds=70), health=LOADING))
ANSWERS = check(model(runner=replace(RUNNER, cpu_seconds=51, queued_seconds=9), health=LOADING))
GROWS = check(model(runner=replace(RUNNER, memory_bytes=GIB), health=LOADING))
READS = check(model(runner=replace(RUNNER, read_bytes=GIB), health=LOADING))
SAYS = check(model(health=RunnerHealth("loading", 0.5)))


@pytest.mark.parametrize(
    ("observation", "memory", "settings", "reason", "healthy"),
    [
        # never a reason to restart, and no fault where nothing was promised
        (LOADS, FIRST, ANY, "loading", True),
        (LOADS, FIRST, REQUIRED, "loading", False),
        (LOADS, PROVEN, REQUIRED, "loading", True),
        (unlisted(), FIRST, ANY, "loading", True),
        (unlisted(missing={"tiny": "yes"}), FIRST, REQUIRED, "loading", False),
        (missing(TOO_LATE), FIRST, REQUIRED, "loading", False),
        (missing(TOKEN), FIRST, REQUIRED, "ready", True),
        (missing(), FIRST, REQUIRED, "loading", False),
        (missing(), PROVEN, REQUIRED, "loading", True),
        (missing(FULL), FIRST, REQUIRED, "loading", False),
        (missing(FULL), PROVEN, REQUIRED, "loading", True),
        # not before all of them are there
        (missing(TOKEN, missing={"tiny": "yes", "other": "yes"}), FIRST, BOTH, "loading", False),
        # ... unless its budget is spent, or it does not move
        (LOADS, under_way(599), ANY, "loading", True),
        (LOADS, under_way(601), ANY, "stalled", False),
        (LOADS, under_way(200, STILL_SECONDS - 1), ANY, "loading", True),
        (LOADS, under_way(200, STILL_SECONDS + 1), ANY, "stalled", False),
        (MOVES, under_way(200, STILL_SECONDS + 1), ANY, "loading", True),
        (WAITS, under_way(200, STILL_SECONDS + 1), ANY, "loading", True),
        # it waits for a disk for ever, and says so whenever it is asked
        (ANSWERS, under_way(200, STILL_SECONDS + 1), ANY, "stalled", False),
        (GROWS, under_way(200, STILL_SECONDS + 1), ANY, "loading", True),
        (READS, under_way(200, STILL_SECONDS + 1), ANY, "loading", True),
        (SAYS, under_way(200, STILL_SECONDS + 1), ANY, "loading", True),
        # ... while it grows it may take as long as it needs, and while it only works it may not
        (GROWS, under_way(9000), ANY, "loading", True),
        (READS, under_way(9000), ANY, "loading", True),
        (SAYS, under_way(9000), ANY, "loading", True),
        (MOVES, under_way(601), ANY, "stalled", False),
        (WAITS, under_way(601), ANY, "stalled", False),
        (unlisted(), under_way(601, name=NAME), ANY, "stalled", False),
        (missing(TOO_LATE), under_way(200, STILL_SECONDS + 1), REQUIRED, "loading", True),
        (missing(TOO_LATE), under_way(601), REQUIRED, "stalled", False),
        # ... of the same load: models that are loaded one after another are several
        (LOADS, under_way(601, name="other:latest"), ANY, "loading", True),
        (unlisted(), under_way(601, name="other:latest"), ANY, "loading", True),
        (missing(TOO_LATE), under_way(601, name="other:latest"), REQUIRED, "loading", True),
        # since 0.32.4 the server does not answer while it loads an MLX model
        (unlisted(api_error="/api/ps: no answer"), PROVEN, ANY, "loading", True),
        (
            unlisted(api_error="/api/ps: no answer"),
            under_way(601, name=NAME),
            ANY,
            "stalled",
            False,
        ),
        # what no restart brings
        (missing(how="no"), FIRST, REQUIRED, "model_missing", False),
        (missing(how="cloud"), FIRST, REQUIRED, "misconfigured", False),
    ],
)
def test_a_load_is_judged_by_its_time_and_its_progress(
    observation: Observation, memory: Memory, settings: Settings, reason: str, healthy: bool
) -> None:
    verdict, _ = judge(observation, memory, settings, NOW)
    assert (verdict.reason, verdict.healthy) == (Reason(reason), healthy), verdict.message


def test_a_load_that_waits_for_a_disk_for_ever_needs_an_operator() -> None:
    """A restart would end it, where it can be ended at all, and wait for the same disk."""
    waits = check(model(runner=replace(RUNNER, blocked=True), health=LOADING))
    for observation, remedy in ((waits, Remedy.OPERATOR), (LOADS, Remedy.RESTART)):
        verdict, _ = judge(observation, under_way(700, STILL_SECONDS + 1), ANY, NOW)
        assert (verdict.reason, verdict.remedy) == (Reason.STALLED, remedy)
        assert ("waits for a disk" in verdict.message) == (remedy is Remedy.OPERATOR)


def test_a_load_that_was_seen_to_wait_for_a_disk_long_ago_may_hang_elsewhere() -> None:
    """A driver's library that hangs, for one, and a new process may not."""
    memory = under_way(700, STILL_SECONDS + 1)
    assert memory.load is not None
    for ago, remedy in ((BLOCKED_SECONDS, Remedy.OPERATOR), (BLOCKED_SECONDS + 1, Remedy.RESTART)):
        blocked = replace(memory, load=replace(memory.load, blocked_at=NOW - ago))
        verdict, _ = judge(LOADS, blocked, ANY, NOW)
        assert (verdict.reason, verdict.remedy) == (Reason.STALLED, remedy)


def test_beside_a_load_that_waits_for_a_disk_nothing_is_restarted() -> None:
    """Its process may not end, and then its container neither stops nor starts again."""
    waits = model(runner=replace(RUNNER, blocked=True), health=LOADING)
    other = replace(OTHER, health=READY, runner=OTHER_RUNNER)
    refused = Answer("error", 0.3, None, 500, "unable to allocate")
    both = check(waits, other, asked={"d2": (Asked(TO_SERVER, refused, runner=OTHER_RUNNER),)})
    alone, _ = judge(replace(both, models=(LOADS.models[0], other)), under_way(9), ANY, NOW)
    assert alone.remedy is Remedy.RESTART
    # At once: a GPU that is lost while a model is loaded can hold that process for good.
    lost = replace(both, asked={}, gpu=broken(GpuFault.GPU_LOST))
    for observation in (both, lost):
        memory = replace(under_way(9, 8), used_gpus=("GPU-1",), gpus=("GPU-1",), gpus_read=True)
        _, memory = judge(replace(observation, began_at=NOW - 8), memory, GPU_REQUIRED, NOW - 8)
        verdict, _ = judge(observation, memory, GPU_REQUIRED, NOW)
        assert (verdict.healthy, verdict.remedy) == (False, Remedy.OPERATOR)
        assert "waits for a disk, or for a driver" in verdict.message


def test_memory_that_is_given_back_and_taken_again_is_no_growth() -> None:
    seen = [
        check(model(runner=replace(RUNNER, memory_bytes=GIB * (n % 2)), health=LOADING))
        for n in range(40)
    ]
    verdicts, _ = run(*seen, memory=PROVEN)
    assert verdicts[-1].reason is Reason.STALLED


@pytest.mark.parametrize("seconds", [120, 600, 3600])
def test_a_container_that_was_paused_while_a_model_was_loaded_is_not_stuck(seconds: float) -> None:
    """No check saw it meanwhile, and its process is as far as it was."""
    began = [
        check(model(runner=replace(RUNNER, cpu_seconds=50 + 8.0 * n), health=LOADING))
        for n in range(6)
    ]
    verdicts, memory = run(*began[:3], every=8, memory=PROVEN)
    later, _ = run(*began[3:], every=8, memory=memory, start=NOW + 24 + seconds)
    assert set(reasons([*verdicts, *later])) == {"loading"}


def test_a_load_that_stands_still_is_found_however_many_checks_have_no_time() -> None:
    no_time = check(model(health=UNKNOWN), no_time="to ask the runner of tiny")
    _, memory = run(LOADS, *[no_time] * 20, memory=PROVEN)
    verdicts, _ = run(*[LOADS] * 20, memory=memory, start=NOW + 21 * 15)
    assert reasons(verdicts)[-1] == "stalled"


def test_a_load_that_waits_for_another_models_users_is_not_stuck() -> None:
    """Where there is no room for both, the server ends the other one when it is at rest."""
    verdicts, _ = run(
        *(
            missing(
                TOO_LATE,
                models=(replace(OTHER, health=slots(Slot(0, True, 7, 500, n))),),
            )
            for n in range(60)
        ),
        memory=PROVEN,
        settings=REQUIRED,
    )
    assert set(reasons(verdicts)) == {"loading"}
    assert all(verdict.healthy for verdict in verdicts)


def test_while_the_server_waits_for_an_mlx_load_what_is_known_of_its_models_stays() -> None:
    command = CommandLine(Dialect.MLX, port=1, model="mlx:latest")
    waits = unlisted(replace(UNLISTED, command=command), api_error="/api/ps: no answer")
    verdict, memory = judge(waits, PROVEN, ANY, NOW)
    assert "mlx:latest is being loaded" in verdict.message
    assert memory.models == PROVEN.models
    assert memory.evictions == ()


# --- loads that fail ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("observation", "memory", "reason"),
    [
        # a fault of the server's: at once, and for good when it is found again
        (missing(LOST), FIRST, "stalled"),
        (missing(), memory_of("runner has terminated", 1), "loading"),
        (missing(), memory_of("runner has terminated", 2), "stalled"),
        (missing(Answer("error", 0.1)), FIRST, "stalled"),
        # what is refused, and what others hold
        (missing(ODD), FIRST, "loading"),
        (missing(), memory_of("odd", 2, by_server=False), "model_unusable"),
        (missing(NO_VRAM, gpu=OTHERS), FIRST, "vram_taken"),
        (missing(NO_VRAM, gpu=EMPTY), FIRST, "stalled"),
        (missing(LOST, gpu=OTHERS), FIRST, "stalled"),
        (missing(gpu=OTHERS), memory_of("cudaMalloc failed: out of memory", 1), "vram_taken"),
        # what can never succeed: only after the same words twice
        (missing(MAGIC), FIRST, "loading"),
        (missing(), memory_of("invalid magic", 1), "loading"),
        (missing(MAGIC), memory_of("invalid magic", 1, 130), "model_unusable"),
        (missing(MAGIC), memory_of("something else", 1, 130), "loading"),
        (missing(), memory_of("invalid magic", 2), "model_unusable"),
        # it has been pulled, and can be loaded
        (missing(TOKEN), memory_of("invalid magic", 2, 500), "ready"),
        (check(model()), memory_of("invalid magic", 2, 500), "ready"),
        # ... but not where only its row is left
        (missing(models=(GONE,)), memory_of("invalid magic", 2), "model_unusable"),
        (missing(how="no"), memory_of("invalid magic", 2), "model_missing"),
    ],
)
def test_a_load_that_fails_is_judged_by_whose_fault_it_is(
    observation: Observation, memory: Memory, reason: str
) -> None:
    verdict, _ = judge(observation, memory, REQUIRED, NOW)
    assert verdict.reason is Reason(reason), verdict.message


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("invalid magic", "pull it again"),
        ("this model may be incompatible with your version of Ollama", "update Ollama"),
        ("unable to load full model on GPU", "too large for this GPU"),
        ("memory layout cannot be allocated", "too large for this machine"),
        ("model requires more system memory (9.0 GiB) than is available", "too large"),
        ("model failed to load, due to resource limitations", "too large"),
        ("model requires 20 GiB but only 16 GiB are available", "too large"),
        ("exec: /usr/lib/ollama/llama-server: no such file or directory", "image lacks it"),
        ("timed out waiting for llama-server to start", "the version of Ollama before"),
        ("unknown model architecture: 'new'", "update Ollama"),
    ],
)
def test_a_model_that_can_never_be_loaded_is_unusable_with_the_servers_words_and_advice(
    words: str, advice: str
) -> None:
    verdict, _ = judge(missing(), memory_of(words, 2), REQUIRED, NOW)
    assert (verdict.reason, verdict.remedy) == (Reason.MODEL_UNUSABLE, Remedy.OPERATOR)
    assert words in verdict.message
    assert advice in verdict.message


def test_words_that_differ_in_numbers_are_the_same_words() -> None:
    """A server that lacks memory says how much there is, which is never the same."""
    memory = FIRST
    for number, available in enumerate(("3.1", "2.9", "3.0")):
        text = f"model requires more system memory (9.0 GiB) than is available ({available} GiB)"
        answer = Answer("error", 0.1, None, 500, text)
        verdict, memory = judge(missing(answer), memory, REQUIRED, NOW + 200 * number)
    assert verdict.reason is Reason.MODEL_UNUSABLE
    assert memory.failed_loads["tiny"].tries == 3


def test_a_load_that_fails_is_tried_again_ever_later_and_not_for_ever_later() -> None:
    assert [retry_after(tries) for tries in (1, 2, 3, 6, 99, 10**9)] == [
        *(120, 240, 480),
        *(3600, 3600, 3600),
    ]


def test_a_full_queue_is_no_failed_load() -> None:
    _, memory = judge(missing(FULL), FIRST, REQUIRED, NOW)
    assert memory.failed_loads == {}


# --- what to load -------------------------------------------------------------------------

TWICE = memory_of("invalid magic", 2, 239)
EVICTS = Memory(proven=True, evictions=(("tiny", "other:latest"),))


@pytest.mark.parametrize(
    ("names", "loaded", "memory", "load"),
    [
        ({"tiny": "yes"}, (), FIRST, "tiny"),
        ({"tiny": "no"}, (), FIRST, None),
        ({"tiny": "cloud"}, (), FIRST, None),
        ({"tiny": "no", "other": "yes"}, (), FIRST, "other"),
        # one at a time, and not beside a load of somebody's
        ({"tiny": "yes", "other": "yes"}, (), FIRST, "tiny"),
        ({"tiny": "yes"}, (replace(OTHER, health=LOADING),), FIRST, None),
        ({"tiny": "yes"}, (OTHER,), FIRST, "tiny"),
        # not shortly after it has failed; another one meanwhile
        ({"tiny": "yes"}, (), TWICE, None),
        ({"tiny": "yes"}, (), memory_of("invalid magic", 2, 241), "tiny"),
        ({"tiny": "yes", "other": "yes"}, (), TWICE, "other"),
        # not what would end a model that is loaded, in either order
        ({"tiny": "yes"}, (OTHER,), EVICTS, None),
        ({"other": "yes"}, (model(),), EVICTS, None),
        ({"tiny": "yes"}, (), EVICTS, "tiny"),
        ({"third": "yes"}, (OTHER,), EVICTS, "third"),
    ],
)
def test_a_required_model_is_loaded_where_that_ends_nothing_and_has_not_just_failed(
    names: dict[str, str], loaded: tuple[Model, ...], memory: Memory, load: str | None
) -> None:
    assert load_next(names, loaded, memory, NOW) == load


BEFORE = missing(TOO_LATE, models=(OTHER,))
TINY_ALONE = check(model(KEPT))
OTHER_ALONE = missing(models=(OTHER,))


@pytest.mark.parametrize(
    "then",
    [
        (TINY_ALONE,),
        (unlisted(missing={"tiny": "yes"}), TINY_ALONE),
        (check(model(KEPT, health=LOADING)), TINY_ALONE),
        # it ended the other one, and could not be loaded all the same
        (missing(LOST),),
        (missing(),),
    ],
    ids=["loaded", "unlisted first", "listed first", "failed", "went away"],
)
def test_a_load_that_ended_another_model_is_not_repeated_and_both_are_named(
    then: tuple[Observation, ...],
) -> None:
    verdicts, memory = run(BEFORE, *then, OTHER_ALONE, memory=FIRST, settings=REQUIRED)
    assert load_next({"tiny": "yes"}, (OTHER,), memory, NOW + 1e6) is None
    assert verdicts[-1].reason is Reason.MISCONFIGURED
    assert verdicts[-1].remedy is Remedy.OPERATOR
    assert "tiny and other:latest do not fit into memory together" in verdicts[-1].message


@pytest.mark.parametrize(
    ("beside", "then"),
    [
        # it had ended by itself
        (replace(OTHER, row=replace(OTHER_ROW, expires_at=NOW + 5)), (TINY_ALONE,)),
        # both are there, or both were later
        (OTHER, (check(model(KEPT), OTHER),)),
        (OTHER, (TINY_ALONE, check(model(KEPT), OTHER), TINY_ALONE)),
        # it was loaded, and ended by somebody else later
        (OTHER, (check(model(KEPT), OTHER), TINY_ALONE)),
    ],
    ids=["expired", "both", "both later", "ended later"],
)
def test_a_model_that_ended_for_another_reason_stands_in_nobodys_way(
    beside: Model, then: tuple[Observation, ...]
) -> None:
    before = missing(TOO_LATE, models=(beside,))
    verdicts, memory = run(before, *then, OTHER_ALONE, memory=FIRST, settings=REQUIRED)
    assert memory.evictions == ()
    assert load_next({"tiny": "yes"}, (OTHER,), memory, NOW + 1e6) == "tiny"
    assert verdicts[-1].reason is Reason.LOADING


def test_a_model_is_not_in_its_own_way() -> None:
    """Listed without a process it is loaded again; unlisted again, it had exited a second time."""
    gone = model(KEPT, None, None, gone=True)
    seen = missing(TOO_LATE, models=(gone,))
    verdicts, memory = run(seen, Observation(missing={"tiny": "yes"}), settings=REQUIRED)
    assert memory.evictions == ()
    assert verdicts[-1].reason is Reason.LOADING


def test_required_models_that_do_not_fit_together_are_not_loaded_in_turns() -> None:
    first = missing(TOO_LATE, missing={"tiny": "yes"}, models=(OTHER,))
    second = replace(TINY_ALONE, missing={"other": "yes"})
    verdicts, memory = run(first, second, second, settings=BOTH)
    assert load_next({"other": "yes"}, (model(KEPT),), memory, NOW + 1e6) is None
    assert reasons(verdicts) == ["loading", "misconfigured", "misconfigured"]


def test_a_load_of_ours_gives_its_name_to_the_process_that_appears() -> None:
    verdicts, memory = run(missing(TOO_LATE), unlisted(missing={"tiny": "yes"}), settings=REQUIRED)
    assert "tiny is being loaded" in verdicts[-1].message
    assert memory.load is not None
    assert memory.load.since == NOW
    # ... and to no later one of somebody else's
    _, memory = run(TINY_ALONE, memory=memory, start=NOW + 30, settings=REQUIRED)
    assert memory.sent_load is None
    verdict, _ = judge(unlisted(OTHER_RUNNER), memory, ANY, NOW + 45)
    assert f"{NAME} is being loaded" in verdict.message


def test_of_two_loads_the_one_that_is_known_goes_on() -> None:
    both = check(model(OTHER_ROW, LOADING, OTHER_RUNNER), model(health=LOADING))
    _, memory = judge(both, under_way(300), ANY, NOW)
    assert memory.load is not None
    assert (memory.load.name, memory.load.since) == ("tiny:latest", NOW - 300)


def test_what_was_loaded_beside_is_remembered_over_a_check_without_time() -> None:
    _, memory = run(BEFORE, Observation(no_time="to ask for tiny"), settings=REQUIRED)
    assert memory.sent_load is not None


def test_what_was_loaded_beside_is_remembered_while_a_load_is_under_way() -> None:
    _, memory = run(BEFORE, unlisted(models=(OTHER,)), settings=REQUIRED)
    beside = {"other:latest": OTHER_ROW.expires_at}
    assert memory.sent_load == SentLoad("tiny", NOW, beside, tries=1)


def test_a_load_that_was_not_answered_is_not_sent_again_at_once() -> None:
    """It may wait in the server's queue, or have failed while nobody listened."""
    memory = Memory(sent_load=SentLoad("tiny", NOW, {}, tries=2, over=True))
    assert load_next({"tiny": "yes"}, (), memory, NOW + retry_after(2) - 1) is None
    assert load_next({"tiny": "yes"}, (), memory, NOW + retry_after(2)) == "tiny"


def test_a_required_model_that_has_just_gone_is_loaded_by_the_next_check() -> None:
    """The server may be about to load it again for a user, with options of their own."""
    left = replace(Memory(), models={"d1": KNOWN})
    assert load_next({"tiny": "yes"}, (), left, NOW) is None
    assert load_next({"tiny": "yes"}, (OTHER,), left, NOW) is None
    assert load_next({"tiny": "yes"}, (), Memory(), NOW) == "tiny"
    ours = Memory(sent_load=SentLoad("tiny", NOW - 8))
    assert load_next({"tiny": "yes"}, (), ours, NOW) is None
    # One whose process has gone is listed, and only a request brings it back.
    assert load_next({"tiny": "yes"}, (GONE,), left, NOW) == "tiny"
    # ... unless the server is ending it right now
    assert load_next({"tiny": "yes"}, (replace(GONE, exits=True),), left, NOW) is None
    # Where no check can leave anything there is no next one that knows of it.
    assert load_next({"tiny": "yes"}, (), replace(left, kept=False), NOW) == "tiny"


def test_a_load_by_another_process_is_another_load() -> None:
    """Two users whose options differ can have a model loaded again and again."""
    memory = under_way(595)
    assert memory.load is not None
    memory = replace(memory, load=replace(memory.load, runner="6/1"))
    verdict, memory = judge(check(model(health=LOADING)), memory, ANY, NOW + 10)
    assert verdict.reason is Reason.LOADING
    assert memory.load is not None
    assert memory.load.since == NOW + 10


def test_the_process_that_a_load_began_is_remembered() -> None:
    """So that it is known to be gone at the next check, if it is."""
    one = Observation(load=("tiny", Answer("token", 1.0)), load_runner="7/1")
    _, memory = judge(one, Memory(), REQUIRED, NOW)
    assert memory.sent_load is not None
    assert memory.sent_load.runner == "7/1"


def test_a_load_that_ended_unheard_is_told_with_when_it_is_tried_again() -> None:
    memory = Memory(sent_load=SentLoad("tiny", NOW - 30, {}, tries=2, over=True))
    verdict, _ = judge(Observation(missing={"tiny": "yes"}), memory, REQUIRED, NOW)
    assert verdict.message == (
        "tiny is not loaded yet: the server was asked 2 times and did not load it; "
        "it is asked again in 210 s"
    )


@pytest.mark.parametrize(
    ("tries", "over", "beside", "healthy"),
    [
        (3, True, {}, False),
        (3, False, {}, True),
        (2, True, {}, True),
        # it may have waited for the room that another one takes
        (3, True, {"other:latest": NOW + 200}, True),
    ],
)
def test_a_model_whose_loads_all_end_unheard_is_told_to_an_operator(
    tries: int, over: bool, beside: dict[str, float], healthy: bool
) -> None:
    """A load that fails after the check has gone says its words to nobody."""
    memory = Memory(proven=True, sent_load=SentLoad("tiny", NOW - 30, beside, tries, over))
    one = Observation(missing={"tiny": "yes"}, no_time="" if over else "to look")
    verdict, _ = judge(one, memory, REQUIRED, NOW)
    assert verdict.healthy == healthy
    if not healthy:
        assert (verdict.reason, verdict.remedy) == (Reason.MODEL_UNUSABLE, Remedy.OPERATOR)
        assert "was asked 3 times and did not load it" in verdict.message
        assert "docker logs" in verdict.message


@pytest.mark.parametrize(
    ("name", "process", "under_way"),
    [
        ("tiny:latest", "", True),
        ("tiny", RUNNER.identity, True),
        ("tiny", "6/1", False),  # an earlier process
        ("other", "", False),
        (None, "", False),
    ],
)
def test_a_load_is_known_by_its_model_and_process(
    name: str | None, process: str, under_way: bool
) -> None:
    """So that a runner that says nothing while it loads is not taken for one that hangs."""
    load = Load(name, NOW, NOW, (), process) if name else None
    assert is_under_way(model(), Memory(load=load)) is under_way
