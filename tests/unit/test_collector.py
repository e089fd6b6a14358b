"""When the page's data is gathered. The engine is a mock, whose calls are counted and broken."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from autoheal.engine import Engine, Usage
from autoheal.engine import UnreachableError as Unreachable
from autoheal.incident import Health, Sighting
from autoheal.ledger import Ledger
from autoheal.settings import Settings
from autoheal.web import collector as module
from autoheal.web.app import is_ours
from autoheal.web.collector import Collector
from probe.report import Reason, Verdict, render

STATUS = {
    "models": [{"name": "tiny", "size_bytes": 10, "size_vram_bytes": 10}],
    "gpus": [{"uuid": "GPU-1", "name": "card", "index": 0, "processes": None}],
}
GPU: dict[str, Any] = {
    "memory_used_bytes": None,
    "memory_total_bytes": None,
    "utilization_percent": None,
    "temperature_celsius": None,
    "power_draw_watts": None,
}


class FakeEngine:
    """One container of Ollama's, and one of nobody's."""

    def __init__(self) -> None:
        self.listed = 0
        self.inspected: list[str] = []
        self.asked = threading.Event()
        self.broken = False
        self.cpu = 0.0
        self.there: tuple[str, ...] = ("ollama", "other")

    def containers(self, label: str = "", **filters: str) -> list[dict[str, Any]]:
        if self.broken:
            raise Unreachable("the engine is away")
        self.listed += 1
        up = {"State": "running", "Status": "Up 5 seconds (healthy)"}
        return [{"Id": one, "Names": [f"/{one}"], **up} for one in self.there]

    def look(self, container: str) -> Sighting:
        self.inspected.append(container)
        line = render(Verdict(True, Reason.READY, "well")) if container == "ollama" else "fine"
        return Sighting(container, container, "running", Health.HEALTHY, line)

    def usage(self, container: str) -> Usage:
        self.cpu += 0.001
        return Usage(self.cpu, 100, 1000, 0)

    def info(self) -> dict[str, Any]:
        return {"Name": "machine", "Version": "26.1"}

    def run_in(self, container: str, command: Sequence[str]) -> tuple[int, str]:
        assert container == "ollama"
        self.asked.set()
        gpus = [{**GPU, **one} for one in cast(list[dict[str, Any]], STATUS["gpus"])]
        return 0, json.dumps({**STATUS, "gpus": gpus})


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def collector(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Collector]:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(module, "INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr(module, "FIRST_SPAN_SECONDS", 0.01)
    ledger = Ledger(str(tmp_path / "ledger.db"), str(tmp_path))
    return lambda: Collector(cast(Engine, engine), ledger, Settings(), in_container=True)


def test_nothing_is_gathered_before_somebody_looks_and_some_time_after(
    engine: FakeEngine, collector: Callable[..., Collector]
) -> None:
    one = collector()
    time.sleep(0.2)  # there is nothing to wait for: nothing is to happen
    assert engine.listed == 0
    one.look()
    assert engine.listed > 0
    deadline = time.monotonic() + 10
    while True:
        before = engine.listed
        time.sleep(0.4)
        if engine.listed == before:
            break
        assert time.monotonic() < deadline


def test_while_somebody_watches_it_goes_on(
    engine: FakeEngine, collector: Callable[..., Collector]
) -> None:
    one, woken = collector(), threading.Semaphore(0)
    with one.watched(woken.release):
        for _ in range(20):  # longer than anything goes on by itself
            assert woken.acquire(timeout=5)
    assert engine.listed >= 9


def test_a_look_shows_what_takes_longer_too(
    engine: FakeEngine, collector: Callable[..., Collector]
) -> None:
    shown = collector().look()
    assert [one["container"] for one in shown.containers] == ["ollama", "other"]
    assert shown.containers[0]["memory_used_bytes"] == 100
    assert [model["container"] for model in shown.models] == ["ollama"]
    [gpu] = shown.gpus
    assert (gpu["uuid"], gpu["seen_by"]) == ("GPU-1", "ollama")
    assert shown.host["name"] == "machine"
    assert shown.host["load_score"] == 1.0


def test_a_container_without_our_probe_is_inspected_once(
    engine: FakeEngine, collector: Callable[..., Collector]
) -> None:
    one, woken = collector(), threading.Semaphore(0)
    with one.watched(woken.release):
        while engine.inspected.count("ollama") < 4:
            assert woken.acquire(timeout=5)
    assert engine.inspected.count("other") == 1


def test_on_a_machine_without_containers_only_the_first_round_is_incomplete(
    engine: FakeEngine, collector: Callable[..., Collector]
) -> None:
    engine.there = ()
    one, woken, rounds = collector(), threading.Semaphore(0), list[bool]()

    def note() -> None:
        assert one.latest is not None
        rounds.append(one.latest.complete)
        woken.release()

    with one.watched(note):
        for _ in range(6):
            assert woken.acquire(timeout=5)
    assert rounds[:6] == [False, True, True, True, True, True]


def test_an_engine_that_is_away_is_said_and_what_was_known_stays(
    engine: FakeEngine, collector: Callable[..., Collector]
) -> None:
    one, news = collector(), threading.Event()
    one.look()
    engine.broken = True
    with one.watched(news.set):
        while one.latest is None or one.latest.problem is None:
            assert news.wait(5)
            news.clear()
    assert one.latest.problem == "the engine is away"
    assert [shown["container"] for shown in one.latest.containers] == ["ollama", "other"]


def test_the_history_has_a_gap_where_nobody_looked(
    engine: FakeEngine, collector: Callable[..., Collector], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POINT_SECONDS", 0.01)
    one, woken = collector(), threading.Semaphore(0)
    with one.watched(woken.release):
        while len(one.history()) < 3:
            assert woken.acquire(timeout=5)
    point = one.history()[-1]
    assert set(point) == {"at", "cpu", "memory", "gpus"}
    assert point["gpus"] == {"GPU-1": [None, None, None, None]}

    deadline = time.monotonic() + 10
    while time.time() - one.history()[-1]["at"] < 1:  # it goes on for IDLE_SECONDS
        assert time.monotonic() < deadline, "points go on although nobody looks"
        time.sleep(0.05)
    before = len(one.history())
    with one.watched(woken.release):
        while len(one.history()) == before:
            assert woken.acquire(timeout=5)
    last, first = one.history()[before - 1 : before + 1]
    assert first["at"] - last["at"] > 0.8  # both are rounded


def test_a_snapshot_is_plain_data(collector: Callable[..., Collector]) -> None:
    shown = json.loads(json.dumps(collector().look().as_dict()))
    assert (shown["host"]["name"], len(shown["containers"])) == ("machine", 2)


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("127.0.0.1:8787", True),
        ("[::1]:8787", True),
        ("localhost:8787", True),
        ("autoheal:8787", True),
        ("192.168.1.7", True),
        ("monitor.example", True),
        ("MONITOR.example:80", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("monitor.example.evil.example", False),
        ("", False),
        ("\x00", False),
    ],
)
def test_a_host_is_ours_by_address_by_a_name_without_a_dot_or_by_the_setting(
    host: str, ours: bool
) -> None:
    assert is_ours(host, ("monitor.example",)) is ours
