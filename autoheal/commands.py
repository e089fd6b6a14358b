"""What `autoheal status` and `autoheal history` show: as data, and as a table for a person."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import click

from autoheal.board import Board
from autoheal.engine import Engine, EngineError, GoneError
from autoheal.incident import SWARM_SERVICE_NAME
from autoheal.ledger import EVERYBODY, Entry, Ledger
from autoheal.settings import Settings

_COLOURS = {"healthy": "green", "unhealthy": "red", "starting": "yellow"}
_CELL = 48


def status(engine: Engine, ledger: Ledger, settings: Settings) -> list[dict[str, Any]]:
    """Each watched container: health, reason, last action, budget left; by name.

    Raises:
        EngineError: when the engine does not answer.
    """
    now = time.time()
    return [row.as_dict(now) for row in Board(engine, ledger, settings).rows()]


def status_table(rows: Sequence[dict[str, Any]]) -> str:
    """`status` for a person."""
    if not rows:
        return "No container is watched: label one with autoheal=true (docs/configuration.md)."
    now = time.time()
    cells = []
    for row in rows:
        health = row["health"] if row["state"] == "running" else row["state"]
        last = row["last_action"] or "-"
        if row["last_action_at"]:
            failed = " (failed)" if row["last_action_error"] else ""
            last = f"{last} {ago(now - row['last_action_at'])} ago{failed}"
        left = str(row["attempts_left"])
        if row["given_up"]:
            left = "given up"
        if row["paused_until"]:
            left += f", paused for {ago(row['paused_until'] - now)}"
        cells.append(
            [row["container"], health, row["reason"] or _cut(row["line"] or "-"), last, left]
        )
    return table(["CONTAINER", "HEALTH", "REASON", "LAST ACTION", "ATTEMPTS LEFT"], cells)


class UnknownContainerError(Exception):
    """There is no such container; its text is the whole message for the user."""


def subject_of(name: str, engine: Engine, ledger: Ledger) -> str:
    """What the ledger calls a container or Swarm service that a user names.

    A name on record is taken as it is: its container may be between two steps of a recreate.
    So is any name while the engine does not answer, because a pause must not depend on it.

    Args:
        name: a container's name or id, or the name of a Swarm service.
        engine: asked for names that are not on record.
        ledger: the supervisor's.

    Raises:
        UnknownContainerError: where neither the ledger nor the engine knows the name.
    """
    if ledger.knows(name):
        return name
    try:
        return engine.look(name).subject
    except GoneError:
        pass
    except EngineError:
        return name
    try:
        services = {(row["Labels"] or {}).get(SWARM_SERVICE_NAME) for row in engine.containers()}
    except EngineError:
        return name
    if name not in services:
        raise UnknownContainerError(f"no such container: {name}; see `autoheal status`")
    return name


def resume(name: str | None, engine: Engine, ledger: Ledger) -> tuple[bool, str]:
    """End the pause of one container; without a name, all pauses.

    Returns:
        Whether containers that were named are healed now, and a line for the user.
    """
    if name is None:
        ended = ledger.resume(EVERYBODY)
        return True, "All containers: healing resumed" if ended else "Nothing was paused"
    was = ledger.resume(name)
    if not was:
        with suppress(UnknownContainerError):
            name = subject_of(name, engine, ledger)
            was = ledger.resume(name)
    if ledger.paused_until(name, time.time()) is not None:
        return False, f"{name} is still paused: all containers are paused (run autoheal resume)"
    return True, f"{name}: healing resumed" if was else f"{name} was not paused"


def history(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Past and present incidents, newest first, with their attempts and steps."""
    rows = []
    for entry in entries:
        row = asdict(entry)
        del row["steps"]  # each stands with its attempt
        row["attempts"] = [
            {
                **asdict(attempt),
                "steps": [{"at": at, "container": name, "step": step} for at, name, step in steps],
            }
            for attempt, steps in zip(entry.attempts, entry.steps, strict=True)
        ]
        rows.append(row)
    return rows


def history_text(entries: Sequence[Entry], name: str | None = None) -> str:
    """`history` for a person, of one container or of all."""
    if not entries:
        return f"No incidents recorded for {name}." if name else "No incidents recorded."
    lines = []
    for entry in entries:
        end = "open" if entry.closed is None else f"{entry.outcome} {moment(entry.closed)}"
        if entry.given_up:
            end += ", given up"
        lines.append(f"{moment(entry.opened)}  {click.style(entry.subject, bold=True)}  [{end}]")
        lines.append(f"    {entry.why}")
        for attempt, steps in zip(entry.attempts, entry.steps, strict=True):
            took = "under way" if attempt.ended is None else f"{attempt.ended - attempt.at:.1f} s"
            failed = f", failed: {attempt.error}" if attempt.error else ""
            lines.append(f"    {moment(attempt.at)}  {attempt.action}, {took}{failed}")
            for at, name, step in steps:
                lines.append(f"        +{at - attempt.at:6.2f} s  {name}: {step}")
    return "\n".join(lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side, each as wide as it must be."""
    widths = [max(len(row[n]) for row in [head, *rows]) for n in range(len(head))]
    lines = []
    for row in [head, *rows]:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        if row is not head and row[1] in _COLOURS:
            padded[1] = click.style(padded[1], fg=_COLOURS[row[1]])
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def moment(seconds: float) -> str:
    """A time of the wall clock for a person, in this machine's zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def ago(seconds: float) -> str:
    """A span of time for a person, in one unit."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _cut(text: str) -> str:
    return text if len(text) <= _CELL else text[: _CELL - 1] + "…"
