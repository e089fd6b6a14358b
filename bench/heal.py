"""From a fault to the next answer that a user gets, with the image's own HEALTHCHECK.

    python -m bench.heal [--image NAME=IMAGE] [--runs N] [--at-once N] [WORD ...]

Each run starts a container, loads two models, and breaks the process of one of them in the middle
of an answer, at a random moment between two checks. Two users want that model all the while. It is
broken so:

- the process stops (SIGSTOP): it says nothing any more;
- the call that computes never returns, and the process answers for its health;
- each call that computes fails: its users get errors.

Users wait for as long as it takes, or give up every 8 s and come again. One of these heals:

- `runner`: autoheal, whose first rung ends only the stuck process;
- `PROBE_HEAL`: the health check by itself, with no autoheal;
- `restart`: autoheal with `AUTOHEAL_LADDER=restart`, as other healers do.

A WORD selects the faults whose names contain it. Without `--image` it is the twin of today's Ollama
(`testbed/twin`).
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import docker
import httpx

from autoheal.incident import seconds_of
from bench.generations import INTERVAL_SECONDS
from testbed import runner, twins
from testbed.autoheal import WATCHING, Autoheal
from testbed.deadlines import LONG_SECONDS, Deadline
from testbed.decode import Decode
from testbed.faults import freeze
from testbed.models import volume_of_models
from testbed.network import free_port
from testbed.ollama import Ollama
from testbed.runs import LABELS, unique

USERS = {"wait": 600.0, "give up": 8.0}
"""For how long each kind of users waits for an answer."""

LIMIT_SECONDS = 300.0


@dataclass(frozen=True)
class Run:
    """One fault; times in seconds.

    Attributes:
        found: from the fault until Docker called the container unhealthy.
        served: from there until a user had an answer.
        others_lived: the other model's process was never stopped.
    """

    found: float
    served: float
    others_lived: bool


@dataclass(frozen=True)
class Way:
    """How it is healed: settings of the probe, and of autoheal where there is one."""

    probe: dict[str, str]
    autoheal: dict[str, str] | None


@dataclass(frozen=True)
class Fault:
    """How a process is broken that is at work, and which users meet that differently."""

    begin: Callable[[Decode, int], None]
    users: dict[str, float]


FAULTS = {
    "the process stops": Fault(lambda _, pid: freeze(pid), USERS),
    "a call hangs": Fault(lambda decode, pid: decode.hit(pid, "hang"), USERS),
    "each call fails": Fault(lambda decode, pid: decode.hit(pid, "fail"), {"get errors": 600.0}),
}


WAYS = {
    "runner": Way({}, {}),
    "PROBE_HEAL": Way({"PROBE_HEAL": "runner"}, None),
    "restart": Way({}, {"AUTOHEAL_LADDER": "restart"}),
}


class Crowd:
    """Users who want a model until they are sent home."""

    def __init__(self, url: str, patience: float) -> None:
        self.answered: list[float] = []
        self._over = threading.Event()
        self._url = url
        self._patience = patience
        for _ in range(2):
            threading.Thread(target=self._ask, daemon=True).start()

    def _ask(self) -> None:
        body = {"model": "tiny", "prompt": "a b c", "stream": False, "options": {"num_predict": 1}}
        while not self._over.is_set():
            with suppress(httpx.HTTPError):
                reply = httpx.post(f"{self._url}/api/generate", json=body, timeout=self._patience)
                if reply.status_code == 200 and reply.json()["done"]:
                    self.answered.append(time.time())
            time.sleep(0.1)  # a user who gets an error does not come back faster

    def go_home(self) -> None:
        self._over.set()


class Bench:
    """The servers that are broken and healed.

    Attributes:
        labels: by way, what its autoheal watches.
    """

    def __init__(self, client: docker.DockerClient, image: str, volume: str) -> None:
        self._client, self._image, self._volume = client, image, volume
        self.labels = {title: unique("bench") for title in WAYS}

    def once(self, fault: str, users: str, title: str) -> Run:
        """Break a process, and wait until users are served again, in a container of its own."""
        with tempfile.TemporaryDirectory() as files:
            decode = Decode(Path(files))
            with self._server(self.labels[title], WAYS[title], decode) as server:
                return _heal(server, decode, FAULTS[fault], FAULTS[fault].users[users])

    @contextmanager
    def _server(self, label: str, way: Way, decode: Decode) -> Iterator[Ollama]:
        container = self._client.containers.run(
            self._image,
            name=unique("bench"),
            detach=True,
            labels={label: "true", **LABELS},
            environment={**way.probe, **decode.env},
            # After a restart a container may have another address of its own.
            ports={"11434/tcp": ("127.0.0.1", free_port())},
            volumes={self._volume: {"bind": "/root/.ollama", "mode": "rw"}, **decode.volume},
        )
        try:
            server = Ollama(container)
            server.wait_health("healthy", seconds=LONG_SECONDS)
            yield server
        finally:
            container.remove(force=True, v=True)


def _heal(server: Ollama, decode: Decode, fault: Fault, patience: float) -> Run:
    server.embed("vector")
    [other] = runner.pids(server)
    server.load_seen("tiny")
    [broken] = set(runner.pids(server)) - {other}
    [published] = server.attributes["HostConfig"]["PortBindings"]["11434/tcp"]
    address = f"http://127.0.0.1:{published['HostPort']}"
    time.sleep(random.uniform(0, INTERVAL_SECONDS))
    with server.endless_request("tiny", options={"num_predict": 1_000_000}):
        fault.begin(decode, broken)
        began = time.time()
        users = Crowd(address, patience)
        try:
            unhealthy = _unhealthy_at(server, began)
            deadline = Deadline(LIMIT_SECONDS)
            while not users.answered:
                assert not deadline.passed, server.verdicts
                time.sleep(0.01)
        finally:
            users.go_home()
    return Run(unhealthy - began, users.answered[0] - unhealthy, other in runner.pids(server))


def _unhealthy_at(server: Ollama, began: float) -> float:
    """When Docker called it unhealthy: at the end of the check that found it."""
    client = server.container.client
    assert client is not None
    for event in client.events(
        decode=True,
        since=int(began),
        until=int(began + LIMIT_SECONDS),
        filters={"container": server.container.id, "event": "health_status"},
    ):
        moment = event["timeNano"] / 1e9
        if event["Action"].endswith(" unhealthy") and moment > began:
            return float(moment)
    failed = [check for check in server.checks if seconds_of(check["Start"]) > began]
    raise AssertionError(failed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", metavar="NAME=IMAGE")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("words", nargs="*", metavar="WORD")
    options = parser.parse_args()
    name, _, image = (options.image or "").partition("=")
    if not image:
        name, image = "the twin", twins.build()
    words = options.words or [""]
    cases = [
        (fault, users, title)
        for fault in FAULTS
        if any(word in fault for word in words)
        for users in FAULTS[fault].users
        for title in WAYS
    ]
    client = docker.from_env()
    results: dict[tuple[str, str, str], list[Run]] = {}
    with tempfile.TemporaryDirectory() as directory, volume_of_models(client, unique("bench")) as v:
        bench = Bench(client, image, v)
        healers = [
            Autoheal(
                {
                    "AUTOHEAL_CONTAINER_LABEL": bench.labels[title],
                    "AUTOHEAL_STATE_DIR": directory,
                    "AUTOHEAL_LEDGER": f"{directory}/{number}.db",
                    **way.autoheal,
                }
            )
            for number, (title, way) in enumerate(WAYS.items())
            if way.autoheal is not None
        ]
        try:
            for healer in healers:
                healer.wait_line(WATCHING)
            with ThreadPoolExecutor(options.at_once) as pool:
                # The ways take turns, so that a machine that gets slower counts for none.
                waiting = [
                    (case, pool.submit(bench.once, *case))
                    for _ in range(options.runs)
                    for case in cases
                ]
                for case, one in waiting:
                    run = one.result()
                    results.setdefault(case, []).append(run)
                    words = f"{', '.join(case)}: {run.found:.1f} s, {run.served:.1f} s"
                    print(words, file=sys.stderr, flush=True)
        finally:
            for healer in healers:
                healer.stop()  # gives its leases back
    _print(name, results)


def _print(name: str, results: dict[tuple[str, str, str], list[Run]]) -> None:
    print(f"{name}, median and worst of {len(next(iter(results.values())))}\n")
    _row("fault", "users", "healed by", "until `unhealthy`", "from there until served", "in all")
    print("|---" * 8 + "|")
    for case, runs in results.items():
        fault, users, _ = case
        yardstick = statistics.median(_total(results[fault, users, "restart"]))
        found, served = [one.found for one in runs], [one.served for one in runs]
        ratio = f"{statistics.median(_total(runs)) / yardstick:.2f}"
        lived = f"{sum(one.others_lived for one in runs)} of {len(runs)}"
        _row(*case, _of(found), _of(served), _of(_total(runs)), ratio, lived)


def _row(
    fault: str,
    users: str,
    title: str,
    found: str,
    served: str,
    total: str,
    ratio: str = "of `restart`",
    lived: str = "other model lived",
) -> None:
    print("|", " | ".join((fault, users, title, found, served, total, ratio, lived)), "|")


def _total(runs: list[Run]) -> list[float]:
    return [one.found + one.served for one in runs]


def _of(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.1f} s, {max(seconds):.1f} s"


if __name__ == "__main__":
    main()
