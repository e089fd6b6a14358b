"""The probe's rules, as tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from probe.gpu import GpuDevice, GpuReading
from probe.judge import Ask, Asked, Observation, Seen, judge, plan
from probe.memory import Memory, ModelMemory
from probe.ollama import FOREVER, Answer, LoadedModel, RunnerHealth
from probe.report import Reason, Remedy
from probe.runners import Runner
from probe.settings import Settings

NOW = 10_000.0
GIB = 1 << 30

ANY = Settings()
REQUIRED = Settings(model="tiny")
GPU_REQUIRED = Settings(gpu="required")
FIRST = Memory()
PROVEN = Memory(checked_at=NOW - 15, proven=True)
HAD_GPU = replace(PROVEN, gpus=("GPU-1",))

GPU = GpuReading((GpuDevice("GPU-1", "card", 24 * GIB, 9 * GIB, 0),))
BUSY_GPU = GpuReading((GpuDevice("GPU-1", "card", 24 * GIB, 9 * GIB, 97),))
NO_LIBRARY = GpuReading(error="NVML: Shared Library Not Found", library_missing=True)
UNKNOWN = GpuReading(error="NVML: Unknown Error")

IN_VRAM = LoadedModel("tiny:latest", GIB, GIB, NOW + 200, "then")
ON_CPU = replace(IN_VRAM, size_vram_bytes=0)
HALF = replace(IN_VRAM, size_vram_bytes=GIB // 2)
RUNNER = Runner(7, 1, port=4000, num_ctx=1024, num_batch=512, shape="runner --ctx-size 2048")
READY, LOADING = RunnerHealth("ready"), RunnerHealth("loading", 0.4)
SILENT = RunnerHealth("silent")
ASK = Ask(token=True, keep_alive_seconds=200)


def seen(model: LoadedModel = IN_VRAM, health: RunnerHealth = READY, **more: object) -> Seen:
    return replace(Seen(model, RUNNER, health), **more)  # type: ignore[arg-type]


def look(
    answer: Answer | None = None,
    model: LoadedModel = IN_VRAM,
    health: RunnerHealth = READY,
    cpu: float = 0.0,
    runner: Runner = RUNNER,
    **more: object,
) -> Observation:
    """One loaded model, and what came of asking it."""
    asked = {} if answer is None else {model.name: Asked(ASK, answer, NOW, cpu_seconds=cpu)}
    one = Seen(model, runner, health)
    return replace(Observation(seen=(one,), asked=asked), **more)  # type: ignore[arg-type]


TOKEN, NOTHING = Answer("token", 0.2), Answer("silent", 9.7)
DELETED = Answer("error", 0.1, 404, "model 'tiny' not found")
LOST = Answer("error", 0.1, 500, "llama runner process has terminated")


@pytest.mark.parametrize(
    ("observation", "memory", "settings", "reason", "healthy"),
    [
        # a server with nothing to complain of
        (Observation(), FIRST, ANY, "idle", True),
        (Observation(gpu=GPU), FIRST, ANY, "idle", True),
        (look(TOKEN), FIRST, ANY, "ready", True),
        (look(TOKEN, gpu=GPU), HAD_GPU, ANY, "ready", True),
        (look(TOKEN, model=HALF, gpu=GPU), FIRST, ANY, "ready", True),
        (look(None), PROVEN, ANY, "ready", True),
        (look(Answer("error", 0.1, 400, "does not support generate")), FIRST, ANY, "ready", True),
        (Observation(installed=True, loaded=TOKEN), FIRST, REQUIRED, "ready", True),
        # a load: never a reason to restart, and no fault where nothing was promised
        (look(health=LOADING), FIRST, ANY, "loading", True),
        (look(health=LOADING), FIRST, REQUIRED, "loading", False),
        (look(health=LOADING), PROVEN, REQUIRED, "loading", True),
        (Observation(installed=True, loaded=NOTHING), FIRST, REQUIRED, "loading", False),
        (look(health=LOADING), replace(PROVEN, loading_since=NOW - 599), ANY, "loading", True),
        (look(health=LOADING), replace(PROVEN, loading_since=NOW - 601), ANY, "stalled", False),
        # silence: busy where work is being done, and not for ever
        (look(NOTHING), PROVEN, ANY, "stalled", False),
        (look(NOTHING, cpu=5.0), PROVEN, ANY, "busy", True),
        (look(NOTHING, gpu=BUSY_GPU), HAD_GPU, ANY, "busy", True),
        (look(NOTHING, cpu=5.0), replace(PROVEN, busy_since=NOW - 599), ANY, "busy", True),
        (look(NOTHING, cpu=5.0), replace(PROVEN, busy_since=NOW - 601), ANY, "stalled", False),
        (look(health=SILENT, waited=5.0), PROVEN, ANY, "stalled", False),
        (look(health=SILENT, waited=5.0, silent_cpu_seconds=4.0), PROVEN, ANY, "busy", True),
        (look(Answer("error", 0.1, 503, "server busy")), PROVEN, ANY, "busy", True),
        (look(LOST), PROVEN, ANY, "stalled", False),
        (Observation(installed=True, loaded=LOST), FIRST, REQUIRED, "stalled", False),
        # what no restart brings
        (Observation(installed=False), FIRST, REQUIRED, "model_missing", False),
        (look(DELETED), PROVEN, REQUIRED, "model_missing", False),
        # a loaded model that a user deleted is missed by nobody
        (look(DELETED), PROVEN, ANY, "ready", True),
        # the server
        (Observation(api_error="/api/ps: refused"), PROVEN, ANY, "api_down", False),
        # the GPU
        (look(TOKEN, gpu=UNKNOWN), FIRST, ANY, "gpu_lost", False),
        (look(TOKEN, gpu=GpuReading()), HAD_GPU, ANY, "gpu_lost", False),
        (look(TOKEN, gpu=GpuReading()), FIRST, GPU_REQUIRED, "gpu_lost", False),
        (look(TOKEN, model=ON_CPU, gpu=GpuReading()), FIRST, ANY, "ready", True),
        (look(TOKEN, gpu=NO_LIBRARY), HAD_GPU, ANY, "gpu_lost", False),
        (look(TOKEN, gpu=NO_LIBRARY), FIRST, ANY, "misconfigured", False),
        (look(TOKEN, gpu=replace(UNKNOWN, denied=True)), HAD_GPU, ANY, "misconfigured", False),
        (Observation(api_error="refused", gpu=UNKNOWN), HAD_GPU, ANY, "gpu_lost", False),
        # where the model is
        (look(TOKEN, model=ON_CPU, gpu=GPU), FIRST, ANY, "cpu_fallback", False),
        (look(TOKEN, model=ON_CPU), FIRST, ANY, "ready", True),
        (look(TOKEN, model=HALF, gpu=GPU), FIRST, Settings(min_vram=90), "cpu_fallback", False),
        (
            look(TOKEN, model=ON_CPU, gpu=GPU, runner=replace(RUNNER, model_on_cpu_by_choice=True)),
            *(FIRST, ANY, "ready", True),
        ),
        (
            look(Answer("error", 0.1, 400, "embeds"), model=ON_CPU, gpu=GPU),
            *(FIRST, ANY, "ready", True),
        ),
    ],
)
def test_an_observation_is_judged(
    observation: Observation, memory: Memory, settings: Settings, reason: str, healthy: bool
) -> None:
    verdict, _ = judge(observation, memory, settings, NOW)
    assert (verdict.reason, verdict.healthy) == (Reason(reason), healthy), verdict.message


@pytest.mark.parametrize("reason", list(Reason))
def test_every_fault_has_a_remedy_and_a_load_none(reason: Reason) -> None:
    harmless = {Reason.READY, Reason.IDLE, Reason.BUSY, Reason.LOADING}
    assert (reason.remedy is Remedy.NONE) == (reason in harmless)


def past(**fields: object) -> Memory:
    """The last check left the model so, ten seconds ago."""
    model = ModelMemory(RUNNER.identity, NOW + 200, "then", session_seconds=300.0)
    return Memory(
        checked_at=NOW - 10,
        proven=True,
        models={"tiny:latest": replace(model, **fields)},  # type: ignore[arg-type]
    )


OPTIONS = {"num_ctx": 1024, "num_batch": 512}


@pytest.mark.parametrize(
    ("one", "memory", "settings", "ask"),
    [
        # with the options it was loaded with, until the moment at which it ends anyway
        (seen(), past(), ANY, Ask(True, 200, OPTIONS)),
        (seen(), past(token_seconds=3.0), ANY, Ask(True, 197, OPTIONS)),
        (seen(), past(expires_at=NOW + 190), ANY, Ask(True, 190, OPTIONS)),
        (seen(), PROVEN, ANY, Ask(True, 200, OPTIONS)),
        # not in a first check: for how long users keep the model, to give it back, shows later
        (seen(), FIRST, ANY, None),
        (
            seen(replace(IN_VRAM, context_length=4096)),
            *(past(), ANY, Ask(True, 200, {"num_ctx": 4096, "num_batch": 512})),
        ),
        (
            seen(runner=replace(RUNNER, num_thread=3)),
            *(past(), ANY, Ask(True, 200, {**OPTIONS, "num_thread": 3})),
        ),
        # not while it loads, nor a runner that says nothing
        (seen(health=LOADING), past(), ANY, None),
        (seen(health=SILENT), past(), ANY, None),
        # not when its options cannot be known, or were shown to be not repeatable
        (Seen(IN_VRAM), past(), ANY, None),
        (seen(), replace(past(), opaque=(RUNNER.shape,)), ANY, None),
        # not when it is about to be unloaded: it could be loaded again for us
        (seen(replace(IN_VRAM, expires_at=NOW + 29)), past(expires_at=NOW + 29), ANY, None),
        (
            seen(replace(IN_VRAM, expires_at=NOW + 31)),
            *(past(expires_at=NOW + 31), ANY, Ask(True, 31, OPTIONS)),
        ),
        # a model that is never unloaded stays so
        (
            seen(replace(IN_VRAM, expires_at=NOW + 9e9)),
            *(FIRST, ANY, Ask(True, FOREVER, OPTIONS)),
        ),
        # a user's request has proved it since; what we lent is given back, what he named is kept
        (seen(replace(IN_VRAM, expires_text="later")), past(), ANY, None),
        (
            seen(replace(IN_VRAM, expires_text="later", expires_at=NOW + 245)),
            *(past(lent_seconds=250.0), ANY, Ask(False, 295, OPTIONS)),
        ),
        (
            seen(replace(IN_VRAM, expires_text="later", expires_at=NOW + 295)),
            *(past(lent_seconds=250.0), ANY, None),
        ),
        (
            seen(replace(IN_VRAM, expires_text="later", expires_at=NOW + 55)),
            *(past(lent_seconds=250.0), ANY, None),
        ),
        # its first request goes on: its expiry moves with the clock, and proves nothing
        (
            seen(replace(IN_VRAM, expires_text="later", expires_at=NOW + 300), unfinished=True),
            *(past(), ANY, Ask(True, 300, OPTIONS)),
        ),
        # a required model is kept for ever
        (seen(), past(), REQUIRED, Ask(True, FOREVER, OPTIONS)),
        (
            seen(replace(IN_VRAM, expires_text="later")),
            *(past(), REQUIRED, Ask(False, FOREVER, OPTIONS)),
        ),
        (Seen(IN_VRAM), past(), REQUIRED, Ask(True, FOREVER, {})),
        (seen(), replace(past(), opaque=(RUNNER.shape,)), REQUIRED, None),
    ],
)
def test_a_model_is_asked_nothing_that_could_harm_it(
    one: Seen, memory: Memory, settings: Settings, ask: Ask | None
) -> None:
    assert plan(one, memory, settings, NOW) == ask


def test_a_request_of_ours_that_made_a_model_load_anew_is_not_made_again() -> None:
    asked = Asked(ASK, TOKEN, NOW, model=IN_VRAM, cpu_seconds=0.0, reloaded=True)
    observation = Observation(seen=(seen(),), asked={"tiny:latest": asked})
    _, memory = judge(observation, PROVEN, ANY, NOW)
    assert plan(seen(), memory, ANY, NOW + 15) is None


def test_a_gpu_once_seen_is_remembered() -> None:
    _, memory = judge(look(TOKEN, gpu=GPU), FIRST, ANY, NOW)
    verdict, _ = judge(look(TOKEN, gpu=GpuReading()), memory, ANY, NOW)
    assert verdict.message == "NVML no longer sees GPU-1"


def test_a_time_of_being_busy_ends_with_the_first_answer() -> None:
    _, memory = judge(look(NOTHING, cpu=5.0), PROVEN, ANY, NOW)
    assert memory.busy_since == NOW
    _, memory = judge(look(TOKEN), memory, ANY, NOW + 15)
    assert memory.busy_since is None


def test_a_user_whose_request_ended_within_ours_is_noticed_at_the_next_look() -> None:
    later = replace(IN_VRAM, expires_at=NOW + 290, expires_text="later")
    asked = Asked(ASK, TOKEN, NOW, model=later)
    _, memory = judge(Observation(seen=(seen(),), asked={"tiny:latest": asked}), past(), ANY, NOW)
    give_back = plan(seen(later), memory, ANY, NOW + 15)
    assert give_back is None or not give_back.token
