"""The runner processes of an Ollama server, read from /proc of this container.

The server's API does not say how a model was loaded. The command line of the process that
serves it does, and the time for which it had something to run tells work from silence.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Runner:
    """One runner process.

    Attributes:
        pid: its process id.
        started: its start, in clock ticks since boot; with `pid` it names one process for ever.
        port: where it listens on loopback.
        blob: file name of the model's weights, `sha256-...`.
        blob_bytes: their size on disk; None where it cannot be seen.
        num_ctx: context length that a request for this model was loaded with, in tokens.
        num_batch: its batch size, in tokens.
        num_thread: its threads; None where that is the number the server takes by itself.
        shape: its command line but for the port: the same for every runner started alike.
        cpu_seconds: CPU time it has used so far.
        queued_seconds: for how long the threads that it has now have waited for a CPU so far.
        runnable: whether one of them runs or waits for a CPU now.
        writes: how often it has sent something: a token, or word of its health; None where the
            kernel does not tell.
        memory_bytes: how much memory it holds.
        model_on_cpu_by_choice: it was told to put no layer on a GPU.
    """

    pid: int
    started: int
    port: int | None = None
    blob: str = ""
    blob_bytes: int | None = None
    num_ctx: int | None = None
    num_batch: int | None = None
    num_thread: int | None = None
    shape: str = ""
    cpu_seconds: float = 0.0
    queued_seconds: float = 0.0
    runnable: bool = False
    writes: int | None = None
    memory_bytes: int = 0
    model_on_cpu_by_choice: bool = False

    @property
    def identity(self) -> str:
        """The same for one process at every look, and never for another one."""
        return f"{self.pid}/{self.started}"

    @property
    def runnable_seconds(self) -> float:
        """For how long its threads have run, or waited for a CPU to run on."""
        return self.cpu_seconds + self.queued_seconds

    def ran(self, later: Runner | None, seconds: float) -> float:
        """For how long of the seconds since this look it ran or waited for a CPU.

        The kernel counts a wait when it ends, which on a crowded machine is late: one that runs
        or waits at both looks is taken to have done so throughout.

        Args:
            later: the same process now; None when it is gone.
            seconds: between the looks.
        """
        if later is None:
            return 0.0
        # A thread that ends takes along what it had waited.
        queued = max(later.queued_seconds - self.queued_seconds, 0.0)
        counted = later.cpu_seconds - self.cpu_seconds + queued
        return max(counted, seconds) if self.runnable and later.runnable else counted


def find(proc: str = "/proc") -> tuple[Runner, ...]:
    """Every runner that can be seen. What cannot be read is left out; never raises."""
    runners = (_runner(proc, pid, words) for pid, words in _commands(proc))
    return tuple(runner for runner in runners if runner is not None)


def server_is_here(proc: str = "/proc") -> bool:
    """Whether an Ollama server runs among our own processes, so that its runners would be seen.

    On a host those of its containers are seen as well; their servers are not meant.
    """
    return any(
        os.path.basename(words[0]) == "ollama"
        and words[1:2] == ["serve"]
        and _is_among_ours(proc, pid)
        for pid, words in _commands(proc)
    )


def match(
    models: Sequence[str],
    found: Sequence[Runner],
    blob: Callable[[str], str],
    known: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, Runner]]:
    """Each model's name with the runner that serves it, where that can be told.

    Args:
        models: names of the loaded models.
        found: the runners.
        blob: says the file name of a model's weights; empty when nobody knows.
        known: identities of runners that are known to serve a model, by its name.
    """
    if not found:
        return
    if len(models) == 1 and len(found) == 1:
        yield models[0], found[0]
        return
    by_identity = {runner.identity: runner for runner in found}
    by_blob = {runner.blob: runner for runner in found}
    for model in models:
        runner = by_identity.get((known or {}).get(model, "")) or by_blob.get(blob(model))
        if runner is not None:
            yield model, runner


def _commands(proc: str) -> Iterator[tuple[int, list[str]]]:
    """Every process that can be seen, with the words of its command line."""
    for pid in map(int, filter(str.isdigit, os.listdir(proc))):
        try:
            with open(f"{proc}/{pid}/cmdline", "rb") as file:
                words = file.read().decode(errors="replace").split("\0")
        except OSError:
            continue
        yield pid, words


def _is_among_ours(proc: str, pid: int) -> bool:
    """Whether a process is in our PID namespace itself, and not in one below it."""
    try:
        return os.readlink(f"{proc}/{pid}/ns/pid") == os.readlink(f"{proc}/self/ns/pid")
    except OSError:
        return False


def _runner(proc: str, pid: int, words: list[str]) -> Runner | None:
    if "runner" not in words[1:3]:  # `ollama runner --model ... --port ...`
        return None
    try:
        with open(f"{proc}/{pid}/stat", "rb") as file:
            stat = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    options = {key.lstrip("-"): value for key, value in pairwise(words)}
    queued_seconds, runnable = _threads(proc, pid)
    port, weights = options.pop("port", None), options.get("model", "")
    num_ctx, parallel = _number(options.get("ctx-size")), _number(options.get("parallel"))
    return Runner(
        pid=pid,
        started=int(stat[19]),
        port=_number(port),
        blob=os.path.basename(weights),
        blob_bytes=_size(weights),
        num_ctx=num_ctx // (parallel or 1) if num_ctx else None,
        num_batch=_number(options.get("batch-size")),
        num_thread=_chosen_threads(proc, _number(options.get("threads"))),
        shape=" ".join(word for word in words[1:] if word != port),
        cpu_seconds=(int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK"),
        queued_seconds=queued_seconds,
        runnable=runnable,
        writes=_writes(proc, pid),
        memory_bytes=int(stat[21]) * os.sysconf("SC_PAGE_SIZE"),
        model_on_cpu_by_choice=options.get("n-gpu-layers") == "0",
    )


def _threads(proc: str, pid: int) -> tuple[float, bool]:
    """For how long its threads have waited for a CPU, as far as the kernel says, and whether one
    of them runs or waits for one now."""
    nanoseconds, runnable = 0, False
    with suppress(OSError):
        for thread in os.listdir(f"{proc}/{pid}/task"):
            with suppress(OSError, IndexError):
                with open(f"{proc}/{pid}/task/{thread}/stat", "rb") as file:
                    runnable |= file.read().rpartition(b")")[2].split()[0] == b"R"
                with open(f"{proc}/{pid}/task/{thread}/schedstat", "rb") as file:
                    nanoseconds += int(file.read().split()[1])
    return nanoseconds / 1e9, runnable


def _writes(proc: str, pid: int) -> int | None:
    with suppress(OSError, ValueError, StopIteration), open(f"{proc}/{pid}/io", "rb") as file:
        return int(next(line for line in file if line.startswith(b"syscw:"))[6:])
    return None


def _size(file: str) -> int | None:
    try:
        return os.stat(file).st_size if file else None
    except OSError:
        return None


def _chosen_threads(proc: str, threads: int | None) -> int | None:
    """The number of threads, unless it is the one that Ollama takes when nobody chooses."""
    if threads is None:
        return None
    try:
        with open(f"{proc}/cpuinfo", encoding="utf-8") as file:
            fields = [line.split(":") for line in file if ":" in line]
    except OSError:
        fields = []
    pairs = [(key.strip(), value.strip()) for key, value, *_ in fields]
    processors = [value for key, value in pairs if key == "processor"]
    chips = [value for key, value in pairs if key == "physical id"]
    cores = [value for key, value in pairs if key == "core id"]
    return (
        None if threads in (len(processors), len({*zip(chips, cores, strict=False)})) else threads
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None
