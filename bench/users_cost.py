"""What a check every 5 seconds costs four users who never stop: their tokens, with and without.

    python -m bench.users_cost [ROUNDS]

Windows of 5 seconds with no check, with `true` run in the container (what the engine itself costs)
and with ours take turns, so that a machine that gets slower meanwhile counts for neither. Each cost
is the mean over neighbouring windows, with its standard error.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import docker
import httpx

from scripts import small_model
from tests.e2e.conftest import OLLAMA, SECOND, Ollama

USERS = 4
EVERY_SECONDS = 5.0
LAYERS, WIDTH = 4, 512


class Users:
    """Four people who ask for one long answer after the other, and count their tokens."""

    def __init__(self, url: str) -> None:
        self.tokens = 0
        for _ in range(USERS):
            threading.Thread(target=self._ask, args=(url,), daemon=True).start()

    def _ask(self, url: str) -> None:
        body = {"model": "medium", "prompt": "a b c", "options": {"num_predict": 150}}
        # The server is thrown away under them at the end.
        with suppress(httpx.HTTPError), httpx.Client(timeout=300) as client:
            while True:
                with client.stream("POST", f"{url}/api/generate", json=body) as reply:
                    for chunk in reply.iter_bytes():
                        self.tokens += chunk.count(b"\n")  # a line for each


def main(rounds: int = 36) -> None:
    engine = docker.from_env()
    with TemporaryDirectory() as directory:
        small_model.write(Path(directory) / "medium.gguf", LAYERS, WIDTH)
        (Path(directory) / "medium").write_text("FROM /models/medium.gguf\n")
        container = engine.containers.run(
            OLLAMA,
            detach=True,
            environment={"OLLAMA_NUM_PARALLEL": str(USERS)},
            volumes={directory: {"bind": "/models", "mode": "ro"}},
            healthcheck={"test": ["CMD", "true"], "interval": 3600 * SECOND},
        )
        try:
            server = Ollama(container)
            server.wait_listening()
            container.exec_run(["ollama", "create", "medium", "-f", "/models/medium"])
            server.generate("medium")
            kinds: dict[str, Callable[[], object]] = {
                "no check": lambda: None,
                "`true`": lambda: container.exec_run(["true"]),
                "`ollama-probe check`": lambda: container.exec_run(["ollama-probe", "check"]),
            }
            _report(_measure(Users(server.url), kinds, rounds))
        finally:
            container.remove(force=True, v=True)


def _measure(
    users: Users, kinds: dict[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Tokens per second in each window, by what ran in it."""
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    time.sleep(EVERY_SECONDS)  # until all four are well under way
    for turn in range(rounds):
        names = list(kinds)[:: 1 if turn % 2 else -1]
        for name in names:
            began, tokens = time.monotonic(), users.tokens
            kinds[name]()
            time.sleep(max(began + EVERY_SECONDS - time.monotonic(), 0))
            rates[name].append((users.tokens - tokens) / (time.monotonic() - began))
    return rates


def _report(rates: dict[str, list[float]]) -> None:
    none, true, ours = rates.values()
    print(f"| every {EVERY_SECONDS:g} s | tokens per second | cost |\n|---|---|---|")
    for name, values in rates.items():
        print(f"| {name} | {statistics.mean(values):.1f} | {_cost(values, none)} |")
    print(f"\nours, beyond what the engine costs: {_cost(ours, true)}")


def _cost(values: list[float], base: list[float]) -> str:
    costs = [1 - value / other for value, other in zip(values, base, strict=True)]
    error = statistics.stdev(costs) / len(costs) ** 0.5
    return f"{statistics.mean(costs):.1%} ± {error:.1%}"


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
