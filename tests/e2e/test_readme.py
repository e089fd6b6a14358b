"""Every command that the documentation shows after `$` works as typed, once `make up` has run."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from scripts import images

ROOT = Path(__file__).parents[2]
FILES = (
    *("README.md", "docs/healing.md", "docs/monitoring.md"),
    *("docs/security.md", "docs/configuration.md"),
)

NOT_RUN = {
    "make up": "test_up.py runs it",
    "make test": "this is it",
    "docker compose -f compose.yaml -f compose.hardened.yaml up --detach --wait": (
        "pulls HAProxy; test_connections.py runs it with what there is without a registry"
    ),
    "docker compose -f compose.yaml -f compose.monitoring.yaml up --detach --wait": (
        "pulls Prometheus and Grafana; tests/monitoring runs them without a registry"
    ),
    "pip install .": "test_monitor.py does, in a virtual environment",
}
"""Commands that cannot run here, and why."""

SHOWN_WORDS = 3
"""So many words of a line that is shown must be printed: what follows may differ by machine."""

pytestmark = pytest.mark.usefixtures("make_up")


class Command(NamedTuple):
    """One command of a console block, and the lines that are shown below it."""

    text: str
    shown: tuple[str, ...]


def blocks() -> Iterator[tuple[str, list[Command]]]:
    """Where each console block is, and its commands."""
    for name in FILES:
        text = (ROOT / name).read_text()
        for found in re.finditer(r"^```console\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            line = text.count("\n", 0, found.start()) + 1
            parts = re.split(r"^\$ ", found[1], flags=re.MULTILINE)[1:]
            yield f"{name}:{line}", [command(part) for part in parts]


def command(part: str) -> Command:
    """A command may go on after a backslash; what follows is its output."""
    typed = re.match(r"(?:[^\n]*\\\n)*[^\n]*", part)
    assert typed is not None
    text = re.sub(r"\s+#.*", "", typed[0])
    return Command(text, tuple(part[typed.end() :].strip("\n").splitlines()))


BLOCKS = dict(blocks())
[DRILL] = (place for place, block in BLOCKS.items() if " drill " in str(block))
FIRST = {DRILL: BLOCKS[DRILL], **BLOCKS}
"""The drill goes first: after it no model is loaded, as the documentation shows it."""


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """A user's, where an image registry answers."""
    return {**os.environ, **images.ensure()}


@pytest.fixture(autouse=True)
def as_it_was(make_up: None, environment: dict[str, str]) -> Iterator[None]:
    """Leave both services healthy, and as `compose.yaml` has them."""
    yield
    for what in (["autoheal"], ["--no-recreate"]):  # Ollama may have been started with GPUs
        run("docker compose up --detach --wait --no-build " + " ".join(what), environment)


def run(text: str, environment: dict[str, str]) -> str:
    """What a command prints in a shell; it must succeed."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", text],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"$ {text}\n{done.stdout}{done.stderr}"
    return done.stdout


def shape(line: str) -> str:
    """The first words of a line, without its numbers."""
    return re.sub(r"\d+(\.\d+)?", "N", " ".join(line.split()[:SHOWN_WORDS]))


@pytest.mark.parametrize("place", FIRST)
def test_a_command_works_as_typed_and_prints_what_is_shown(
    place: str, environment: dict[str, str]
) -> None:
    for one in BLOCKS[place]:
        if one.text in NOT_RUN:
            continue
        printed = run(one.text, environment)
        for container in re.findall(r"^[0-9a-f]{64}$", printed, re.MULTILINE):
            run(f"docker rm --force {container}", environment)
        missing = {shape(line) for line in one.shown if line not in ("", "...")} - {
            shape(line) for line in printed.splitlines()
        }
        assert not missing, f"$ {one.text}\n{printed}"


def test_what_is_not_run_is_still_documented() -> None:
    assert NOT_RUN.keys() <= {one.text for block in BLOCKS.values() for one in block}
