"""What observations mean, as tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from probe.gpu import GpuFault, GpuReading
from probe.judge import gpu_wanted, judge
from probe.memory import Load, Memory, Record
from probe.observation import Ask, Asked, Observation
from probe.ollama import Answer, LoadedModel
from probe.plan import plan
from probe.report import Reason, Remedy
from probe.settings import Settings
from tests.unit.rows import (
    ANY,
    ASK,
    BUSY_GPU,
    BY_CHOICE,
    CLOCK,
    FIRST,
    GIB,
    GPU,
    GPU_REQUIRED,
    HAD_GPU,
    HALF,
    IN_VRAM,
    KNOWN,
    LOADING,
    NOTHING,
    NOW,
    ON_CPU,
    PROVEN,
    REQUIRED,
    RUNNER,
    SILENT,
    TOKEN,
    UNIFIED,
    WAS_IN_VRAM,
    broken,
    device,
    look,
    seen,
)

DELETED = Answer("error", 0.1, None, 404, "model 'tiny' not found")
LOST = Answer("error", 0.1, None, 500, "llama runner process has terminated")
TOO_LARGE = Answer("error", 0.1, None, 500, "model requires more system memory (9.0 GiB)")
NO_VRAM = Answer("error", 0.1, None, 500, "llama runner: cudaMalloc failed: out of memory")
REFUSED = Answer("error", 0.1, None, 400, "does not support what was asked")
NONSENSE = Answer("error", 0.1, None, 200, "not an answer of Ollama's")
BROKEN_OFF = Answer("error", 0.1, message="the answer has no end")
FULL = Answer("error", 0.1, None, 503, "server busy, please try again")

BUSY_FOR_60 = Settings(busy_timeout=60)
OTHERS = GpuReading((device(used=20),))
EMPTY = GpuReading((device(used=0),))
OWN = LoadedModel("second:latest", 19 * GIB, 19 * GIB)
LATER = replace(IN_VRAM, expires_text="later")
THEIRS = replace(LATER, expires_at=NOW + 290)


def loading_for(seconds: float, still: float = 0, **more: object) -> Memory:
    mark = (0.4, 50.0, 0.0)
    load = Load(NOW - seconds, NOW - still, mark)
    return replace(PROVEN, load=load, **more)  # type: ignore[arg-type]


def busy_for(seconds: float) -> Memory:
    return replace(PROVEN, models={"tiny:latest": replace(KNOWN, busy_since=NOW - seconds)})


@pytest.mark.parametrize(
    ("observation", "memory", "settings", "reason", "healthy"),
    [
        # a server with nothing to complain of
        (Observation(), FIRST, ANY, "idle", True),
        (Observation(gpu=GPU), FIRST, ANY, "idle", True),
        (Observation(gpu=EMPTY), WAS_IN_VRAM, ANY, "idle", True),  # unloaded: VRAM at 0 is right
        (look(TOKEN), FIRST, ANY, "ready", True),
        (look(TOKEN, gpu=GPU), HAD_GPU, ANY, "ready", True),
        (look(None), PROVEN, ANY, "ready", True),
        (look(REFUSED), FIRST, ANY, "ready", True),
        (look(TOKEN, model=replace(IN_VRAM, size_bytes=0)), FIRST, ANY, "ready", True),
        (Observation(installed="yes", loaded=TOKEN), FIRST, REQUIRED, "ready", True),
        (Observation(installed="yes", loaded=REFUSED), FIRST, REQUIRED, "ready", True),
        # a load: never a reason to restart, and no fault where nothing was promised
        (look(health=LOADING), FIRST, ANY, "loading", True),
        (look(health=LOADING), FIRST, REQUIRED, "loading", False),
        (look(health=LOADING), PROVEN, REQUIRED, "loading", True),
        (Observation(installed="yes", loaded=NOTHING), FIRST, REQUIRED, "loading", False),
        # ... unless its budget is spent, or it does not move
        (look(health=LOADING), loading_for(599), ANY, "loading", True),
        (look(health=LOADING), loading_for(601), ANY, "stalled", False),
        (look(health=LOADING), loading_for(200, still=119), ANY, "loading", True),
        (look(health=LOADING), loading_for(200, still=121), ANY, "stalled", False),
        (
            look(health=LOADING, runner=replace(RUNNER, cpu_seconds=51)),
            *(loading_for(200, still=121), ANY, "loading", True),
        ),
        (
            look(health=LOADING, runner=replace(RUNNER, memory_bytes=GIB)),
            *(loading_for(200, still=121), ANY, "loading", True),
        ),
        (
            Observation(installed="yes", loaded=NOTHING),
            *(loading_for(200, still=121), REQUIRED, "loading", True),
        ),
        (
            Observation(installed="yes", loaded=NOTHING),
            *(loading_for(601), REQUIRED, "stalled", False),
        ),
        # silence: busy where work is being done, and not for ever
        (look(NOTHING), PROVEN, ANY, "stalled", False),
        (look(NOTHING, cpu=5.0), PROVEN, ANY, "busy", True),
        (look(NOTHING, after=THEIRS), PROVEN, ANY, "busy", True),  # a user was served meanwhile
        (look(NOTHING, after=LATER), PROVEN, ANY, "stalled", False),  # it noted that we went away
        (look(NOTHING, cpu=None, gpu=BUSY_GPU), HAD_GPU, ANY, "busy", True),
        (look(NOTHING, cpu=0.2, gpu=BUSY_GPU), HAD_GPU, ANY, "busy", True),
        (look(NOTHING, cpu=0.2, gpu=GPU), HAD_GPU, ANY, "stalled", False),
        # a runner that does nothing at all is not the one that works on the GPU
        (look(NOTHING, cpu=0.0, gpu=BUSY_GPU), HAD_GPU, ANY, "stalled", False),
        (look(NOTHING, cpu=5.0), busy_for(599), ANY, "busy", True),
        (look(NOTHING, cpu=5.0), busy_for(601), ANY, "stalled", False),
        # ... longer where no GPU is at work: a long prompt takes longer there, and no driver hangs
        (look(NOTHING, ON_CPU, cpu=5.0), busy_for(3599), ANY, "busy", True),
        (look(NOTHING, ON_CPU, cpu=5.0), busy_for(3601), ANY, "stalled", False),
        (look(NOTHING, HALF, cpu=5.0), busy_for(601), ANY, "stalled", False),
        # ... and as long as was asked for
        (look(NOTHING, ON_CPU, cpu=5.0), busy_for(61), BUSY_FOR_60, "stalled", False),
        # one model is busy, and another hangs
        (
            replace(
                look(NOTHING, cpu=5.0),
                seen=(seen(), seen(OWN, health=SILENT)),
                waited=5.0,
            ),
            *(PROVEN, ANY, "stalled", False),
        ),
        # a user was served meanwhile, or gets token by token
        (look(NOTHING, after=THEIRS), busy_for(601), ANY, "busy", True),
        (look(NOTHING, sent=12), busy_for(601), ANY, "busy", True),
        # a few words may be answers to other probes
        (look(NOTHING, sent=11), busy_for(601), ANY, "stalled", False),
        (look(health=SILENT, waited=5.0), PROVEN, ANY, "stalled", False),
        (look(health=SILENT, waited=5.0, silent_runnable_seconds=4.0), PROVEN, ANY, "busy", True),
        (look(FULL), PROVEN, ANY, "busy", True),
        (look(FULL), busy_for(601), ANY, "stalled", False),
        (look(FULL, sent=12), busy_for(601), ANY, "busy", True),
        (look(LOST), PROVEN, ANY, "stalled", False),
        (look(NONSENSE), PROVEN, ANY, "stalled", False),
        (look(BROKEN_OFF), PROVEN, ANY, "stalled", False),
        (Observation(installed="yes", loaded=LOST), FIRST, REQUIRED, "stalled", False),
        # what no restart brings
        (Observation(installed="no"), FIRST, REQUIRED, "model_missing", False),
        (Observation(installed="cloud"), FIRST, REQUIRED, "misconfigured", False),
        (Observation(installed="yes", loaded=TOO_LARGE), FIRST, REQUIRED, "misconfigured", False),
        (
            Observation(installed="yes", loaded=NO_VRAM, gpu=OTHERS),
            *(FIRST, REQUIRED, "vram_taken", False),
        ),
        (
            Observation(installed="yes", loaded=NO_VRAM, gpu=EMPTY),
            *(FIRST, REQUIRED, "stalled", False),
        ),
        (look(DELETED), PROVEN, REQUIRED, "model_missing", False),
        (look(DELETED), PROVEN, ANY, "ready", True),  # deleted while loaded: missed by nobody
        # the server
        (Observation(api_error="/api/ps: refused"), PROVEN, ANY, "api_down", False),
        (look(NOTHING, cpu=5.0, api_error="/api/ps: refused"), FIRST, ANY, "api_down", False),
    ],
)
def test_a_server_is_judged(
    observation: Observation, memory: Memory, settings: Settings, reason: str, healthy: bool
) -> None:
    verdict, _ = judge(observation, memory, settings, NOW)
    assert (verdict.reason, verdict.healthy) == (Reason(reason), healthy), verdict.message


@pytest.mark.parametrize(
    ("observation", "memory", "settings", "reason", "words"),
    [
        (look(TOKEN, gpu=GpuReading()), HAD_GPU, ANY, "gpu_lost", "no longer sees GPU-1"),
        (look(TOKEN, gpu=GpuReading()), FIRST, GPU_REQUIRED, "gpu_lost", "required and NVML sees"),
        (look(TOKEN, model=ON_CPU, gpu=GpuReading()), FIRST, ANY, "ready", ""),
        (
            look(TOKEN, gpu=GpuReading((device(uuid="MIG-1"),))),
            *(replace(HAD_GPU, gpus=("MIG-1", "MIG-2")), ANY, "gpu_lost", "no longer sees MIG-2"),
        ),
        *[
            (look(TOKEN, gpu=broken(fault)), memory, ANY, "gpu_lost", words)
            for memory in (FIRST, HAD_GPU)
            for fault, words in [
                (GpuFault.UNKNOWN, "must be made again"),
                (GpuFault.GPU_LOST, "must be reset"),
                (GpuFault.VERSION_MISMATCH, "the driver was updated"),
                (GpuFault.DRIVER_NOT_LOADED, "driver is not loaded"),
                (GpuFault.HANGS, "the driver is sick"),
                (GpuFault.OTHER, "nvidia-smi"),
            ]
        ],
        (
            look(TOKEN, gpu=broken(GpuFault.LIBRARY_MISSING)),
            *(HAD_GPU, ANY, "gpu_lost", "must be made again"),
        ),
        (
            look(TOKEN, gpu=broken(GpuFault.LIBRARY_MISSING)),
            *(FIRST, ANY, "misconfigured", "--gpus all"),
        ),
        (look(TOKEN, gpu=broken(GpuFault.DENIED)), HAD_GPU, ANY, "misconfigured", "may not use"),
        (
            look(TOKEN, gpu=GpuReading(hidden="CUDA_VISIBLE_DEVICES=-1")),
            *(FIRST, GPU_REQUIRED, "misconfigured", "CUDA_VISIBLE_DEVICES=-1 hides every GPU"),
        ),
        # what cannot be asked any more is explained by what was lost
        (
            Observation(api_error="refused", gpu=broken(GpuFault.UNKNOWN)),
            *(HAD_GPU, ANY, "gpu_lost", "must be made again"),
        ),
    ],
)
def test_a_gpu_that_fails_says_how_and_what_to_do(
    observation: Observation, memory: Memory, settings: Settings, reason: str, words: str
) -> None:
    verdict, _ = judge(observation, memory, settings, NOW)
    assert verdict.reason is Reason(reason), verdict.message
    assert words in verdict.message


WANTS_90 = Settings(min_vram=90)
LARGE = LoadedModel("tiny:latest", 40 * GIB, 20 * GIB, NOW + 200, "then")
BARELY = replace(IN_VRAM, size_bytes=8 * GIB, size_vram_bytes=6 * GIB)


@pytest.mark.parametrize(
    ("observation", "memory", "settings", "reason"),
    [
        # on the CPU, and nobody says that it should be elsewhere
        (look(TOKEN, model=ON_CPU, gpu=GPU), PROVEN, ANY, "ready"),
        (look(TOKEN, model=ON_CPU), PROVEN, REQUIRED, "ready"),
        (look(TOKEN, model=ON_CPU, gpu=GPU, runner=BY_CHOICE), WAS_IN_VRAM, ANY, "ready"),
        (look(TOKEN, model=ON_CPU, gpu=GPU, runner=BY_CHOICE), FIRST, REQUIRED, "ready"),
        # partly on the CPU, by choice or because it is larger than the card
        (look(TOKEN, model=HALF, gpu=GPU), WAS_IN_VRAM, ANY, "ready"),
        (look(TOKEN, model=HALF, gpu=GPU), FIRST, REQUIRED, "ready"),
        (look(TOKEN, model=LARGE, gpu=GpuReading((device(23),))), WAS_IN_VRAM, ANY, "ready"),
        # there before and now not, required and not, expected by a setting and not
        (look(TOKEN, model=ON_CPU, gpu=EMPTY), WAS_IN_VRAM, ANY, "cpu_fallback"),
        (look(TOKEN, model=ON_CPU, gpu=EMPTY), FIRST, REQUIRED, "cpu_fallback"),
        (look(TOKEN, model=ON_CPU, gpu=EMPTY), FIRST, GPU_REQUIRED, "cpu_fallback"),
        (look(TOKEN, model=HALF, gpu=GPU), WAS_IN_VRAM, WANTS_90, "cpu_fallback"),
        (look(TOKEN, model=ON_CPU, gpu=UNIFIED), WAS_IN_VRAM, ANY, "cpu_fallback"),
        (look(TOKEN, model=HALF, gpu=GPU), PROVEN, WANTS_90, "ready"),
        # more is asked for than there is
        (
            look(TOKEN, model=LARGE, gpu=GpuReading((device(23),))),
            *(FIRST, replace(WANTS_90, model="tiny"), "misconfigured"),
        ),
        # others hold the VRAM, and a restart would not bring it back
        (look(TOKEN, model=ON_CPU, gpu=OTHERS), WAS_IN_VRAM, ANY, "vram_taken"),
        (look(TOKEN, model=ON_CPU, gpu=OTHERS), FIRST, REQUIRED, "vram_taken"),
        # ... but not where there is room all the same, or it is what we left behind ourselves
        (look(TOKEN, model=ON_CPU, gpu=GPU), WAS_IN_VRAM, ANY, "cpu_fallback"),
        (look(TOKEN, model=ON_CPU, gpu=OTHERS, strays=1), WAS_IN_VRAM, ANY, "cpu_fallback"),
        (
            look(TOKEN, model=ON_CPU, gpu=OTHERS, others=(seen(OWN),)),
            *(WAS_IN_VRAM, ANY, "cpu_fallback"),
        ),
        # nor does it matter how busy it is: on the CPU it is busy all the time
        (look(NOTHING, ON_CPU, cpu=5.0, gpu=EMPTY), WAS_IN_VRAM, ANY, "cpu_fallback"),
        (look(NOTHING, ON_CPU, cpu=5.0, gpu=OTHERS), WAS_IN_VRAM, ANY, "vram_taken"),
        (look(NOTHING, cpu=5.0, gpu=EMPTY), HAD_GPU, ANY, "vram_mismatch"),
        (look(FULL, ON_CPU, gpu=EMPTY), WAS_IN_VRAM, ANY, "cpu_fallback"),
        (look(NOTHING, ON_CPU, gpu=EMPTY), WAS_IN_VRAM, ANY, "stalled"),
        # Ollama says 100 % GPU, and the VRAM is empty
        (look(TOKEN, gpu=EMPTY), HAD_GPU, ANY, "vram_mismatch"),
        (look(TOKEN, gpu=GpuReading((device(5),))), HAD_GPU, ANY, "vram_mismatch"),
        (look(TOKEN, gpu=GpuReading((device(3), device(3)))), HAD_GPU, ANY, "ready"),
        (look(TOKEN, gpu=GpuReading((device(6),))), HAD_GPU, ANY, "ready"),
        (look(TOKEN, model=HALF, gpu=GpuReading((device(3),))), HAD_GPU, ANY, "ready"),
        # its claim alone is an estimate, known to be a third too high
        (
            look(TOKEN, gpu=GpuReading((device(5),)), runner=replace(RUNNER, blob_bytes=None)),
            *(HAD_GPU, ANY, "ready"),
        ),
        (
            look(TOKEN, gpu=GpuReading((device(3),)), runner=replace(RUNNER, blob_bytes=None)),
            *(HAD_GPU, ANY, "vram_mismatch"),
        ),
        # not of a model that came while we looked, nor where memory is unified
        (look(TOKEN, gpu=EMPTY), replace(HAD_GPU, models={}), ANY, "ready"),
        (look(TOKEN, gpu=UNIFIED), HAD_GPU, ANY, "ready"),
        # nor where Ollama may use GPUs that NVML does not see
        (look(TOKEN, gpu=replace(EMPTY, partial=True)), HAD_GPU, ANY, "ready"),
        # several models: one that is out of VRAM is found behind one that is in it
        (
            replace(
                look(TOKEN, gpu=GPU),
                seen=(seen(), seen(replace(ON_CPU, name="second:latest"))),
            ),
            replace(WAS_IN_VRAM, records={"second:latest": Record(100)}),
            *(ANY, "cpu_fallback"),
        ),
    ],
)
def test_where_a_model_is_is_judged(
    observation: Observation, memory: Memory, settings: Settings, reason: str
) -> None:
    verdict, _ = judge(observation, memory, settings, NOW)
    assert verdict.reason is Reason(reason), verdict.message


CEILING = Settings(max_first_token=2.0)
FLOOR = Settings(min_tokens_per_second=10.0)
LEARNED = Settings(max_first_token="learned", min_tokens_per_second="learned")
LATE_TOKEN, FEW = Answer("token", 3.0), Answer("token", 0.5, 2.0)


def had(slow_checks: int, best: float | None = 0.4, rate: float | None = 40.0) -> Memory:
    return replace(PROVEN, records={"tiny:latest": Record(0, best, rate, slow_checks)})


@pytest.mark.parametrize(
    ("answer", "cpu_since", "memory", "settings", "reason"),
    [
        (LATE_TOKEN, 0.0, had(2), CEILING, "slow"),
        (LATE_TOKEN, 0.0, had(1), CEILING, "ready"),  # not often enough
        (LATE_TOKEN, 0.0, had(1), replace(CEILING, slow_checks=2), "slow"),
        (LATE_TOKEN, 9.0, had(2), CEILING, "ready"),  # users' work stands in its way
        (LATE_TOKEN, 0.0, had(2), ANY, "ready"),  # off
        (TOKEN, 0.0, had(9), CEILING, "ready"),  # well again
        (FEW, 0.0, had(2), FLOOR, "slow"),
        (FEW, 0.0, had(2, rate=None), FLOOR, "slow"),
        (TOKEN, 0.0, had(2), FLOOR, "ready"),  # its rate was not measured
        (FEW, 0.0, had(2), LEARNED, "slow"),
        (LATE_TOKEN, 0.0, had(2), LEARNED, "slow"),
        (Answer("token", 1.9, 9.0), 0.0, had(2), LEARNED, "ready"),
        (Answer("token", 0.9), 0.0, had(2, best=0.001), LEARNED, "ready"),  # a GPU that wakes up
        (LATE_TOKEN, 0.0, had(2, None, None), LEARNED, "ready"),  # nothing was learned yet
    ],
)
def test_slow_is_far_below_what_was_asked_for_or_learned_several_times_and_in_peace(
    answer: Answer, cpu_since: float, memory: Memory, settings: Settings, reason: str
) -> None:
    runner = replace(RUNNER, cpu_seconds=50.0 + cpu_since)
    verdict, _ = judge(look(answer, runner=runner), memory, settings, NOW)
    assert verdict.reason is Reason(reason), verdict.message


def test_what_is_learned_is_the_best_that_was_seen_in_peace() -> None:
    memory = PROVEN
    for seconds, rate, busy in [(0.5, 20.0, 0.0), (0.3, 30.0, 9.0), (0.4, 10.0, 0.0)]:
        now = NOW if memory.checked_at is None else memory.checked_at + 15
        known = memory.models["tiny:latest"]
        runner = replace(RUNNER, cpu_seconds=(known.runnable_seconds or 0) + busy)
        model = replace(IN_VRAM, expires_text=known.left)
        answer = Answer("token", seconds, rate)
        observation = look(answer, model=model, runner=runner, began_at=now)
        _, memory = judge(observation, memory, LEARNED, now)
    record = memory.records["tiny:latest"]
    assert (record.first_token_seconds, record.tokens_per_second) == (0.4, 20.0)


@pytest.mark.parametrize("reason", list(Reason))
def test_every_fault_has_a_remedy_and_a_load_none(reason: Reason) -> None:
    harmless = {Reason.READY, Reason.IDLE, Reason.BUSY, Reason.LOADING}
    assert (reason.remedy is Remedy.NONE) == (reason in harmless)


@pytest.mark.parametrize(
    ("gpu", "memory", "hint", "wanted"),
    [
        ("auto", FIRST, False, False),
        ("auto", FIRST, True, True),
        ("auto", HAD_GPU, False, True),  # it was there before: that it is gone is the fault
        ("required", FIRST, False, True),
        ("off", HAD_GPU, True, False),
    ],
)
def test_a_gpu_is_looked_for_where_one_is_expected(
    gpu: str, memory: Memory, hint: bool, wanted: bool
) -> None:
    assert gpu_wanted(Settings(gpu=gpu), memory, hint) == wanted


def test_a_gpu_once_seen_is_remembered() -> None:
    _, memory = judge(look(TOKEN, gpu=GPU), FIRST, ANY, NOW)
    verdict, _ = judge(look(TOKEN, gpu=GpuReading()), memory, ANY, NOW)
    assert verdict.reason is Reason.GPU_LOST


def test_a_model_once_in_vram_is_remembered_over_its_unloading() -> None:
    _, memory = judge(look(TOKEN, gpu=GPU), FIRST, ANY, NOW)
    _, memory = judge(Observation(gpu=EMPTY), memory, ANY, NOW + 15)
    verdict, _ = judge(look(TOKEN, model=ON_CPU, gpu=EMPTY), memory, ANY, NOW + 30)
    assert verdict.reason is Reason.CPU_FALLBACK


def test_a_time_of_being_busy_ends_with_the_first_answer() -> None:
    _, memory = judge(look(NOTHING, cpu=5.0), PROVEN, ANY, NOW)
    assert memory.models["tiny:latest"].busy_since == NOW
    _, memory = judge(look(NOTHING, sent=99), memory, ANY, NOW + 15)
    assert memory.models["tiny:latest"].busy_since == NOW + 15
    _, memory = judge(look(TOKEN), memory, ANY, NOW + 30)
    assert memory.models["tiny:latest"].busy_since is None


def test_the_time_that_one_model_was_busy_is_not_another_ones() -> None:
    other = seen(OWN, runner=replace(RUNNER, pid=8))
    _, memory = judge(look(NOTHING, cpu=5.0), busy_for(590), ANY, NOW)
    alone = look(NOTHING, model=OWN, cpu=5.0, runner=other.runner)
    both = replace(alone, seen=(seen(), other))
    verdict, _ = judge(both, memory, ANY, NOW + 15)
    assert verdict.reason is Reason.BUSY


def test_a_request_of_ours_that_made_a_model_load_anew_is_not_made_again() -> None:
    asked = Asked(ASK, TOKEN, NOW, model=IN_VRAM, reloaded=True)
    observation = Observation(clock=CLOCK, seen=(seen(),), asked={"tiny:latest": asked})
    _, memory = judge(observation, PROVEN, ANY, NOW)
    assert plan(seen(), memory, ANY, NOW + 15, CLOCK) is None


def test_verdicts_that_are_alike_are_one_episode() -> None:
    memory = FIRST
    for at, observation in enumerate([look(TOKEN), look(TOKEN), look(NOTHING), look(TOKEN)]):
        _, memory = judge(observation, memory, ANY, NOW + at)
    assert [(e.reason, e.checks, e.began_at - CLOCK - NOW) for e in memory.episodes] == [
        ("ready", 2, 0),
        ("stalled", 1, 2),
        ("ready", 1, 3),
    ]


def test_a_touch_without_a_token_is_no_measure_of_speed() -> None:
    asked = Asked(Ask(0, 200), Answer("token", 30.0), NOW, model=IN_VRAM)
    observation = replace(look(TOKEN), asked={"tiny:latest": asked})
    _, memory = judge(observation, PROVEN, CEILING, NOW)
    assert memory.records["tiny:latest"] == Record(vram_percent=100)


def test_what_users_have_set_is_known_after_it_was_given_back() -> None:
    lent = replace(PROVEN.models["tiny:latest"], lent_seconds=286.0)
    memory = replace(PROVEN, models={"tiny:latest": lent})
    used = replace(IN_VRAM, expires_at=NOW + 276, expires_text="later")  # ten seconds ago
    given = Asked(Ask(0, 290), TOKEN, NOW, model=replace(used, expires_at=NOW + 290))
    observation = replace(look(TOKEN, model=used), asked={"tiny:latest": given})
    _, memory = judge(observation, memory, ANY, NOW)
    assert memory.models["tiny:latest"].session_seconds == 300.0


def test_a_little_cpu_time_between_two_checks_is_peace() -> None:
    runner = replace(RUNNER, cpu_seconds=50.4)  # in 15 seconds
    _, memory = judge(look(LATE_TOKEN, runner=runner), had(1), CEILING, NOW)
    assert memory.records["tiny:latest"].slow_checks == 2
