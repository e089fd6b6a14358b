"""The line that a check prints is read back by autoheal, whole or cut, of any version."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.report import (
    HEAD_AND_MESSAGE_LIMIT,
    LINE_LIMIT,
    Reason,
    Remedy,
    Verdict,
    parse,
    render,
    to_json,
)

values = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
verdicts = st.builds(
    Verdict,
    st.booleans(),
    st.sampled_from(Reason),
    st.text(max_size=4000),
    st.dictionaries(st.text(max_size=40), values, max_size=80),
)
with_any_remedy = st.builds(lambda v, r: replace(v, remedy=r), verdicts, st.sampled_from(Remedy))

STALLED = 'unhealthy stalled (restart): tiny gave no token {"model":"tiny"}'


@given(verdicts | with_any_remedy)
def test_every_line_that_was_written_is_read_back_the_same(verdict: Verdict) -> None:
    line = render(verdict)
    assert "\n" not in line
    assert len(line.encode()) <= LINE_LIMIT
    assert parse(line + "\n") == verdict


@given(verdicts | with_any_remedy, st.data())
def test_a_line_that_was_cut_anywhere_behind_its_head_says_the_same(
    verdict: Verdict, data: st.DataObject
) -> None:
    line = render(verdict).encode()
    cut = data.draw(st.integers(line.index(b":") + 1, len(line)))
    read = parse(line[:cut].decode(errors="replace"))
    assert read is not None
    said = verdict.healthy, verdict.reason, verdict.remedy
    assert (read.healthy, read.reason, read.remedy) == said


@given(verdicts)
def test_all_that_a_person_reads_survives_an_engine_that_keeps_500_bytes(verdict: Verdict) -> None:
    kept = render(verdict).encode()[:HEAD_AND_MESSAGE_LIMIT].decode(errors="replace")
    read = parse(kept)
    assert read is not None
    assert verdict.message.startswith(read.message)
    assert f": {verdict.message}" in kept


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (STALLED[:-1], "tiny gave no token"),
        (STALLED[:-3], "tiny gave no token"),
        (STALLED[: STALLED.index("{") + 1], "tiny gave no token"),
        (STALLED[: STALLED.index("no token")], "tiny gave"),
        (STALLED[: STALLED.index(" tiny")], ""),
        (
            'unhealthy stalled (restart): it said {"error":"x"} {"model":"ti',
            'it said {"error":"x"}',
        ),
        ("unhealthy stalled (restart): a set {x}", "a set {x}"),
        ('unhealthy stalled (restart): x {"memory":"a \\"{b}\\" c","model":tr', "x"),
        ('unhealthy stalled (restart): a set {1, 2} {"model', "a set {1, 2}"),
    ],
)
def test_readings_that_are_cut_off_are_none_and_not_part_of_the_message(
    kept: str, message: str
) -> None:
    assert parse(kept) == Verdict(False, Reason.STALLED, message)


@given(st.text())
def test_a_line_of_anything_else_is_no_verdict(text: str) -> None:
    assert parse(text) is None or text.strip().startswith(("healthy ", "unhealthy ", "Health "))


def test_the_line_is_for_a_person_first() -> None:
    verdict = Verdict(False, Reason.STALLED, "tiny gave no token", {"model": "tiny"})
    assert render(verdict) == STALLED
    assert verdict.exit_code == 1


def test_a_healthy_verdict_needs_no_remedy() -> None:
    assert Verdict(True, Reason.LOADING, "").remedy is Remedy.NONE
    assert Verdict(True, Reason.STALLED, "", remedy=Remedy.RESTART).remedy is Remedy.NONE
    assert Verdict(True, Reason.READY, "").exit_code == 0


def test_a_message_that_is_too_long_is_cut_and_the_readings_stay() -> None:
    verdict = Verdict(True, Reason.READY, "x" * 10_000, {"model": "tiny"})
    assert verdict.message.endswith("x…")
    assert verdict.readings == {"model": "tiny"}


def test_what_was_printed_by_a_check_that_could_not_end_is_read() -> None:
    verdict = Verdict(False, Reason.GPU_LOST, "NVML hangs", {"gpus": 0})
    assert parse(f"Health check exceeded timeout (15s): {render(verdict)}\n") == verdict


@pytest.mark.parametrize(
    ("line", "reason", "remedy"),
    [
        ("unhealthy stalled (runner): x {}", "stalled", Remedy.RUNNER),
        ("unhealthy stalled (operator): x {}", "stalled", Remedy.OPERATOR),
        ("unhealthy gpu_lost (recreate): x {}", "gpu_lost", Remedy.RECREATE),
        ("unhealthy stalled (none): x {}", "stalled", Remedy.NONE),
        # a word that only a newer probe knows
        ("unhealthy power_lost (restart): x {}", "power_lost", Remedy.RESTART),
        ("unhealthy power_lost (restart): x", "power_lost", Remedy.RESTART),
        ("unhealthy stalled (reboot): x {}", "stalled", Remedy.OPERATOR),
        ("unhealthy stalled (reboot): x", "stalled", Remedy.OPERATOR),
        ("unhealthy power_lost (reboot): x {}", "power_lost", Remedy.OPERATOR),
        ("healthy at_rest: x {}", "at_rest", Remedy.NONE),
        # where none is written
        ("unhealthy stalled: x {}", "stalled", Remedy.RESTART),
        ("unhealthy loading: x {}", "loading", Remedy.NONE),
        ("unhealthy power_lost: x {}", "power_lost", Remedy.NONE),
    ],
)
def test_the_remedy_is_what_the_line_says(line: str, reason: str, remedy: Remedy) -> None:
    verdict = parse(line)
    assert verdict is not None
    assert (verdict.reason, verdict.remedy, verdict.message) == (reason, remedy, "x")
    assert isinstance(verdict.reason, Reason) == (reason in set(Reason))
    assert parse(render(verdict)) == verdict


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        (
            "healthy idle: no model is loaded, and none is required {}",
            Verdict(True, Reason.IDLE, "no model is loaded, and none is required"),
        ),
        (
            "unhealthy stalled (restart): the runner of llama3.1:8b has not answered for 5.0 s, "
            "while /api/ps does, and nothing is being done "
            '{"model":"llama3.1:8b","waited_seconds":5.0}',
            Verdict(
                False,
                Reason.STALLED,
                "the runner of llama3.1:8b has not answered for 5.0 s, while /api/ps does, and "
                "nothing is being done",
                {"model": "llama3.1:8b", "waited_seconds": 5.0},
            ),
        ),
        (
            "unhealthy misconfigured (operator): PROBE_GPU='yes': must be one of auto, required, "
            "off {}",
            Verdict(
                False,
                Reason.MISCONFIGURED,
                "PROBE_GPU='yes': must be one of auto, required, off",
            ),
        ),
        (
            'unhealthy gpu_lost (recreate): NVML: Unknown Error {"gpus":0}',
            Verdict(
                False, Reason.GPU_LOST, "NVML: Unknown Error", {"gpus": 0}, remedy=Remedy.RECREATE
            ),
        ),
        (
            'unhealthy loading: big is being loaded (42 %) {"model":"big"}',
            Verdict(False, Reason.LOADING, "big is being loaded (42 %)", {"model": "big"}),
        ),
    ],
)
def test_the_lines_of_an_older_probe_are_read(line: str, verdict: Verdict) -> None:
    assert parse(line) == verdict


def test_a_long_message_of_an_older_probe_is_cut_and_its_readings_stay() -> None:
    line = f'unhealthy slow (restart): {"x" * 1500} {{"model":"tiny"}}'
    verdict = parse(line)
    assert verdict is not None
    assert verdict.readings == {"model": "tiny"}
    assert verdict.message.endswith("x…")


@pytest.mark.parametrize(
    "line",
    [
        *("", "Health check exceeded timeout (15s)", "unhealthy", "healthy idle"),
        "Health check exceeded timeout (15s): healthy ready: well {}",  # Docker says it is not
        # What other health checks print, in containers that are to be healed as ever.
        "unhealthy db: connection refused",
        "unhealthy server (timeout): no answer",
        "unhealthy " + "x" * 400 + " (restart): x {}",
        "unhealthy odd: " + '{"a":' * 50_000,
    ],
)
def test_what_docker_or_others_write_is_no_verdict(line: str) -> None:
    assert parse(line) is None


def test_json_has_the_whole_verdict() -> None:
    text = to_json(Verdict(False, Reason.GPU_LOST, "gone", {"gpus": 0}))
    assert json.loads(text) == {
        "status": "unhealthy",
        "reason": "gpu_lost",
        "remedy": "restart",
        "message": "gone",
        "readings": {"gpus": 0},
    }
