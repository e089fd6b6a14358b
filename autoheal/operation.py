"""The plain data of what is under way: one share of an attempt, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoheal.incident import Action, Incident


class HealError(Exception):
    """An operation failed; its text says why, and how things stand."""


@dataclass(frozen=True)
class Operation:
    """One container's or service's share of an attempt.

    Attributes:
        id: of its row.
        kind: runner, restart, recreate, stop, update (of a Swarm service), deploy (of a stack
            file).
        name: of the container, service or stack.
        facts: what a successor needs to know; grows with the steps.
        step: the last one begun; `planned` before the first.
        outcome: done, undone or failed; None while it is open.
    """

    id: int
    kind: str
    name: str
    facts: Mapping[str, Any]
    step: str = "planned"
    outcome: str | None = None


@dataclass(frozen=True)
class Unfinished:
    """An attempt that nobody saw the end of, and its operations, in order."""

    attempt: int
    incident: Incident
    action: Action
    at: float
    operations: tuple[Operation, ...]
