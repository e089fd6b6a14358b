"""From a hang to the next answer that a user gets, with the image's own HEALTHCHECK.

    python -m bench.heal [--image NAME=IMAGE] [--runs N] [--at-once N]

Each run starts a container, loads two models, and stops the process of one of them in the middle
of an answer (SIGSTOP), at a random moment between two checks. Two users want that model all the
while. They wait for as long as it takes, or give up every 8 s and come again. One of these heals:

- `runner`: autoheal, whose first rung ends only the stuck process;
- `PROBE_HEAL`: the health check by itself, with no autoheal;
- `restart`: autoheal with `AUTOHEAL_LADDER=restart`, as other healers do.

Without `--image` it is the twin of today's Ollama (`testbed/twin`).
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import docker
import httpx

from autoheal.incident import seconds_of
from bench.generations import INTERVAL_SECONDS
from testbed import runner, twins
from testbed.autoheal import WATCHING, Autoheal
from testbed.deadlines import LONG_SECONDS, Deadline
from testbed.faults import freeze
from testbed.models import volume_of_models
from testbed.network import free_port
from testbed.ollama import Ollama
from testbed.runs import LABELS, unique

GIVE_UP_SECONDS = 8.0
USERS = {"wait": 600.0, "give up": GIVE_UP_SECONDS}
"""For how long each kind of users waits for an answer."""

LIMIT_SECONDS = 300.0


@dataclass(frozen=True)
class Run:
    """One hang; times in seconds.

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
                if reply.status_code == 200:
                    self.answered.append(time.time())
            time.sleep(0.1)  # a user who gets an error does not come back faster

    def go_home(self) -> None:
        self._over.set()


def once(
    client: docker.DockerClient, image: str, volume: str, label: str, way: Way
) -> dict[str, Run]:
    """A hang for each kind of users, in a container of its own."""
    found = {}
    for kind, patience in USERS.items():
        with _server(client, image, volume, label, way) as server:
            found[kind] = _hang(server, patience)
    return found


@contextmanager
def _server(
    client: docker.DockerClient, image: str, volume: str, label: str, way: Way
) -> Iterator[Ollama]:
    container = client.containers.run(
        image,
        name=unique("bench"),
        detach=True,
        labels={label: "true", **LABELS},
        environment=way.probe,
        # After a restart a container may have another address of its own.
        ports={"11434/tcp": ("127.0.0.1", free_port())},
        volumes={volume: {"bind": "/root/.ollama", "mode": "rw"}},
    )
    try:
        server = Ollama(container)
        server.wait_health("healthy", seconds=LONG_SECONDS)
        yield server
    finally:
        container.remove(force=True, v=True)


def _hang(server: Ollama, patience: float) -> Run:
    server.embed("vector")
    [other] = runner.pids(server)
    server.load_seen("tiny")
    [hung] = set(runner.pids(server)) - {other}
    [published] = server.attributes["HostConfig"]["PortBindings"]["11434/tcp"]
    address = f"http://127.0.0.1:{published['HostPort']}"
    time.sleep(random.uniform(0, INTERVAL_SECONDS))
    with server.endless_request("tiny", options={"num_predict": 1_000_000}):
        freeze(hung)
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
    options = parser.parse_args()
    name, _, image = (options.image or "").partition("=")
    if not image:
        name, image = "the twin", twins.build()
    client = docker.from_env()
    results: dict[tuple[str, str], list[Run]] = {}
    with tempfile.TemporaryDirectory() as directory, volume_of_models(client, unique("bench")) as v:
        labels = {title: unique("bench") for title in WAYS}
        healers = [
            Autoheal(
                {
                    "AUTOHEAL_CONTAINER_LABEL": labels[title],
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
                    (title, pool.submit(once, client, image, v, labels[title], way))
                    for _ in range(options.runs)
                    for title, way in WAYS.items()
                ]
                for title, one in waiting:
                    for kind, run in one.result().items():
                        results.setdefault((title, kind), []).append(run)
        finally:
            for healer in healers:
                healer.stop()  # gives its leases back
    _print(name, results)


def _print(name: str, results: dict[tuple[str, str], list[Run]]) -> None:
    yardstick = statistics.median(_total(results["restart", "wait"]))
    print(f"{name}, median and worst of {len(next(iter(results.values())))}\n")
    _row("healed by", "users", "until `unhealthy`", "from there until served", "in all")
    print("|---" * 7 + "|")
    for (title, kind), runs in results.items():
        found, served = [one.found for one in runs], [one.served for one in runs]
        ratio = f"{statistics.median(_total(runs)) / yardstick:.2f}"
        lived = f"{sum(one.others_lived for one in runs)} of {len(runs)}"
        _row(title, kind, _of(found), _of(served), _of(_total(runs)), ratio, lived)


def _row(
    title: str,
    kind: str,
    found: str,
    served: str,
    total: str,
    ratio: str = "of `restart`",
    lived: str = "other model lived",
) -> None:
    print("|", " | ".join((title, kind, found, served, total, ratio, lived)), "|")


def _total(runs: list[Run]) -> list[float]:
    return [one.found + one.served for one in runs]


def _of(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.1f} s, {max(seconds):.1f} s"


if __name__ == "__main__":
    main()
