"""The probe in our Ollama image, against a real server."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from probe.report import Reason
from testbed.deadlines import scaled
from testbed.faults import freeze
from testbed.front import in_front_of
from testbed.nvml import Nvml
from testbed.ollama import Ollama, SharedOllama, was_asked
from testbed.runs import unique

Start = Callable[..., Ollama]

ENOUGH_TOKENS = 100
"""More than the probe takes for answers to itself, however long it was since the last check."""


@contextmanager
def expiry_kept(server: Ollama) -> Iterator[None]:
    """When the only model is unloaded stays the same meanwhile, to the letter."""
    [before] = server.loaded
    yield
    [after] = server.loaded
    assert after["expires_at"] == before["expires_at"]


def test_an_empty_server_is_idle_and_stays_empty(server: SharedOllama) -> None:
    assert {server.check().reason for _ in range(5)} == {Reason.IDLE}
    assert server.loaded == []


def test_a_required_model_is_loaded_and_proven_again_and_again_until_a_user_comes(
    server: SharedOllama,
) -> None:
    """As long as nobody's conversation is in its prompt cache a token costs nobody anything."""
    server.env["PROBE_MODEL"] = "tiny"
    verdict = server.check_until(was_asked)[-1]
    assert verdict.reason is Reason.READY
    assert float(verdict.readings["first_token_seconds"] or 0) > 0
    assert verdict.message.startswith("tiny:latest gave its first token after ")
    with expiry_kept(server):
        server.check_until(was_asked)
    server.generate("tiny")
    verdicts = [server.check() for _ in range(3)]
    assert not any(map(was_asked, verdicts))
    assert all(v.healthy for v in verdicts)
    assert "tiny:latest is loaded, not proven since" in verdicts[-1].message


def test_a_users_model_is_read_and_asked_nothing(server: SharedOllama, gateway: str) -> None:
    """A token of ours would take the place of the user's conversation in the prompt cache."""
    server.generate("tiny")
    with in_front_of(server.url, gateway) as front:
        verdicts = [server.check("--host", front.url) for _ in range(4)]
        assert front.generations == []
    assert not any(map(was_asked, verdicts))
    assert {v.reason for v in verdicts} <= {Reason.READY, Reason.BUSY}


def test_a_runner_that_hangs_for_a_user_is_stalled_while_everything_else_answers(
    ollama: Start,
) -> None:
    server = ollama()
    server.wait_health("healthy")
    with server.endless_request("tiny"):
        server.freeze("ollama runner")
        server.wait_health("unhealthy", "stalled")
        assert server.loaded[0]["name"] == "tiny:latest"  # as if nothing was wrong


def test_a_runner_frozen_while_nobody_asks_is_replaced_by_the_server_that_we_ask(
    unchecked: Start,
) -> None:
    """So there is nothing to heal, and nothing is restarted."""
    server = unchecked()
    server.check()
    server.generate("tiny")
    [frozen] = server.pids("ollama runner")
    server.freeze("ollama runner")
    server.check_until(lambda _: frozen not in server.pids("ollama runner"))
    server.check_until(lambda verdict: verdict.healthy)


def test_a_frozen_runner_is_stalled_with_a_users_request_in_flight(unchecked: Start) -> None:
    server = unchecked()
    server.check()
    with server.endless_request("tiny"):
        server.check()
        server.freeze("ollama runner")
        server.check_until(lambda verdict: verdict.reason is Reason.STALLED)


def test_a_long_prompt_on_a_full_server_is_healthy(unchecked: Start) -> None:
    server = unchecked({"OLLAMA_NUM_PARALLEL": "1"})
    server.check()
    server.long_prompt()
    verdicts = [server.check() for _ in range(5)]
    assert [v for v in verdicts if not v.healthy] == []


def test_nothing_is_asked_for_as_long_as_users_get_tokens(unchecked: Start) -> None:
    server = unchecked({"OLLAMA_NUM_PARALLEL": "1"})
    server.check()
    # Two threads that wait for each other make next to no tokens on a crowded machine.
    options = {"num_ctx": 2048, "num_thread": 1, "num_predict": 1_000_000}
    with server.endless_request("tiny", options=options) as tokens:
        server.check()  # the first to see this model: from here on its tokens count
        before, verdicts = server.generates(), []
        for _ in range(3):
            tokens.wait(ENOUGH_TOKENS)
            verdicts.append(server.check())
        assert server.generates() == before
    assert {v.reason for v in verdicts} == {Reason.READY}
    assert all("gives users tokens" in v.message for v in verdicts), verdicts


def test_a_time_that_a_long_answer_named_is_kept_to(unchecked: Start) -> None:
    server = unchecked({"OLLAMA_NUM_PARALLEL": "2"})
    server.check()
    options = {"num_ctx": 2048, "num_thread": 1}
    server.request(model="tiny", keep_alive=60, options={**options, "num_predict": 1})
    server.check()
    options["num_predict"] = 1_000_000
    with server.endless_request("tiny", keep_alive=6000, options=options) as tokens:
        for _ in range(3):
            tokens.wait(ENOUGH_TOKENS)
            server.check()
    server.check_until(lambda _: server.expires_in() > 3000)


