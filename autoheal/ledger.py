"""What was seen, tried and done, in one small SQLite file. The only file that knows SQL.

Everything is written down before it is done, so that whoever comes after a crash can finish it
or undo it. An **operation** is one container's (or service's) share of an attempt; it goes
through **steps**.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, TypeVar, cast

from autoheal.incident import Action, Attempt, Incident
from autoheal.operation import Operation, Unfinished

VERSION = 1

_FILES = ("", "-wal", "-shm")

_HAS_ALL = 1
"""Marks a spare ledger that holds all that was in the one it stands for."""

EVERYBODY = "*"
"""The subject of a pause that holds for all."""

_SCHEMA = f"""
CREATE TABLE incidents (
    id INTEGER PRIMARY KEY, subject TEXT NOT NULL, container TEXT NOT NULL, opened REAL NOT NULL,
    closed REAL, outcome TEXT, why TEXT NOT NULL, state TEXT NOT NULL);
CREATE TABLE attempts (
    id INTEGER PRIMARY KEY, incident INTEGER NOT NULL REFERENCES incidents ON DELETE CASCADE,
    at REAL NOT NULL, action TEXT NOT NULL, rung INTEGER NOT NULL, ended REAL, error TEXT,
    left_stopped TEXT);
CREATE TABLE operations (
    id INTEGER PRIMARY KEY, attempt INTEGER NOT NULL REFERENCES attempts ON DELETE CASCADE,
    kind TEXT NOT NULL, name TEXT NOT NULL, facts TEXT NOT NULL, step TEXT NOT NULL, outcome TEXT);
