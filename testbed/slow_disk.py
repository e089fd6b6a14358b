"""A disk with a model on it, from which containers read as fast as a test wants, or not at all.

It is a real one (a loop device), and its readers wait for it in the kernel (state `D`).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker

from testbed import models

MODEL, MODEL_BYTES = "slow", 350 << 20
"""Its model; its weights are a little smaller than this."""

_MOUNT = "/opt/slow-disk"

_LIMITS_V1 = Path("/sys/fs/cgroup/blkio")
_CONTROLLERS_V2 = Path("/sys/fs/cgroup/cgroup.controllers")


class SlowDisk:
    """A file system of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def env(self) -> dict[str, str]:
        return {"OLLAMA_MODELS": f"{_MOUNT}/models"}

    @property
    def volume(self) -> dict[str, dict[str, str]]:
        return {str(self._directory): {"bind": _MOUNT, "mode": "rw"}}

    def allow(self, pid: int, bytes_per_second: int) -> None:
        """Limit how fast the container of a process reads from it, from now on."""
        device = self._directory.stat().st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        groups = dict(
            line.split(":", 2)[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        )
        if "blkio" in groups:
            file = Path(f"{_LIMITS_V1}{groups['blkio']}/blkio.throttle.read_bps_device")
            file.write_text(f"{number} {bytes_per_second}")
        else:
            file = Path(f"/sys/fs/cgroup{groups['']}/io.max")
            file.write_text(f"{number} rbps={bytes_per_second}")


@contextmanager
def slow_disk(engine: docker.DockerClient, directory: Path) -> Iterator[SlowDisk]:
    """One whose model is in nobody's memory yet; needs root.

    Raises:
        OSError: this machine cannot mount a file, or its kernel limits no container's disk.
    """
    if not (_LIMITS_V1.is_dir() or "io" in _CONTROLLERS_V2.read_text().split()):
        raise OSError("no control group limits how fast a disk is read")
    disk, files, mount = directory / "disk", directory / "files", directory / "mount"
    for one in (files, mount):
        one.mkdir()
    with disk.open("wb") as file:
        file.truncate(3 * MODEL_BYTES)
    _run("mkfs.ext4", "-q", str(disk))
    models.write(files / "slow.gguf", 16, 1024)
    (files / MODEL).write_text("FROM /models/slow.gguf\n")
    _run("mount", "-o", "loop", str(disk), str(mount))
    try:
        models.create(engine, str(mount), files, [MODEL])
        _forget(mount)
        yield SlowDisk(mount)
    finally:
        _run("umount", "--lazy", str(mount))


def _forget(directory: Path) -> None:
    """Let nothing of these files be in memory.

    To unmount them is not enough: a container that starts meanwhile may keep them mounted.
    """
    for file in filter(Path.is_file, directory.rglob("*")):
        with file.open("rb") as one:
            os.fsync(one.fileno())
            os.posix_fadvise(one.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
