"""How the scripts talk: what is done now, how long it took, and what went wrong."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / ".logs"


class FailedError(Exception):
    """Something the user has to know; its text is the whole message."""


def say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is being done, and when it is done how long that took."""
    started = time.monotonic()
    print(f"  {what} ...", end="", flush=True)
    try:
        yield
    except BaseException:
        print(" failed", flush=True)
        raise
    print(f" {time.monotonic() - started:.0f} s", flush=True)


def run(command: Sequence[str], *, env: Mapping[str, str] | None = None, log: str = "make") -> str:
    """Run a command with its output in `.logs/LOG.log`.

    Returns:
        What it wrote to standard output.

    Raises:
        FailedError: it did not succeed; with the last lines that it wrote.
    """
    LOGS.mkdir(exist_ok=True)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=env, cwd=ROOT, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise FailedError(f"there is no program {command[0]}") from None
    with open(LOGS / f"{log}.log", "a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}\n")
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines()[-12:]
        raise FailedError(
            f"`{' '.join(command)[:200]}` failed:\n    "
            + "\n    ".join(words)
            + f"\n  all of it is in {LOGS / f'{log}.log'}"
        )
    return done.stdout


def works(command: Sequence[str]) -> bool:
    """Whether a command succeeds."""
    try:
        run(command)
    except FailedError:
        return False
    return True


def main(function: Callable[[], None]) -> None:
    """Call a script's function; what a user has to know ends it with 1 and no traceback."""
    try:
        function()
    except FailedError as error:
        print(f"\n{error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
