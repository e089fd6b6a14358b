"""A health check that ends its server where only a restart helps (`PROBE_HEAL=restart`)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from probe.report import Reason
from testbed.autoheal import WATCHING, Autoheal
from testbed.deadlines import LONG_SECONDS
from testbed.ollama import Ollama

Start = Callable[..., Ollama]

HEALS = {"PROBE_HEAL": "restart", "PROBE_RESTART_POLICY": "unless-stopped", "PROBE_TIMEOUT": "5"}
COMES_BACK = {"Name": "unless-stopped"}


def test_a_server_that_hangs_is_ended_by_its_check_and_started_by_docker(
    ollama: Start, autoheal: Callable[..., Autoheal]
) -> None:
    server = ollama(HEALS, restart_policy=COMES_BACK)
    healer = autoheal()
    healer.wait_line(WATCHING)
    server.wait_health("healthy")
    before = server.started_at
    server.freeze("ollama serve")
    server.wait_restarted(before, LONG_SECONDS)
    server.wait_health("healthy", seconds=LONG_SECONDS)
    assert server.attributes["RestartCount"] == 1
    assert "response" in server.generate("tiny")
    assert not [line for line in healer.lines if "restarting" in line]


@pytest.mark.more
def test_a_server_whose_runner_was_ended_in_vain_is_ended_then(ollama: Start) -> None:
    """The check ends what is stuck, and only what is left after that is a matter of the server."""
    server = ollama(HEALS, restart_policy=COMES_BACK)
    server.wait_listening()
    server.load_seen("tiny")
    before = server.started_at
    with server.endless_request("tiny"):
        server.freeze("ollama runner")
        server.wait(
            lambda: any("its runner" in line and "was ended" in line for line in server.lines),
            "ended",
            LONG_SECONDS,
        )
        assert server.started_at == before
    server.freeze("ollama serve")
    server.wait_restarted(before, LONG_SECONDS)


def test_a_server_is_not_ended_where_nobody_has_said_that_it_comes_back(ollama: Start) -> None:
    server = ollama({**HEALS, "PROBE_RESTART_POLICY": "none"})
    server.wait_health("healthy")
    before = server.started_at
    server.freeze("ollama serve")
    server.wait_health("unhealthy", Reason.API_DOWN, LONG_SECONDS)
    server.wait_checks(4, LONG_SECONDS)
    assert "server not ended: set PROBE_RESTART_POLICY" in server.lines[-1]
    assert "unhealthy api_down (restart)" in server.lines[-1]
    assert (server.started_at, server.attributes["State"]["Running"]) == (before, True)


def test_from_within_sigquit_ends_the_first_process_of_a_container_and_sigkill_does_not(
    unchecked: Start,
) -> None:
    """Why a server that SIGTERM did not end is sent SIGQUIT."""
    server = unchecked()
    before = server.started_at
    assert server.container.exec_run(["sh", "-c", "kill -KILL 1"]).exit_code == 0
    assert server.container.exec_run(["sh", "-c", "kill -QUIT 1"]).exit_code == 0
    server.wait(lambda: not server.attributes["State"]["Running"], "ended")
    assert server.started_at == before
    assert server.attributes["State"]["ExitCode"] == 2
