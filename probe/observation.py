"""What one check observes of a server and its models, as plain data; `gpu_reading.py` has GPUs."""

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal, Self

from probe.gpu_reading import GpuReading

TEN_YEARS_SECONDS = 10 * 365 * 86_400
"""A model that is unloaded later than this is never unloaded; Ollama writes 292 years."""


class Dialect(StrEnum):
    """Which program serves a model, and so what can be asked of it; `dialects.py` has the words."""

    OLLAMA_RUNNER = "ollama runner"
    """Up to Ollama 0.11.4: its command line has all options of the model."""

    OLLAMA_ENGINE = "ollama engine"
    """Ollama 0.11.5 to 0.29: the options come with a request, and are not visible."""

    LLAMA_SERVER = "llama-server"
    """Since Ollama 0.30: llama.cpp's own server."""

    MLX = "mlx"
    """Safetensors models since Ollama 0.30."""


@dataclass(frozen=True)
class CommandLine:
    """What the command line of a runner says. None: it does not say.

    Attributes:
        dialect: which program it is.
        port: where it listens on loopback.
        weights: path of the model's weights, `/…/blobs/sha256-…`; empty where not visible.
        model: the model's name, of MLX runners only; else empty.
        num_ctx: context length that a request names for this model, in tokens of one slot.
        num_batch: its batch size, in tokens.
        num_thread: its threads.
        num_gpu: how many layers were asked to be on a GPU.
        use_mmap: False where its weights are read instead of mapped. Sent back, the server takes
            it for the same, whether it or a user had chosen that.
        parallel: how many slots it has.
        embedding: it only embeds.
        options_visible: the options above are all that make the server load the model again when
            a request names others. False where some do not show: adapters, a draft model,
            `use_mmap`, `main_gpu` and the like were set, or nothing shows at all.
    """

    dialect: Dialect
    port: int | None = None
    weights: str = ""
    model: str = ""
    num_ctx: int | None = None
    num_batch: int | None = None
    num_thread: int | None = None
    num_gpu: int | None = None
    use_mmap: bool | None = None
    parallel: int | None = None
    embedding: bool = False
    options_visible: bool = False


@dataclass(frozen=True)
class Slot:
    """One slot of a `llama-server`, as its `/slots` shows it.

    Attributes:
        id: its number.
        is_processing: a request is being served in it.
        task: number of its last request, which grows over all slots; None before the first.
        prompt_tokens: how many tokens of the prompt have been processed for the request that is
            being served; 0 when none is.
        decoded_tokens: how many tokens it was given; the same.
        held_tokens: how many tokens the slot holds, of the prompt and of the answer; None: unknown.
            A request that failed leaves none.
    """

    id: int
    is_processing: bool = False
    task: int | None = None
    prompt_tokens: int = 0
    decoded_tokens: int = 0
    held_tokens: int | None = None


@dataclass(frozen=True)
class Runner:
    """One runner process.

    Attributes:
        pid: its process id.
        started: its start, in clock ticks since boot; with `pid` it names one process for ever.
        command: what its command line says.
        parent: process id of its parent.
        blob_bytes: size of its weights on disk; None where it cannot be seen.
        default_threads: its number of threads is the one that the server takes by itself.
        cpu_seconds: CPU time it has used so far.
        queued_seconds: for how long the threads that it has now have waited for a CPU so far.
        runnable: whether one of them runs or waits for a CPU now.
        blocked: whether one of them waits in the kernel for something other than an event, as for a
            disk or a driver (`D`).
        writes: how often it has sent something: a token, or word of its health; None where the
            kernel does not tell.
        read_bytes: how much it has read; None where the kernel does not tell.
        memory_bytes: how much memory it holds.
    """

    pid: int
    started: int
    command: CommandLine
    parent: int = 0
    blob_bytes: int | None = None
    default_threads: bool = True
    cpu_seconds: float = 0.0
    queued_seconds: float = 0.0
    runnable: bool = False
    blocked: bool = False
    writes: int | None = None
    read_bytes: int | None = None
    memory_bytes: int = 0

    @property
    def identity(self) -> str:
        """The same for one process at every look, and never for another one."""
        return f"{self.pid}/{self.started}"

    @property
    def runnable_seconds(self) -> float:
        """For how long its threads have run, or waited for a CPU to run on."""
        return self.cpu_seconds + self.queued_seconds

    def and_then(self, later: Self | None) -> Self:
        """The same look; blocked, or runnable, if it was at this one or at a later one."""
        if later is None:
            return self
        blocked, runnable = self.blocked or later.blocked, self.runnable or later.runnable
        return replace(self, blocked=blocked, runnable=runnable)


