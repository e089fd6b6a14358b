"""The line that a check prints is read back by autoheal."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.report import LINE_LIMIT, Reason, Remedy, Verdict, parse, render, to_json

values = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
verdicts = st.builds(
    Verdict,
    st.booleans(),
    st.sampled_from(Reason),
    st.text(max_size=4000),
    st.dictionaries(st.text(max_size=40), values, max_size=80),
)


@given(verdicts)
def test_every_line_that_was_written_is_read_back_the_same(verdict: Verdict) -> None:
    line = render(verdict)
    assert "\n" not in line
    assert len(line.encode()) <= LINE_LIMIT
    assert parse(line + "\n") == verdict


@given(st.text())
def test_a_line_of_anything_else_is_no_verdict(text: str) -> None:
    assert parse(text) is None or text.strip().startswith(("healthy ", "unhealthy ", "Health "))


def test_the_line_is_for_a_person_first() -> None:
    verdict = Verdict(False, Reason.STALLED, "tiny gave no token", {"model": "tiny"})
    assert render(verdict) == 'unhealthy stalled (restart): tiny gave no token {"model":"tiny"}'
    assert verdict.exit_code == 1


def test_a_healthy_verdict_needs_no_remedy() -> None:
    assert Verdict(True, Reason.LOADING, "").remedy is Remedy.NONE
    assert Verdict(True, Reason.READY, "").exit_code == 0


def test_a_message_that_is_too_long_is_cut_and_the_readings_stay() -> None:
    verdict = Verdict(True, Reason.READY, "x" * 10_000, {"model": "tiny"})
    assert verdict.message.endswith("x…")
    assert verdict.readings == {"model": "tiny"}


def test_what_was_printed_by_a_check_that_could_not_end_is_read() -> None:
    verdict = Verdict(False, Reason.GPU_LOST, "NVML hangs", {"gpus": 0})
    assert parse(f"Health check exceeded timeout (15s): {render(verdict)}\n") == verdict


@pytest.mark.parametrize(
    "line",
    [
        *("", "Health check exceeded timeout (15s)", "unhealthy odd: x {}"),
        "Health check exceeded timeout (15s): healthy ready: well {}",  # Docker says it is not
    ],
)
def test_what_docker_or_others_write_is_no_verdict(line: str) -> None:
    assert parse(line) is None


def test_json_has_the_whole_verdict() -> None:
    text = to_json(Verdict(False, Reason.GPU_LOST, "gone", {"gpus": 0}))
    assert json.loads(text) == {
        "status": "unhealthy",
        "reason": "gpu_lost",
        "remedy": "recreate",
        "message": "gone",
        "readings": {"gpus": 0},
    }
