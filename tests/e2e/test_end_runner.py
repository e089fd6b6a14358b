"""Only what is stuck is ended: by hand (`end-runner`), by the health check (`PROBE_HEAL`), and by
autoheal."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from probe.report import Reason, Remedy, Verdict
from testbed import runner
from testbed.autoheal import WATCHING, Autoheal
from testbed.deadlines import LONG_SECONDS, ORDINARY_SECONDS, Deadline, scaled
from testbed.decode import Decode
from testbed.faults import freeze, unkillable
from testbed.nvml import HEALTHY, Nvml
from testbed.ollama import TIME_TO_ASK, Ollama
from testbed.stuck import LONG_ANSWER_TOKENS, SYSCTLS, stuck
from testbed.webhook import Webhook

Start = Callable[..., Ollama]

TWIN_FIRST = pytest.mark.parametrize(
    "each_ollama", ["twin", pytest.param("0.9.3", marks=pytest.mark.more)], indirect=True
)
"""On both generations, for what takes long: on the older one with `more` only."""


@pytest.fixture(params=["0.9.3", "twin"])
def start_unchecked(request: pytest.FixtureRequest) -> Start:
    """Starts a server of either generation, whose checks the test runs itself."""
    name = "unchecked" if request.param == "0.9.3" else "unchecked_twin"
    return request.getfixturevalue(name)  # type: ignore[no-any-return]


def end_runner(server: Ollama, *words: str) -> dict[str, Any]:
    """What `end-runner` says, asked again while it refuses for lack of time, as it then says."""
    deadline = Deadline(LONG_SECONDS)
    while True:
        code, text = server.probe("end-runner", "--format", "json", *words)
        outcome: dict[str, Any] = json.loads(text)
        if code != 3 or deadline.passed:
            return outcome


def is_stalled(verdict: Verdict) -> bool:
    return verdict.reason is Reason.STALLED


def test_only_the_stuck_runner_is_ended_and_the_next_request_is_answered(
    start_unchecked: Start,
) -> None:
    server = start_unchecked(TIME_TO_ASK)
    server.embed("vector")
    [other] = runner.pids(server)
    server.check()
    with server.endless_request("tiny"):
        [hung] = set(runner.pids(server)) - {other}
        freeze(hung)
        for _ in range(4):  # nor does time lead to another process than this one
            verdict = server.check_until(is_stalled)[-1]
            assert verdict.readings.get("model", "tiny:latest") == "tiny:latest", verdict
        outcome = end_runner(server)
        assert outcome["result"] == "ended", outcome
        assert outcome["evidence"]["state"] == "T"
    _, text = server.probe("status", "--format", "json")
    last = json.loads(text)["checks"][-1]
    assert (last["reason"], "its runner was ended (end-runner)" in last["message"]) == (
        "stalled",
        True,
    )
    assert "response" in server.generate("tiny")
    assert other in runner.pids(server)
    assert hung not in runner.pids(server)
    assert server.check().healthy


def test_where_nothing_is_stuck_nothing_is_ended(start_unchecked: Start) -> None:
    server = start_unchecked(TIME_TO_ASK)
    server.generate("tiny")
    before = runner.pids(server)
    for words in ((), ("--model", "tiny"), ("--model", "nowhere"), ("--dry-run",)):
        code, text = server.probe("end-runner", *words)
        assert code == 3
        assert "has to be ended: healthy" in text
    assert runner.pids(server) == before


def test_a_dry_run_and_another_models_name_end_nothing(start_unchecked: Start) -> None:
    server = start_unchecked(TIME_TO_ASK)
    server.check()
    with server.endless_request("tiny"):
        [hung] = runner.pids(server)
        freeze(hung)
        server.check_until(is_stalled)
        outcome = end_runner(server, "--dry-run")
        assert outcome["result"] == "dry_run", outcome
        assert "the runner of tiny:latest" in outcome["message"]
        assert "would be ended" in outcome["message"]
        code, text = server.probe("end-runner", "--model", "vector")
        assert (code, "no runner of vector has to be ended" in text) == (3, True)
        assert runner.pids(server) == [hung]


PATIENCE = pytest.mark.parametrize(
    "patience",
    [
        pytest.param(8.0, id="give up"),
        pytest.param(LONG_SECONDS, id="wait", marks=pytest.mark.more),
    ],
)


@PATIENCE
def test_a_call_that_hangs_is_found_although_its_runner_answers_for_its_health(
    start_unchecked: Start, decode: Decode, patience: float
) -> None:
    """The commonest hang: the rest of the process goes on, and so does everything else."""
    server = start_unchecked({**TIME_TO_ASK, **decode.env}, volumes=decode.volume)
    server.generate("tiny", num_ctx=2048)
    with server.endless_request("tiny"):
        [pid] = runner.pids(server)
        server.check()
        decode.hit(pid, "hang")
        with server.user("tiny", scaled(patience)):
            assert runner.ask(pid, "/health")[0] == 200
            verdict = server.check_until(is_stalled)[-1]
            assert verdict.remedy is Remedy.RUNNER
            outcome = end_runner(server)
            assert (outcome["result"], pid in runner.pids(server)) == ("ended", False), outcome
    assert "response" in server.generate("tiny", num_ctx=2048)


def test_a_runner_that_has_only_errors_for_its_users_is_ended(
    unchecked_twin: Start, decode: Decode
) -> None:
    """It lives and answers at once, so no user waits."""
    server = unchecked_twin({**TIME_TO_ASK, **decode.env}, volumes=decode.volume)
    server.generate("tiny")
    assert server.check().healthy
    [pid] = runner.pids(server)
    with decode.fault("fail"):
        assert not server.generate("tiny")["done"]
        began = time.monotonic()
        verdict = server.check()
        assert (verdict.reason, verdict.remedy) == (Reason.STALLED, Remedy.RUNNER), verdict
        assert "tiny:latest cannot be used: Compute error." in verdict.message
        taken = time.monotonic() - began
        # Users wait: what that check was certain of is asked for once more, and no more.
        began = time.monotonic()
        outcome = end_runner(server)
        assert (outcome["result"], pid in runner.pids(server)) == ("ended", False), outcome
        assert time.monotonic() - began < taken / 2
    assert server.generate("tiny")["done"]
    assert server.check().healthy


def test_a_runner_that_has_stopped_failing_since_the_check_is_not_ended(
    unchecked_twin: Start, decode: Decode
) -> None:
    server = unchecked_twin({**TIME_TO_ASK, **decode.env}, volumes=decode.volume)
    server.generate("tiny")
    server.check()
    before = runner.pids(server)
    with decode.fault("fail"):
        server.generate("tiny")
        assert server.check().reason is Reason.STALLED
    with decode.fault("pass"):
        assert server.probe("end-runner")[0] == 3  # refused
        assert server.generate("tiny")["done"]
    assert runner.pids(server) == before


def test_one_check_is_certain_of_a_hung_call_in_vram_only_where_no_gpu_works(
    unchecked_twin: Start, decode: Decode, nvml: Nvml
) -> None:
    """While it works, a GPU may read a prompt of which its process shows nothing."""
    # What no check is certain of is never told here.
    env = {"OLLAMA_TWIN_ON_GPU": "1", "PROBE_RETRIES": "100", **TIME_TO_ASK, **decode.env}
    server = unchecked_twin(env, volumes={**decode.volume, **nvml.volume})
    server.generate("tiny", num_ctx=2048)
    server.check()
    with server.endless_request("tiny"):
        [pid] = runner.pids(server)
        decode.hit(pid, "hang")
        nvml.answer("device GPU-1 24576 9000 97")
        verdict = server.check()
        assert (verdict.healthy, verdict.readings.get("doubt")) == (True, None), verdict
        nvml.answer(HEALTHY)
        verdict = server.check_until(is_stalled)[-1]
        assert verdict.remedy is Remedy.RUNNER
        assert end_runner(server)["result"] == "ended"
    assert "response" in server.generate("tiny", num_ctx=2048)


@pytest.mark.more
def test_a_model_that_one_client_keeps_from_unloading_is_stalled_while_others_wait(
    unchecked_twin: Start,
) -> None:
    """`ollama ps` says "Stopping...": the server waits, its runner does not."""
    env = {"OLLAMA_NUM_PARALLEL": "1", "PROBE_STOPPING_TIMEOUT": "10", **TIME_TO_ASK}
    server = unchecked_twin(env, sysctls=SYSCTLS)
    server.generate("tiny", num_ctx=8192)
    server.check()
    with stuck(server, "tiny", num_predict=LONG_ANSWER_TOKENS):
        server.check_until(lambda verdict: "gives users tokens" not in verdict.message)
        server.request(model="tiny", prompt="", keep_alive=0)
        alone = server.check_until(lambda v: int(v.readings.get("stopping_seconds") or 0) > 10)
        assert [verdict for verdict in alone if not verdict.healthy] == []  # nobody waits
        with server.user("tiny", LONG_SECONDS, num_ctx=8192):
            verdict = server.check_until(is_stalled)[-1]
            assert verdict.remedy is Remedy.RESTART
            assert server.probe("end-runner")[0] == 3
    server.check_until(lambda verdict: verdict.healthy)


def test_work_for_nobody_is_ended_and_never_while_a_user_is_connected(
    unchecked_twin: Start,
) -> None:
    server = unchecked_twin({"PROBE_NOBODY_TIMEOUT": "10", **TIME_TO_ASK})
    server.generate("tiny")
    [pid] = runner.pids(server)
    host, _, port = server.url.removeprefix("http://").partition(":")
    with runner.at_work(pid):
        doubted = server.check_until(lambda verdict: verdict.readings.get("nobody_seconds"))[-1]
        assert doubted.healthy
        server.check_until(is_stalled)
        with socket.create_connection((host, int(port))):
            assert server.check().healthy
            assert server.probe("end-runner")[0] == 3  # refused
        assert server.check().healthy  # its time begins anew
        verdict = server.check_until(is_stalled)[-1]
        assert "with no client connected to the server" in verdict.message
        outcome = end_runner(server)
        assert (outcome["result"], outcome["pid"] is not None) == ("ended", True), outcome
    assert "response" in server.generate("tiny")
    assert pid not in runner.pids(server)


def test_the_health_check_heals_without_anybody_else_and_the_container_goes_on(
    each_ollama: Start,
) -> None:
    server = each_ollama({"PROBE_HEAL": "runner", **TIME_TO_ASK})
    server.wait_listening()
    server.embed("vector")
    [other] = runner.pids(server)
    server.load_seen("tiny")
    started = server.attributes["State"]["StartedAt"]
    with server.endless_request("tiny"):
        [hung] = set(runner.pids(server)) - {other}
        freeze(hung)
        server.wait(lambda: hung not in runner.pids(server), "ended")
    assert "response" in server.generate("tiny")
    server.wait_health("healthy")
    assert other in runner.pids(server)
    assert server.attributes["State"]["StartedAt"] == started


IMAGE = {"PROBE_RETRIES": "3", **TIME_TO_ASK}
"""As the image has it: the probe counts, and Docker does not."""


def test_one_check_is_enough_where_it_is_certain(each_ollama: Start) -> None:
    server = each_ollama(IMAGE, retries=1)
    server.wait_listening()
    server.load_seen("tiny")
    with server.endless_request("tiny"):
        [hung] = runner.pids(server)
        freeze(hung)
        began = time.monotonic()
        server.wait_health("unhealthy", seconds=LONG_SECONDS)
        verdicts = [v for v in server.verdicts if v.reason is Reason.STALLED]
        assert len(verdicts) == 1, verdicts
        assert verdicts[0].readings["runner_pid"] is not None
        taken = time.monotonic() - began
        # Users wait: what that check was certain of is not looked for again.
        began = time.monotonic()
        outcome = end_runner(server)
        assert outcome["result"] == "ended", outcome
        assert time.monotonic() - began < taken / 2
    assert "response" in server.generate("tiny")
    server.wait_health("healthy")


def test_what_is_not_certain_is_a_doubt_before_docker_hears_of_it(each_ollama: Start) -> None:
    server = each_ollama(IMAGE, retries=1)
    server.wait_health("healthy")
    freeze(server.attributes["State"]["Pid"])
    server.wait_health("unhealthy", seconds=LONG_SECONDS)
    verdicts = server.verdicts
    doubts = [v for v in verdicts if v.readings.get("doubt") == "api_down"]
    assert len(doubts) >= 2, verdicts
    assert [v.reason for v in verdicts if not v.healthy] == [Reason.API_DOWN]


def test_a_check_at_a_terminal_only_looks(unchecked: Start) -> None:
    server = unchecked({"PROBE_HEAL": "runner", **TIME_TO_ASK})
    server.check()
    with server.endless_request("tiny"):
        [hung] = runner.pids(server)
        freeze(hung)
        command = ["docker", "exec", "--tty", server.name, "ollama-probe", "check"]
        said = [subprocess.run(command, capture_output=True, text=True).stdout for _ in range(3)]
        assert "unhealthy stalled (runner)" in said[-1]  # what would help
        assert runner.pids(server) == [hung]
        server.check_until(lambda verdict: "was ended" in verdict.message)
        assert runner.pids(server) != [hung]


def test_only_the_frozen_runner_is_ended_and_the_next_user_is_answered(
    each_ollama: Start, autoheal: Callable[..., Autoheal], webhook: Webhook
) -> None:
    server = each_ollama(TIME_TO_ASK)
    healer = autoheal(WEBHOOK_URL=f"http://127.0.0.1:{webhook.port}/")
    healer.wait_line(WATCHING)
    server.wait_listening()
    server.embed("vector")
    [other], before = runner.pids(server), server.started_at
    server.load_seen("tiny")
    with server.endless_request("tiny"):
        [hung] = set(runner.pids(server)) - {other}
        freeze(hung)
        healer.wait_line("is unhealthy: stalled: tiny:latest gave no token within")
        healer.wait_line(r"the runner of tiny:latest \(process \d+\) was ended", LONG_SECONDS)
    assert server.generate("tiny")["done"]
    healer.wait_line("is healthy again, .* after the end of the stuck runner")
    assert server.started_at == before
    assert other in runner.pids(server)
    assert webhook.arrived.wait(scaled(ORDINARY_SECONDS))
    [told] = webhook.received
    assert "Successfully ended the stuck runner in the container!" in told["text"]


@TWIN_FIRST
def test_of_two_models_that_hang_at_once_each_is_ended_alone_and_a_third_goes_on(
    each_ollama: Start, autoheal: Callable[..., Autoheal]
) -> None:
    server = each_ollama(TIME_TO_ASK)
    healer = autoheal()
    healer.wait_line(WATCHING)
    server.wait_listening()
    server.embed("vector")
    [other], before = runner.pids(server), server.started_at
    server.generate("big")
    server.load_seen("tiny")
    with server.endless_request("tiny"), server.endless_request("big"):
        hung = set(runner.pids(server)) - {other}
        assert len(hung) == 2
        for pid in hung:
            freeze(pid)
        for name in ("tiny", "big"):
            healer.wait_line(
                rf"the runner of {name}:latest \(process \d+\) was ended", LONG_SECONDS
            )
    assert server.generate("tiny")["done"]
    assert server.generate("big")["done"]
    healer.wait_line("is healthy again, .* after the end of the stuck runner", LONG_SECONDS)
    assert server.started_at == before
    assert other in runner.pids(server)


@TWIN_FIRST
def test_a_runner_that_cannot_be_killed_is_left_to_an_operator_and_nothing_is_restarted(
    each_ollama: Start, autoheal: Callable[..., Autoheal]
) -> None:
    server = each_ollama(TIME_TO_ASK)
    healer = autoheal()
    healer.wait_line(WATCHING)
    server.wait_listening()
    server.load_seen("tiny")
    before = server.started_at
    with server.endless_request("tiny"), unkillable(pid := runner.pids(server)[0]):
        freeze(pid)
        healer.wait_line("its process does not end, which needs an operator", LONG_SECONDS)
        healer.wait_line(r"does not end \(state .*; a restart would not help", LONG_SECONDS)
        server.check_until(lambda verdict: verdict.remedy is Remedy.OPERATOR)
    # The driver has let it go.
    assert "response" in server.generate("tiny")
    healer.wait_line("is healthy again", LONG_SECONDS)
    assert server.started_at == before
    assert not [line for line in healer.lines if "restarting" in line]