CREATE TABLE steps (
    operation INTEGER NOT NULL REFERENCES operations ON DELETE CASCADE,
    step TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE pauses (subject TEXT PRIMARY KEY, until REAL NOT NULL);
CREATE TABLE requests (
    id INTEGER PRIMARY KEY, subject TEXT NOT NULL, action TEXT NOT NULL, at REAL NOT NULL,
    answer TEXT);
CREATE TABLE starts (subject TEXT PRIMARY KEY, seconds REAL NOT NULL);
CREATE INDEX open_incidents ON incidents (subject, closed);
CREATE INDEX attempts_of ON attempts (incident);
CREATE INDEX operations_of ON operations (attempt);
CREATE INDEX steps_of ON steps (operation);
PRAGMA user_version = {VERSION};
"""

_ATTEMPT = """attempts.*, (
    SELECT facts FROM operations WHERE attempt = attempts.id AND kind = 'runner') AS runner"""

_TABLES = ("incidents", "attempts", "operations", "steps", "pauses", "requests", "starts")

_log = logging.getLogger("autoheal")


@dataclass(frozen=True)
class Request:
    """What a person asked for by `autoheal heal`."""

    id: int
    subject: str
    action: Action | None


@dataclass(frozen=True)
class Entry:
    """One incident as history tells it; times in seconds of the wall clock."""

    subject: str
    opened: float
    closed: float | None
    outcome: str | None
    why: str
    given_up: bool
    attempts: tuple[Attempt, ...] = ()
    steps: tuple[tuple[tuple[float, str, str], ...], ...] = field(default=())


F = TypeVar("F", bound=Callable[..., Any])


def _survives(method: F) -> F:
    """Do it in the spare ledger where the file fails in the middle of it: a heal must go on."""

    @wraps(method)
    def call(self: Ledger, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            try:
                return method(self, *args, **kwargs)
            except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
                raise
            except sqlite3.DatabaseError as error:
                if self._db.in_transaction or self.problem is not None:
                    raise  # for whoever began the transaction to survive
                self._db = self._to_spare(error, self._db)
                return method(self, *args, **kwargs)

    return cast(F, call)


class LedgerError(Exception):
    """A ledger cannot be opened beside the supervisor; the text says why."""


class Ledger:
    """One ledger; its methods may be called from any thread.

    A file that is no ledger, or not one of this version, is moved aside. Where the file cannot
    be written, a copy on tmpfs takes its place. Both only by the supervisor, whose ledger it is.

    Args:
        path: its file.
        state_dir: where the copy would be.
        guest: open it as it is, beside the supervisor; raises `LedgerError` where that fails.

    Attributes:
        problem: why it is not where it should be, in one line; None when it is.
    """

    def __init__(self, path: str, state_dir: str, *, guest: bool = False) -> None:
        self.problem: str | None = None
        self._spare = os.path.join(state_dir, "autoheal-ledger-spare.db")
        self._path = path
        self._lock = threading.RLock()
        self._on_problem: Callable[[str], None] = lambda problem: None
        self._db = self._join() if guest else self._open()

    @property
    def path(self) -> str:
        return self._path

    def when_it_fails(self, tell: Callable[[str], None]) -> None:
        """Call `tell` with one line when the file cannot be written any more."""
        self._on_problem = tell
        if self.problem:
            tell(self.problem)

    # -- incidents

    def open_incidents(self) -> list[Incident]:
        """All incidents that are not over, with their attempts."""
        with self._reading() as db:
            rows = db.execute("SELECT * FROM incidents WHERE closed IS NULL").fetchall()
            return [self._incident(row) for row in rows]

    @_survives
    def save(self, incident: Incident) -> Incident:
        """Write down an incident; returns it with its row's id. Attempts are written by `begin`."""
        state = json.dumps(
            {
                "healthy_since": incident.healthy_since,
                "given_up": incident.given_up,
                "told": sorted(incident.told),
            }
        )
        with self._writing() as db:
            if incident.id:
                db.execute(
                    "UPDATE incidents SET container = ?, state = ? WHERE id = ?",
                    (incident.container, state, incident.id),
                )
                return incident
            row = db.execute(
                "INSERT INTO incidents (subject, container, opened, why, state) "
                "VALUES (?, ?, ?, ?, ?)",
                (incident.subject, incident.container, incident.opened, incident.why, state),
            )
            return replace(incident, id=row.lastrowid or 0)

    @_survives
    def close(self, incident: Incident, outcome: str) -> None:
        """An incident is over."""
        with self._writing() as db:
            db.execute(
                "UPDATE incidents SET closed = ?, outcome = ? WHERE id = ?",
                (time.time(), outcome, incident.id),
            )

    @_survives
    def spent(self, subject: str, since: float) -> tuple[float, ...]:
        """When attempts at a subject began, in incidents that are over; a container that somebody
        made anew starts with a full budget."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT at FROM attempts JOIN incidents ON incidents.id = incident "
                "WHERE subject = ? AND at > ? AND closed IS NOT NULL AND opened > coalesce("
                "(SELECT max(opened) FROM incidents WHERE subject = ? AND outcome = 'replaced'), 0)"
                "ORDER BY at",
                (subject, since, subject),
            )
            return tuple(at for (at,) in rows)

    # -- attempts, operations and steps

    @_survives
    def begin(
        self, incident: Incident, attempt: Attempt, plan: list[tuple[str, str, dict[str, Any]]]
    ) -> tuple[int, list[Operation]]:
        """An attempt begins.

        Args:
            incident: its incident, saved before.
            attempt: what is tried.
            plan: kind, name and facts of each operation, in order.
        """
        with self._writing() as db:
            row = db.execute(
                "INSERT INTO attempts (incident, at, action, rung) VALUES (?, ?, ?, ?)",
                (incident.id, attempt.at, attempt.action, attempt.rung),
            )
            number = row.lastrowid or 0
            return number, self.plan(number, plan)

    @_survives
    def plan(self, attempt: int, plan: list[tuple[str, str, dict[str, Any]]]) -> list[Operation]:
        """More operations for an attempt under way."""
        with self._writing() as db:
            made = []
            for kind, name, facts in plan:
                row = db.execute(
                    "INSERT INTO operations (attempt, kind, name, facts, step) "
                    "VALUES (?, ?, ?, ?, 'planned')",
                    (attempt, kind, name, json.dumps(facts)),
                )
                made.append(Operation(row.lastrowid or 0, kind, name, facts))
            return made

    @_survives
    def step(self, operation: Operation, step: str, **facts: Any) -> Operation:
        """Write down that a step is about to be taken, and what is known by now."""
        after = replace(operation, step=step, facts={**operation.facts, **facts})
        with self._writing() as db:
            db.execute(
                "UPDATE operations SET step = ?, facts = ? WHERE id = ?",
                (step, json.dumps(after.facts), operation.id),
            )
            db.execute("INSERT INTO steps VALUES (?, ?, ?)", (operation.id, step, time.time()))
        return after

    @_survives
    def reload(self, operation: Operation) -> Operation:
        """An operation as it is written down."""
        with self._reading() as db:
            row = db.execute("SELECT * FROM operations WHERE id = ?", (operation.id,)).fetchone()
            return operation if row is None else _operation(row)

    @_survives
    def finish(self, operation: Operation, outcome: str) -> Operation:
        """An operation is over."""
        with self._writing() as db:
            db.execute("UPDATE operations SET outcome = ? WHERE id = ?", (outcome, operation.id))
        return replace(operation, outcome=outcome)

    @_survives
    def end(self, attempt: int, ended: Attempt, container: str = "") -> None:
        """An attempt is over; `container` is the id that its container has now."""
        with self._writing() as db:
            if container:
                db.execute(
                    "UPDATE incidents SET container = ? "
                    "WHERE id = (SELECT incident FROM attempts WHERE id = ?)",
                    (container, attempt),
                )
            db.execute(
                "UPDATE attempts SET ended = ?, error = ?, left_stopped = ? WHERE id = ?",
                (ended.ended, ended.error, ended.left_stopped, attempt),
            )

    def unfinished(self) -> list[Unfinished]:
        """Attempts whose end was not written down, oldest first."""
        with self._reading() as db:
            found = []
            for row in db.execute("SELECT * FROM attempts WHERE ended IS NULL ORDER BY id"):
                incident = db.execute(
                    "SELECT * FROM incidents WHERE id = ?", (row["incident"],)
                ).fetchone()
                operations = db.execute(
                    "SELECT * FROM operations WHERE attempt = ? ORDER BY id", (row["id"],)
                )
                found.append(
                    Unfinished(
                        row["id"],
                        self._incident(incident),
                        Action(row["action"]),
                        row["at"],
                        tuple(map(_operation, operations)),
                    )
                )
            return found

    # -- pauses and requests

    def pause(self, subject: str, until: float) -> None:
        """Nothing is done to a subject, or to `EVERYBODY`, until then (seconds, wall clock)."""
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO pauses VALUES (?, ?)", (subject, until))

    def resume(self, subject: str) -> bool:
        """End a pause; resuming `EVERYBODY` ends each. Returns whether there was one."""
        with self._writing() as db:
            where = "subject = ?" if subject != EVERYBODY else "? = '*'"
            return db.execute(f"DELETE FROM pauses WHERE {where}", (subject,)).rowcount > 0

    @_survives
    def pauses(self, now: float) -> dict[str, float]:
        """Until when whom is paused, in seconds of the wall clock."""
        with self._reading() as db:
            rows = db.execute("SELECT subject, until FROM pauses WHERE until > ?", (now,))
            return dict(rows)

    def paused_until(self, subject: str, now: float) -> float | None:
        """Until when nothing may be done to a subject; None when it may."""
        pauses = self.pauses(now)
        return max((pauses[s] for s in (subject, EVERYBODY) if s in pauses), default=None)

    def ask(self, subject: str, action: Action | None) -> int:
        """A person wants a subject healed now; returns the request's number."""
        with self._writing() as db:
            row = db.execute(
                "INSERT INTO requests (subject, action, at) VALUES (?, ?, ?)",
                (subject, action or "", time.time()),
            )
            return row.lastrowid or 0

    @_survives
    def requests(self) -> list[Request]:
        """What was asked for and not answered yet."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT id, subject, action FROM requests WHERE answer IS NULL ORDER BY id"
            )
            return [Request(i, s, Action(a) if a else None) for i, s, a in rows]

    @_survives
    def answer(self, request: int, text: str) -> None:
        """Say what became of a request."""
        with self._writing() as db:
            db.execute("UPDATE requests SET answer = ? WHERE id = ?", (text, request))

    def answer_to(self, request: int) -> str | None:
        """What became of a request; None while nobody has said."""
        with self._reading() as db:
            row = db.execute("SELECT answer FROM requests WHERE id = ?", (request,)).fetchone()
            return row["answer"] if row else "it was forgotten"

    # -- history

    @_survives
    def note_start(self, subject: str, seconds: float) -> None:
        """A container took so long from its start until it was healthy; the longest is kept."""
        with self._writing() as db:
            db.execute(
                "INSERT INTO starts VALUES (?, ?) ON CONFLICT (subject) "
                "DO UPDATE SET seconds = max(seconds, excluded.seconds)",
                (subject, seconds),
            )

    def longest_starts(self) -> dict[str, float]:
        """The longest time from start to healthy that was seen, by subject, in seconds."""
        with self._reading() as db:
            return dict(db.execute("SELECT * FROM starts"))

    def knows(self, subject: str) -> bool:
        """Whether an incident or a start of a subject is on record."""
        with self._reading() as db:
            row = db.execute(
                "SELECT EXISTS (SELECT 1 FROM incidents WHERE subject = ?1) "
                "OR EXISTS (SELECT 1 FROM starts WHERE subject = ?1)",
                (subject,),
            ).fetchone()
            return bool(row[0])

    def last_attempts(self) -> dict[str, Attempt]:
        """The last attempt at each subject."""
        with self._reading() as db:
            rows = db.execute(
                f"SELECT subject, {_ATTEMPT} FROM attempts JOIN incidents "
                "ON incidents.id = incident ORDER BY attempts.id"
            )
            return {row["subject"]: _attempt(row) for row in rows}

    def history(self, subject: str | None, limit: int) -> list[Entry]:
        """The last incidents, newest first, of one subject or of all."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT * FROM incidents WHERE subject = coalesce(?, subject) "
                "ORDER BY opened DESC LIMIT ?",
                (subject, limit),
            ).fetchall()
            entries = []
            for row in rows:
                incident = self._incident(row)
                numbers = db.execute(
                    "SELECT id FROM attempts WHERE incident = ? ORDER BY id", (row["id"],)
                ).fetchall()
                entries.append(
                    Entry(
                        *(row["subject"], row["opened"], row["closed"], row["outcome"]),
                        *(row["why"], incident.given_up, incident.attempts),
                        tuple(self._steps(db, number) for (number,) in numbers),
                    )
                )
            return entries

    @_survives
    def prune(self, days: int) -> None:
        """Forget what is over for so many days."""
        then = time.time() - days * 86_400
        with self._writing() as db:
            db.execute("DELETE FROM incidents WHERE closed < ?", (then,))
            db.execute("DELETE FROM requests WHERE at < ?", (then,))
            db.execute("DELETE FROM pauses WHERE until < ?", (time.time(),))

    def shut(self) -> None:
        """Close the file; whoever opens it next finds everything in it."""
        with self._lock:
            self._db.close()

    # -- the file

    def _join(self) -> sqlite3.Connection:
        path = self._spare if os.path.exists(self._spare) else self._path
        if not os.path.exists(path):
            raise LedgerError(f"there is no ledger at {path}")
        try:
            return _connect(path)
        except sqlite3.DatabaseError as error:
            raise LedgerError(f"the ledger {path} cannot be used: {error}") from None

    def _open(self) -> sqlite3.Connection:
        if os.path.exists(self._spare) and not self._bring_back_spare():
            return _connect(self._spare)
        try:
            return _connect(self._path)
        except sqlite3.OperationalError as error:
            if not _is_damaged(error):
                return self._to_spare(error, None)
            problem: Exception = error
        except sqlite3.DatabaseError as error:
            problem = error
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        aside = f"{self._path}.corrupt-{stamp}"
        _log.error("the ledger %s is damaged (%s); moved aside to %s", self._path, problem, aside)
        try:
            for end in _FILES:
                with suppress(FileNotFoundError):
                    os.replace(self._path + end, aside + end)
            return _connect(self._path)
        except (OSError, sqlite3.DatabaseError) as error:
            return self._to_spare(error, None)

    def _bring_back_spare(self) -> bool:
        """An earlier process could not write the ledger, and went on in the spare one.

        Puts that in the ledger's place; returns False where it still cannot be written, and the
        spare one stays in use.
        """
        try:
            spare = _connect(self._spare)
            has_all = spare.execute("PRAGMA application_id").fetchone()[0] == _HAS_ALL
            there = os.path.exists(self._path) and os.path.getsize(self._path) > 0
            if has_all or not there:
                main = sqlite3.connect(self._path)
                spare.backup(main)
                main.execute("PRAGMA application_id = 0")
                main.close()
            spare.close()
        except sqlite3.OperationalError as error:
            self.problem = (
                f"the ledger {self._path} still cannot be written ({error}); going on in memory, "
                f"at {self._spare}"
            )
            _log.error("%s", self.problem)
            return False
        except sqlite3.DatabaseError as error:
            _log.error("the spare ledger %s cannot be read: %s", self._spare, error)
        for end in _FILES:
            with suppress(OSError):
                os.unlink(self._spare + end)
        return True

    def _to_spare(self, error: Exception, old: sqlite3.Connection | None) -> sqlite3.Connection:
        """Go on in a file on tmpfs, with all that is known."""
        self.problem = (
            f"the ledger {self._path} cannot be written ({error}); going on in memory, at "
            f"{self._spare}"
        )
        try:
            if old is not None:
                copy = sqlite3.connect(self._spare)
                old.backup(copy)
                copy.execute(f"PRAGMA application_id = {_HAS_ALL}")
                copy.close()
                old.close()
            spare = _connect(self._spare)
        except sqlite3.DatabaseError:  # not even that: what is under way is still finished
            spare = _connect(":memory:")
            spare.execute("PRAGMA foreign_keys = OFF")
        _log.error("%s", self.problem)
        self._on_problem(self.problem)
        return spare

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            yield self._db

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction; inner ones are part of the outer."""
        with self._lock:
            if self._db.in_transaction:
                yield self._db
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                if self.problem is None:
                    self._reserve()
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise

    def _reserve(self) -> None:
        """Fails now, and not in mid-transaction, where the disk is full."""
        folder = os.statvfs(os.path.dirname(self._path) or ".")
        if folder.f_bavail * folder.f_frsize < RESERVE_BYTES:
            raise sqlite3.OperationalError("the disk is full")

    def _incident(self, row: sqlite3.Row) -> Incident:
        state = json.loads(row["state"])
        attempts = self._db.execute(
            f"SELECT {_ATTEMPT} FROM attempts WHERE incident = ? ORDER BY id", (row["id"],)
        )
        return Incident(
            *(row["subject"], row["container"], row["opened"], row["why"]),
            attempts=tuple(map(_attempt, attempts)),
            healthy_since=state["healthy_since"],
            given_up=state["given_up"],
            told=frozenset(state["told"]),
            id=row["id"],
        )

    @staticmethod
    def _steps(db: sqlite3.Connection, attempt: int) -> tuple[tuple[float, str, str], ...]:
        rows = db.execute(
            "SELECT steps.at, operations.name, steps.step FROM steps "
            "JOIN operations ON operations.id = operation WHERE attempt = ? ORDER BY steps.rowid",
            (attempt,),
        )
        return tuple((at, name, step) for at, name, step in rows)


def _attempt(row: sqlite3.Row) -> Attempt:
    runner = json.loads(row["runner"] or "{}")
    return Attempt(
        *(row["at"], Action(row["action"]), row["rung"], row["ended"]),
        *(row["error"], row["left_stopped"]),
        refused=bool(runner.get("refused")),
        model=str(runner.get("model") or ""),
    )


def _operation(row: sqlite3.Row) -> Operation:
    return Operation(
        *(row["id"], row["kind"], row["name"], json.loads(row["facts"])),
        *(row["step"], row["outcome"]),
    )


RESERVE_BYTES = 1 << 20
"""Room that must be left on the ledger's disk for a write to begin."""


def _connect(path: str) -> sqlite3.Connection:
    """Open a ledger, made if need be; raises `sqlite3.DatabaseError`."""
    db = sqlite3.connect(path, timeout=5, check_same_thread=False, isolation_level=None)
    try:
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # what is written down must be so after a crash
        db.execute("PRAGMA foreign_keys = ON")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
        elif version != VERSION:
            raise sqlite3.DatabaseError(f"version {version}, not {VERSION}")
        if db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("its check finds faults")
        for table in _TABLES:
            db.execute(f"SELECT 1 FROM {table} LIMIT 1")
    except sqlite3.DatabaseError:
        db.close()
        raise
    return db


def _is_damaged(error: sqlite3.OperationalError) -> bool:
    return "no such table" in str(error) or "malformed" in str(error)
