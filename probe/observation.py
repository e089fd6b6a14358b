"""All that one check saw, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from probe.gpu import GpuReading
from probe.ollama import Answer, LoadedModel, RunnerHealth
from probe.runners import Runner


@dataclass(frozen=True)
class Seen:
    """One loaded model and the process that serves it.

    Attributes:
        model: its row in `/api/ps`.
        runner: its process; None where it cannot be seen.
        health: what the runner says of itself; None where it cannot be asked.
        unfinished: its first request has not ended: its expiry still moves with the clock.
    """

    model: LoadedModel
    runner: Runner | None = None
    health: RunnerHealth | None = None
    unfinished: bool = False


@dataclass(frozen=True)
class Ask:
    """One request that does the model no harm; the arguments of `Server.ask`.

    Attributes:
        tokens: how many to generate; 0 only sets `keep_alive`.
        keep_alive_seconds: for how long the model is to stay after it; `FOREVER`; None: for as
            long as after the request before it.
        options: those that the model was loaded with.
    """

    tokens: int
    keep_alive_seconds: float | None
    options: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """What was asked of a model, and what came of it.

    Attributes:
        ask: the request.
        answer: how it ended.
        ended_at: when that was, in seconds of the monotonic clock.
        model: its row in `/api/ps` after it; None when it is gone.
        runner: its process after it; None where it cannot be seen, or is gone.
        reloaded: another process serves the model than before: our request made it load anew.
    """

    ask: Ask
    answer: Answer
    ended_at: float = 0.0
    model: LoadedModel | None = None
    runner: Runner | None = None
    reloaded: bool = False


@dataclass(frozen=True)
class Observation:
    """All that one check saw.

    Attributes:
        began_at: when the first look was, in seconds of the monotonic clock.
        clock: what the wall clock was ahead of it.
        gpu: NVML's reading; None when no GPU was looked for.
        api_error: why the server could not be asked; None when it could.
        installed: whether the required model is on the server (`yes`, `no`, or run in a `cloud`);
            None when that was not asked.
        seen: the loaded models that matter to this check.
        others: the other loaded models; their processes are not asked.
        gone: models that the server lists as loaded, and whose process is gone: it finds out, and
            loads them again, when somebody wants them.
        strays: runner processes that serve no loaded model.
        asked: by model name, what was asked of it.
        loaded: how our request to load the required model ended; None when none was made.
        waited: seconds spent on a runner that said nothing.
        silent_runnable_seconds: for how long such runners ran or waited for a CPU meanwhile.
    """

    began_at: float = 0.0
    clock: float = 0.0
    gpu: GpuReading | None = None
    api_error: str | None = None
    installed: str | None = None
    seen: tuple[Seen, ...] = ()
    others: tuple[Seen, ...] = ()
    gone: tuple[LoadedModel, ...] = ()
    strays: int = 0
    asked: dict[str, Asked] = field(default_factory=dict)
    loaded: Answer | None = None
    waited: float = 0.0
    silent_runnable_seconds: float = 0.0

    @property
    def claimed_bytes(self) -> int:
        """VRAM that Ollama says all loaded models take."""
        return sum(one.model.size_vram_bytes for one in (*self.seen, *self.others))
