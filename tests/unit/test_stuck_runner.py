"""What autoheal makes of the probe's answer.

The engine is a stand-in: each of these answers would take a probe that is broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest

from autoheal import stuck_runner
from autoheal.engine import Engine, EngineError, ForbiddenError
from autoheal.healthcheck import probe_program
from autoheal.stuck_runner import Answer

TEST = ("CMD", "/probe/bin/ollama-probe", "check", "--timeout", "5")


class Runs:
    """An engine in whose containers each command has the same end."""

    def __init__(self, end: tuple[int, str] | Exception) -> None:
        self.end = end
        self.commands: list[Sequence[str]] = []

    def run_in(self, container: str, command: Sequence[str], seconds: float) -> tuple[int, str]:
        self.commands.append(command)
        if isinstance(self.end, Exception):
            raise self.end
        return self.end


def ask(end: tuple[int, str] | Exception) -> Answer:
    return stuck_runner.ask(cast(Engine, Runs(end)), "c0ffee", TEST)


def test_it_is_the_probe_of_the_health_check_that_is_asked() -> None:
    engine = Runs((0, '{"result": "ended", "message": "it was ended"}'))
    assert stuck_runner.ask(cast(Engine, engine), "c0ffee", TEST) == Answer(
        "it was ended", ended=True
    )
    assert engine.commands == [["/probe/bin/ollama-probe", "end-runner", "--format", "json"]]


@pytest.mark.parametrize(
    "test",
    [
        ("CMD-SHELL", "ollama-probe check || exit 1"),
        ("CMD", "ollama-probe", "check"),
        ("CMD-SHELL", "something else"),
        (),
    ],
)
def test_otherwise_it_is_the_one_on_the_path(test: tuple[str, ...]) -> None:
    assert probe_program(test) == "ollama-probe"


def test_whose_runner_was_ended_is_what_the_probe_says_and_unknown_where_it_does_not() -> None:
    assert ask((0, '{"message": "it was ended", "model": "tiny"}')).model == "tiny"
    assert ask((0, '{"message": "it was ended", "model": null}')).model == ""
    assert ask((0, '"ended"')).model == ""


def test_what_ended_is_said_by_the_exit_code_whatever_else_is_printed() -> None:
    assert ask((0, "a warning\n{}")).ended


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ((3, '{"message": "no runner has to be ended: healthy idle"}'), "no runner has to be"),
        ((3, '{"message": '), "ended with 3"),
        (ForbiddenError("c0ffee: a proxy says no"), "nothing may be run in the container"),
    ],
)
def test_a_refusal_is_no_failure(end: tuple[int, str] | Exception, words: str) -> None:
    answer = ask(end)
    assert not answer.ended
    assert words in answer.words


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ((1, '{"message": "it was not ended"}'), "it was not ended"),
        ((2, "Usage: ollama-probe ...\nNo such command 'end-runner'."), "ended with 2: Usage"),
        ((126, "OCI runtime exec failed"), "ended with 126: OCI runtime exec failed"),
        ((137, ""), "ended with 137"),
    ],
)
def test_a_probe_that_could_not_do_it_is_a_failure(end: tuple[int, str], words: str) -> None:
    with pytest.raises(EngineError, match=words):
        ask(end)
