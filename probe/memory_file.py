"""The memory between checks, in a small file on tmpfs, and what of it survives a restart.

Losing it only costs knowledge: what cannot be read is an empty memory, and not being able to write
is never an error. After a restart of the container only what was known of its GPUs still holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import stat
from dataclasses import fields, replace
from typing import Any, get_args, get_origin
from zlib import crc32

from probe.memory import Crashes, Episode, FailedLoad, Load, Memory, ModelMemory, SentLoad, Served
from probe.processes import boot_id, started
from probe.settings import Settings

_LIMIT_BYTES = 1 << 20

_TYPES = (Memory, Load, SentLoad, Served, Crashes, ModelMemory, FailedLoad, Episode)
"""What a memory is made of."""

_TOLD = ("proven", "fault_since", "fault_checks", "failed")
"""What a check needs to know that cannot leave anything itself."""

_SURVIVES = ("gpus", "used_gpus")
"""What still holds after a restart of the container."""


class MemoryFile:
    """The file, held by one check at a time.

    What cannot be written is not read either, for an old memory would be a wrong one.
    """

    def __init__(self, settings: Settings) -> None:
        try:
            # /dev/shm can be shared between containers (--ipc); their PID namespaces are not.
            namespace = os.stat("/proc/self/ns/pid").st_ino
        except OSError:
            namespace = 0
        # A check by hand with other models does not write into the health check's memory.
        about = crc32(f"{settings.host} {settings.models}".encode())
        name = f"ollama-probe-{os.geteuid()}-{namespace}-{about:08x}.json"
        self.path = os.path.join(settings.state_dir, name)
        self.problem: str | None = None
        """Why nothing can be remembered; None when it can."""
        self.gpu_problem: str | None = None
        """Why what is known of GPUs will not survive a restart; None when it will."""
        self._surviving = os.path.join(settings.cache_dir, f"gpus-{os.geteuid()}.json")
        self._descriptor: int | None = None
        self._is_new = False

    def acquire(self) -> None:
        """Wait for the checks before us, until the caller's alarm rings."""
        descriptor = None
        try:
            try:
                descriptor = self._open(os.O_RDWR | os.O_CREAT | os.O_EXCL)
                self._is_new = True
            except FileExistsError:
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
            return replace(self._survivors(), kept=False, **self._told())
        with contextlib.suppress(*_UNREADABLE):
            return _whole(os.pread(self._descriptor, _LIMIT_BYTES, 0))
        # What an earlier check could not write is lost, as on a full disk.
        return replace(self._survivors(), kept=self._is_new)

    def _told(self) -> dict[str, Any]:
        """What Docker was told of faults, where other checks hold the file."""
        with contextlib.suppress(*_UNREADABLE):
            descriptor = self._open(os.O_RDONLY)
            try:
                memory = _whole(os.pread(descriptor, _LIMIT_BYTES, 0))
            finally:
                os.close(descriptor)
            return {name: getattr(memory, name) for name in _TOLD}
        return {}

    def save(self, memory: Memory) -> bool:
        """Leave it for the next check; returns whether that can read it."""
        if self._descriptor is None:
            return False
        content = json.dumps({"about": _about(), **vars(memory)}, default=vars).encode()
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
        survivors = {name: getattr(memory, name) for name in _SURVIVES}
        if any(survivors.values()) and Memory(**survivors) != self._survivors():
            self._save_survivors(survivors)
        return self.problem is None

    def _survivors(self) -> Memory:
        with contextlib.suppress(*_UNREADABLE), open(self._surviving, encoding="utf-8") as file:
            content = json.loads(file.read(_LIMIT_BYTES))
            return _memory({name: content[name] for name in _SURVIVES})
        return Memory()

    def _save_survivors(self, survivors: dict[str, Any]) -> None:
        """Write the file that survives a restart, as a whole or not at all."""
        try:
            write_whole(self._surviving, survivors)
        except OSError as error:
            self.gpu_problem = str(error)

    def _open(self, flags: int) -> int:
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o600)
        about = os.fstat(descriptor)
        if about.st_uid != os.geteuid() or not stat.S_ISREG(about.st_mode):
            os.close(descriptor)
            raise OSError(f"{self.path}: not a file of this user's")
        return descriptor


_UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError)


def _about() -> list[str]:
    """What a memory belongs to: this life of the container, and these fields."""
    return [_life(), *_fields()]


@functools.cache
def _fields() -> tuple[str, ...]:
    return tuple(f"{field.name}: {field.type}" for one in _TYPES for field in fields(one))


def _life() -> str:
    """The same for all checks between a start of this container and its stop."""
    boot, start = boot_id(), started(1)
    return f"{boot}/{start}" if boot and start else ""


def write_whole(path: str, content: object, *, sync: bool = False) -> None:
    """Write a file of JSON, as a whole or not at all.

    Args:
        path: of the file.
        content: plain data.
        sync: wait until a machine that crashes has it, too.

    Raises:
        OSError: it could not be written; what was there before is.
    """
    draft = f"{path}.{os.getpid()}"
    try:
        with open(draft, "w", encoding="utf-8") as file:
            json.dump(content, file)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise


def _whole(content: bytes) -> Memory:
    """A whole memory of this life of the container; raises one of `_UNREADABLE`."""
    fields = json.loads(content)
    if fields.pop("about") != _about():
        raise ValueError("of another life, or of another version")
    return _memory(fields)


def _memory(content: dict[str, Any]) -> Memory:
    memory: Memory = _read(Memory, content)
    return memory


def _read(kind: Any, value: Any) -> Any:
    """From JSON, which has lists for tuples and dictionaries for dataclasses.

    Raises:
        TypeError: where a value is of another kind.
    """
    inner = get_args(kind)
    if inner and type(None) in inner:
        return None if value is None else _read(inner[0], value)
    if kind in _TYPES and isinstance(value, dict):
        types = {field.name: field.type for field in fields(kind)}
        return kind(**{name: _read(types[name], one) for name, one in value.items()})
    if get_origin(kind) is tuple and isinstance(value, list):
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(_read(*one) for one in zip(kinds, value, strict=True))
    if get_origin(kind) is dict and isinstance(value, dict):
        return {key: _read(inner[1], one) for key, one in value.items()}
    if type(value) is kind or (kind is float and type(value) is int):
        return value
    raise TypeError(f"{value!r} is no {kind}")
