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

import docker
import pytest

from tests.e2e.conftest import (
    AUTOHEAL,
    MILLISECOND,
    ROOT,
    SECOND,
    Autoheal,
    Hook,
    Ollama,
    Patient,
    PrivateEngine,
    fall_sick,
)

WATCHING = "watching the Docker engine"
Start = Callable[..., Autoheal]


def test_a_frozen_runner_is_found_healed_and_answers_a_user(
    ollama: Callable[..., Ollama], autoheal: Start
) -> None:
    server, healer = ollama(), autoheal()
    healer.wait_line(WATCHING)
    server.wait_health("healthy")
    server.generate("tiny")
    before = server.started_at
    server.freeze("ollama runner")
    server.wait_restarted(before)
    healer.wait_line("is unhealthy: stalled: the runner of tiny:latest has not answered")
    healer.wait_line("restarted in")
    healer.wait_line("is healthy again")
    assert server.generate("tiny")["done"]


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
    healer.wait_line("api_down: .*Connection refused")
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


def test_a_model_that_no_restart_can_bring_is_told_once_and_left_alone(
    ollama: Callable[..., Ollama], autoheal: Start
) -> None:
    healer = autoheal(AUTOHEAL_INTERVAL="1")
    server = ollama({"PROBE_MODEL": "nowhere"})
    before = server.started_at
    healer.wait_line("left alone: model_missing: .* a person is needed", seconds=90)
    server.wait_checks(4)
    assert server.started_at == before
    assert sum("left alone" in line for line in healer.lines) == 1


@pytest.mark.alone
@pytest.mark.parametrize("required", [True, False])
def test_a_model_that_loads_longer_than_a_check_is_never_restarted(
    ollama: Callable[..., Ollama], autoheal: Start, required: bool
) -> None:
    healer = autoheal(AUTOHEAL_INTERVAL="1")
    env = {"PROBE_TIMEOUT": "1", **({"PROBE_MODEL": "big"} if required else {})}
    server = ollama(env, interval=0.3, retries=1)
    healer.wait_line(WATCHING)
    before = server.started_at
    if not required:
        server.wait_health("healthy")
        server.generate("big")
    server.wait_loaded()
    assert server.started_at == before
    assert "aborting load" not in server.log
    assert not [line for line in healer.lines if "restarting" in line]


def test_a_container_without_the_label_is_left_alone(
    patient: Callable[..., Patient], autoheal: Start
) -> None:
    stranger, ours = patient(labels={}), patient()
    healer = autoheal(AUTOHEAL_INTERVAL="1")
    healer.wait_line(WATCHING)
    strangers_start, our_start = stranger.started_at, ours.started_at
    fall_sick(stranger)
    stranger.wait_health("unhealthy")
    fall_sick(ours)
    ours.wait_restarted(our_start)
    ours.wait_health("healthy")
    assert stranger.started_at == strangers_start
    assert stranger.name not in "".join(healer.lines)


def test_a_container_with_any_healthcheck_is_healed(
    patient: Callable[..., Patient], autoheal: Start
) -> None:
    one, healer = patient(), autoheal()
    healer.wait_line(WATCHING)
    fall_sick(one)
    healer.wait_line("is unhealthy: its health check says: feeling sick")
    healer.wait_line("is healthy again")
    one.wait_health("healthy")


def test_a_stopped_or_paused_container_is_left_alone(
    patient: Callable[..., Patient], autoheal: Start
) -> None:
    stopped, paused = patient(), patient()
    for one in (stopped, paused):
        fall_sick(one)
        one.wait_health("unhealthy")
    stopped.container.stop()
    paused.container.pause()
    before = stopped.started_at, paused.started_at
    healer = autoheal(AUTOHEAL_INTERVAL="1")
    healer.wait_line(WATCHING)
    other = patient()
    fall_sick(other)  # by the time this one is well again, the others would be too
    healer.wait_line("is healthy again")
    assert (stopped.started_at, paused.started_at) == before
    assert stopped.attributes["State"]["Status"] == "exited"
    assert paused.attributes["State"]["Status"] == "paused"
    paused.container.unpause()


@pytest.mark.alone
def test_a_container_that_fell_sick_while_autoheal_was_down_is_healed_at_its_start(
    patient: Callable[..., Patient], autoheal: Start
) -> None:
    one = patient()
    fall_sick(one)
    one.wait_health("unhealthy")
    began = time.monotonic()
    healer = autoheal()
    healer.wait_line("restarting")
    assert time.monotonic() - began < 2
    one.wait_health("healthy")


