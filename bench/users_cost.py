"""What checks cost users: the next turn of a conversation that paused, tokens while they work, and
the time that an answer takes.

    python -m bench.users_cost [--image NAME=IMAGE] [--server NAME=URL] [--model NAME]
                               [--turns N] [--rounds N] [--periods N] [--minutes N]

`bench/generations.py` says what the first two name. **A turn** of some 600 tokens is answered; then
nothing happens, or the checks that a pause of some 100 seconds has (made back to back, for nothing
else happens in a pause), or as many one-token requests, as plain healthchecks make them; then the
user's next turn, which adds a few tokens. The ways take turns, so that a machine that gets slower
meanwhile counts for none. Every conversation starts with the same token as the request of a
healthcheck, as all do where a chat template puts one there.

**Tokens** are counted in windows of five seconds, with four users who never stop: with no check,
with `/api/ps` asked, and with our check. Each cost is the mean over neighbouring windows, with its
standard error.

**Answers** are timed in periods of some minutes, with checks as often as the image's HEALTHCHECK
makes them and without in turn, while users of three models come and go, with options of their own.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
import psutil

from bench.generations import INTERVAL_SECONDS, Generation, User, arguments, generations
from probe.report import parse
from testbed.deadlines import scaled
from testbed.runs import unique

CHECKS = 5
LIMIT_SECONDS = 2.0
LONGEST_LIMIT_SECONDS = 10.0
PIECES = 75
"""Of 8 tokens each."""

USERS = 4
EVERY_SECONDS = 5.0

OPTIONS: dict[str, dict[str, Any]] = {
    "tiny": {"num_ctx": 1024, "num_batch": 64},
    "mid": {"num_ctx": 4096, "num_thread": 1},
}
"""Of the users of each model; those of `vector` embed. On a CPU a server holds three models."""

Way = Callable[[], object]


def check(server: Generation, memory: str, required: str = "") -> None:
    """One check of ours; it has to call the server healthy."""
    limit = min(scaled(LIMIT_SECONDS), LONGEST_LIMIT_SECONDS)
    env = {"PROBE_TIMEOUT": f"{limit:g}", "PROBE_MODEL": required}
    code, line = server.probe(memory, env)
    assert code == 0, line
    assert parse(line) is not None, line


def several(way: Way) -> Way:
    def act() -> None:
        for _ in range(CHECKS):
            way()

    return act


def prompt() -> str:
    """A conversation that nobody has had before."""
    letters = [random.choice("bcdfgklmn") for _ in range(PIECES * 4)]
    return " ".join(["a", *letters])


def turns(server: Generation, model: str, count: int) -> None:
    """Print how long the next turn takes, by what happened in the pause."""
    required = partial(check, server, unique("checks"), model)
    ways: dict[str, Way] = {
        "nothing": lambda: None,
        f"{CHECKS} checks": several(partial(check, server, unique("checks"))),
        f"{CHECKS} checks, the model is required": several(required),
        f"{CHECKS} timed generates": several(partial(server.generate, model, "a")),
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    first: list[float] = []
    reloads = dict.fromkeys(ways, 0)
    server.generate(model)
    for way in ways.values():
        way()  # each check has seen the model before
    for turn in range(count):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            text = prompt()
            first.append(server.generate(model, text)["prompt_eval_duration"] / 1e9)
            runners = server.identities(model)
            ways[name]()
            began = time.monotonic()
            server.generate(model, f"{text} f g")
            took[name].append(time.monotonic() - began)
            reloads[name] += runners != server.identities(model)
    base = statistics.median(took["nothing"])
    print(f"\n**{server.name}**: a new conversation takes {statistics.median(first):.2f} s\n")
    print("| in the pause | the next turn | ratio | loaded again |\n|---|---|---|---|")
    for name, values in took.items():
        median = statistics.median(values)
        print(
            f"| {name} | {median:.2f} s ({min(values):.2f} to {max(values):.2f}) "
            f"| {median / base:.1f} | {reloads[name]} of {count} |",
            flush=True,
        )


def tokens(server: Generation, model: str, rounds: int) -> None:
    """Print the tokens per second that users get, by what checks them."""
    memory = unique("checks")
    kinds: dict[str, Way] = {
        "no check": lambda: None,
        "`/api/ps`": server.loaded,
        "`ollama-probe check`": partial(check, server, memory),
    }
    options = {"num_predict": 150}
    users = [User(server, model, again=True, options=options) for _ in range(USERS)]
    users[0].wait(1)
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    time.sleep(EVERY_SECONDS)  # until all are well under way
    for turn in range(rounds):
        for name in list(kinds)[:: 1 if turn % 2 else -1]:
            began, before = time.monotonic(), sum(user.tokens for user in users)
            kinds[name]()
            time.sleep(max(began + EVERY_SECONDS - time.monotonic(), 0))
            now = sum(user.tokens for user in users)
            rates[name].append((now - before) / (time.monotonic() - began))
    failed = [user.failed for user in users if user.failed]
    for user in users:
        user.over.set()
    none = rates["no check"]
    print(f"\n| every {EVERY_SECONDS:g} s | tokens per second | cost |\n|---|---|---|")
    for name, values in rates.items():
        print(f"| {name} | {statistics.mean(values):.1f} | {cost(values, none)} |")
    print(f"\nrequests that failed: {failed or 'none'}", flush=True)


@dataclass
class Period:
    """Some minutes of users who come and go.

    Attributes:
        checked: whether the probe checks meanwhile.
        seconds: what each of their requests took.
        failed: what went wrong with the others.
        over: set when it ends.
    """

    checked: bool
    seconds: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def use(self, request: Callable[[], object]) -> None:
        """What one user does, until it is over."""
        while not self.over.wait(random.uniform(0.5, 4)):
            began = time.monotonic()
            try:
                request()
                self.seconds.append(time.monotonic() - began)
            except httpx.HTTPError as error:
                self.failed.append(str(error) or type(error).__name__)


def answers(server: Generation, periods: int, minutes: float) -> None:
    """Print how long answers take with checks and without."""

    def ask(model: str) -> object:
        options = {**OPTIONS[model], "num_predict": random.choice([1, 8, 32])}
        return server.generate(model, prompt()[: random.choice([20, 200, 600])], options=options)

    requests: list[Callable[[], object]]
    requests = [*(partial(ask, model) for model in OPTIONS), partial(server.embed, "vector")]
    for request in requests:
        request()
    memory, found = unique("checks"), []
    loaded = server.identities()
    reloads = {True: 0, False: 0}
    for number in range(periods):
        period = Period(checked=bool(number % 2))
        users = [threading.Thread(target=period.use, args=(request,)) for request in requests]
        for user in users:
            user.start()
        end = time.monotonic() + minutes * 60
        while (left := end - time.monotonic()) > 0:
            if period.checked:
                check(server, memory, "tiny")
            time.sleep(min(INTERVAL_SECONDS, left))
        period.over.set()
        for user in users:
            user.join()
        now = server.identities()
        reloads[period.checked] += len(now - loaded)
        loaded = now
        found.append(period)
    print(f"\n**{server.name}**: {periods} periods of {minutes:g} min in turn; tiny is required\n")
    print("| | requests | failed | models loaded again | p50 | p99 |\n|---|---|---|---|---|---|")
    base: list[float] = []
    for checked in (False, True):
        mine = [period for period in found if period.checked is checked]
        times = [seconds for period in mine for seconds in period.seconds]
        failed = sum(len(period.failed) for period in mine)
        cuts = statistics.quantiles(times, n=100)
        base = base or cuts
        columns = [f"{cuts[n - 1]:.2f} s ({cuts[n - 1] / base[n - 1]:.2f})" for n in (50, 99)]
        title = f"checks every {INTERVAL_SECONDS:g} s" if checked else "no check"
        row = [title, str(len(times)), str(failed), str(reloads[checked]), *columns]
        print(f"| {' | '.join(row)} |", flush=True)


def cost(values: list[float], base: list[float]) -> str:
    costs = [1 - value / other for value, other in zip(values, base, strict=True)]
    error = statistics.stdev(costs) / len(costs) ** 0.5
    return f"{statistics.mean(costs):.1%} ± {error:.1%}"


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", default="mid")
    parser.add_argument("--turns", type=int, default=5, help="of conversations; 0 leaves these out")
    parser.add_argument("--rounds", type=int, default=36, help="of windows; 0 leaves these out")
    parser.add_argument("--periods", type=int, default=6, help="of answers; 0 leaves these out")
    parser.add_argument("--minutes", type=float, default=5, help="that a period takes")
    options = parser.parse_args()
    for server in generations(options):
        try:
            if options.periods:
                answers(server, options.periods, options.minutes)
                server.reset()
            if options.turns:
                turns(server, options.model, options.turns)
            if options.rounds:
                tokens(server, options.model, options.rounds)
        finally:
            with suppress(psutil.Error):
                server.reset()


if __name__ == "__main__":
    main()