@pytest.mark.more
def test_a_runner_that_others_leave_no_cpu_is_busy_not_stalled(unchecked: Start) -> None:
    server = unchecked({"OLLAMA_NUM_PARALLEL": "1"}, cpuset_cpus="0")
    server.check()
    server.long_prompt()
    server.starve("ollama runner")
    verdicts = [server.check(PROBE_TIMEOUT=f"{scaled(4):.0f}") for _ in range(2)]
    assert [v for v in verdicts if not v.healthy] == []


def test_a_load_longer_than_the_deadline_is_never_aborted(server: SharedOllama) -> None:
    began = time.monotonic()
    server.generate("big")
    deadline = max((time.monotonic() - began) / 4, 1)
    server.unload()
    loading = threading.Thread(target=server.generate, args=("big",))
    loading.start()
    verdicts = []
    while loading.is_alive():
        verdicts.append(server.check(PROBE_TIMEOUT=f"{deadline:.1f}"))
    loading.join()
    assert [v for v in verdicts if not v.healthy] == []
    assert Reason.LOADING in {v.reason for v in verdicts}
    assert "aborting load" not in server.whole_log


def test_a_required_model_is_loaded_by_checks_shorter_than_its_load(server: SharedOllama) -> None:
    loaded = (Reason.READY, Reason.BUSY)
    verdicts = server.check_until(
        lambda verdict: verdict.reason in loaded, PROBE_MODEL="big", PROBE_TIMEOUT="1"
    )
    assert Reason.LOADING in {v.reason for v in verdicts}
    assert "aborting load" not in server.whole_log
    assert server.expires_in() > 1e9  # it is kept
    assert not server.pids("defunct")
    assert server.whole_log.count("starting llama server") == 1


USES = {
    "options of its own": ("tiny", {"num_ctx": 1024, "num_batch": 64, "num_thread": 1}, {}),
    "a larger context": ("tiny", {"num_ctx": 3000}, {}),
    "one slot": ("tiny", {"num_ctx": 2048}, {"OLLAMA_NUM_PARALLEL": "1"}),
    "five slots": ("tiny", {"num_ctx": 2048}, {"OLLAMA_NUM_PARALLEL": "5"}),
    "another default": ("tiny", {}, {"OLLAMA_CONTEXT_LENGTH": "1234", "OLLAMA_KEEP_ALIVE": "7m"}),
    "flash attention": ("tiny", {}, {"OLLAMA_FLASH_ATTENTION": "1"}),
    "an adapter and a system prompt": ("tuned", {}, {}),
    "an adapter and options": ("tuned", {"num_ctx": 700}, {}),
}


@pytest.mark.parametrize("use", USES)
def test_a_users_model_keeps_its_options_its_process_and_its_expiry(
    request: pytest.FixtureRequest, use: str
) -> None:
    model, options, env = USES[use]
    server: Ollama
    server = request.getfixturevalue("unchecked")(env) if env else request.getfixturevalue("server")
    server.check()
    server.generate(model, **options)
    [before] = server.pids("ollama runner")
    with expiry_kept(server):
        verdicts = [server.check() for _ in range(6)]
    assert all(v.healthy for v in verdicts)
    assert server.pids("ollama runner") == [before]
    server.generate(model, **options)
    assert server.pids("ollama runner") == [before]


def test_a_required_model_that_only_embeds_is_loaded_and_kept(server: SharedOllama) -> None:
    server.env["PROBE_MODEL"] = "vector"
    server.check_until(lambda verdict: "gave an embedding after" in verdict.message)
    assert server.expires_in() > 1e9


@pytest.mark.parametrize("required", ["", "vector"])
def test_of_two_models_the_one_that_hangs_is_named_required_or_not(
    unchecked: Start, required: str
) -> None:
    server = unchecked({"PROBE_MODEL": required})
    server.embed("vector")
    server.check_until(lambda verdict: verdict.reason is Reason.READY)
    others = set(server.pids("ollama runner"))
    with server.endless_request("tiny"):
        server.check()
        [hung] = set(server.pids("ollama runner")) - others
        freeze(hung)
        verdict = server.check_until(lambda verdict: verdict.reason is Reason.STALLED)[-1]
        assert verdict.readings["model"] == "tiny:latest"


def test_options_that_do_not_show_from_outside_cost_a_user_no_load(server: SharedOllama) -> None:
    """As whether use_mmap was asked for."""
    server.check()
    served = set()
    for _ in range(3):
        server.generate("tiny", use_mmap=True)
        for _ in range(4):
            server.check()
        served |= {*server.pids("ollama runner")}
    assert len(served) == 1


