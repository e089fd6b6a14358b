"""What `ollama-probe status` says of what it could not see."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from probe import nvml
from probe.memory import Memory
from probe.observation import Observation
from probe.report import Reason, Verdict
from probe.settings import Settings
from probe.status import memory_notes, page

IDLE = Observation()
DOWN = Observation(api_error="nothing listens")


def sections(observation: Observation, settings: Settings) -> dict[str, str]:
    """The text below each headline."""
    verdict = Verdict(True, Reason.IDLE, "no model is loaded")
    text = click.unstyle(page(verdict, observation, Memory(), 0.0, settings))
    parts = (part.partition("\n") for part in text.split("\n\n"))
    return {head: body.strip() for head, _, body in parts}


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Whether this container has a driver library."""
    there = {"driver": False}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OLLAMA_LLM_LIBRARY", raising=False)
    monkeypatch.setattr(nvml, "has_driver_library", lambda env: there["driver"])
    monkeypatch.setattr(nvml, "has_device_node", lambda: False)
    return there


def test_models_are_unknown_where_the_server_does_not_answer() -> None:
    assert sections(IDLE, Settings())["Models"] == "none is loaded"
    assert sections(DOWN, Settings())["Models"] == "unknown: the server does not answer"


def test_why_no_gpu_was_read_is_said(
    driver: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sections(IDLE, Settings(gpu="off"))["GPUs"] == "not checked: PROBE_GPU=off"
    assert sections(IDLE, Settings())["GPUs"] == (
        "none expected: no NVIDIA driver library or device in this container"
    )
    driver["driver"] = True
    assert sections(IDLE, Settings())["GPUs"] == "not read: the check ran out of time"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert sections(IDLE, Settings())["GPUs"] == (
        "none expected: CUDA_VISIBLE_DEVICES=-1 hides them from Ollama"
    )


def test_a_state_directory_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    assert memory_notes(Settings(state_dir=str(tmp_path))) == []
    assert list(tmp_path.iterdir()) == []
    for directory in ("/nosuch", "/proc"):
        assert memory_notes(Settings(state_dir=directory)) == [
            f"PROBE_STATE_DIR={directory}: checks remember nothing (No such file or directory)"
        ]
