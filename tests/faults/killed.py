"""`autoheal run` that is killed (SIGKILL) right after the Nth thing it does.

    python -m tests.faults.killed N FILE

What it does is each change in the ledger and each changing call to the engine; the names of all
that it did go to FILE, a line each. With N = 0 it is never killed. A name that ends with `…` is
that of a call which was sent to the engine and had not been answered.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import autoheal.cli
from autoheal.engine import Engine
from autoheal.ledger import Ledger

CHANGES: dict[type, tuple[str, ...]] = {
    Ledger: ("save", "begin", "plan", "step", "finish", "end", "close"),
    Engine: (
        *("restart", "stop", "start", "rename", "remove", "create", "update_by_force"),
        *("claim", "unclaim"),
    ),
}

SLOW = ("restart", "stop")
"""Calls that take the engine a while, in which one can be killed."""

SENT_SECONDS = 0.05


def main(last: int, file: str) -> None:
    count = 0
    lock = threading.Lock()
    with open(file, "a", encoding="utf-8") as names:

        def did(name: str) -> None:
            nonlocal count
            with lock:
                count += 1
                print(name, file=names, flush=True)
                if count == last:
                    os.kill(os.getpid(), signal.SIGKILL)

        for owner, methods in CHANGES.items():
            for method in methods:
                setattr(owner, method, _watched(getattr(owner, method), method, did))
        sys.argv[1:] = ["run"]
        autoheal.cli.main()


def _watched(
    method: Callable[..., Any], name: str, did: Callable[[str], None]
) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: object, *args: Any, **kwargs: Any) -> Any:
        sent = threading.Timer(SENT_SECONDS, did, [f"{name} …"]) if name in SLOW else None
        if sent is not None:
            sent.start()
        try:
            result = method(self, *args, **kwargs)
        finally:
            if sent is not None:
                sent.cancel()
        did(f"{name} {args[1]}" if name == "step" else name)
        return result

    return call


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
