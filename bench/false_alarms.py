"""Whether a server that is well is ever called unhealthy, however its users treat it.

    python -m bench.false_alarms [--image NAME=IMAGE] [--hours N]

Docker checks the server every five seconds with the image's own HEALTHCHECK, while one kind of load
follows another at random, each for half a minute to two minutes. Nothing is ever broken, so every
check that fails is a false alarm. It is printed at once, and the bench fails.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx

from autoheal.incident import seconds_of
from bench.generations import AT_RANDOM, Generation, arguments, generations
from probe.report import parse
from testbed.deadlines import LONG_SECONDS
from testbed.ollama import Ollama

EVERY_SECONDS = 5.0
LEAST_SECONDS, MOST_SECONDS = 30.0, 120.0
"""For how long one kind of load goes on."""

PATIENCE_SECONDS = 3600.0
REQUIRED = "tiny"

Request = Callable[[], object]


class Load:
    """Users of a server, until they are sent home."""

    def __init__(self, server: Generation) -> None:
        self._server = server
        self.over = threading.Event()
        self._users: list[threading.Thread] = []

    def users(self, count: int, request: Request, pause: float = 0.0) -> None:
        """So many who make a request again and again, with a pause of up to so many seconds."""

        def come() -> None:
            while not self.over.wait(random.uniform(0, pause)):
                # Who gives up, or is refused, comes again.
                with suppress(httpx.HTTPError):
                    request()

        for _ in range(count):
            self._users.append(threading.Thread(target=come, daemon=True))
            self._users[-1].start()

    def ask(
        self,
        model: str,
        *,
        patience: float = PATIENCE_SECONDS,
        tokens: int = 8,
        words: int = 20,
        options: dict[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        """A request, which is given up after so many seconds without an answer."""
        prompt = " ".join(random.choices("abcdfgklmn", k=words))
        chosen = {"num_predict": tokens, **(options or {})}
        self._server.generate(model, prompt, patience, options=chosen, **fields)

    def embed(self, *, patience: float = PATIENCE_SECONDS, pieces: int = 1) -> None:
        self._server.embed("vector", pieces, patience)

    def stop_reading(self) -> None:
        """Begin to read an endless answer, and read no more of it until the load is over."""
        body = {"model": "mid", "prompt": "a b", "options": {**AT_RANDOM, "num_predict": 1_000_000}}
        url = f"{self._server.url}/api/generate"
        with httpx.stream("POST", url, json=body, timeout=PATIENCE_SECONDS) as reply:
            next(reply.iter_lines(), None)
            self.over.wait()

    def go_home(self) -> None:
        self.over.set()
        for user in self._users:
            user.join(LONG_SECONDS)


def nobody(load: Load) -> None:
    """Nobody asks."""


def ordinary(load: Load) -> None:
    """Users of three models, each with options of their own."""
    load.users(1, partial(load.ask, "tiny", options={"num_ctx": 1024, "num_batch": 64}), 4)
    load.users(1, partial(load.ask, "mid", tokens=32, options={"num_thread": 1}), 4)
    load.users(1, load.embed, 4)


def other_options(load: Load) -> None:
    """Users of the required model, whose options differ, so that it is loaded again and again."""

    def one() -> None:
        load.ask("tiny", options={"num_ctx": random.choice([512, 1024, 2048, 4096])})

    load.users(2, one, 1)


def queue(load: Load) -> None:
    """Twenty users who want one slot."""
    load.users(20, partial(load.ask, "mid", tokens=64))


def give_up(load: Load) -> None:
    """Users who give up in the middle of an answer, and come again."""

    def one() -> None:
        load.ask("mid", tokens=100_000, patience=random.uniform(0.1, 8))

    load.users(3, one, 0.5)


def stop_reading(load: Load) -> None:
    """A user who stops reading, and one who waits for their own answer."""
    load.users(1, load.stop_reading)
    load.users(1, partial(load.ask, "tiny"), 2)


def long_prompts(load: Load) -> None:
    """Prompts that take longer than a check."""
    load.users(2, partial(load.ask, "mid", words=7000, tokens=2, options={"num_ctx": 8192}))


def large_model(load: Load) -> None:
    """A model that takes seconds to load, and is unloaded after each answer."""
    load.users(1, partial(load.ask, "big", keep_alive=0), 2)
    load.users(1, partial(load.ask, "tiny"), 2)


def loads_given_up(load: Load) -> None:
    """Users who give up while their model is loaded."""

    def one() -> None:
        load.ask("big", keep_alive=0, patience=random.uniform(0.1, 3))

    load.users(2, one, 1)


def unloads(load: Load) -> None:
    """Models that are unloaded after each answer, the required one too."""
    load.users(1, partial(load.ask, "tiny", keep_alive=0), 3)
    load.users(1, partial(load.ask, "mid", keep_alive=0), 3)


def embeddings(load: Load) -> None:
    """Many embeddings at once, some of them given up."""

    def one() -> None:
        load.embed(pieces=200, patience=random.choice([0.5, 2, PATIENCE_SECONDS]))

    load.users(3, one, 0.5)


def refused(load: Load) -> None:
    """Users who ask for a model that is not installed, and get errors."""
    load.users(2, partial(load.ask, "nowhere"), 0.5)
    load.users(1, partial(load.ask, "tiny"), 2)


KINDS = (
    nobody,
    ordinary,
    other_options,
    queue,
    give_up,
    stop_reading,
    long_prompts,
    large_model,
    loads_given_up,
    unloads,
    embeddings,
    refused,
)


@contextmanager
def as_it_is(server: Generation) -> Iterator[None]:
    """Nothing is done to the machine."""
    yield


@contextmanager
def starved(server: Generation) -> Iterator[None]:
    """Two busy loops for each core."""
    loops = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(2 * len(server.process.cpu_affinity()))
    ]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@contextmanager
def paused(server: Generation) -> Iterator[None]:
    """The container is paused now and then, as when a machine is suspended."""
    over = threading.Event()
    assert server.container is not None
    container = server.container

    def pause() -> None:
        while not over.wait(random.uniform(5, 20)):
            Ollama(container).pause()
            over.wait(random.uniform(1, 20))
            container.unpause()

    thread = threading.Thread(target=pause)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


MACHINES = (as_it_is, as_it_is, starved, paused)


@dataclass
class Checks:
    """What the checks of a container have said.

    Attributes:
        reasons: how often, by kind of load.
        alarms: those that failed.
    """

    server: Ollama
    reasons: dict[str, Counter[str]] = field(default_factory=dict)
    alarms: list[str] = field(default_factory=list)
    _last: float = field(default_factory=time.time)

    def read(self, title: str) -> None:
        """Count what is new as that of one kind of load."""
        for check in self.server.checks:
            if seconds_of(check["Start"]) <= self._last:
                continue
            self._last = seconds_of(check["Start"])
            verdict = parse(check["Output"])
            counted = self.reasons.setdefault(title, Counter())
            doubt = " (doubt)" if verdict and "doubt" in verdict.readings else ""
            counted[f"{verdict.reason}{doubt}" if verdict else "no verdict"] += 1
            if check["ExitCode"] != 0:
                self.alarms.append(check["Output"])
                print(f"\n{check['Start']}, {title}: {check['Output']}", flush=True)


def measure(generation: Generation, hours: float) -> bool:
    """Print what checks say under changing load; returns whether none of them failed."""
    assert generation.container is not None
    server = Ollama(generation.container)
    server.wait_health("healthy", seconds=LONG_SECONDS)
    checks = Checks(server)
    began = time.monotonic()
    while (left := began + hours * 3600 - time.monotonic()) > 0:
        kind, machine = random.choice(KINDS), random.choice(MACHINES)
        first = (kind.__doc__ or "").split(".")[0]
        title = first if machine is as_it_is else f"{first} ({machine.__name__})"
        load = Load(generation)
        end = time.monotonic() + min(random.uniform(LEAST_SECONDS, MOST_SECONDS), left)
        with machine(generation):
            kind(load)
            while time.monotonic() < end:
                time.sleep(EVERY_SECONDS)
                checks.read(title)
        load.go_home()
        checks.read(title)
    print(f"\n**{generation.name}**: a check every {EVERY_SECONDS:g} s for {hours:g} hours\n")
    print("| load | checks | said |\n|---|---|---|")
    for title, reasons in sorted(checks.reasons.items()):
        said = ", ".join(f"`{reason}` {count}" for reason, count in reasons.most_common())
        print(f"| {title} | {reasons.total()} | {said} |", flush=True)
    total = sum(reasons.total() for reasons in checks.reasons.values())
    print(f"\n{len(checks.alarms)} of {total} checks called a server unhealthy that was well")
    return not checks.alarms


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--hours", type=float, default=12)
    options = parser.parse_args()
    healthcheck = {"interval": int(EVERY_SECONDS * 1e9)}
    well = [
        measure(server, options.hours)
        for server in generations(options, healthcheck, PROBE_MODEL=REQUIRED)
    ]
    sys.exit(not all(well))


if __name__ == "__main__":
    main()
