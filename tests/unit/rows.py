"""The plain data that the tables of rules are made of."""

from __future__ import annotations

from dataclasses import replace

from probe.gpu_reading import GpuDevice, GpuFault, GpuReading
from probe.judge import judge
from probe.memory import Memory, ModelMemory
from probe.observation import (
    Answer,
    Ask,
    Asked,
    CommandLine,
    Dialect,
    LoadedModel,
    Model,
    Observation,
    Runner,
    RunnerHealth,
    Slot,
)
from probe.report import Verdict
from probe.settings import Settings

NOW = 10_000.0
CLOCK = 1.7e9
GIB = 1 << 30
FOREVER = NOW + 9e9

ANY = Settings()
REQUIRED = Settings(models=("tiny",))
GPU_REQUIRED = Settings(gpu="required")
ALWAYS, NEVER = Settings(generate="always"), Settings(generate="never")

IN_VRAM = LoadedModel("tiny:latest", 8 * GIB, 8 * GIB, NOW + 200, "then", digest="d1")
ON_CPU = replace(IN_VRAM, size_vram_bytes=0)
HALF = replace(IN_VRAM, size_vram_bytes=4 * GIB)
KEPT = replace(IN_VRAM, expires_at=FOREVER)
OTHER_ROW = LoadedModel("other:latest", 8 * GIB, 8 * GIB, NOW + 200, "then", digest="d2")

COMMAND = CommandLine(
    Dialect.LLAMA_SERVER,
    port=4000,
    weights="/root/.ollama/models/blobs/sha256-a",
    num_ctx=1024,
    num_batch=512,
    parallel=1,
    options_visible=True,
)
OLD_COMMAND = replace(COMMAND, dialect=Dialect.OLLAMA_RUNNER)
HIDDEN = CommandLine(Dialect.OLLAMA_ENGINE, port=4000)
"""The options of the generation between are not visible."""
OPTIONS = {"num_ctx": 1024, "num_batch": 512}

RUNNER = Runner(7, 1, COMMAND, blob_bytes=7 * GIB, cpu_seconds=50.0, writes=700)
OLD = replace(RUNNER, command=OLD_COMMAND)
ENGINE = replace(RUNNER, command=HIDDEN)
OTHER_RUNNER = replace(RUNNER, pid=8)

READY, LOADING = RunnerHealth("ready"), RunnerHealth("loading", 0.4)
SILENT, UNKNOWN = RunnerHealth("silent"), RunnerHealth("unknown")

TO_RUNNER, TO_SERVER = Ask("runner"), Ask("server", options=OPTIONS)
TOKEN, NOTHING = Answer("token", 0.2), Answer("silent", 9.7)

KNOWN = ModelMemory(
    name="tiny:latest",
    runner=RUNNER.identity,
    expires_text="then",
    expires_at=NOW + 200,
    runnable_seconds=50.0,
    cpu_seconds=50.0,
    writes=700,
    room_bytes=22 * GIB,
)
FIRST = Memory()
PROVEN = Memory(checked_at=NOW - 15, proven=True, models={"d1": KNOWN})
HAD_GPU = replace(PROVEN, gpus=("GPU-1",), gpus_read=True)
USED_GPU = replace(HAD_GPU, used_gpus=("GPU-1",))
FAULTY = replace(USED_GPU, gpu_faults=1)


def device(used: float = 9, utilization: int | None = 0, uuid: str = "GPU-1") -> GpuDevice:
    """A card of 24 GiB, `used` in GiB."""
    return GpuDevice(uuid, "card", 24 * GIB, int(used * GIB), utilization)


GPU = GpuReading((device(),), rest=True)
BUSY_GPU = GpuReading((device(utilization=97),))
EMPTY = GpuReading((device(used=0),))
FULL_GPU = GpuReading((device(used=22),))
UNIFIED = GpuReading((GpuDevice("GPU-1", "NVIDIA GB10"),))


def broken(fault: GpuFault) -> GpuReading:
    return GpuReading(fault=fault, error="NVML: Broken")


def slots(*of: Slot) -> RunnerHealth:
    """A `llama-server` that has answered for its slots."""
    return RunnerHealth("ready", slots=of)


def model(
    row: LoadedModel = IN_VRAM,
    health: RunnerHealth | None = READY,
    runner: Runner | None = RUNNER,
    **more: object,
) -> Model:
    return replace(Model(row, runner, health), **more)  # type: ignore[arg-type]


OTHER = model(OTHER_ROW, runner=OTHER_RUNNER)
HANGS = model(health=SILENT, silent_seconds=2.4, runnable_seconds=0.0)
WORKS = model(health=SILENT, silent_seconds=2.4, runnable_seconds=2.0)
INVISIBLE = model(health=None, runner=None)


def asked(ask: Ask, answer: Answer, ran: float | None = 0.0, **more: object) -> Asked:
    """A request, while which the runner ran for so many seconds."""
    return replace(Asked(ask, answer, ran), **more)  # type: ignore[arg-type]


UNANSWERED = asked(TO_SERVER, NOTHING)
ANSWERED = asked(TO_SERVER, TOKEN)


def check(*of: Model, to: tuple[Asked, ...] = (), **more: object) -> Observation:
    """What a check saw of these models, and what came of asking the first of them."""
    observation = Observation(
        began_at=NOW, clock=CLOCK, models=of, asked={of[0].row.key: to} if to else {}
    )
    return replace(observation, **more)  # type: ignore[arg-type]


def past(**fields: object) -> Memory:
    """The last check left the model so, fifteen seconds ago."""
    return replace(PROVEN, models={"d1": replace(KNOWN, **fields)})  # type: ignore[arg-type]


def run(
    *observations: Observation,
    memory: Memory = FIRST,
    settings: Settings = ANY,
    every: float = 15,
    start: float = NOW,
) -> tuple[list[Verdict], Memory]:
    """Several checks in a row: their verdicts, and what the last one left."""
    verdicts = []
    for number, observation in enumerate(observations):
        now = start + number * every
        verdict, memory = judge(replace(observation, began_at=now), memory, settings, now)
        verdicts.append(verdict)
    return verdicts, memory


def reasons(verdicts: list[Verdict]) -> list[str]:
    return [str(verdict.reason) for verdict in verdicts]
