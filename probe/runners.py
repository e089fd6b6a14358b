"""The runner processes of an Ollama server, read from /proc of this container.

The server's API does not say how a model was loaded. The command line of the process that
serves it may, and the time for which it had something to run tells work from silence.
"""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from probe import dialects
from probe.connections import listening
from probe.observation import CommandLine, Dialect, LoadedModel, Runner, Unending
from probe.processes import all_visible, name_of, open_files, read, stat, thread_states

_PENDING = re.compile(r"^(?:Sig|Shd)Pnd:\s*([0-9a-f]+)", re.MULTILINE)
_EXITING = 0x4  # the kernel's PF_EXITING
_PROGRAMS = ("ollama", "llama-server")
_MAX_ANCESTORS = 64


def find(proc: str = "/proc") -> tuple[Runner, ...]:
    """Every runner that can be seen. What cannot be read is left out; never raises."""
    found = []
    for pid, words in _commands(proc):
        command = dialects.command_line(words)
        runner = _runner(proc, pid, command) if command else None
        if runner:
            found.append(runner)
    return tuple(found)


def again(runner: Runner) -> Runner | None:
    """The same process as it is now; None when it has ended."""
    return next((one for one in find() if one.identity == runner.identity), None)


def unending(port: int, proc: str = "/proc") -> tuple[Unending, ...]:
    """Processes that were killed, or have begun to end, and of which some thread is still there.

    A container does not stop before each of its processes has ended. With the host's processes
    only the runners of this server are known to be of this container.

    Args:
        port: where the server listens.
        proc: where processes show.
    """
    left = []
    for pid in filter(str.isdigit, os.listdir(proc)):
        fields = stat(f"{proc}/{pid}/stat")
        if fields is None or not _is_ending(f"{proc}/{pid}", fields):
            continue
        # Of one that has ended all that is left is for its parent to notice.
        threads = thread_states(pid, proc)
        live = {thread: state for thread, state in threads if state not in ("Z", "X")}
        if not live:
            continue
        thread = min(live, key=lambda one: (live[one] != "D", one))
        waits_in = read(f"{proc}/{pid}/task/{thread}/wchan").strip("0\n")
        name = name_of(int(pid), proc) or ""
        one = Unending(f"{pid}/{fields[19]}", name, state=live[thread], waits_in=waits_in)
        left.append((int(fields[1]), one))
    server = server_pid(port, proc) if left else None
    ours = [(one, parent == server and one.name in _PROGRAMS) for parent, one in left]
    alone = not all_visible(proc)
    return tuple(replace(one, runner=runner) for one, runner in ours if runner or alone)


def match(
    models: Sequence[LoadedModel],
    found: Sequence[Runner],
    blob: Callable[[str], str],
    known: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, Runner]]:
    """Each model's digest, or its name where it has none, with the runner that serves it.

    Two rows of one name are two models: one was created again while it was loaded. A model
    whose runner cannot be told is left out.

    Args:
        models: the loaded models.
        found: the runners.
        blob: returns the file name of the weights of the model that has a name now; empty when
            nobody knows. Called only where `known` does not help.
        known: identities of runners that are known to serve a model, by the same keys.
    """
    models, found = list(models), list(found)

    def take(model: LoadedModel, runner: Runner) -> tuple[str, Runner]:
        models.remove(model)
        found.remove(runner)
        return _key(model), runner

    by_identity = {runner.identity: runner for runner in found}
    for model in tuple(models):
        runner = by_identity.get((known or {}).get(_key(model), ""))
        if runner in found:
            yield take(model, runner)
    names = Counter(model.name for model in models)
    blobs: dict[str, str] = {}
    for model in tuple(models):
        if not found:
            return
        # Of two rows of one name, the name means the newer one, and which that is does not show.
        blobs[model.name] = blob(model.name) if names[model.name] == 1 else ""
        # On a host several containers may serve the same weights: the newest is likeliest ours.
        newest = sorted(found, key=lambda r: r.started, reverse=True)
        runner = next((r for r in newest if _serves(r.command, model, blobs[model.name])), None)
        if runner:
            yield take(model, runner)
    if len(models) == len(found) == 1 and not _contradicts(found[0], blobs[models[0].name]):
        yield take(models[0], found[0])


def server_is_here(proc: str = "/proc") -> bool:
    """Whether an Ollama server runs among our own processes, so that its runners would be seen.

    On a host those of its containers are seen as well; their servers are not meant.
    """
    return any(_servers(proc))


def server_pid(port: int, proc: str = "/proc") -> int | None:
    """Process id of the Ollama server among our own processes that listens on a port.

    Where the open files of a server cannot be read, as those of another user, it is the only
    server that there is; None when there are several.
    """
    servers = list(_servers(proc))
    sockets = listening(port, proc)
    hidden = not sockets
    for pid in servers:
        try:
            if sockets & set(open_files(pid, proc)):
                return pid
        except OSError:
            hidden = True
    return servers[0] if hidden and len(servers) == 1 else None


