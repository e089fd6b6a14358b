"""autoheal killed after every single thing it does: nothing is lost, nothing is there twice."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import pytest

from testbed.containers import AUTOHEAL, ROOT, UNHEALTHY_FILE, healthcheck, idle_command
from testbed.deadlines import LONG_SECONDS, Deadline
from testbed.killed import CALLS
from testbed.runs import LABELS, unique

AT_ONCE = 8
WITH_SIDE = ("restart", "recreate")
"""Actions that are tried with a second container in the first one's network."""

STEPS = {
    "runner": {"end runner", "ended"},
    "restart": {"restart"},
    "recreate": {"create", "stop", "set aside", "rename", "start", "remove"},
    "redeploy": {"create", "stop", "set aside", "rename", "start", "remove"},
    "stop": {"stop"},
}


PROBE = f"""#!/bin/sh
if [ "$1" = check ]; then
    test ! -e {UNHEALTHY_FILE} && echo 'healthy ready: well {{}}' && exit 0
    echo 'unhealthy stalled (runner): hangs {{}}' && exit 1
fi
test ! -e {UNHEALTHY_FILE} && echo '{{"message": "no runner has to be ended"}}' && exit 3
rm {UNHEALTHY_FILE} && echo '{{"message": "ended"}}'
"""
"""Stands in for the probe: what is killed here is autoheal, and the fault must be quick to make."""


@dataclass
class World:
    """An unhealthy container, one in its network, and an autoheal that may be killed.

    Everything has names of its own, so that several can be at work at once.
    """

    action: str
    client: docker.DockerClient
    directory: Path
    label: str = field(default_factory=lambda: unique("crash"))

    @property
    def name(self) -> str:
        return f"{self.label}-main"

    @property
    def side(self) -> str:
        return f"{self.label}-side"

    @property
    def ledger(self) -> Path:
        return self.directory / "ledger.db"

    @property
    def names(self) -> Path:
        return self.directory / "names"

    def done(self) -> list[str]:
        """What autoheal has done so far."""
        return self.names.read_text().splitlines()

    def begin(self) -> None:
        self.names.touch()
        labels = {self.label: "true", "autoheal.action": self.action}
        if self.action == "redeploy":
            labels |= {
                "com.docker.compose.project": self.label,
                "com.docker.compose.service": "main",
                "com.docker.compose.container-number": "1",
            }
        if self.action == "runner":
            probe = self.directory / "ollama-probe"
            probe.write_text(PROBE)
            probe.chmod(0o755)
            check = healthcheck(["CMD", "/stand-in/ollama-probe", "check"], interval=1)
            volumes = {str(self.directory): {"bind": "/stand-in", "mode": "ro"}}
            self._start(self.name, labels, healthcheck=check, volumes=volumes)
        else:
            self._start(self.name, labels, healthcheck=healthcheck(interval=1))
        if self.action not in WITH_SIDE:
            return
        beside = {"network_mode": f"container:{self.name}", "healthcheck": {"test": ["NONE"]}}
        self._start(self.side, {}, **beside)

    def _start(self, name: str, labels: dict[str, str], **more: Any) -> None:
        self.client.containers.run(
            AUTOHEAL,
            [idle_command()],
            name=name,
            entrypoint=["/bin/sh", "-c"],
            detach=True,
            labels={**labels, **LABELS},
            **more,
        )

    def autoheal(self, *words: str) -> subprocess.Popen[bytes]:
        with open(self.directory / "log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "AUTOHEAL_CONTAINER_LABEL": self.label,
                    "AUTOHEAL_STATE_DIR": str(self.directory),
                    "AUTOHEAL_LEDGER": str(self.ledger),
                    "AUTOHEAL_INTERVAL": "1",
                    "AUTOHEAL_BACKOFF": "0",
                    "AUTOHEAL_SETTLE": "1",
                    "AUTOHEAL_DEFAULT_STOP_TIMEOUT": "2",
                },
            )

    def make_unhealthy(self) -> None:
        self.client.containers.get(self.name).exec_run(["touch", UNHEALTHY_FILE])

    def is_over(self) -> bool:
        """Whether the incident is, and all that belongs to it."""
        try:
            with sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True) as ledger:
                opened, closed = ledger.execute(
                    "SELECT count(*), count(closed) FROM incidents"
                ).fetchone()
                unfinished = ledger.execute(
                    "SELECT count(*) FROM attempts WHERE ended IS NULL"
                ).fetchone()[0]
        except sqlite3.OperationalError:
            return False  # it is being made
        if self.action == "stop":  # it never becomes healthy again
            return bool(opened and not unfinished and self._state() == "exited")
        # a lease whose removal was made to fail runs out by itself
        leases = () if "made to fail" in self.done() else self._leases()
        return bool(opened and opened == closed and not unfinished and not leases)

    def check(self) -> None:
        """There is what there was, once, under its name, and it is healthy."""
        mine = {one["Names"][0].lstrip("/"): one for one in self._all()}
        side = {self.side} if self.action in WITH_SIDE else set()
        assert set(mine) == {self.name, *side}
        if self.action == "stop":
            assert mine[self.name]["State"] == "exited"
            return
        assert self.is_healthy()
        if self.side not in mine:
            return
        assert mine[self.side]["State"] == "running"
        beside = self.client.api.inspect_container(self.side)
        main = self.client.api.inspect_container(self.name)
        assert beside["HostConfig"]["NetworkMode"] == f"container:{main['Id']}"
        # in its network as it is now, and not as it was
        networks = [
            os.readlink(f"/proc/{inspection['State']['Pid']}/ns/net")
            for inspection in (main, beside)
        ]
        assert networks[0] == networks[1]

    def wait(self, holds: Any, what: str) -> None:
        deadline = Deadline(LONG_SECONDS)
        while not holds():
            assert not deadline.passed, f"not {what}:\n{self.story()}"
            time.sleep(0.1)  # the engine, the ledger and a process that may be dead: no one event

    def story(self) -> str:
        states = json.dumps([(o["Names"], o["State"], o["Status"]) for o in self._all()])
        return f"{states}\n{(self.directory / 'log').read_text()}"

    def clean_up(self) -> None:
        for one in self._all():
            self.client.api.remove_container(one["Id"], force=True, v=True)
        for name in self._leases():
            self.client.api.remove_volume(name)

    def _all(self) -> list[dict[str, Any]]:
        return list(self.client.api.containers(all=True, filters={"name": self.label}))

    def _leases(self) -> list[str]:
        found = self.client.api.volumes(filters={"label": f"autoheal.lease={self.name}"})
        return [row["Name"] for row in found["Volumes"] or ()]

    def _state(self) -> str:
        return str(self.client.api.inspect_container(self.name)["State"]["Status"])

    def is_healthy(self) -> bool:
        state = self.client.api.inspect_container(self.name)["State"]
        return "Health" in state and state["Health"]["Status"] == "healthy"


