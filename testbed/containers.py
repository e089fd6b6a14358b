"""A container under test: its state, its health checks, its processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker.errors
import pytest
from docker.models.containers import Container

from probe.report import Verdict, parse
from testbed.deadlines import ORDINARY_SECONDS, Deadline
from testbed.faults import freeze

OLLAMA = "ollama-autoheal/ollama"
AUTOHEAL = "ollama-autoheal/autoheal"
"""The images that `make up` has built."""

ROOT = Path(__file__).resolve().parents[1]

SECOND = 1_000_000_000
MILLISECOND = 1_000_000

QUICK_STOP = ("--stop-signal", "SIGKILL")

SLEEP = ("--entrypoint", "/bin/sleep", AUTOHEAL, "100000")
"""The end of a `docker run` whose container does nothing."""

UNHEALTHY_FILE = "/unhealthy"
UNHEALTHY_CHECK = f"test ! -e {UNHEALTHY_FILE} || {{ echo marked unhealthy; exit 1; }}"
"""A health check that fails while that file is there."""

_EVENTS_SECONDS = 5
"""For how long to listen to one stream of events; then the state is read once more."""


def idle_command(*, stops_at_once: bool = True) -> str:
    """A shell program that does nothing, healthy at each start."""
    trap = "trap 'exit 0' TERM; " if stops_at_once else ""
    return f"{trap}rm -f {UNHEALTHY_FILE}; while :; do sleep 1000 & wait; done"


def healthcheck(
    test: str | list[str] = UNHEALTHY_CHECK, *, interval: float = 0.25, **more: Any
) -> dict[str, Any]:
    """A HEALTHCHECK whose first failure counts: a line for the shell, or Docker's own form."""
    return {
        "test": ["CMD-SHELL", test] if isinstance(test, str) else test,
        "interval": int(interval * SECOND),
        "retries": 1,
        "start_period": MILLISECOND,  # not the image's own
        **more,
    }


def wait_log(container: Container, pattern: str, seconds: float = ORDINARY_SECONDS) -> None:
    """Wait until a line of a container's log matches."""
    deadline = Deadline(seconds)
    follow = ["docker", "logs", "--follow", str(container.id)]
    with subprocess.Popen(follow, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as follower:
        assert follower.stdout is not None
        timer = threading.Timer(deadline.remaining, follower.kill)
        timer.start()
        try:
            if any(re.search(pattern, line.decode()) for line in follower.stdout):
                return
        finally:
            timer.cancel()
            follower.kill()
    container.reload()
    log, state = container.logs().decode(errors="replace"), container.status
    pytest.fail(f"it did not say {pattern!r} in time and is {state}: {log}")


def remove(container: Container) -> None:
    """Remove a container; again, where the engine gives up as a killed process has not ended yet.

    On a crowded machine one that has gigabytes of memory takes longer than the engine waits.
    """
    # By its name: after it was recreated it is another one.
    name, api = str(container.name), container.client.api  # type: ignore[union-attr]
    with suppress(docker.errors.NotFound):
        _again(lambda: api.remove_container(name, force=True, v=True), "can not be killed")


def _again(act: Callable[[], object], words: str) -> None:
    """Do something, again where the engine gives up with these words."""
    deadline = Deadline()
    while True:
        try:
            act()
            return
        except docker.errors.APIError as error:
            if words not in str(error) or deadline.passed:
                raise


class Workload:
    """A container under test."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.name = str(container.name)

    @property
    def attributes(self) -> dict[str, Any]:
        client = self.container.client
        assert client is not None
        self.container = client.containers.get(self.name)  # by then perhaps another of that name
        return dict(self.container.attrs)

    @property
    def health(self) -> str:
        state = self.attributes["State"]
        return str(state["Health"]["Status"]) if "Health" in state else "not started yet"

    @property
    def checks(self) -> list[dict[str, Any]]:
        """The last ones, oldest first; none in a container that was made and not yet started."""
        return self.attributes["State"].get("Health", {}).get("Log") or []

    @property
    def lines(self) -> list[str]:
        """What the last checks printed, oldest first."""
        return [check["Output"].strip() for check in self.checks]

    @property
    def verdicts(self) -> list[Verdict]:
        return [v for v in map(parse, self.lines) if v is not None]

    @property
    def started_at(self) -> str:
        return str(self.attributes["State"]["StartedAt"])

    def make_unhealthy(self) -> None:
        """Let its health checks fail until it starts again."""
        assert self.container.exec_run(["touch", UNHEALTHY_FILE]).exit_code == 0

    def wait(self, holds: Callable[[], bool], what: str, seconds: float = ORDINARY_SECONDS) -> None:
        """Wait until something holds, reading the state after each event of this container."""
        deadline = Deadline(seconds)
        while not deadline.passed:
            began = time.time()
            stream = self.container.client.events(  # type: ignore[union-attr]
                decode=True,
                filters={"container": self.container.id},
                since=int(began),
                until=int(began) + _EVENTS_SECONDS,
            )
            if holds() or any(holds() for _ in stream):
                return
        pytest.fail(f"in time not {what}: {self.health}, {self.lines}")

    def wait_health(
        self, status: str, reason: str | None = None, seconds: float = ORDINARY_SECONDS
    ) -> None:
        def holds() -> bool:
            verdicts = self.verdicts
            return self.health == status and (
                reason is None or bool(verdicts and verdicts[-1].reason == reason)
            )

        self.wait(holds, f"{status} {reason or ''}", seconds)

    def wait_checks(self, count: int, seconds: float = ORDINARY_SECONDS) -> list[Verdict]:
        """Wait for so many more checks, and return their verdicts."""
        seen: dict[str, str] = {}
        first = {check["Start"] for check in self.checks}

        def holds() -> bool:
            for check in self.checks:
                if check["Start"] not in first:
                    seen[check["Start"]] = check["Output"]
            return len(seen) >= count

        self.wait(holds, f"{count} more checks", seconds)
        verdicts = [parse(output) for output in seen.values()]
        assert None not in verdicts, seen
        return [verdict for verdict in verdicts if verdict is not None]

    def wait_restarted(self, before: str, seconds: float = ORDINARY_SECONDS) -> None:
        def holds() -> bool:
            state = self.attributes["State"]
            return bool(state["StartedAt"] != before and state["Running"])

        self.wait(holds, "restarted", seconds)

    def pids(self, words: str) -> list[int]:
        """Process ids, on this machine, of the container's processes with these words."""
        rows = self.container.top(ps_args="-eo pid,args")["Processes"]
        return [int(pid) for pid, args in rows if words in args]

    def freeze(self, words: str) -> None:
        """Stop processes (SIGSTOP)."""
        for pid in self._pids(words):
            freeze(pid)

    def thaw(self, words: str) -> None:
        """Let stopped processes go on."""
        for pid in self._pids(words):
            os.kill(pid, signal.SIGCONT)

    def _pids(self, words: str) -> list[int]:
        found = self.pids(words)
        assert found, f"no process {words!r}"
        return found

    def pause(self) -> None:
        """Pause it; again, where runc gives up as its processes get no CPU in time to freeze."""
        _again(self.container.pause, "unable to freeze")

    def starve(self, words: str) -> None:
        """Leave processes only the CPU time that others do not want, and others want all."""
        for pid in self.pids(words):
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setscheduler(int(thread), os.SCHED_IDLE, os.sched_param(0))
        busy = "for one in $(seq 30); do while :; do :; done & done; wait"
        self.container.exec_run(["sh", "-c", busy], detach=True)