def test_a_container_that_does_not_get_well_is_restarted_ever_less_often(
    patient: Callable[..., Patient], autoheal: Start
) -> None:
    well_once = "test -e /once || touch /well /once; trap 'rm -f /well; exit 0' TERM; "
    one = patient(
        command=[well_once + "while :; do sleep 1000 & wait; done"],
        healthcheck={
            "test": ["CMD-SHELL", "test -e /well"],
            "interval": SECOND // 4,
            "retries": 1,
            "start_period": MILLISECOND,
        },
    )
    healer = autoheal(AUTOHEAL_INTERVAL="1")
    healer.wait_line(WATCHING)
    assert one.container.exec_run(["rm", "/well"]).exit_code == 0
    healer.wait_line(r"restarted in .*\(attempt 1\)")
    healer.wait_line("unhealthy, waiting")
    began = time.monotonic()
    healer.wait_line(r"restarted in .*\(attempt 2\)")
    assert time.monotonic() - began > 5


def test_sigterm_ends_it_within_a_second_and_cuts_off_no_restart(
    patient: Callable[..., Patient], autoheal: Start
) -> None:
    one = patient(stubborn=True)
    healer = autoheal(AUTOHEAL_DEFAULT_STOP_TIMEOUT="4")
    healer.wait_line(WATCHING)
    before = one.started_at
    fall_sick(one)
    healer.wait_line("restarting, with 4 s to stop")
    assert healer.stop() < 1
    assert healer.process.returncode == 0
    assert one.started_at == before  # it has not stopped yet
    one.wait_restarted(before)
    one.wait_health("healthy")


def test_the_webhook_and_the_script_of_docker_autoheal_are_told(
    patient: Callable[..., Patient], autoheal: Start, tmp_path: Path, hook: Hook
) -> None:
    script = tmp_path / "script"
    told = tmp_path / "told"
    os.mkfifo(told)
    script.write_text(f'#!/bin/sh\necho "$@" > {told}\n')
    script.chmod(0o755)
    one = patient()
    healer = autoheal(
        WEBHOOK_URL=f"http://127.0.0.1:{hook.port}/secret",
        WEBHOOK_JSON_KEY="content",
        POST_RESTART_SCRIPT=str(script),
        AUTOHEAL_DEFAULT_STOP_TIMEOUT="3",
    )
    healer.wait_line(WATCHING)
    fall_sick(one)
    healer.wait_line("is healthy again")
    assert hook.arrived.wait(10)
    name, short = one.name, one.container.short_id
    [message] = hook.told
    assert isinstance(message, dict)
    assert message["content"].startswith(
        f"Container {name} ({short}) found to be unhealthy. Successfully restarted the container!"
    )
    assert set(message) == {"content"}
    assert told.read_text() == f"/{name} {short} running 3\n"  # waits until it is written
    assert not [line for line in healer.lines if "secret" in line]


def test_the_log_can_be_json(patient: Callable[..., Patient], autoheal: Start) -> None:
    one, healer = patient(), autoheal(AUTOHEAL_LOG_FORMAT="json")
    healer.wait_line(WATCHING)
    fall_sick(one)
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
    patient: Callable[..., Patient], autoheal: Start, label: str
) -> None:
    one = patient(labels={label: "true", "autoheal.stop.timeout": "long"})
    healer = autoheal(AUTOHEAL_DEFAULT_STOP_TIMEOUT="2", AUTOHEAL_INTERVAL="1")
    healer.wait_line(WATCHING)
    fall_sick(one)
    healer.wait_line("label autoheal.stop.timeout='long': must be a number of seconds")
    healer.wait_line("restarting, with 2 s to stop")
    one.wait_health("healthy")


def test_without_an_engine_it_says_so_and_waits(autoheal: Start, tmp_path: Path) -> None:
    healer = autoheal(DOCKER_SOCK=str(tmp_path / "docker.sock"))
    healer.wait_line("there is no Docker engine at unix://.*trying again until it answers")
    assert healer.stop() < 1


def test_an_engine_that_restarts_is_watched_again_and_healing_goes_on(
    engine: docker.DockerClient, private_engine: PrivateEngine, autoheal: Start, label: str
) -> None:
    client = private_engine.start()
    client.images.load(b"".join(engine.images.get(AUTOHEAL).save(named=True)))
    one = Patient(
        client.containers.run(
            AUTOHEAL,
            ["trap 'exit 0' TERM; rm -f /sick; while :; do sleep 1000 & wait; done"],
            entrypoint=["/bin/sh", "-c"],
            detach=True,
            network_mode="none",
            labels={label: "true"},
            restart_policy={"Name": "always"},
            healthcheck={
                "test": ["CMD-SHELL", "test ! -e /sick"],
                "interval": 250_000_000,
                "retries": 1,
            },
        )
    )
    one.wait_health("healthy")
    healer = autoheal(DOCKER_SOCK=private_engine.socket, AUTOHEAL_INTERVAL="3600")
    healer.wait_line(WATCHING)
    private_engine.stop()
    healer.wait_line("trying again until it answers")
    client = private_engine.start()
    healer.wait_line(WATCHING, count=2)
    one = Patient(client.containers.get(one.name))
    one.wait_health("healthy")
    fall_sick(one)
    healer.wait_line("is healthy again")
    one.container.remove(force=True)
