"""What a check every 5 seconds costs four users who never stop: their tokens, with and without.

    python -m bench.users_cost [ROUNDS]

Windows without checks, with `true` run in the container instead (what the engine itself costs),
and with ours take turns; each cost is the median over pairs of neighbouring windows, so that a
machine that gets slower meanwhile counts for neither.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import docker
import httpx

from scripts import small_model
from tests.e2e.conftest import OLLAMA, SECOND, Ollama

USERS = 4
WINDOW_SECONDS = 15.0
EVERY_SECONDS = 5.0
LAYERS, WIDTH = 8, 1024


class Users:
    """Four people who ask for one long answer after the other, and count their tokens."""

    def __init__(self, url: str) -> None:
        self.tokens = 0
        for _ in range(USERS):
            threading.Thread(target=self._ask, args=(url,), daemon=True).start()

    def _ask(self, url: str) -> None:
        body = {"model": "medium", "prompt": "a b c", "options": {"num_predict": 150}}
        with httpx.Client(timeout=300) as client:
            while True:
                with client.stream("POST", f"{url}/api/generate", json=body) as reply:
                    for line in reply.iter_lines():
                        self.tokens += not json.loads(line).get("done")


def main(rounds: int = 12) -> None:
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
    time.sleep(WINDOW_SECONDS)  # until all four are well under way
    for turn in range(rounds):
        names = list(kinds)[:: 1 if turn % 2 else -1]
        for name in names:
            began, tokens = time.monotonic(), users.tokens
            while (left := began + WINDOW_SECONDS - time.monotonic()) > 0:
                kinds[name]()
                time.sleep(min(EVERY_SECONDS, max(left, 0)))
            rates[name].append((users.tokens - tokens) / (time.monotonic() - began))
    return rates


def _report(rates: dict[str, list[float]]) -> None:
    base = rates["no check"]
    print(f"| every {EVERY_SECONDS:g} s | tokens per second | cost |\n|---|---|---|")
    for name, values in rates.items():
        cost = 1 - statistics.median(v / b for v, b in zip(values, base, strict=True))
        print(f"| {name} | {statistics.median(values):.1f} | {cost:.1%} |")
    ours, theirs = rates["`ollama-probe check`"], rates["`true`"]
    own = 1 - statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    print(f"\nof that our own, beyond what the engine costs: {own:.1%}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
