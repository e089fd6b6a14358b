"""The probe in the image of today's Ollama, whose runner is llama.cpp's own server.

The server around it is a twin (testbed/twin); tests/e2e/test_contract.py says how far it is one.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from probe.loads import STILL_SECONDS
from probe.report import Reason, Remedy, Verdict
from testbed import runner
from testbed.deadlines import LONG_SECONDS, Deadline, scaled
from testbed.decode import Decode
from testbed.faults import freeze
from testbed.ollama import TIME_TO_ASK, Ollama, was_asked
from testbed.slow_disk import MODEL, SlowDisk

Start = Callable[..., Ollama]

ANSWER = {"temperature": 5, "top_k": 0, "top_p": 1, "repeat_penalty": 1}
"""Options with which a model of random weights does not say one word over and over."""


def test_a_required_model_is_loaded_kept_and_proven_until_a_user_comes(
    unchecked_twin: Start,
) -> None:
    server = unchecked_twin({"PROBE_MODEL": "tiny"})
    server.check_until(was_asked)
    assert server.expires_in() > 1e9
    server.check_until(was_asked)
    [before], [loaded] = runner.pids(server), server.loaded
    server.generate("tiny", 5, **ANSWER)
    verdict = server.check_until(lambda verdict: not was_asked(verdict))[-1]
    assert "tiny:latest gives users tokens" in verdict.message
    verdicts = [server.check() for _ in range(3)]
    assert not any(map(was_asked, verdicts))
    assert "tiny:latest is loaded, not proven since" in verdicts[-1].message
    assert runner.pids(server) == [before]
    assert server.loaded[0]["digest"] == loaded["digest"]


def test_beside_a_conversation_nothing_is_asked_and_its_next_turn_is_cached(
    unchecked_twin: Start,
) -> None:
    """Not in the free slot either: a new conversation would then take the place of this one."""
    server = unchecked_twin({"OLLAMA_NUM_PARALLEL": "2"})
    server.check()
    conversation = "one two three " * 40
    options = {"num_predict": 1, **ANSWER}
    server.request(model="tiny", prompt=conversation, options=options)
    assert not any(was_asked(server.check()) for _ in range(3))
    again = server.request(model="tiny", prompt=conversation, options=options)
    assert again["prompt_eval_cached_count"] > 30


def test_a_required_model_with_a_users_context_length_is_kept_and_not_loaded_again(
    unchecked_twin: Start,
) -> None:
    server = unchecked_twin({"PROBE_MODEL": "tiny"})
    server.check_until(lambda verdict: verdict.reason is Reason.READY)
    server.request(model="tiny", keep_alive=60, options={"num_ctx": 1024, "num_predict": 1})
    [before] = runner.pids(server)
    for _ in range(4):
        server.check()
    assert runner.pids(server) == [before]
    assert server.expires_in() > 1e9  # for ever again, as it is required


def test_a_required_model_that_is_loaded_anew_for_a_user_is_not_asked_for_meanwhile(
    unchecked_twin: Start,
) -> None:
    """On a GPU the server waits for its VRAM between two processes, and lists nothing; a request
    for the default options would then have it loaded once more."""
    taken = "/tmp/taken"
    server = unchecked_twin({"PROBE_MODEL": "tiny", "OLLAMA_TWIN_VRAM": taken})
    server.check_until(lambda verdict: verdict.reason is Reason.READY)
    assert server.container.exec_run(["touch", taken]).exit_code == 0
    with server.user("tiny", scaled(LONG_SECONDS), num_ctx=1024):
        server.wait(lambda: not server.loaded and not runner.pids(server), "unloaded")
        asked = server.generates()
        assert "tiny is not loaded yet" in server.check().message
        assert server.generates() == asked
        assert server.container.exec_run(["rm", taken]).exit_code == 0
        server.wait(lambda: bool(server.loaded), "loaded", LONG_SECONDS)
    [loaded] = runner.pids(server)
    verdicts = [server.check() for _ in range(4)]
    assert all(verdict.healthy for verdict in verdicts), verdicts
    assert runner.pids(server) == [loaded]
    assert "tiny:latest" in verdicts[-1].message


def test_a_load_that_is_not_listed_yet_is_seen(unchecked_twin: Start) -> None:
    server = unchecked_twin()
    server.check()
    server.begin_load("big")
    verdicts = server.check_until(lambda verdict: verdict.reason is not Reason.IDLE)
    assert verdicts[-1].reason is Reason.LOADING
    verdicts += server.check_until(lambda verdict: verdict.reason is Reason.READY)
    assert [v for v in verdicts if not v.healthy] == []


@pytest.mark.more
def test_a_load_from_a_slow_disk_is_well_and_from_one_that_does_not_answer_it_is_stalled(
    slow_disk: SlowDisk, unchecked_twin: Start
) -> None:
    server = unchecked_twin({**TIME_TO_ASK, **slow_disk.env}, volumes=slow_disk.volume)
    pid = int(server.attributes["State"]["Pid"])
    slow_disk.allow(pid, 1 << 20)
    server.begin_load(MODEL)
    server.check_until(lambda verdict: verdict.reason is Reason.LOADING)
    [loads] = runner.pids(server)
    verdicts = checks_for(STILL_SECONDS + 10, server)
    assert {verdict.reason for verdict in verdicts} == {Reason.LOADING}
    slow_disk.allow(pid, 1)
    checks_for(STILL_SECONDS - 10, server)
    verdict = server.check_until(lambda verdict: not verdict.healthy)[-1]
    assert (verdict.reason, verdict.remedy) == (Reason.STALLED, Remedy.OPERATOR), verdict
    assert "its process waits for a disk" in verdict.message
    slow_disk.allow(pid, 1 << 30)
    server.check_until(lambda verdict: verdict.reason is Reason.READY)
    assert runner.pids(server) == [loads]


def checks_for(seconds: float, server: Ollama) -> list[Verdict]:
    """The verdicts of checks one after the other."""
    began, verdicts = time.monotonic(), [server.check()]
    while time.monotonic() - began < seconds:
        verdicts.append(server.check())
    return verdicts


@pytest.mark.parametrize("required", ["", "vector"])
def test_a_hang_of_any_model_is_found_while_users_wait(
    unchecked_twin: Start, required: str
) -> None:
    server = unchecked_twin({"PROBE_MODEL": required})
    server.check_until(lambda verdict: verdict.healthy)
    others = set(runner.pids(server))
    with server.endless_request("tiny", options={"num_predict": 1_000_000, **ANSWER}):
        [hung] = set(runner.pids(server)) - others
        server.check()
        freeze(hung)
        verdict = server.check_until(lambda verdict: verdict.reason is Reason.STALLED)[-1]
        assert verdict.readings["model"] == "tiny:latest"


@pytest.mark.more
def test_a_required_model_whose_runner_exits_at_each_request_is_stalled_until_it_answers(
    unchecked_twin: Start, decode: Decode
) -> None:
    env = {"PROBE_MODEL": "tiny", **TIME_TO_ASK, **decode.env}
    server = unchecked_twin(env, volumes=decode.volume)
    server.check_until(lambda verdict: verdict.reason is Reason.READY)
    with decode.fault("crash"), server.user("tiny", LONG_SECONDS):
        verdict = server.check_until(lambda verdict: not verdict.healthy)[-1]
        assert (verdict.reason, verdict.remedy) == (Reason.STALLED, Remedy.OPERATOR), verdict
        assert "the runner of tiny:latest exited at each of the last 3 requests" in verdict.message
    server.generate("tiny")
    server.check_until(lambda verdict: verdict.healthy)


def test_a_runner_that_was_killed_is_gone_and_nothing_is_asked(unchecked_twin: Start) -> None:
    server = unchecked_twin()
    server.generate("tiny")
    server.check()
    [pid] = runner.pids(server)
    os.kill(pid, signal.SIGKILL)
    deadline = Deadline(LONG_SECONDS)
    while runner.pids(server):
        assert not deadline.passed
        time.sleep(0.02)  # a process says to nobody that it has ended
    verdicts = [server.check() for _ in range(3)]
    assert [v for v in verdicts if not v.healthy] == []
    assert runner.pids(server) == []
