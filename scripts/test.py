"""`make test` and `make test-more`: the set-up, then each part of the tests, timed.

python -m scripts.test [--more]
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from scripts.say import ROOT, FailedError, duration, main, say

SET_UP = {
    "the virtual environment": ["make", "--no-print-directory", ".venv/.ready"],
    "the programs that the tests use": [sys.executable, "-m", "scripts.dev_env", "engine"],
    "make up": [sys.executable, "-m", "scripts.up"],
    "the twin of today's Ollama": [sys.executable, "-m", "scripts.images", "twin"],
}
PARTS = {
    "lint": ["lint"],
    "unit tests": ["test-unit"],
    "tests on an engine": ["test-e2e"],
}
MORE = {
    "more tests on an engine": ["test-e2e-more"],
    "tests on an older engine": ["test-engines"],
}


def test() -> None:
    more = sys.argv[1:] == ["--more"]
    if os.geteuid() != 0:
        raise FailedError(
            "The tests stop and starve processes in containers, which needs root. Run "
            "`sudo make test`; `make test-unit` needs neither root nor an engine."
        )
    times: dict[str, float] = {}
    started = time.monotonic()
    for what, command in SET_UP.items():
        say(f"--- Set-up: {what}")
        if subprocess.run(command, cwd=ROOT).returncode != 0:
            raise FailedError(f"Set-up failed at: {what} (see above). No tests were run.")
    times["set-up"] = time.monotonic() - started
    failed = []
    for what, targets in (MORE if more else PARTS).items():
        say(f"--- {what[0].upper()}{what[1:]}")
        began = time.monotonic()
        # All parts run, whatever the ones before have come to.
        if subprocess.run(["make", "--no-print-directory", *targets], cwd=ROOT).returncode != 0:
            failed.append(what)
        times[what] = time.monotonic() - began
    say("\n" + "\n".join(f"{duration(spent):>12}  {what}" for what, spent in times.items()))
    say(f"{duration(sum(times.values()) - times['set-up']):>12}  in all, without the set-up")
    if failed:
        raise FailedError(f"Failed: {', '.join(failed)}. See the output of each part above.")
    say("All passed.")


if __name__ == "__main__":
    main(test)
