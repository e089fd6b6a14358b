"""The few facts that one check leaves for the next, in a small file on tmpfs.

Losing it only costs knowledge: unreadable means empty, and not being able to write is never an
error. It is worth nothing after the container's life, so a restarted container has no past.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from dataclasses import asdict, dataclass, field
from typing import Any

_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelMemory:
    """What was seen of one loaded model.

    Attributes:
        runner: identity of the process that served it.
        expires_at: when it is to be unloaded, as the last user's request left it.
        left: its expiry as the server wrote it at our last look; another text means that a
            user's request has completed since.
        session_seconds: how long a user's request keeps it loaded.
        lent_seconds: what our own last request set that to; None when it is as users left it.
        token_seconds: how long our last token took.
        used_at: when a user's request was last seen to have completed; None when none was.
        runnable_seconds: its runner's, at the end of the last check; None where it cannot be seen.
        writes: the same.
        busy_since: when it first was too busy to answer; None when it last answered, or was not
            asked.
    """

    runner: str = ""
    expires_at: float = 0.0
    left: str = ""
    session_seconds: float = 0.0
    lent_seconds: float | None = None
    token_seconds: float = 0.0
    used_at: float | None = None
    runnable_seconds: float | None = None
    writes: float | None = None
    busy_since: float | None = None


@dataclass(frozen=True)
class Record:
    """What a model has been able to do in this container, over all times it was loaded.

    Attributes:
        vram_percent: the largest share of it that was in VRAM.
        first_token_seconds: its shortest time to the first token; None before the first.
        tokens_per_second: its highest rate; None before it was measured.
        slow_checks: how many checks in a row have found it slow.
    """

    vram_percent: float = 0.0
    first_token_seconds: float | None = None
    tokens_per_second: float | None = None
    slow_checks: int = 0


@dataclass(frozen=True)
class Load:
    """A load that is under way.

    Attributes:
        since: when it was first seen.
        moved_at: when it was last seen to make progress.
        mark: how far it was then: its runner's own progress, CPU seconds and bytes of memory.
    """

    since: float = 0.0
    moved_at: float = 0.0
    mark: tuple[float, ...] = ()


@dataclass(frozen=True)
class Episode:
    """Verdicts in a row that were alike.

    Attributes:
        began_at: the first of them, in seconds since 1970.
        ended_at: the last of them.
        checks: how many they were.
        healthy: what Docker was told.
        reason: why.
        message: the last one's words.
    """

    began_at: float
    ended_at: float
    checks: int
    healthy: bool
    reason: str
    message: str


@dataclass(frozen=True)
class Memory:
    """What one check knows of those before it.

    Times are in seconds of the machine's monotonic clock, which no change of date moves.

    Attributes:
        checked_at: when the last check began; None before the first.
        clock: what the wall clock was ahead of the monotonic one then, in seconds.
        proven: some check since the container's start found it ready, idle or busy.
        gpus: UUIDs of the devices that were seen.
        load: the load that is under way; None when none is.
        models: those that were loaded, by name.
        records: by model's name.
        opaque: shapes of runners whose options cannot be repeated from outside.
        episodes: the last verdicts, oldest first.
    """

    checked_at: float | None = None
    clock: float | None = None
    proven: bool = False
    gpus: tuple[str, ...] = ()
    load: Load | None = None
    models: dict[str, ModelMemory] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    opaque: tuple[str, ...] = ()
    episodes: tuple[Episode, ...] = ()


class MemoryFile:
    """The file, held by one check at a time.

    What cannot be written is not read either, for an old memory would be a wrong one.
    """

    def __init__(self, directory: str, host: str) -> None:
        try:
            # /dev/shm can be shared between containers (--ipc); their PID namespaces are not.
            namespace = os.stat("/proc/self/ns/pid").st_ino
        except OSError:
            namespace = 0
        server = "".join(c if c.isalnum() else "-" for c in host)
        name = f"ollama-probe-{os.geteuid()}-{namespace}-{server}.json"
        self.path = os.path.join(directory, name)
        self.problem: str | None = None
        """Why nothing can be remembered; None when it can."""
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Wait for the checks before us, until the caller's alarm rings."""
        descriptor = None
        try:
            descriptor = self._open(os.O_RDWR | os.O_CREAT)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._descriptor = descriptor
        except TimeoutError:
            self.problem = f"{self.path}: other checks hold it"
        except OSError as error:
            self.problem = str(error)
        finally:
            if descriptor is not None and self._descriptor is None:
                os.close(descriptor)

    def release(self) -> None:
        """Let the next one in."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def peek(self) -> Memory:
        """What the last check left, for somebody who only looks: waits for nobody."""
        with contextlib.suppress(OSError):
            self._descriptor = self._open(os.O_RDONLY)
        try:
            return self.load()
        finally:
            self.release()

    def load(self) -> Memory:
        """What the last check left; empty where there is nothing that can be trusted."""
        if self._descriptor is None:
            return Memory()
        with contextlib.suppress(
            OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError
        ):
            fields = json.loads(os.pread(self._descriptor, _LIMIT_BYTES, 0))
            if fields.pop("life") == _life():
                return _memory(fields)
        return Memory()

    def save(self, memory: Memory) -> None:
        """Leave it for the next check."""
        if self._descriptor is None:
            return
        content = json.dumps({"life": _life(), **asdict(memory)}).encode()
        try:
            # In place, for a full disk has room for that. What is cut short by a crash is no
            # JSON, and so empty.
            os.ftruncate(self._descriptor, 0)
            if os.pwrite(self._descriptor, content, 0) < len(content):
                raise OSError(f"{self.path}: no space left")
        except OSError as error:
            self.problem = str(error)
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)

    def _open(self, flags: int) -> int:
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o600)
        about = os.fstat(descriptor)
        if about.st_uid != os.geteuid() or not stat.S_ISREG(about.st_mode):
            os.close(descriptor)
            raise OSError(f"{self.path}: not a file of this user's")
        return descriptor


def _life() -> str:
    """The same for all checks between a start of this container and its stop."""
    with contextlib.suppress(OSError, IndexError):
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        with open("/proc/1/stat", "rb") as file:
            return f"{boot}/{file.read().rpartition(b')')[2].split()[19].decode()}"
    return ""


def _memory(fields: dict[str, Any]) -> Memory:
    """From JSON; raises where it is not what `save` wrote. Unknown and missing fields are fine."""
    known = Memory()
    return Memory(
        checked_at=_number(fields.get("checked_at")),
        clock=_number(fields.get("clock")),
        proven=bool(fields.get("proven", known.proven)),
        gpus=tuple(map(str, fields.get("gpus", ()))),
        load=_load(fields.get("load")),
        models={str(name): _model(m) for name, m in fields.get("models", {}).items()},
        records={str(name): _record(r) for name, r in fields.get("records", {}).items()},
        opaque=tuple(map(str, fields.get("opaque", ()))),
        episodes=tuple(map(_episode, fields.get("episodes", ()))),
    )


def _model(fields: dict[str, Any]) -> ModelMemory:
    return ModelMemory(
        runner=str(fields["runner"]),
        expires_at=float(fields["expires_at"]),
        left=str(fields["left"]),
        session_seconds=float(fields["session_seconds"]),
        lent_seconds=_number(fields["lent_seconds"]),
        token_seconds=float(fields["token_seconds"]),
        used_at=_number(fields.get("used_at")),
        runnable_seconds=_number(fields.get("runnable_seconds")),
        writes=_number(fields.get("writes")),
        busy_since=_number(fields.get("busy_since")),
    )


def _record(fields: dict[str, Any]) -> Record:
    return Record(
        vram_percent=float(fields.get("vram_percent", 0)),
        first_token_seconds=_number(fields.get("first_token_seconds")),
        tokens_per_second=_number(fields.get("tokens_per_second")),
        slow_checks=int(fields.get("slow_checks", 0)),
    )


def _load(fields: dict[str, Any] | None) -> Load | None:
    if fields is None:
        return None
    mark = tuple(map(float, fields["mark"]))
    return Load(float(fields["since"]), float(fields["moved_at"]), mark)


def _episode(fields: dict[str, Any]) -> Episode:
    return Episode(
        began_at=float(fields["began_at"]),
        ended_at=float(fields["ended_at"]),
        checks=int(fields["checks"]),
        healthy=bool(fields["healthy"]),
        reason=str(fields["reason"]),
        message=str(fields["message"]),
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