def live_through(world: World, last: int, how: str = "kill") -> list[str]:
    """Heal, be killed after so many things, start again; returns what was done until then.

    With `how="fail"` it is not killed: the call to the engine of that number fails.
    """
    world.begin()
    world.wait(world.is_healthy, "healthy at first")
    first = world.autoheal("testbed.killed", how, str(last), str(world.names))
    try:
        # it may become unhealthy before anybody watches: that is one of the faults
        world.make_unhealthy()
        # how often the engine is still at something after 50 ms differs, so it may live
        world.wait(lambda: first.poll() is not None or world.is_over(), "over")
    finally:
        first.kill()
        first.wait()
    done = world.done()
    if last and how == "kill":
        second = world.autoheal("autoheal.cli", "run")
        try:
            world.wait(world.is_over, f"over, after it was killed with {done[-1:]}")
        finally:
            second.kill()
            second.wait()
    try:
        world.check()
    except (AssertionError, docker.errors.APIError) as error:
        raise AssertionError(f"killed after {done}: {error}\n{world.story()}") from error
    world.clean_up()  # its health checks would be in the way of the others
    return done


@pytest.fixture
def worlds(
    engine: docker.DockerClient, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Any]:
    made: list[World] = []

    def make(action: str) -> World:
        world = World(action, engine, Path(tempfile.mkdtemp(dir=tmp_path)))
        made.append(world)
        return world

    yield make
    for world in made:
        world.clean_up()


LONG = (pytest.mark.more, pytest.mark.every_engine)


@pytest.mark.parametrize(
    "action",
    [
        "restart",
        *(pytest.param(action, marks=LONG) for action in ("runner", "recreate", "stop")),
        # Of one container it takes the same steps as a recreation.
        pytest.param("redeploy", marks=pytest.mark.more),
    ],
)
def test_killed_after_anything_it_does_the_next_start_finishes_or_undoes_it(
    action: str, worlds: Any
) -> None:
    everything = live_through(worlds(action), 0)
    steps = {name.removeprefix("step ") for name in everything if name.startswith("step ")}
    assert steps >= STEPS[action]

    def one(last: int) -> None:
        live_through(worlds(action), last)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, range(1, len(everything) + 1)))


@pytest.mark.more
@pytest.mark.every_engine
def test_when_any_call_to_the_engine_fails_it_is_healed_all_the_same(worlds: Any) -> None:
    calls = [name for name in live_through(worlds("recreate"), 0) if name in CALLS]
    assert {"create", "stop", "rename", "start", "remove"} <= set(calls)

    def one(failing: int) -> None:
        done = live_through(worlds("recreate"), failing, how="fail")
        assert "made to fail" in done

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, range(1, len(calls) + 1)))
