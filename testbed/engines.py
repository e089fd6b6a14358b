"""Docker engines beside the one of this machine, each in a network namespace of its own."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import docker
import requests

from testbed import runs
from testbed.deadlines import Deadline, scaled

# In the network of this machine it would take the first engine's bridge away.
_START = "ip link set lo up && exec dockerd "


class PrivateEngine:
    """A Docker engine that may be stopped, frozen and started at will.

    Args:
        directory: where it keeps everything; short, as a socket's path has at most 107 characters.
        env: what is different in its environment, such as PATH for another version.
    """

    def __init__(self, directory: Path, env: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.env = {**os.environ, **(env or {})}
        self.socket = f"unix://{directory}/docker.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> docker.DockerClient:
        """Start it, and wait until it answers."""
        d = self.directory
        # Of one that was killed: older engines take its dead containerd for one that runs.
        (d / "exec/containerd/containerd.pid").unlink(missing_ok=True)
        options = f"--pidfile {d}/pid --data-root {d}/data --exec-root {d}/exec"
        with open(d / "log", "ab") as log:
            self.process = subprocess.Popen(
                ["unshare", "--net", "sh", "-c", f"{_START}--host {self.socket} {options}"],
                stdout=log,
                stderr=log,
                env=self.env,
            )
        client = docker.DockerClient(self.socket, version="1.41")
        deadline = Deadline()
        while not deadline.passed:
            try:
                client.ping()
                return client
            except (docker.errors.DockerException, requests.ConnectionError):
                assert self.process.poll() is None, self.log[-2000:]
            time.sleep(0.1)  # an engine that starts has no event to wait for
        raise AssertionError(f"the engine did not start: {self.log[-2000:]}")

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def load(self, images: Sequence[str]) -> None:
        """Copy images from the engine of this machine; saved once for all processes of a run."""
        file = runs.directory() / f"{'-'.join(images).replace('/', '_')}.tar"
        with runs.locked("images"):
            if not file.exists():
                part = file.with_suffix(".part")
                subprocess.run(["docker", "save", "--output", part, *images], check=True)
                part.rename(file)
        subprocess.run(
            ["docker", "--host", self.socket, "load", "--quiet", "--input", file],
            stdout=subprocess.DEVNULL,
            check=True,
        )

    @property
    def inside(self) -> list[str]:
        """The words before a command that is to reach its containers' addresses."""
        assert self.process is not None
        return ["nsenter", "--target", str(self.process.pid), "--net"]

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(scaled(60))


@contextmanager
def private_engine(env: Mapping[str, str] | None = None) -> Iterator[PrivateEngine]:
    """An engine that is not started yet; stopped and removed at the end."""
    with tempfile.TemporaryDirectory(
        prefix="e-", dir=runs.directory(), ignore_cleanup_errors=True
    ) as directory:
        one = PrivateEngine(Path(directory), env)
        try:
            yield one
        finally:
            if one.process is not None and one.process.poll() is None:
                one.stop()
            # An engine that was killed has left its mounts, under which nothing can be removed.
            for mount in ("exec/netns/default", "data"):
                subprocess.run(
                    ["umount", "--quiet", f"{directory}/{mount}"], stderr=subprocess.DEVNULL
                )
