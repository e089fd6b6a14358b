"""`autoheal run` as a process of this machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from testbed.containers import ROOT
from testbed.deadlines import ORDINARY_SECONDS, Deadline, scaled

WATCHING = "watching the Docker engine"
"""It says so once it sees every event."""

PROMPT = {"AUTOHEAL_BACKOFF": "1", "AUTOHEAL_SETTLE": "2", "AUTOHEAL_INTERVAL": "1"}
"""Settings as quick as a test wants them."""


class Autoheal:
    """`autoheal run` as a process of this machine."""

    def __init__(self, env: dict[str, str], module: tuple[str, ...] = ("autoheal.cli", "run")):
        self.lines: list[str] = []
        self.env = env
        self._news = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", *module],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip())
                self._news.notify_all()

    def wait_line(self, pattern: str, seconds: float = ORDINARY_SECONDS, count: int = 1) -> str:
        """Wait until so many lines match, and return the last of them."""
        deadline = Deadline(seconds)

        def matches() -> list[str]:
            return [line for line in self.lines if re.search(pattern, line)]

        with self._news:
            while len(matches()) < count:
                if not self._news.wait(deadline.remaining) and deadline.passed:
                    pytest.fail(f"no line {pattern!r} in time in {self.lines}")
            return matches()[-1]

    def command(self, *words: str, fails: bool = False) -> str:
        """Run `autoheal ...` where this one runs; returns what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "autoheal.cli", *words],
            env={**os.environ, **self.env},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert (done.returncode != 0) is fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def wait_healthy(self) -> None:
        """Wait until `autoheal health` says so."""
        deadline = Deadline()
        words = [sys.executable, "-m", "autoheal.cli", "health"]
        while subprocess.run(
            words, cwd=ROOT, env={**os.environ, **self.env}, stdout=subprocess.DEVNULL
        ).returncode:
            assert not deadline.passed, self.lines

    def stop(self) -> float:
        """Send SIGTERM; returns the seconds until it was gone."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(scaled(ORDINARY_SECONDS))
        return time.monotonic() - began

    def kill(self) -> None:
        """Send SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait()
