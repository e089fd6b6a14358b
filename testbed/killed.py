"""`autoheal run` that is killed (SIGKILL) right after the Nth thing it does.

    python -m testbed.killed kill N FILE
    python -m testbed.killed fail N FILE    the Nth call to the engine fails instead

What it does is each change in the ledger and each changing call to the engine; the names of all
that it did go to FILE, a line each. With N = 0 nothing happens to it. A name that ends with `…`
is that of a call which was sent to the engine and had not been answered.
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
from autoheal.engine import Engine, EngineError
from autoheal.ledger import Ledger

CALLS = (
    *("restart", "stop", "start", "rename", "remove", "create", "update_by_force"),
    *("claim", "unclaim", "run_in"),
)

CHANGES: dict[type, tuple[str, ...]] = {
    Ledger: ("save", "begin", "plan", "step", "finish", "end", "close"),
    Engine: CALLS,
}

SLOW = ("restart", "stop")
"""Calls that take the engine a while, in which one can be killed."""

SENT_SECONDS = 0.05


def main(how: str, last: int, file: str) -> None:
    count = 0
    lock = threading.Lock()
    with open(file, "a", encoding="utf-8") as names:

        def did(name: str) -> None:
            nonlocal count
            with lock:
                print(name, file=names, flush=True)
                count += how == "kill" or (name in CALLS)
                if how == "kill" and count == last:
                    os.kill(os.getpid(), signal.SIGKILL)

        def fails(name: str) -> None:
            if how == "fail" and name in CALLS and count + 1 == last:
                did(name)
                print("made to fail", file=names, flush=True)
                raise EngineError(f"{name}: made to fail")

        for owner, methods in CHANGES.items():
            for method in methods:
                setattr(owner, method, _watched(getattr(owner, method), method, did, fails))
        sys.argv[1:] = ["run"]
        autoheal.cli.main()


def _watched(
    method: Callable[..., Any],
    name: str,
    did: Callable[[str], None],
    fails: Callable[[str], None],
) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: object, *args: Any, **kwargs: Any) -> Any:
        fails(name)
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
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
