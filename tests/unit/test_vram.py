"""Whether models are in VRAM, as tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from probe.gpu_reading import GpuReading
from probe.judge import judge
from probe.memory import Memory
from probe.observation import Dialect, LoadedModel, Model, Observation, RunnerHealth
from probe.plan import shape_of
from probe.report import Reason, Remedy
from probe.settings import Settings
from tests.unit.rows import (
    ANY,
    EMPTY,
    ENGINE,
    FULL_GPU,
    GIB,
    GPU,
    GPU_REQUIRED,
    HAD_GPU,
    HALF,
    IN_VRAM,
    LOADING,
    NOTHING,
    NOW,
    OLD,
    ON_CPU,
    OTHER,
    OTHER_ROW,
    OTHER_RUNNER,
    REQUIRED,
    RUNNER,
    SILENT,
    TO_SERVER,
    UNIFIED,
    USED_GPU,
    asked,
    check,
    device,
    model,
    reasons,
    run,
)

AGAIN = replace(RUNNER, pid=9, started=2)
"""The process that serves the model after it was loaded again."""

CPU = model(ON_CPU, runner=AGAIN)
FIFTH = model(replace(IN_VRAM, size_vram_bytes=int(1.6 * GIB)), runner=AGAIN)
TENANT = GpuReading((device(10),))


def chosen(number: int, one: Model = CPU, dialect: Dialect = Dialect.LLAMA_SERVER) -> Model:
    """The same with so many layers on a GPU asked for."""
    assert one.runner is not None
    command = replace(one.runner.command, num_gpu=number, dialect=dialect)
    return replace(one, runner=replace(one.runner, command=command))


def room(gib: float | None, memory: Memory = USED_GPU, *, was: float | None = None) -> Memory:
    """So much VRAM was free at the last check, with no model loaded; so much of it was in VRAM."""
    shares = {} if was is None else {shape_of(CPU): was}
    free = None if gib is None else int(gib * GIB)
    return replace(memory, models={}, free_bytes=free, vram_percents=shares)


@pytest.mark.parametrize(
    ("one", "gpu", "memory", "settings", "reason"),
    [
        # it fits, this server has used this GPU, and there was room
        (CPU, EMPTY, room(22), ANY, "cpu_fallback"),
        (CPU, EMPTY, room(22), REQUIRED, "cpu_fallback"),
        # another tenant's 10 GiB do not hide an 8 GiB model that runs on the CPU
        (CPU, TENANT, room(14), ANY, "cpu_fallback"),
        # ... or the GPU was never used, and none of it is certain
        (CPU, EMPTY, room(22, HAD_GPU), ANY, "ready"),
        (CPU, EMPTY, room(22, HAD_GPU), REQUIRED, "ready"),
        (CPU, EMPTY, room(22, HAD_GPU), GPU_REQUIRED, "cpu_fallback"),
        (CPU, EMPTY, room(22, replace(HAD_GPU, used_gpus=("GPU-0",))), ANY, "ready"),
        (CPU, None, room(22), ANY, "ready"),
        # room that came later, was too small with the margin, or is not known
        (CPU, EMPTY, room(4), ANY, "ready"),
        (CPU, EMPTY, room(9), ANY, "ready"),
        (CPU, EMPTY, room(None), ANY, "ready"),
        (CPU, EMPTY, room(None), GPU_REQUIRED, "ready"),
        (CPU, UNIFIED, room(22), GPU_REQUIRED, "ready"),
        # it does not fit now
        (CPU, GpuReading((device(15.5),)), room(22), ANY, "ready"),
        # it is to be there: a number of layers was chosen, or every GPU is hidden
        (chosen(0), EMPTY, room(22), ANY, "ready"),
        (chosen(0), EMPTY, room(22), GPU_REQUIRED, "ready"),
        (chosen(0, CPU, Dialect.OLLAMA_RUNNER), EMPTY, room(22), GPU_REQUIRED, "ready"),
        (chosen(5), EMPTY, room(22), GPU_REQUIRED, "ready"),
        (chosen(5, FIFTH), EMPTY, room(22, was=100), GPU_REQUIRED, "ready"),
        (CPU, replace(EMPTY, hidden="OLLAMA_LLM_LIBRARY=cpu"), room(22), ANY, "ready"),
        # ... on 0.9 the server writes a number of its own, so it counts only where that is wanted
        (chosen(5, FIFTH, Dialect.OLLAMA_RUNNER), EMPTY, room(22, was=100), ANY, "ready"),
        (
            chosen(5, FIFTH, Dialect.OLLAMA_RUNNER),
            *(EMPTY, room(22, was=100), GPU_REQUIRED, "cpu_fallback"),
        ),
        # options that are not visible may have asked for it
        (replace(CPU, runner=ENGINE), EMPTY, room(22), ANY, "ready"),
        (replace(CPU, runner=ENGINE), EMPTY, room(22), GPU_REQUIRED, "cpu_fallback"),
        (replace(CPU, runner=None), EMPTY, room(22), ANY, "ready"),
        (replace(CPU, runner=None), EMPTY, room(22), GPU_REQUIRED, "cpu_fallback"),
        (replace(CPU, runner=OLD), EMPTY, room(22), ANY, "cpu_fallback"),
        # partly there, as it always was
        (FIFTH, EMPTY, room(22), ANY, "ready"),
        (FIFTH, EMPTY, room(22), GPU_REQUIRED, "ready"),
        (FIFTH, EMPTY, room(22, was=29), ANY, "ready"),
        # from 100 % to 20 % with 22 GiB free; to a tenth less is no fall
        (FIFTH, GpuReading((device(2),)), room(22, was=100), ANY, "cpu_fallback"),
        (FIFTH, GpuReading((device(2),)), room(22, was=31), ANY, "cpu_fallback"),
        (CPU, EMPTY, room(22, was=100), ANY, "cpu_fallback"),
        # ... but room that came later is none, and a choice that cannot be seen may be one
        (FIFTH, GpuReading((device(2),)), room(4, was=100), ANY, "ready"),
        (FIFTH, GpuReading((device(2),)), room(8, was=100), ANY, "ready"),
        (FIFTH, GpuReading((device(2),)), room(None, was=100), ANY, "ready"),
        # not while it loads, nor where its process is gone
        (replace(CPU, health=LOADING), EMPTY, room(22), ANY, "loading"),
        (model(replace(ON_CPU, size_bytes=0), runner=AGAIN), EMPTY, room(22), ANY, "ready"),
    ],
)
def test_a_model_outside_vram_is_a_fault_where_it_would_fit_and_nobody_asked_for_it(
    one: Model, gpu: GpuReading | None, memory: Memory, settings: Settings, reason: str
) -> None:
    verdict, _ = judge(check(one, gpu=gpu), memory, settings, NOW)
    assert verdict.reason is Reason(reason), verdict.message
    assert verdict.remedy is (Remedy.RESTART if reason == "cpu_fallback" else Remedy.NONE)


def test_a_fall_of_a_model_whose_options_are_not_visible_may_have_been_asked_for() -> None:
    one = replace(FIFTH, runner=replace(ENGINE, pid=9))
    memory = replace(room(22), vram_percents={shape_of(one): 100.0})
    for settings, reason in ((ANY, Reason.READY), (GPU_REQUIRED, Reason.CPU_FALLBACK)):
        verdict, _ = judge(check(one, gpu=EMPTY), memory, settings, NOW)
        assert verdict.reason is reason


@pytest.mark.parametrize(
    ("one", "memory", "words"),
    [
        (CPU, room(4), "no room when it was loaded"),
        (CPU, room(None), "not known whether there was room"),
        (FIFTH, room(4, was=100), "no room when it was loaded"),
    ],
)
def test_room_that_came_later_or_is_not_known_is_a_reading(
    one: Model, memory: Memory, words: str
) -> None:
    verdict, _ = judge(check(one, gpu=EMPTY), memory, ANY, NOW)
    assert words in str(verdict.readings["outside_vram"])


def test_a_gpu_that_was_never_used_is_a_reading() -> None:
    verdict, _ = judge(check(CPU, gpu=EMPTY), room(22, HAD_GPU), ANY, NOW)
    assert (verdict.reason, verdict.readings["gpu"]) == (Reason.READY, "never used")


def test_a_restart_that_found_no_gpu_is_found_by_what_was_used_before_it() -> None:
    """Ollama 17069: discovery runs once, and finds nothing in one start of fifteen."""
    survived = Memory(gpus=("GPU-1",), used_gpus=("GPU-1",))
    verdicts, _ = run(Observation(gpu=EMPTY), check(CPU, gpu=EMPTY), memory=survived)
    assert reasons(verdicts) == ["idle", "cpu_fallback"]


def test_a_model_that_fills_the_card_is_missed_there_when_it_is_loaded_again() -> None:
    """At the last check it held the room itself."""
    row = replace(IN_VRAM, size_bytes=18 * GIB, size_vram_bytes=18 * GIB)
    before = check(model(row), gpu=GpuReading((device(18),)))
    again = check(model(replace(row, size_vram_bytes=0), runner=AGAIN), gpu=EMPTY)
    verdicts, _ = run(before, again)
    assert reasons(verdicts) == ["ready", "cpu_fallback"]


def test_room_is_what_there_was_before_a_load_and_not_in_the_middle_of_it() -> None:
    """Since 0.30 a model is listed when it is loaded; another tenant went meanwhile."""
    loading = Observation(gpu=EMPTY, loading=((AGAIN, RunnerHealth("loading")),))
    verdicts, _ = run(Observation(gpu=FULL_GPU), loading, check(CPU, gpu=EMPTY), memory=USED_GPU)
    assert reasons(verdicts) == ["idle", "loading", "ready"]


def test_room_is_what_the_gpu_had_when_the_server_was_last_down() -> None:
    """The last reading counts, and it is made while the server does not answer, too."""
    down = Observation(gpu=FULL_GPU, api_error="/api/ps: refused")
    verdicts, _ = run(Observation(gpu=EMPTY), down, check(CPU, gpu=EMPTY), memory=USED_GPU)
    assert reasons(verdicts) == ["idle", "api_down", "ready"]


def test_a_process_that_cannot_be_seen_for_once_brings_no_new_room() -> None:
    """It was loaded while others held the VRAM."""
    unseen = check(replace(CPU, runner=None), gpu=EMPTY)
    first = Observation(gpu=FULL_GPU)
    verdicts, _ = run(
        *(first, check(CPU, gpu=EMPTY), unseen, check(CPU, gpu=EMPTY), unseen),
        memory=USED_GPU,
        settings=GPU_REQUIRED,
    )
    assert reasons(verdicts) == ["idle", "ready", "ready", "ready", "ready"]


def test_a_model_once_in_vram_is_remembered_over_its_unloading() -> None:
    verdicts, _ = run(check(model(), gpu=GPU), Observation(gpu=EMPTY), check(FIFTH, gpu=EMPTY))
    assert reasons(verdicts) == ["ready", "idle", "cpu_fallback"]


WANTS_90 = Settings(min_vram=90)
LARGE = model(LoadedModel("tiny:latest", 40 * GIB, 20 * GIB, NOW + 200, "then", digest="d1"))
FULL_OF_OURS = GpuReading((device(23.5),))
BOTH = check(model(HALF), model(replace(OTHER_ROW, size_vram_bytes=19 * GIB)), gpu=FULL_OF_OURS)
OTHERS = GpuReading((device(22),))


@pytest.mark.parametrize(
    ("observation", "memory", "settings", "reason"),
    [
        # a number is meant for a model that is required, was there, or has to be
        (check(model(HALF), gpu=GPU), USED_GPU, WANTS_90, "ready"),
        (
            check(model(HALF), gpu=GPU),
            USED_GPU,
            replace(WANTS_90, models=("tiny",)),
            "cpu_fallback",
        ),
        (check(model(HALF), gpu=GPU), USED_GPU, replace(WANTS_90, gpu="required"), "cpu_fallback"),
        (check(model(HALF), gpu=GPU), room(22, was=100), WANTS_90, "cpu_fallback"),
        (check(model(HALF), gpu=GPU), room(22, was=89), WANTS_90, "ready"),
        (check(model(), gpu=GPU), USED_GPU, replace(WANTS_90, models=("tiny",)), "ready"),
        # more is asked for than there is
        (
            check(LARGE, gpu=FULL_OF_OURS),
            *(USED_GPU, replace(WANTS_90, models=("tiny",)), "misconfigured"),
        ),
        # ... of a model that nobody requires: a reading
        (check(LARGE, gpu=FULL_OF_OURS), room(22, was=100), WANTS_90, "ready"),
        # what this server's own models hold is no ground to restart it
        (BOTH, room(22, was=100), WANTS_90, "ready"),
        # others hold the VRAM: nothing that a restart would bring back
        (check(CPU, gpu=OTHERS), room(22), REQUIRED, "vram_taken"),
        (check(CPU, gpu=OTHERS), room(22, was=100), REQUIRED, "vram_taken"),
        (check(CPU, gpu=OTHERS), room(22), replace(WANTS_90, models=("tiny",)), "vram_taken"),
        (check(CPU, gpu=OTHERS), room(22), GPU_REQUIRED, "ready"),  # nobody requires it
        # ... but not what this server's processes hold that are not listed
        (check(CPU, gpu=OTHERS, strays=1), room(22), REQUIRED, "ready"),
        (
            check(CPU, gpu=OTHERS, loading=((OTHER_RUNNER, LOADING),)),
            *(room(22), REQUIRED, "loading"),
        ),
        # of several models the one outside is found, and it is busy all the time
        (check(OTHER, CPU, gpu=GPU), room(22), ANY, "cpu_fallback"),
        (
            check(CPU, to=(asked(TO_SERVER, NOTHING, 5.0),), gpu=EMPTY),
            *(room(22), ANY, "cpu_fallback"),
        ),
        # with `a` required, a `b` on the CPU is not ready
        (check(OTHER, CPU, gpu=GPU), room(22), Settings(models=("other",)), "cpu_fallback"),
    ],
)
def test_a_share_in_vram_is_judged_by_what_is_asked_for_and_who_holds_the_rest(
    observation: Observation, memory: Memory, settings: Settings, reason: str
) -> None:
    verdict, _ = judge(observation, memory, settings, NOW)
    assert verdict.reason is Reason(reason), verdict.message


def test_what_others_hold_of_a_models_vram_that_nobody_requires_is_a_reading() -> None:
    verdict, _ = judge(check(CPU, gpu=OTHERS), room(22), GPU_REQUIRED, NOW)
    assert verdict.healthy
    assert "vram_taken: tiny:latest" in str(verdict.readings["noted"])


MINE = GpuReading((device(14),), held={7: 7 * GIB})
NOT_MINE = GpuReading((device(14),), held={99: 14 * GIB})
NEW = model(replace(OTHER_ROW, size_vram_bytes=8 * GIB), runner=replace(RUNNER, pid=8))


@pytest.mark.parametrize(
    ("observation", "memory", "reason"),
    [
        # what its own process holds decides, where NVML shows it
        (check(model(), gpu=MINE), USED_GPU, "ready"),
        (check(model(), gpu=NOT_MINE), USED_GPU, "vram_mismatch"),
        (check(model(), gpu=replace(UNIFIED, held={})), USED_GPU, "vram_mismatch"),
        # else what all together hold, of which it is a part
        (check(model(), gpu=EMPTY), USED_GPU, "vram_mismatch"),
        (check(model(), gpu=GpuReading((device(3),))), USED_GPU, "vram_mismatch"),
        (check(model(), gpu=GpuReading((device(5),))), USED_GPU, "ready"),
        (check(model(), gpu=GpuReading((device(3), device(3)))), USED_GPU, "ready"),
        (check(model(HALF), gpu=GpuReading((device(3),))), USED_GPU, "ready"),
        # its claim alone is an estimate, known to be a third too high
        (
            check(model(runner=replace(RUNNER, blob_bytes=None)), gpu=GpuReading((device(5),))),
            *(USED_GPU, "ready"),
        ),
        (
            check(model(runner=replace(RUNNER, blob_bytes=None)), gpu=GpuReading((device(3),))),
            *(USED_GPU, "vram_mismatch"),
        ),
        # not of one that came while we read, is being loaded, or is gone
        (check(model(), gpu=EMPTY), replace(USED_GPU, models={}), "ready"),
        (check(model(health=LOADING), gpu=EMPTY), USED_GPU, "loading"),
        (check(model(runner=None, gone=True), gpu=EMPTY), USED_GPU, "idle"),
        # ... nor because of another that is
        (check(model(), NEW, gpu=GpuReading((device(8),))), USED_GPU, "ready"),
        (
            check(model(), replace(NEW, health=LOADING), gpu=GpuReading((device(8),))),
            *(USED_GPU, "loading"),
        ),
        # unknown: unified memory, and GPUs that NVML does not see
        (check(model(), gpu=UNIFIED), USED_GPU, "ready"),
        (check(model(), gpu=replace(EMPTY, partial=True)), USED_GPU, "ready"),
        # where the CPU was asked for, the server's number is its guess
        (check(chosen(0, model()), gpu=EMPTY), USED_GPU, "ready"),
        (check(model(), gpu=replace(EMPTY, hidden="CUDA_VISIBLE_DEVICES=-1")), USED_GPU, "ready"),
    ],
)
def test_what_the_server_says_of_vram_is_compared_with_what_nvml_sees(
    observation: Observation, memory: Memory, reason: str
) -> None:
    verdict, _ = judge(observation, memory, ANY, NOW)
    assert verdict.reason is Reason(reason), verdict.message


def test_where_others_vram_may_hide_a_mismatch_it_is_unknown() -> None:
    verdict, _ = judge(check(model(), gpu=GpuReading((device(18),))), USED_GPU, ANY, NOW)
    assert verdict.healthy
    assert "unknown" in str(verdict.readings["vram_mismatch"])


def test_a_busy_model_on_the_cpu_and_a_silent_one_are_both_found_and_the_silent_one_said() -> None:
    hangs = model(OTHER_ROW, SILENT, replace(RUNNER, pid=8), silent_seconds=2.0)
    observation = check(hangs, CPU, to=(asked(TO_SERVER, NOTHING),), gpu=GPU)
    verdict, _ = judge(observation, room(22), ANY, NOW)
    assert verdict.reason is Reason.STALLED
    assert "cpu_fallback: tiny:latest" in str(verdict.readings["noted"])
