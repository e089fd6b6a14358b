"""The plain data that the tables of rules are made of."""

from __future__ import annotations

from dataclasses import replace

from probe.gpu import GpuDevice, GpuFault, GpuReading
from probe.memory import Memory, ModelMemory, Record
from probe.observation import Ask, Asked, Observation, Seen
from probe.ollama import Answer, LoadedModel, RunnerHealth
from probe.runners import Runner
from probe.settings import Settings

NOW = 10_000.0
CLOCK = 1.7e9
GIB = 1 << 30

ANY = Settings()
REQUIRED = Settings(model="tiny")
GPU_REQUIRED = Settings(gpu="required")

IN_VRAM = LoadedModel("tiny:latest", 8 * GIB, 8 * GIB, NOW + 200, "then")
ON_CPU = replace(IN_VRAM, size_vram_bytes=0)
HALF = replace(IN_VRAM, size_vram_bytes=4 * GIB)
RUNNER = Runner(
    *(7, 1),
    port=4000,
    blob_bytes=7 * GIB,
    num_ctx=1024,
    num_batch=512,
    shape="runner --ctx-size 2048",
    cpu_seconds=50.0,
    writes=700,
)
BY_CHOICE = replace(RUNNER, model_on_cpu_by_choice=True)
READY, LOADING = RunnerHealth("ready"), RunnerHealth("loading", 0.4)
SILENT = RunnerHealth("silent")
ASK = Ask(tokens=1, keep_alive_seconds=200)

TOKEN, NOTHING = Answer("token", 0.2), Answer("silent", 9.7)

KNOWN = ModelMemory(
    RUNNER.identity, NOW + 200, "then", session_seconds=300.0, runnable_seconds=50.0, writes=700
)
FIRST = Memory()
PROVEN = Memory(checked_at=NOW - 15, clock=CLOCK, proven=True, models={"tiny:latest": KNOWN})
HAD_GPU = replace(PROVEN, gpus=("GPU-1",))
WAS_IN_VRAM = replace(HAD_GPU, records={"tiny:latest": Record(vram_percent=100)})


def device(used: int = 9, utilization: int | None = 0, uuid: str = "GPU-1") -> GpuDevice:
    """A card of 24 GiB, `used` in GiB."""
    return GpuDevice(uuid, "card", 24 * GIB, used * GIB, utilization)


GPU = GpuReading((device(),))
BUSY_GPU = GpuReading((device(utilization=97),))
UNIFIED = GpuReading((GpuDevice("GPU-1", "NVIDIA GB10"),))


def broken(fault: GpuFault) -> GpuReading:
    return GpuReading(fault=fault, error="NVML: Broken")


def seen(model: LoadedModel = IN_VRAM, health: RunnerHealth = READY, **more: object) -> Seen:
    return replace(Seen(model, RUNNER, health), **more)  # type: ignore[arg-type]


def look(
    answer: Answer | None = None,
    model: LoadedModel = IN_VRAM,
    health: RunnerHealth = READY,
    cpu: float | None = 0.0,
    runner: Runner | None = RUNNER,
    after: LoadedModel | None = None,
    sent: int = 0,
    **more: object,
) -> Observation:
    """One loaded model, and what came of asking it.

    Meanwhile its runner has used so much CPU time (None: it cannot be seen), and sent so often.
    """
    if cpu is None or runner is None:
        runner = later = None
    else:
        cpu, sent = runner.cpu_seconds + cpu, (runner.writes or 0) + sent
        later = replace(runner, cpu_seconds=cpu, writes=sent)
    one = Asked(ASK, answer, NOW, after, later) if answer is not None else None
    asked = {} if one is None else {model.name: one}
    observation = Observation(NOW, CLOCK, seen=(Seen(model, runner, health),), asked=asked)
    return replace(observation, **more)  # type: ignore[arg-type]
