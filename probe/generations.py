"""Which generation of Ollama a server is of, and whether the probe was tested on it. Pure."""

from __future__ import annotations

import re

TESTED = ("0.9.3", "0.24.0", "0.34.2")
"""Versions whose server the probe was run on, a release of each generation."""

_RUNNERS = (
    ((0, 30, 0), "llama-server"),
    ((0, 11, 5), "ollama runner, loaded by a request"),
    ((0, 0, 0), "ollama runner"),
)
"""By their first version: the processes that models run in (`dialects.py`)."""


def parse_version(text: str) -> tuple[int, ...] | None:
    """Major, minor and patch; None where this is no version."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else None


def runners_of(version: str) -> str | None:
    """What the models of this version run in; None where that is not known."""
    parsed = parse_version(version)
    if parsed is None or not any(parsed):  # what is built without a version calls itself 0.0.0
        return None
    return next(runners for first, runners in _RUNNERS if parsed >= first)


def is_known(version: str) -> bool:
    """Whether it is of a generation that the probe was tested on, and no newer than that."""
    newest = parse_version(TESTED[-1])
    return runners_of(version) is not None and (parse_version(version) or ()) <= (newest or ())


def describe(version: str) -> str:
    """The server in a sentence: its version, what models run in, and whether that was tested."""
    runners = runners_of(version)
    if runners is None:
        return f"an Ollama of unknown version {version}".rstrip() + ": not tested"
    words = f"Ollama {version} (models run in {runners})"
    if version in TESTED:
        return f"{words}: tested"
    if not is_known(version):
        return f"{words}: not tested, and newer than {TESTED[-1]}, the newest that was"
    near = next(one for one in TESTED if runners_of(one) == runners)
    return f"{words}: not tested; {near}, of the same kind, was"
