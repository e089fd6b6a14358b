"""Leftovers of a run that was killed are removed; a run that lives loses nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from testbed import runs
from testbed.command import docker_cli
from testbed.containers import AUTOHEAL, ROOT

# What a run makes on an engine and on this machine, without its own end.
MAKE = f"""
import subprocess, sys
from testbed import runs
from testbed.command import docker_cli
name = sys.argv[1]
docker_cli("run", "-d", "--name", name, "--entrypoint", "/bin/sleep", "{AUTOHEAL}", "1000")
docker_cli("volume", "create", name)
docker_cli("network", "create", "--internal", name)
docker_cli("build", "--quiet", "--tag", name, "-", stdin="FROM {AUTOHEAL}")
(runs.directory() / "file").touch()
process = subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL)
print(runs.RUN, process.pid, flush=True)
sys.stdin.read()
"""


class Run:
    """Another run of the tests, that has made one thing of each kind."""

    def __init__(self) -> None:
        self.name = runs.unique("run")
        environment = {name: v for name, v in os.environ.items() if name != runs.VARIABLE}
        self.process = subprocess.Popen(
            [sys.executable, "-c", MAKE, self.name],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.identity, child = self.process.stdout.readline().split()
        self.child = int(child)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    @property
    def things(self) -> list[str]:
        """What of it there is."""
        named = f"name={self.name}"
        found = {
            "container": docker_cli("ps", "--all", "--quiet", "--filter", named),
            "volume": docker_cli("volume", "ls", "--quiet", "--filter", named),
            "network": docker_cli("network", "ls", "--quiet", "--filter", named),
            "image": docker_cli("images", "--quiet", self.name),
            "directory": Path(f"/tmp/autoheal-run-{self.identity}").exists(),
            "process": Path(f"/proc/{self.child}/cmdline").exists()
            and Path(f"/proc/{self.child}/cmdline").read_bytes() != b"",
        }
        return [kind for kind, there in found.items() if there]


@pytest.fixture
def other_run(engine: docker.DockerClient) -> Iterator[Callable[[], Run]]:
    """Starts other runs."""
    made: list[Run] = []

    def begin() -> Run:
        made.append(Run())
        return made[-1]

    yield begin
    for one in made:
        one.kill()
    runs.remove_leftovers(engine)


EVERYTHING = ["container", "volume", "network", "image", "directory", "process"]


def test_what_a_dead_run_left_is_removed_and_what_a_living_one_uses_is_not(
    engine: docker.DockerClient, other_run: Callable[[], Run]
) -> None:
    dead, living = other_run(), other_run()
    dead.kill()
    assert (dead.things, living.things) == (EVERYTHING, EVERYTHING)
    runs.remove_leftovers(engine)
    assert (dead.things, living.things) == ([], EVERYTHING)
