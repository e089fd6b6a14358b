"""Whom `autoheal pause` and `resume` mean, and what they say. The engine is a mock."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import pytest

from autoheal.commands import UnknownContainerError, history_text, resume, subject_of
from autoheal.engine import Engine, GoneError, UnreachableError
from autoheal.incident import Health, Incident, Sighting
from autoheal.ledger import EVERYBODY, Ledger

SOON = time.time() + 600


class FakeEngine:
    """An engine with the container `ollama` (id c0ffee) and a Swarm service `stack_web`."""

    def __init__(self, *, silent: bool = False) -> None:
        self._silent = silent

    def look(self, container: str) -> Sighting:
        if self._silent:
            raise UnreachableError("nothing listens")
        if container not in ("ollama", "c0ffee"):
            raise GoneError("no such container")
        return Sighting("c0ffee", "ollama", "running", Health.HEALTHY, "")

    def containers(self) -> list[dict[str, Any]]:
        labels = {"com.docker.swarm.service.name": "stack_web"}
        return [{"Id": "c0ffee", "Labels": None}, {"Id": "7a5c", "Labels": labels}]


ENGINE = cast(Engine, FakeEngine())
SILENT = cast(Engine, FakeEngine(silent=True))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "ledger.db"), str(tmp_path))


@pytest.mark.parametrize(
    ("name", "subject"), [("ollama", "ollama"), ("c0ffee", "ollama"), ("stack_web", "stack_web")]
)
def test_a_container_is_found_by_name_or_id_and_a_service_by_name(
    ledger: Ledger, name: str, subject: str
) -> None:
    assert subject_of(name, ENGINE, ledger) == subject


def test_a_name_that_nobody_knows_is_an_error(ledger: Ledger) -> None:
    with pytest.raises(UnknownContainerError) as caught:
        subject_of("nosuch", ENGINE, ledger)
    assert str(caught.value) == "no such container: nosuch; see `autoheal status`"


def test_a_container_in_the_middle_of_a_recreate_is_known_by_its_incident(ledger: Ledger) -> None:
    ledger.save(Incident("other", "cafe", time.time(), "stalled"))
    assert subject_of("other", ENGINE, ledger) == "other"


def test_a_container_that_was_healthy_once_is_known_by_its_start(ledger: Ledger) -> None:
    ledger.note_start("other", 5)
    assert subject_of("other", ENGINE, ledger) == "other"


def test_any_name_is_taken_while_the_engine_does_not_answer(ledger: Ledger) -> None:
    assert subject_of("nosuch", SILENT, ledger) == "nosuch"


def test_resuming_says_what_was_resumed(ledger: Ledger) -> None:
    ledger.pause("ollama", SOON)
    assert resume("ollama", ENGINE, ledger) == (True, "ollama: healing resumed")
    assert resume("ollama", ENGINE, ledger) == (True, "ollama was not paused")
    ledger.pause("ollama", SOON)
    assert resume("c0ffee", ENGINE, ledger) == (True, "ollama: healing resumed")
    assert resume("nosuch", ENGINE, ledger) == (True, "nosuch was not paused")
    ledger.pause("nosuch", SOON)
    assert resume("nosuch", ENGINE, ledger) == (True, "nosuch: healing resumed")
    ledger.pause("ollama", SOON)
    assert resume(None, ENGINE, ledger) == (True, "All containers: healing resumed")
    assert resume(None, ENGINE, ledger) == (True, "Nothing was paused")


def test_one_container_is_not_resumed_while_all_are_paused(ledger: Ledger) -> None:
    ledger.pause(EVERYBODY, SOON)
    healed, words = resume("ollama", ENGINE, ledger)
    assert not healed
    assert words == "ollama is still paused: all containers are paused (run autoheal resume)"


def test_a_history_without_incidents_says_whose() -> None:
    assert history_text([], "nosuch") == "No incidents recorded for nosuch."
    assert history_text([]) == "No incidents recorded."
