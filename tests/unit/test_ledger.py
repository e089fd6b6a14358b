"""The ledger: nothing is lost, and nothing about it is fatal."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from autoheal.incident import Action, Attempt, Incident
from autoheal.ledger import EVERYBODY, Ledger

NOW = time.time()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "ledger.db"), str(tmp_path))


def incident(ledger: Ledger, subject: str = "ollama", opened: float = NOW) -> Incident:
    return ledger.save(Incident(subject, "c0ffee", opened, "stalled"))


def again(ledger: Ledger) -> Ledger:
    """The same ledger after a crash."""
    return Ledger(ledger.path, os.path.dirname(ledger.path))


def test_what_was_under_way_is_found_by_the_next(ledger: Ledger) -> None:
    one = incident(ledger)
    attempt = Attempt(NOW, Action.RECREATE, 2)
    number, [operation] = ledger.begin(one, attempt, [("recreate", "ollama", {"id": "c0ffee"})])
    operation = ledger.step(operation, "create", new_name="new")
    [found] = again(ledger).unfinished()
    assert (found.attempt, found.action, found.at) == (number, Action.RECREATE, NOW)
    assert found.incident.attempts == (attempt,)
    assert found.operations == (operation,)
    assert operation.facts == {"id": "c0ffee", "new_name": "new"}
    ledger.end(number, Attempt(NOW, ended=NOW + 1))
    assert again(ledger).unfinished() == []


def test_an_open_incident_is_as_it_was_and_a_closed_one_is_history(ledger: Ledger) -> None:
    one = incident(ledger)
    one = ledger.save(
        Incident("ollama", "cafe", NOW, "stalled", (), (), NOW + 5, True, frozenset({"x"}), one.id)
    )
    assert again(ledger).open_incidents() == [one]
    ledger.close(one, "recovered")
    assert again(ledger).open_incidents() == []
    [entry] = ledger.history("ollama", 10)
    assert (entry.outcome, entry.given_up) == ("recovered", True)
    assert ledger.history("another", 10) == []


def test_whose_runner_was_ended_and_where_none_had_to_be_outlives_autoheal(
    ledger: Ledger,
) -> None:
    one = incident(ledger)
    for at, facts in ((NOW, {"model": "tiny"}), (NOW + 9, {"refused": True})):
        attempt = Attempt(at, Action.RUNNER)
        number, [operation] = ledger.begin(one, attempt, [("runner", "ollama", {"id": "c0ffee"})])
        ledger.step(operation, "over", **facts)
        ledger.end(number, replace(attempt, ended=at + 1))
    [found] = again(ledger).open_incidents()
    assert [(a.model, a.refused) for a in found.attempts] == [("tiny", False), ("", True)]


def test_the_budget_counts_what_was_tried_before_but_not_on_what_somebody_replaced(
    ledger: Ledger,
) -> None:
    for n, outcome in enumerate(("healed", "replaced", "healed")):
        one = incident(ledger, opened=NOW + 10 * n)
        ledger.begin(one, Attempt(NOW + 10 * n + 1), [])
        ledger.close(one, outcome)
    assert ledger.spent("ollama", NOW - 60) == (NOW + 21,)
    assert ledger.spent("ollama", NOW + 30) == ()


def test_pauses_have_an_end_and_those_for_everybody_hold_for_each(ledger: Ledger) -> None:
    ledger.pause("ollama", NOW + 10)
    assert ledger.paused_until("ollama", NOW) == NOW + 10
    assert ledger.paused_until("other", NOW) is None
    assert ledger.paused_until("ollama", NOW + 11) is None
    ledger.pause(EVERYBODY, NOW + 20)
    assert again(ledger).paused_until("other", NOW) == NOW + 20
    assert ledger.resume("other") is False
    assert ledger.resume(EVERYBODY) is True
    assert ledger.paused_until("ollama", NOW) is None


@pytest.mark.parametrize(
    "content",
    [b"no database at all", b"", bytes(5000), b"SQLite format 3\0" + bytes(8000)],
    ids=["text", "empty", "zeros", "header only"],
)
def test_a_file_that_is_no_ledger_is_moved_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(content)
    ledger = Ledger(str(path), str(tmp_path))
    incident(ledger)
    assert len(again(ledger).open_incidents()) == 1
    aside = [f for f in tmp_path.iterdir() if ".corrupt-" in f.name]
    assert [f.read_bytes() for f in aside] == ([content] if content else [])


def test_one_damaged_in_the_middle_is_moved_aside(ledger: Ledger, tmp_path: Path) -> None:
    for n in range(200):
        incident(ledger, f"c{n}")
    ledger.shut()
    path = Path(ledger.path)
    content = path.read_bytes()
    path.write_bytes(content[:4096] + os.urandom(8192) + content[12288:])
    fresh = again(ledger)
    assert fresh.open_incidents() == []
    assert fresh.problem is None
    assert any(".corrupt-" in f.name for f in tmp_path.iterdir())


def test_one_of_another_version_is_moved_aside(ledger: Ledger, tmp_path: Path) -> None:
    incident(ledger)
    ledger.shut()
    with sqlite3.connect(ledger.path) as db:
        db.execute("PRAGMA user_version = 99")
    assert again(ledger).open_incidents() == []
    assert any(".corrupt-" in f.name for f in tmp_path.iterdir())


def test_one_that_cannot_be_written_goes_on_in_memory_and_says_so(tmp_path: Path) -> None:
    problems: list[str] = []
    ledger = Ledger("/nowhere/ledger.db", str(tmp_path))
    ledger.when_it_fails(problems.append)
    one = incident(ledger)
    assert "the ledger /nowhere/ledger.db cannot be written" in problems[0]
    assert Ledger("/nowhere/ledger.db", str(tmp_path)).open_incidents() == [one]


def test_one_that_is_damaged_in_mid_heal_stops_no_heal(ledger: Ledger) -> None:
    problems: list[str] = []
    ledger.when_it_fails(problems.append)
    number, [operation] = ledger.begin(incident(ledger), Attempt(NOW), [("restart", "x", {})])
    with sqlite3.connect(ledger.path) as db:
        db.execute("DROP TABLE steps")
    operation = ledger.step(operation, "restart", at=NOW)
    assert ledger.reload(operation).name == "x"
    ledger.finish(operation, "done")
    ledger.end(number, Attempt(NOW, ended=NOW))
    assert "cannot be written" in problems[0]


def test_it_is_used_by_several_threads_at_once(ledger: Ledger) -> None:
    def work(n: int) -> None:
        for m in range(20):
            one = incident(ledger, f"c{n}-{m}")
            number, [operation] = ledger.begin(one, Attempt(NOW), [("restart", one.subject, {})])
            ledger.finish(ledger.step(operation, "restart"), "done")
            ledger.end(number, Attempt(NOW, ended=NOW))
            ledger.close(one, "healed")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.history(None, 1000)) == 200
    assert ledger.unfinished() == []


def test_what_is_long_over_is_forgotten_with_all_its_steps(ledger: Ledger) -> None:
    for days in (100, 1):
        one = incident(ledger, opened=NOW - days * 86_400)
        _, [operation] = ledger.begin(one, Attempt(NOW), [("restart", "ollama", {})])
        ledger.step(operation, "restart")
        ledger.close(one, "healed")
    with sqlite3.connect(ledger.path) as db:
        db.execute("UPDATE incidents SET closed = opened")
    ledger.prune(90)
    assert len(ledger.history(None, 10)) == 1
    with sqlite3.connect(ledger.path) as db:
        assert db.execute("SELECT count(*) FROM steps").fetchone() == (1,)
