"""autoheal against a real engine: what it heals, what it leaves alone, what it survives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from docker.models.containers import Container

from autoheal.incident import seconds_of
from probe.report import Reason
from testbed import runner
from testbed.autoheal import WATCHING, Autoheal
from testbed.containers import (
    AUTOHEAL,
    OLLAMA,
    ROOT,
    SECOND,
    UNHEALTHY_FILE,
    Workload,
    healthcheck,
    idle_command,
)
from testbed.deadlines import LONG_SECONDS, scaled
from testbed.engines import PrivateEngine
from testbed.ollama import TIME_TO_ASK, Ollama
from testbed.webhook import Webhook

Start = Callable[..., Autoheal]


def test_a_runner_that_hangs_again_at_once_means_a_restart(
    ollama: Callable[..., Ollama], autoheal: Start
) -> None:
    server, healer = ollama(TIME_TO_ASK), autoheal(AUTOHEAL_SETTLE="600")
    healer.wait_line(WATCHING)
    server.wait_health("healthy")
    before = server.started_at
    for heal in ("ended the stuck runner in", "restarted in"):
        server.load_seen("tiny")
        with server.endless_request("tiny"):
            server.freeze("ollama runner")
            healer.wait_line(heal, LONG_SECONDS)
        server.wait_health("healthy")
    assert server.started_at != before
    assert server.generate("tiny")["done"]


def test_a_ladder_without_the_runner_restarts_the_container(
    ollama: Callable[..., Ollama], autoheal: Start
) -> None:
    server, healer = ollama(labels={"autoheal.ladder": "restart"}), autoheal()
    healer.wait_line(WATCHING)
    server.wait_health("healthy")
    before = server.started_at
    server.load_seen("tiny")
    with server.endless_request("tiny"):
        server.freeze("ollama runner")
        server.wait_restarted(before)
    healer.wait_line("restarted in")
    healer.wait_line("is healthy again")
    assert server.generate("tiny")["done"]


def test_what_is_well_when_its_turn_comes_is_not_touched(
    start: Callable[..., Container], models: str, label: str, autoheal: Start
) -> None:
    stale = "echo 'unhealthy stalled (runner): of some time ago {}'; exit 1"
    check = healthcheck(f"test -e /well && exec ollama-probe check; {stale}")
    volumes = {models: {"bind": "/root/.ollama", "mode": "rw"}}
    server = Ollama(start(OLLAMA, labels={label: "true"}, healthcheck=check, volumes=volumes))
    server.wait_listening()
    server.generate("tiny")
    before, runners = server.started_at, runner.pids(server)
    healer = autoheal(AUTOHEAL_BACKOFF="3600")
    healer.wait_line("no runner has to be ended: healthy")
    healer.wait_line("nothing had to be ended in")
    assert server.container.exec_run(["touch", "/well"]).exit_code == 0
    healer.wait_line("is healthy again; nothing was done")
    assert (server.started_at, runner.pids(server)) == (before, runners)
    refused = healer.command("heal", server.name, "--action", "runner", fails=True)
    assert "its last check names no runner that has to be ended" in refused


def test_a_frozen_server_is_api_down_and_healed(
    ollama: Callable[..., Ollama], autoheal: Start
) -> None:
    server, healer = ollama(labels={"autoheal.stop.timeout": "1"}), autoheal()
    server.wait_health("healthy")
    before = server.started_at
    server.freeze("ollama serve")
    server.wait_restarted(before)
    healer.wait_line("is unhealthy: api_down: .* no answer from http://127.0.0.1:11434")
    server.wait_health("healthy", "idle")


def test_a_killed_server_in_a_container_that_lives_on_is_api_down_and_healed(
    ollama: Callable[..., Ollama], autoheal: Start
) -> None:
    server = ollama(entrypoint=["/bin/sh", "-c", "ollama serve; sleep 10000 & wait"])
    healer = autoheal(AUTOHEAL_DEFAULT_STOP_TIMEOUT="1")
    server.wait_health("healthy")
    before = server.started_at
    os.kill(server.pids("ollama serve")[-1], signal.SIGKILL)
    server.wait_restarted(before)
    healer.wait_line("api_down: nothing listens at .*connection refused")
    server.wait_health("healthy", "idle")


def test_a_killed_runner_is_nothing_to_heal(ollama: Callable[..., Ollama], autoheal: Start) -> None:
    """The server loads the model again at the next request."""
    server, healer = ollama(), autoheal(AUTOHEAL_INTERVAL="1")
    healer.wait_line(WATCHING)
    server.wait_health("healthy")
    server.generate("tiny")
    before = server.started_at
    [runner] = server.pids("ollama runner")
    server.wait_checks(1)  # so that none is asking when it is killed
    os.kill(runner, signal.SIGKILL)
    assert [verdict for verdict in server.wait_checks(4) if not verdict.healthy] == []
    assert server.generate("tiny")["done"]
    assert server.started_at == before


def test_a_model_that_no_restart_can_bring_is_reported_once_and_left_alone(
    ollama: Callable[..., Ollama], autoheal: Start
) -> None:
    healer = autoheal(AUTOHEAL_INTERVAL="1")
    server = ollama({"PROBE_MODEL": "nowhere"})
    before = server.started_at
    healer.wait_line("left alone: model_missing: .* this needs an operator")
    server.wait_checks(4)
    assert server.started_at == before
    assert sum("left alone" in line for line in healer.lines) == 1


@pytest.mark.parametrize("required", [pytest.param(True, marks=pytest.mark.more), False])
def test_a_model_that_loads_longer_than_a_check_is_never_restarted(
    ollama: Callable[..., Ollama], autoheal: Start, required: bool
) -> None:
    healer = autoheal(AUTOHEAL_INTERVAL="1")
    env = {"PROBE_TIMEOUT": f"{scaled(1):.0f}", **({"PROBE_MODEL": "big"} if required else {})}
    server = ollama(env, interval=0.3, retries=1)
    healer.wait_line(WATCHING)
    before = server.started_at
    if not required:
        server.wait_health("healthy")
        server.begin_load("big")
    server.wait(lambda: Reason.LOADING in {v.reason for v in server.verdicts}, "loading")
    server.wait_loaded()
    assert server.started_at == before
    assert "aborting load" not in server.whole_log
    assert not [line for line in healer.lines if "restarting" in line]


def test_a_container_without_the_label_is_left_alone(
    workload: Callable[..., Workload], autoheal: Start
) -> None:
    stranger, ours = workload(labels={}), workload()
    healer = autoheal(AUTOHEAL_INTERVAL="1")
    healer.wait_line(WATCHING)
    strangers_start, our_start = stranger.started_at, ours.started_at
    stranger.make_unhealthy()
    stranger.wait_health("unhealthy")
    ours.make_unhealthy()
    ours.wait_restarted(our_start)
    ours.wait_health("healthy")
    assert stranger.started_at == strangers_start
    assert stranger.name not in "".join(healer.lines)


def test_a_container_with_any_healthcheck_is_healed(
    workload: Callable[..., Workload], autoheal: Start
) -> None:
    one, healer = workload(), autoheal()
    healer.wait_line(WATCHING)
    one.make_unhealthy()
    healer.wait_line("is unhealthy: its health check says: marked unhealthy")
    healer.wait_line("is healthy again")
    one.wait_health("healthy")


def test_a_container_whose_probe_cannot_be_run_is_left_to_an_operator(
    start: Callable[..., Container], autoheal: Start, label: str
) -> None:
    """As with an image that has no probe, under a Compose file that names it."""
    command = healthcheck(["CMD", "/usr/local/bin/ollama-probe", "check"])
    one = Workload(
        start(
            AUTOHEAL,
            [idle_command()],
            entrypoint=["/bin/sh", "-c"],
            labels={label: "true"},
            healthcheck=command,
        )
    )
    healer = autoheal(AUTOHEAL_INTERVAL="1")
    before = one.started_at
    healer.wait_line(f"{one.name}: unhealthy, left alone: .*no such file .* needs an operator")
    one.wait(lambda: len(one.checks) == 5, "checked")
    assert one.started_at == before
    assert not [line for line in healer.lines if "restarting" in line]


def test_only_three_timeouts_in_a_row_of_our_probe_are_acted_on(
    workload: Callable[..., Workload], autoheal: Start
) -> None:
    hangs = f": ollama-probe; test ! -e {UNHEALTHY_FILE} || sleep 1000"
    one = workload(healthcheck=healthcheck(hangs, timeout=SECOND))
    healer = autoheal(AUTOHEAL_INTERVAL="1")
    healer.wait_line(WATCHING)
    before, broken_at = one.started_at, time.time()
    one.make_unhealthy()
    healer.wait_line(r"unhealthy, waiting: .*exceeded timeout .* \(timeout 1 of 3\)")
    one.wait_restarted(before)
    assert seconds_of(one.started_at) - broken_at > 3  # three timeouts of a second
    healer.wait_line("is healthy again")


def test_a_stopped_or_paused_container_is_left_alone(
    workload: Callable[..., Workload], autoheal: Start
) -> None:
    # The kernel cannot freeze what a check is just joining: after the first failure one goes on
    # for ever, so that no other begins.
    once = "if test -e /tmp/told; then sleep 3600; fi; touch /tmp/told"
    check = f"test ! -e {UNHEALTHY_FILE} || {{ {once}; exit 1; }}"
    paused = workload(healthcheck=healthcheck(check, timeout=3600 * SECOND))
    stopped, running = workload(), workload()
    for one in (stopped, running, paused):
        one.make_unhealthy()
        one.wait_health("unhealthy")
    paused.wait(lambda: paused.pids("sleep 3600") != [], "a check that goes on")
    paused.pause()
    stopped.container.stop()
    before = stopped.started_at, paused.started_at
    # It finds the three in one list, and has decided about each before this one's heal is over.
    healer = autoheal()
    healer.wait_line(f"{running.name} is healthy again")
    healer.stop()
    assert (stopped.started_at, paused.started_at) == before
    assert stopped.attributes["State"]["Status"] == "exited"
    assert paused.attributes["State"]["Status"] == "paused"
    paused.container.unpause()


def test_a_container_that_became_unhealthy_while_autoheal_was_down_is_healed_at_its_start(
    workload: Callable[..., Workload], autoheal: Start
) -> None:
    one = workload()
    one.make_unhealthy()
    one.wait_health("unhealthy")
    healer = autoheal(AUTOHEAL_INTERVAL="3600")
    healer.wait_line("restarting")
    one.wait_health("healthy")


def test_a_container_that_stays_unhealthy_is_restarted_ever_less_often(
    workload: Callable[..., Workload], autoheal: Start
) -> None:
    once = "test -e /once || touch /healthy /once; trap 'rm -f /healthy; exit 0' TERM; "
    one = workload(
        command=[once + "while :; do sleep 1000 & wait; done"],
        healthcheck=healthcheck("test -e /healthy"),
    )
    healer = autoheal(AUTOHEAL_INTERVAL="1")
    healer.wait_line(WATCHING)
    assert one.container.exec_run(["rm", "/healthy"]).exit_code == 0
    healer.wait_line(r"restarted in .*\(attempt 1\)")
    healer.wait_line("unhealthy, waiting")
    healer.wait_line(r"restarted in .*\(attempt 2\)")
    [incident] = json.loads(healer.command("history", "--json"))
    first, second = (float(attempt["at"]) for attempt in incident["attempts"][:2])
    assert second - first >= 5  # a wait may be longer on a busy machine, never shorter


def test_sigterm_ends_it_at_once_and_cuts_off_no_restart(
    workload: Callable[..., Workload], autoheal: Start
) -> None:
    one = workload(stubborn=True)
    healer = autoheal(AUTOHEAL_DEFAULT_STOP_TIMEOUT="15")
    healer.wait_line(WATCHING)
    before = one.started_at
    one.make_unhealthy()
    healer.wait_line("restarting, with 15 s to stop")
    healer.stop()
    assert healer.process.returncode == 0
    assert one.started_at == before  # the container has not stopped yet
    one.wait_restarted(before)
    one.wait_health("healthy")


def test_the_webhook_and_the_script_of_docker_autoheal_are_called(
    workload: Callable[..., Workload], autoheal: Start, tmp_path: Path, webhook: Webhook
) -> None:
    script = tmp_path / "script"
    told = tmp_path / "told"
    os.mkfifo(told)
    script.write_text(f'#!/bin/sh\necho "$@" > {told}\n')
    script.chmod(0o755)
    one = workload()
    healer = autoheal(
        WEBHOOK_URL=f"http://127.0.0.1:{webhook.port}/secret",
        WEBHOOK_JSON_KEY="content",
        POST_RESTART_SCRIPT=str(script),
        AUTOHEAL_DEFAULT_STOP_TIMEOUT="3",
    )
    healer.wait_line(WATCHING)
    one.make_unhealthy()
    healer.wait_line("is healthy again")
    assert webhook.arrived.wait(scaled(60))
    name, short = one.name, one.container.short_id
    [message] = webhook.received
    assert isinstance(message, dict)
    assert message["content"].startswith(
        f"Container {name} ({short}) found to be unhealthy. Successfully restarted the container!"
    )
    assert set(message) == {"content"}
    assert told.read_text() == f"/{name} {short} running 3\n"  # waits until it is written
    assert not [line for line in healer.lines if "secret" in line]


def test_the_log_can_be_json(workload: Callable[..., Workload], autoheal: Start) -> None:
    one, healer = workload(), autoheal(AUTOHEAL_LOG_FORMAT="json")
    healer.wait_line(WATCHING)
    one.make_unhealthy()
    entry = json.loads(healer.wait_line("is unhealthy"))
    assert set(entry) == {"time", "level", "message"}
    assert entry["level"] == "warning"


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        ("AUTOHEAL_INTERVAL", "soon", "must be a number of seconds from 1 to 86400"),
        ("AUTOHEAL_DEFAULT_STOP_TIMEOUT", "-1", "must be a number of seconds from 0 to 3600"),
        ("AUTOHEAL_CONTAINER_LABEL", "a b", "must be a label's name, or all"),
        ("DOCKER_SOCK", "localhost", "must be a socket's path, tcp://host:port"),
        ("AUTOHEAL_LOG_FORMAT", "xml", "must be one of text, json"),
        ("WEBHOOK_URL", "ftp://secret", "must be an http:// or https:// address"),
    ],
)
def test_a_bad_setting_is_one_line_that_says_what_where_and_what_is_allowed(
    setting: str, value: str, allowed: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autoheal.cli", "run"],
        env={**os.environ, setting: value},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    shown = "(hidden)" if setting == "WEBHOOK_URL" else repr(value)
    assert done.stderr.startswith(f"autoheal: {setting}={shown}: {allowed}")
    assert done.stderr.count("\n") == 1


def test_a_bad_label_is_reported_once_by_name_and_the_default_holds(
    workload: Callable[..., Workload], autoheal: Start, label: str
) -> None:
    one = workload(labels={label: "true", "autoheal.stop.timeout": "long"})
    healer = autoheal(AUTOHEAL_DEFAULT_STOP_TIMEOUT="2", AUTOHEAL_INTERVAL="1")
    healer.wait_line(WATCHING)
    one.make_unhealthy()
    healer.wait_line("label autoheal.stop.timeout='long': must be a number of seconds")
    healer.wait_line("restarting, with 2 s to stop")
    one.wait_health("healthy")


def test_without_an_engine_it_says_so_and_waits(autoheal: Start, tmp_path: Path) -> None:
    healer = autoheal(DOCKER_SOCK=str(tmp_path / "docker.sock"))
    healer.wait_line("there is no Docker engine at unix://.*trying again until it answers")
    healer.stop()
    assert healer.process.returncode == 0


def test_an_engine_that_restarts_is_watched_again_and_healing_goes_on(
    private_engine: PrivateEngine, autoheal: Start, label: str
) -> None:
    client = private_engine.start()
    private_engine.load([AUTOHEAL])
    one = Workload(
        client.containers.run(
            AUTOHEAL,
            [idle_command()],
            entrypoint=["/bin/sh", "-c"],
            detach=True,
            network_mode="none",
            labels={label: "true"},
            restart_policy={"Name": "always"},
            healthcheck=healthcheck(),
        )
    )
    one.wait_health("healthy")
    healer = autoheal(DOCKER_SOCK=private_engine.socket, AUTOHEAL_INTERVAL="3600")
    healer.wait_line(WATCHING)
    private_engine.stop()
    healer.wait_line("trying again until it answers")
    client = private_engine.start()
    healer.wait_line(WATCHING, count=2)
    one = Workload(client.containers.get(one.name))
    one.wait_health("healthy")
    one.make_unhealthy()
    healer.wait_line("is healthy again")
    one.container.remove(force=True)