@pytest.mark.parametrize(
    "env", [{}, {"PROBE_TIMEOUT": "300"}], ids=["over several checks", "within one check"]
)
def test_a_required_model_whose_process_was_killed_is_loaded_again_in_peace(
    unchecked: Start, env: dict[str, str]
) -> None:
    """Also where only the check that loaded it has seen its process."""
    server = unchecked({"PROBE_MODEL": "big", **env})
    loaded = (Reason.READY, Reason.BUSY)
    server.check_until(lambda verdict: verdict.reason is Reason.READY)
    [runner] = server.pids("ollama runner")
    os.kill(runner, signal.SIGKILL)
    verdicts = server.check_until(
        lambda verdict: (
            verdict.reason in loaded and server.pids("ollama runner") not in ([], [runner])
        )
    )
    assert [v for v in verdicts if not v.healthy] == []
    assert "aborting load" not in server.whole_log


def test_tokens_that_come_too_slowly_several_times_are_slow(server: SharedOllama) -> None:
    server.env |= {
        "PROBE_GENERATE": "always",
        "PROBE_MIN_TOKENS_PER_SECOND": "99999",
        "PROBE_SLOW_CHECKS": "4",
    }
    server.request(model="tiny", keep_alive=-1)
    verdict = server.check_until(lambda verdict: verdict.reason is Reason.SLOW)[-1]
    assert "tiny:latest has been slow for 4 checks in a row" in verdict.message


def test_with_always_the_server_is_asked_at_each_check(server: SharedOllama) -> None:
    server.env["PROBE_GENERATE"] = "always"
    server.generate("tiny", num_ctx=1024)
    [before] = server.pids("ollama runner")
    for _ in range(3):
        server.check_until(was_asked)
    assert server.generates() >= 4
    assert server.pids("ollama runner") == [before]


def test_with_never_nothing_is_asked_and_a_hang_is_found_all_the_same(unchecked: Start) -> None:
    server = unchecked({"PROBE_GENERATE": "never", "PROBE_TIMEOUT": "4"})
    server.check()
    server.generate("tiny")
    before = server.generates()
    server.freeze("ollama runner")
    server.check_until(lambda verdict: verdict.reason is Reason.STALLED)
    assert server.generates() == before


def test_checks_at_the_same_time_harm_nobody(server: SharedOllama) -> None:
    server.env["PROBE_TIMEOUT"] = "60"
    server.check()
    server.generate("tiny", num_ctx=1024)
    [before] = server.pids("ollama runner")
    with expiry_kept(server), ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: server.probe("check"), range(24)))
    assert {code for code, _ in results} == {0}, results
    assert server.pids("ollama runner") == [before]


def test_a_place_for_memory_that_cannot_be_used_is_said_and_no_fault(ollama: Start) -> None:
    server = ollama({"PROBE_STATE_DIR": "/proc"}, read_only=True, tmpfs={"/tmp": ""})
    server.wait_health("healthy")
    assert "/proc/ollama-probe" in str(server.verdicts[-1].readings["memory"])


def test_status_shows_what_is_there_and_asks_nothing(unchecked: Start, nvml: Nvml) -> None:
    server = unchecked(volumes=nvml.volume)
    server.request(model="tiny", keep_alive=-1)
    server.check()
    asked = server.generates()
    code, text = server.probe("status")
    assert code == 0
    for words in (
        "healthy ready",
        "Ollama 0.9.3 (models run in ollama runner): tested",
        "Simulated GPU",
        "no model has been in VRAM here",
        "8.8 GiB of 24.0 GiB",
        "0% of",
        "is loaded",
    ):
        assert words in text
    shown = json.loads(server.probe("status", "--format", "json")[1])
    assert shown["server"] == {"version": "0.9.3", "runners": "ollama runner", "tested": True}
    assert [model["name"] for model in shown["models"]] == ["tiny:latest"]
    assert shown["gpus"][0]["uuid"] == "GPU-1"
    assert [check["reason"] for check in shown["checks"]][-1] == "ready"
    assert server.generates() == asked


def test_status_shows_what_the_last_check_found_where_only_asking_could_show_more(
    unchecked: Start,
) -> None:
    server = unchecked()
    server.check()
    with server.endless_request("tiny"):
        server.freeze("ollama runner")
        server.check_until(lambda verdict: verdict.reason is Reason.STALLED)
        asked = server.generates()
        code, text = server.probe("status")
        assert code == 1
        assert "unhealthy stalled" in text
        assert server.generates() == asked


def test_a_loaded_model_that_a_user_deleted_is_no_fault(unchecked: Start) -> None:
    server, name = unchecked(), unique("deleted")
    server.check()
    server.container.exec_run(["ollama", "cp", "tiny", name])
    server.generate(name)
    server.container.exec_run(["ollama", "rm", name])
    verdicts = [server.check() for _ in range(3)]
    assert all(v.healthy for v in verdicts), verdicts


def test_a_required_model_that_is_not_there_is_model_missing(server: SharedOllama) -> None:
    missing = server.check_until(lambda verdict: not verdict.healthy, PROBE_MODEL="nowhere")[-1]
    assert missing.reason is Reason.MODEL_MISSING
    assert "ollama pull nowhere" in missing.message
