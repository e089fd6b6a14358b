"""How every container stands: what `autoheal status`, the page and the metrics show."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from autoheal.decide import has_our_probe, reason_of, spent_since
from autoheal.engine import Engine, GoneError
from autoheal.incident import Attempt, Incident, Sighting
from autoheal.ledger import EVERYBODY, Ledger
from autoheal.policy import Policy
from autoheal.settings import Settings
from probe.report import Verdict, parse

_HEALTH = re.compile(r"\((healthy|unhealthy|health: starting)\)")


@dataclass(frozen=True)
class Row:
    """One container.

    Attributes:
        seen: as the engine shows it.
        rules: how it is treated.
        verdict: what our probe said last; None where it is not ours.
        incident: the one that is open, or one that has not happened.
        last: the last attempt at it; None when there was none.
        paused_until: until when it is left alone, in seconds of the wall clock; None: it is not.
    """

    seen: Sighting
    rules: Policy
    verdict: Verdict | None
    incident: Incident
    last: Attempt | None
    paused_until: float | None

    def attempts_left(self, now: float) -> int:
        """How many attempts its budget still has."""
        spent = spent_since(self.incident, now - self.rules.window)
        return max(self.rules.max_attempts - spent, 0)

    def as_dict(self, now: float) -> dict[str, Any]:
        """As plain data; times in seconds of the wall clock."""
        seen, last = self.seen, self.last
        return {
            "container": seen.name,
            "id": seen.id[:12],
            "state": seen.state,
            "health": seen.health,
            "reason": self.verdict.reason if self.verdict else None,
            "line": reason_of(seen) if seen.line else None,
            "last_action": last.action if last else None,
            "last_action_at": last.at if last else None,
            "last_action_error": last.error if last else None,
            "attempts_left": self.attempts_left(now),
            "given_up": self.incident.given_up,
            "incident_since": self.incident.opened or None,
            "paused_until": self.paused_until,
        }


class Board:
    """All containers of an engine. One thread at a time.

    What a container without our probe said in its last check changes with its health only, so
    it is asked for then, and not each time: a crowd of containers costs one call.
    """

    def __init__(self, engine: Engine, ledger: Ledger, settings: Settings) -> None:
        self._engine, self._ledger, self._settings = engine, ledger, settings
        self._known: dict[str, tuple[tuple[str, ...], Sighting]] = {}

    def rows(self, *, everyone: bool = False) -> list[Row]:
        """The watched containers, or all of them, by name.

        Raises:
            EngineError: when the engine does not answer.
        """
        now = time.time()
        ledger = self._ledger
        incidents = {one.subject: one for one in ledger.open_incidents()}
        last, pauses = ledger.last_attempts(), ledger.pauses(now)
        rows = []
        for seen in self._all("" if everyone else self._settings.label_filter):
            rules, subject = self._settings.policy(seen.labels), seen.subject
            if not (rules.watched or everyone):
                continue
            spent = ledger.spent(subject, now - rules.window) if subject in last else ()
            paused = [pauses[name] for name in (subject, EVERYBODY) if name in pauses]
            rows.append(
                Row(
                    seen,
                    rules,
                    parse(seen.line),
                    incidents.get(subject) or Incident(subject, spent=spent),
                    last.get(subject),
                    max(paused, default=None),
                )
            )
        return sorted(rows, key=lambda row: row.seen.name)

    def _all(self, label: str) -> Iterator[Sighting]:
        before, self._known = self._known, {}
        for row in self._engine.containers(label):
            health = _HEALTH.search(row.get("Status", ""))
            mark = (row["State"], health[1] if health else "", *sorted(row["Names"] or ()))
            known = before.get(row["Id"])
            if known is None or known[0] != mark or has_our_probe(known[1]):
                try:
                    known = mark, self._engine.look(row["Id"])
                except GoneError:
                    continue
            self._known[row["Id"]] = known
            yield known[1]
