"""Console output of the scripts, and the commands that they run."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / ".logs"

_DISK_FULL = re.compile(r"no space left on device|have enough free space", re.IGNORECASE)


class FailedError(Exception):
    """Something the user has to know; its text is the whole message."""


def say(text: str) -> None:
    """Print for the user, at once."""
    print(text, flush=True)


@contextmanager
def step(what: str, takes: str | None = None) -> Iterator[None]:
    """Say what is being done, and when it is done how long that took.

    Args:
        what: begins with a verb, as in "pulling ollama/ollama".
        takes: how long that may take, where it is more than some seconds: "up to 5 min".
    """
    started = time.monotonic()
    print(f"  {what}{f' ({takes})' if takes else ''} ...", end="", flush=True)
    try:
        yield
    except BaseException:
        print(" failed", flush=True)
        raise
    print(f" {duration(time.monotonic() - started)}", flush=True)


def duration(seconds: float) -> str:
    """A length of time for people: 7 s, 3 min 20 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    log: str = "make",
    cwd: Path = ROOT,
    timeout: float | None = None,
) -> str:
    """Run a command with its output in `.logs/LOG.log`.

    Args:
        command: program and arguments; it has no standard input.
        env: its environment, in place of this process's.
        log: names the file.
        cwd: where it runs.
        timeout: seconds after which it is killed.

    Returns:
        What it wrote to standard output.

    Raises:
        FailedError: it did not succeed; with the last lines that it wrote.
    """
    shown = " ".join(command)[:200]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            timeout=timeout,
        )
    except FileNotFoundError:
        raise FailedError(f"`{command[0]}` is not installed, or not in PATH.") from None
    except subprocess.TimeoutExpired:
        raise FailedError(f"`{shown}` did not end within {timeout:g} s") from None
    LOGS.mkdir(exist_ok=True)
    with open(LOGS / f"{log}.log", "a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}\n")
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines()[-12:]
        raise FailedError(
            f"`{shown}` failed:\n    "
            + "\n    ".join(words)
            + f"\n  The whole output is in {LOGS / f'{log}.log'}"
            + ("\n" + DISK_FULL if _DISK_FULL.search("\n".join(words)) else "")
        )
    return done.stdout


DISK_FULL = "The disk is full. Free some space, and run this again: it continues where it stopped."


def works(command: Sequence[str], *, timeout: float | None = None) -> bool:
    """Whether a command succeeds, within so many seconds."""
    try:
        run(command, timeout=timeout)
    except FailedError:
        return False
    return True


def main(function: Callable[[], None]) -> None:
    """Call a script's function; what a user has to know ends it with 1 and no traceback."""
    try:
        function()
    except PermissionError as error:  # perhaps an earlier `sudo make` wrote there
        print(
            f'\nThis user may not write to {error.filename}. Run: sudo chown -R "$USER" {ROOT}',
            file=sys.stderr,
        )
        sys.exit(1)
    except FailedError as error:
        print(f"\n{error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nInterrupted. Run it again: it continues where it stopped.", file=sys.stderr)
        sys.exit(130)