@dataclass(frozen=True)
class Unending:
    """What is left of a process that was killed, or has begun to end, and has not ended.

    Attributes:
        identity: as `Runner.identity`.
        name: what it is called.
        runner: it is a runner of this server, which waits for it.
        state: the kernel's letter for what one of its threads does: `D` where a driver holds it.
        waits_in: the kernel's function that it waits in; empty where that cannot be read.
    """

    identity: str
    name: str = ""
    runner: bool = False
    state: str = ""
    waits_in: str = ""


@dataclass(frozen=True)
class LoadedModel:
    """One row of `/api/ps`.

    Attributes:
        name: full name with its tag, as the server lists it.
        size_bytes: memory it takes in all.
        size_vram_bytes: how much of that Ollama says is in VRAM.
        expires_at: when it is to be unloaded, on this machine's monotonic clock, in seconds.
        expires_text: the same as the server wrote it.
        context_length: tokens; None on servers that do not say.
        digest: names the model's files.
    """

    name: str
    size_bytes: int = 0
    size_vram_bytes: int = 0
    expires_at: float = 0.0
    expires_text: str = ""
    context_length: int | None = None
    digest: str = ""

    @property
    def key(self) -> str:
        """What tells it from others: a model made anew has its name, and another digest."""
        return self.digest or self.name

    @property
    def vram_percent(self) -> float | None:
        """How much of it is in VRAM; None where the server does not say how large it is."""
        if self.size_bytes <= 0:
            return None
        return round(100 * self.size_vram_bytes / self.size_bytes, 1)

    def expires_in(self, now: float) -> float | None:
        """Seconds until it is unloaded, from `now` of the monotonic clock; None: never."""
        remaining = self.expires_at - now
        return None if remaining > TEN_YEARS_SECONDS else max(remaining, 0.0)


@dataclass(frozen=True)
class Answer:
    """How a request for a token ended.

    Attributes:
        outcome: `token`, or an embedding of a model that only embeds; `silent`, nothing came in
            time; `error`, the server refused.
        seconds: how long that took; for a `token`, the first one.
        tokens_per_second: rate of the tokens after the first; None when there was none.
        status: HTTP status of an `error`; None when the connection broke.
        message: the server's own words for an `error`.
        embedding: it was one.
    """

    outcome: Literal["token", "silent", "error"]
    seconds: float = 0.0
    tokens_per_second: float | None = None
    status: int | None = None
    message: str = ""
    embedding: bool = False

    @property
    def queue_full(self) -> bool:
        """Whether the server refused because too many requests wait."""
        return self.outcome == "error" and self.status == 503


@dataclass(frozen=True)
class RunnerHealth:
    """What a runner process says of itself, or what is known where it says nothing.

    Attributes:
        state: `silent`, it did not answer in time; `gone`, its process has ended; `unknown`, it
            was not asked, had no time to answer, or does not say.
        progress: how much of the model is loaded, from 0 to 1; None where it does not say.
        slots: of a `llama-server` that answered for them; None where they cannot be read.
    """

    state: Literal["ready", "loading", "silent", "gone", "unknown"]
    progress: float | None = None
    slots: tuple[Slot, ...] | None = None


@dataclass(frozen=True)
class Model:
    """One loaded model.

    Attributes:
        row: what `/api/ps` says of it.
        runner: the process that serves it; None where it is not visible.
        health: what the runner says; None where it was not asked.
        gone: the process that served it has ended, and the server still lists it. It loads the
            model again when somebody asks for it.
        exits: some process of the server has begun to end and has not ended: this one may be being
            unloaded.
        silent_seconds: for how long the runner was asked and said nothing.
        runnable_seconds: for how long it ran or waited for a CPU meanwhile; None: not visible.
        stands: nothing came of a request that it serves, nor had it anything to run, at several
            looks of this check.
        clamped: its context length is all that it was trained for, so that more may have been
            asked for. Sent back, the server takes the lesser number for another one. None: unknown.
    """

    row: LoadedModel
    runner: Runner | None = None
    health: RunnerHealth | None = None
    gone: bool = False
    exits: bool = False
    silent_seconds: float = 0.0
    runnable_seconds: float | None = None
    stands: bool = False
    clamped: bool | None = False

    @property
    def state(self) -> str:
        """Its runner's state; `ready` where the runner was not asked."""
        return self.health.state if self.health else "ready"


