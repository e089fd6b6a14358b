"""The process that serves a loaded model: `ollama runner`, or `llama-server` since 0.30."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from testbed.containers import Workload
from testbed.deadlines import LONG_SECONDS, ORDINARY_SECONDS, Deadline, scaled
from testbed.faults import freeze

WORDS = ("ollama runner", "llama-server --model")
"""A part of the command line of either."""

_ASK = """
import sys, urllib.error, urllib.request
url, body, limit = sys.argv[1:]
try:
    reply = urllib.request.urlopen(url, body.encode() or None, float(limit))
except urllib.error.HTTPError as error:
    reply = error
print(reply.status, reply.read().decode())
"""


def pids(server: Workload) -> list[int]:
    """Process ids, on this machine, of a server's runners."""
    rows = server.container.top(ps_args="-eo pid,args")["Processes"]
    return [int(pid) for pid, args in rows if any(words in args for words in WORDS)]


def freeze_first(server: Workload) -> int:
    """Stop the first runner that a server starts, in the moment that it is there; its process id.

    The engine's own list of processes takes seconds on a busy machine, and a load no longer.
    """
    deadline, parent = Deadline(), psutil.Process(int(server.attributes["State"]["Pid"]))
    while True:
        for process in parent.children(recursive=True):
            with suppress(psutil.Error):
                if any(words in " ".join(process.cmdline()) for words in WORDS):
                    freeze(process.pid)
                    return process.pid
        assert not deadline.passed, "no runner was started"
        time.sleep(0.01)  # a runner announces nothing


def arguments(pid: int) -> list[str]:
    """The words of a runner's command line."""
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def ask(pid: int, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
    """Ask a runner on its own port, inside its container; returns status and content."""
    command = _command(pid, path, body, scaled(ORDINARY_SECONDS))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    status, _, content = done.stdout.partition(" ")
    return int(status), content


@contextmanager
def at_work(pid: int) -> Iterator[None]:
    """A `llama-server` gives tokens without end, and no client of its server asked for them."""
    body = {"prompt": "a b c", "n_predict": -1, "ignore_eos": True}
    command = _command(pid, "/completion", body, scaled(LONG_SECONDS))
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as client:
        try:
            yield
        finally:
            client.kill()


def _command(pid: int, path: str, body: dict[str, Any] | None, seconds: float) -> list[str]:
    """What asks a runner on its own port, inside its container."""
    words = arguments(pid)
    url = f"http://127.0.0.1:{words[words.index('--port') + 1]}{path}"
    text = "" if body is None else json.dumps(body)
    inside = ("nsenter", "--target", str(pid), "--net", sys.executable, "-I", "-c", _ASK)
    return [*inside, url, text, str(seconds)]
