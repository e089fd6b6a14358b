"""The few facts that one check leaves for the next, in a small file on tmpfs.

Losing it only costs knowledge: unreadable means empty, and writing is never an error.
It goes away with the container's life, so a restarted container starts without a past.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from dataclasses import asdict, dataclass, field
from typing import Any


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
    """

    runner: str = ""
    expires_at: float = 0.0
    left: str = ""
    session_seconds: float = 0.0
    lent_seconds: float | None = None
    token_seconds: float = 0.0


@dataclass(frozen=True)
class Memory:
    """What one check knows of those before it.

    Times are in seconds of the machine's monotonic clock, which no change of date moves.

    Attributes:
        checked_at: when the last check began; None before the first.
        proven: some check since the container's start found it ready, idle or busy.
        gpus: UUIDs of the devices that were seen.
        loading_since: when the load that is under way was first seen; None when none is.
        busy_since: when the server first was too busy to answer; None when it last answered.
        models: by name.
        opaque: shapes of runners whose options cannot be repeated from outside.
    """

    checked_at: float | None = None
    proven: bool = False
    gpus: tuple[str, ...] = ()
    loading_since: float | None = None
    busy_since: float | None = None
    models: dict[str, ModelMemory] = field(default_factory=dict)
    opaque: tuple[str, ...] = ()


def path(directory: str, host: str) -> str:
    """The file for checks of `host` by this user in this container."""
    try:
        # /dev/shm can be shared between containers (--ipc); their PID namespaces are not.
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        namespace = 0
    server = "".join(c if c.isalnum() else "-" for c in host)
    return os.path.join(directory, f"ollama-probe-{os.geteuid()}-{namespace}-{server}.json")


def load(file: str) -> Memory:
    """What the last check left; empty where there is nothing that can be trusted."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, encoding="utf-8") as stream:
            about = os.fstat(stream.fileno())
            if about.st_uid != os.geteuid() or not stat.S_ISREG(about.st_mode):
                return Memory()
            return _from_json(json.loads(stream.read(1 << 20)))
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return Memory()


def save(file: str, memory: Memory) -> None:
    """Leave it for the next check, whole or not at all."""
    with contextlib.suppress(OSError):
        temporary = f"{file}.{os.getpid()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                json.dump(asdict(memory), stream)
            os.replace(temporary, file)
        except OSError:
            os.unlink(temporary)


def _from_json(fields: dict[str, Any]) -> Memory:
    models = {
        str(name): ModelMemory(
            runner=str(m["runner"]),
            expires_at=float(m["expires_at"]),
            left=str(m["left"]),
            session_seconds=float(m["session_seconds"]),
            lent_seconds=_optional(m["lent_seconds"]),
            token_seconds=float(m["token_seconds"]),
        )
        for name, m in fields["models"].items()
    }
    return Memory(
        checked_at=_optional(fields["checked_at"]),
        proven=bool(fields["proven"]),
        gpus=tuple(str(uuid) for uuid in fields["gpus"]),
        loading_since=_optional(fields["loading_since"]),
        busy_since=_optional(fields["busy_since"]),
        models=models,
        opaque=tuple(str(shape) for shape in fields["opaque"]),
    )


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)