@dataclass(frozen=True)
class Ask:
    """One request for a model.

    Attributes:
        via: who is asked: the model's `runner`, which has no effect on the server's schedule or
            the model's expiry, or the `server`.
        tokens: how many to generate; 0: none, the model is only kept loaded.
        slot: which slot of the runner; None: the runner chooses, or the server.
        keep: the model is to stay loaded for ever after it. Otherwise the request names no
            `keep_alive`, for the server would apply it to users' later requests.
        options: those that the model was loaded with, or else the server loads it again.
    """

    via: Literal["runner", "server"]
    tokens: int = 1
    slot: int | None = None
    keep: bool = False
    options: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """A request and what came of it.

    Attributes:
        ask: the request.
        answer: how it ended.
        runnable_seconds: for how long the runner ran or waited for a CPU meanwhile; None: not
            visible.
        slots: the runner's slots afterwards; None where they cannot be read.
        row: what `/api/ps` said of the model afterwards; None where that was not asked.
        runner: its process afterwards; None where it is not visible, or gone.
        ended: its process has ended meanwhile.
        still_silent: it was left unanswered, and the runner itself said nothing afterwards.
        taken: it was left unanswered, and clients have taken all that was sent to them, so that
            none holds up the others by reading no more. False: not, or not known.
    """

    ask: Ask
    answer: Answer
    runnable_seconds: float | None = None
    slots: tuple[Slot, ...] | None = None
    row: LoadedModel | None = None
    runner: Runner | None = None
    ended: bool = False
    still_silent: bool = False
    taken: bool = False


@dataclass(frozen=True)
class Observation:
    """Everything that one check observed.

    Attributes:
        began_at: when it began, in seconds of the monotonic clock.
        ends_at: when it has to end.
        clock: what the wall clock was ahead of it.
        gpu: NVML's reading; None when no GPU was looked for.
        api_error: why the server could not be asked; None when it could.
        held_by: models of the last check whose runners are silent while `/api/ps` gives no answer,
            and the server gives others.
        no_time: what the check had no time left for, as "to ask the server"; empty when it had
            time for everything. Whatever was silent then is not known to be silent.
        answered: whether the server answered anything; with `api_error` this says nothing.
        models: the loaded models.
        loading: runners of models that the server loads and does not list yet, with their health.
        strays: how many runners serve no loaded model.
        unending: processes of this container that were killed and have not ended.
        clients: whether anybody but us is connected to the server; None: nobody looked.
        in_vain_seconds: for how long a user waits for an answer while no model does anything.
        missing: required models that are not loaded, with whether each is on the server: `yes`,
            `no`, or run in the `cloud`.
        load: the required model that was asked for, and how the request ended; None: none was.
        load_runner: identity of the process that it began; empty where that is not known.
        load_row: what `/api/ps` said of it afterwards; None: it did not, or was not asked.
        asked: by `LoadedModel.key`, what was asked of it, in this order.
        version: the server's version; empty where it was not asked.
    """

    began_at: float = 0.0
    ends_at: float = math.inf
    clock: float = 0.0
    gpu: GpuReading | None = None
    api_error: str | None = None
    held_by: tuple[Model, ...] = ()
    no_time: str = ""
    answered: bool = True
    models: tuple[Model, ...] = ()
    loading: tuple[tuple[Runner, RunnerHealth], ...] = ()
    strays: int = 0
    unending: tuple[Unending, ...] = ()
    clients: bool | None = None
    in_vain_seconds: float = 0.0
    missing: dict[str, str] = field(default_factory=dict)
    load: tuple[str, Answer] | None = None
    load_runner: str = ""
    load_row: LoadedModel | None = None
    asked: dict[str, tuple[Asked, ...]] = field(default_factory=dict)
    version: str = ""

    @property
    def claimed_bytes(self) -> int:
        """VRAM that Ollama says all loaded models take."""
        return sum(model.row.size_vram_bytes for model in self.models)