def descends_from(runner: Runner, pid: int, proc: str = "/proc") -> bool:
    """Whether a process is the runner's parent, or a parent of its parent, and so on."""
    parent = runner.parent
    for _ in range(_MAX_ANCESTORS):  # a pid that is given again could close a circle
        if parent in (0, pid):
            break
        fields = stat(f"{proc}/{parent}/stat")
        parent = int(fields[1]) if fields else 0
    return parent == pid != 0


def _key(model: LoadedModel) -> str:
    return model.digest or model.name


def _serves(command: CommandLine, model: LoadedModel, blob: str) -> bool:
    if command.dialect is Dialect.MLX:
        return command.model.lower().removesuffix(":latest") == model.name.lower().removesuffix(
            ":latest"
        )
    # Weights in several files are linked into a directory that is named after the manifest.
    directory = os.path.basename(os.path.dirname(command.weights))
    if directory.startswith(".ollama-split-"):
        return model.digest != "" and directory.split("-")[2] == model.digest[:12]
    return blob != "" and os.path.basename(command.weights) == blob


def _contradicts(runner: Runner, blob: str) -> bool:
    """Whether a runner is known to have other weights, as one that loads another model has."""
    file = os.path.basename(runner.command.weights)
    return blob != "" and file.startswith("sha256-") and file != blob


def _commands(proc: str) -> Iterator[tuple[int, list[str]]]:
    """Every process that can be seen, with the words of its command line."""
    for pid in map(int, filter(str.isdigit, os.listdir(proc))):
        try:
            with open(f"{proc}/{pid}/cmdline", "rb") as file:
                words = file.read().decode(errors="replace").split("\0")
        except OSError:
            continue
        yield pid, words


def _servers(proc: str) -> Iterator[int]:
    for pid, words in _commands(proc):
        if dialects.serves(words) and _is_among_ours(proc, pid):
            yield pid


def _is_among_ours(proc: str, pid: int) -> bool:
    """Whether a process is in our PID namespace itself, and not in one below it."""
    try:
        return os.readlink(f"{proc}/{pid}/ns/pid") == os.readlink(f"{proc}/self/ns/pid")
    except OSError:
        return False


def _runner(proc: str, pid: int, command: CommandLine) -> Runner | None:
    fields = stat(f"{proc}/{pid}/stat")
    if fields is None:
        return None
    queued_seconds, states = _threads(proc, pid)
    io = _io(proc, pid)
    # A load by `read` shows in `rchar`, also from the page cache; one by `mmap` in `read_bytes`.
    read = [io[name] for name in (b"rchar", b"read_bytes") if name in io]
    return Runner(
        pid=pid,
        started=int(fields[19]),
        command=command,
        parent=int(fields[1]),
        blob_bytes=_size(command.weights),
        default_threads=_default_threads(proc, command),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
        queued_seconds=queued_seconds,
        runnable="R" in states,
        blocked="D" in states,
        writes=io.get(b"syscw"),
        read_bytes=max(read, default=None),
        memory_bytes=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
    )


def _threads(proc: str, pid: int) -> tuple[float, set[str]]:
    """For how long its threads have waited for a CPU, as far as the kernel says, and the kernel's
    letters for what they do now."""
    nanoseconds, states = 0, set[str]()
    for thread, state in thread_states(pid, proc):
        states.add(state)
        with (
            suppress(OSError, IndexError),
            open(f"{proc}/{pid}/task/{thread}/schedstat", "rb") as file,
        ):
            nanoseconds += int(file.read().split()[1])
    return nanoseconds / 1e9, states


def _is_ending(process: str, fields: list[str]) -> bool:
    """Whether a process has begun to end, or SIGKILL waits for it while it is in the kernel."""
    if fields[0] == "Z" or int(fields[6]) & _EXITING:
        return True
    if fields[0] not in ("D", "R"):
        return False
    waiting = _PENDING.findall(read(f"{process}/status"))
    return any(int(signals, 16) >> (signal.SIGKILL - 1) & 1 for signals in waiting)


def _io(proc: str, pid: int) -> dict[bytes, int]:
    """What a process has read and written; empty where the kernel does not tell."""
    with suppress(OSError, ValueError), open(f"{proc}/{pid}/io", "rb") as file:
        pairs = [line.split(b":") for line in file]
        return {name: int(value) for name, value in pairs}
    return {}


def _size(file: str) -> int | None:
    try:
        return os.stat(file).st_size if file else None
    except OSError:
        return None


def _default_threads(proc: str, command: CommandLine) -> bool:
    """Whether the number of threads is the one that the server takes by itself.

    Up to 0.11.4 it names that number on the command line; since 0.30 only what a user chose.
    """
    if command.num_thread is None or command.dialect is not Dialect.OLLAMA_RUNNER:
        return command.num_thread is None
    try:
        with open(f"{proc}/cpuinfo", encoding="utf-8") as file:
            fields = [line.split(":") for line in file if ":" in line]
    except OSError:
        fields = []
    pairs = [(key.strip(), value.strip()) for key, value, *_ in fields]
    processors = [value for key, value in pairs if key == "processor"]
    chips = [value for key, value in pairs if key == "physical id"]
    cores = [value for key, value in pairs if key == "core id"]
    return command.num_thread in (len(processors), len({*zip(chips, cores, strict=False)}))
