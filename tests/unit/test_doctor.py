"""What `autoheal doctor` says of settings. The engine is a mock."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from autoheal.doctor import examine
from autoheal.engine import Engine, ForbiddenError, GoneError, UnreachableError
from autoheal.settings import Settings

PROBE = ["CMD", "/usr/local/bin/ollama-probe", "check"]
OTHER = ["CMD-SHELL", "curl --fail localhost"]


class FakeEngine:
    """An engine with one container."""

    url = "unix:///docker.sock"
    refuses: tuple[str, ...] = ()
    check: Mapping[str, Any] = {}
    host: Mapping[str, Any] = {}

    def __init__(
        self, test: list[str], env: list[str], labels: dict[str, str], said: str = ""
    ) -> None:
        self._said = said
        self._found = {
            "Id": "c0ffee",
            "Name": "/ollama",
            "Names": ["/ollama"],
            "Config": {"Healthcheck": {"Test": test, **self.check}, "Env": env, "Labels": labels},
            "HostConfig": self.host,
            "State": {"Running": True},
        }

    def info(self) -> dict[str, Any]:
        return {"ApiVersion": "1.45", "Version": "26.1"}

    def containers(self, label: str = "") -> list[dict[str, Any]]:
        return [self._found]

    def find(self, container: str) -> dict[str, Any]:
        return self._found

    def __getattr__(self, name: str) -> Callable[..., None]:
        """The calls that healing needs; a proxy in front of it may refuse some."""

        def call(*args: object) -> None:
            if name in self.refuses:
                raise ForbiddenError("403")
            raise GoneError("404")

        return call

    def run_in(self, container: str, command: list[str]) -> tuple[int, str]:
        if container != self._found["Id"]:
            self.exec(container)
        assert command == ["/usr/local/bin/ollama-probe", "status", "--format", "json"]
        return 0, self._said


def findings(
    tmp_path: Path,
    env: Mapping[str, str] | None = None,
    *,
    test: list[str] = PROBE,
    inside: list[str] | None = None,
    labels: dict[str, str] | None = None,
    said: str = "",
    level: str = "warning",
) -> list[tuple[str, str]]:
    """What was found, and the advice."""
    engine = FakeEngine(test, inside or [], {"autoheal": "true", **(labels or {})}, said)
    settings = Settings(state_dir=str(tmp_path), ledger=str(tmp_path / "ledger.db"))
    found = examine(cast(Engine, engine), settings, None, None, env or {})
    return [(one.what, one.advice) for one in found if one.level == level]


def test_every_call_of_a_recreate_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [words] = [what for what, _ in findings(tmp_path, level="ok") if "every call" in what]
    assert words == "every call that healing needs is allowed (calls to Swarm were not tried)"
    monkeypatch.setattr(FakeEngine, "refuses", ("create", "remove"))
    [(what, advice)] = [
        one for one in findings(tmp_path, level="problem") if one[0].startswith("the engine")
    ]
    assert what == (
        "the engine, or a proxy in front of it, refuses POST /containers/create, "
        "DELETE /containers/ID"
    )
    assert advice == "allow the calls of docs/security.md"
    monkeypatch.setattr(FakeEngine, "refuses", ("exec",))
    [what] = [what for what, _ in findings(tmp_path, level="problem") if "refuses" in what]
    assert what.endswith("refuses POST /containers/ID/exec")


@pytest.mark.parametrize(
    ("env", "advice"),
    [
        ({}, "mount the socket (-v /var/run/docker.sock:/var/run/docker.sock), or set DOCKER_HOST"),
        ({"DOCKER_HOST": "tcp://10.0.0.1:2376"}, "check DOCKER_HOST=tcp://10.0.0.1:2376"),
    ],
)
def test_the_advice_for_an_engine_that_does_not_answer_names_what_was_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], advice: str
) -> None:
    def info(self: FakeEngine) -> dict[str, Any]:
        raise UnreachableError("nothing listens")

    monkeypatch.setattr(FakeEngine, "info", info)
    assert findings(tmp_path, env, level="problem") == [("nothing listens", advice)]


def test_nothing_is_said_where_every_name_is_known(tmp_path: Path) -> None:
    env = {"AUTOHEAL_INTERVAL": "5", "AUTOHEAL_PORT": "80", "WEBHOOK_URL": "http://x"}
    labels = {"autoheal.window": "60", "autoheal.group": "a", "com.docker.compose.project": "p"}
    assert findings(tmp_path, env, inside=["PROBE_MODEL=a", "OLLAMA_X=1"], labels=labels) == []


def test_an_unknown_variable_of_autoheal_is_named(tmp_path: Path) -> None:
    assert findings(tmp_path, {"AUTOHEAL_INTERVALL": "5"}) == [
        ("AUTOHEAL_INTERVALL is not a setting of autoheal", "did you mean AUTOHEAL_INTERVAL?")
    ]


def test_an_unknown_variable_of_a_probe_is_named_with_its_container(tmp_path: Path) -> None:
    assert findings(tmp_path, inside=["PROBE_MODLE=a", "PROBE_XYZZY=1"]) == [
        ("ollama: PROBE_MODLE is not a setting of the probe", "did you mean PROBE_MODEL?"),
        ("ollama: PROBE_XYZZY is not a setting of the probe", "see docs/configuration.md"),
    ]


def test_a_variable_that_the_probe_no_longer_uses_is_named(tmp_path: Path) -> None:
    [(what, advice)] = findings(tmp_path, inside=["PROBE_QUIET=60"])
    assert what == "ollama: PROBE_QUIET is no longer used"
    assert "PROBE_GENERATE" in advice


def test_the_variables_of_a_container_without_our_probe_are_its_own(tmp_path: Path) -> None:
    assert findings(tmp_path, test=OTHER, inside=["PROBE_MODLE=a"]) == []


@pytest.mark.parametrize("test", [PROBE, OTHER])
def test_an_unknown_label_is_named(tmp_path: Path, test: list[str]) -> None:
    assert findings(tmp_path, test=test, labels={"autoheal.windows": "60"}) == [
        ("ollama: autoheal.windows is not a label of autoheal", "did you mean autoheal.window?")
    ]


def status_of(version: str, **readings: str) -> str:
    return json.dumps({"server": {"version": version}, "readings": readings})


def test_the_ollama_of_a_container_is_named_with_whether_it_was_tested(tmp_path: Path) -> None:
    found = findings(tmp_path, said=status_of("0.33.0"), level="ok")
    [words] = [what for what, _ in found if "0.33.0" in what]
    assert words.startswith("ollama: Ollama 0.33.0 (models run in llama-server): not tested")


def test_an_ollama_newer_than_any_tested_one_is_a_warning(tmp_path: Path) -> None:
    [(what, _)] = findings(tmp_path, said=status_of("9.0.0"))
    assert what.startswith(
        "ollama: Ollama 9.0.0 (models run in llama-server): not tested, and newer"
    )


def test_a_gpu_that_was_never_used_is_a_warning(tmp_path: Path) -> None:
    [(what, advice)] = findings(tmp_path, said=status_of("0.34.2", gpu="never used"))
    assert what == "ollama has a GPU, and no model has been in its VRAM yet"
    assert "PROBE_GPU=required" in advice


@pytest.mark.parametrize(
    "said", ["", "sh: ollama-probe: not found", "[]", "7", '{"server": null}', status_of("")]
)
def test_a_probe_that_does_not_tell_is_no_fault(tmp_path: Path, said: str) -> None:
    """As one of an earlier release, or while the server does not answer."""
    assert findings(tmp_path, said=said) == []
    found = findings(tmp_path, said=said, level="ok")
    assert ("ollama: its version of Ollama could not be determined", "") in found


COUNTING = [*PROBE, "--retries", "3"]
IMAGE = ["PROBE_RETRIES=3"]
TWICE, NOBODY = "counts by itself", "nothing counts"


@pytest.mark.parametrize(
    ("test", "inside", "retries", "said"),
    [
        (COUNTING, [], 3, TWICE),
        (COUNTING, [], 0, TWICE),  # Docker's own number is three
        ([*PROBE, "--retries=3"], [], 3, TWICE),
        (PROBE, IMAGE, 3, TWICE),
        (PROBE, IMAGE, 1, ""),
        (COUNTING, [], 1, ""),
        (PROBE, [], 3, ""),
        ([*PROBE, "--retries", "1"], IMAGE, 3, ""),
        ([*PROBE, "--retries", "1"], IMAGE, 1, NOBODY),
        (PROBE, ["PROBE_RETRIES=1"], 1, NOBODY),
        (OTHER, IMAGE, 1, NOBODY),
        (OTHER, IMAGE, 3, ""),
        (OTHER, [], 1, ""),  # it is not known to be anything but what its user wants
    ],
)
def test_failures_that_are_counted_twice_or_by_nobody_are_named(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    test: list[str],
    inside: list[str],
    retries: int,
    said: str,
) -> None:
    monkeypatch.setattr(FakeEngine, "check", {"Retries": retries})
    found = [what for what, _ in findings(tmp_path, test=test, inside=inside)]
    assert [words for words in (TWICE, NOBODY) for what in found if words in what] == (
        [said] if said else []
    )


ENDS = ["PROBE_HEAL=restart"]
KNOWS = [*ENDS, "PROBE_RESTART_POLICY=unless-stopped"]


@pytest.mark.parametrize(
    ("test", "inside", "policy", "level", "advice"),
    [
        (PROBE, KNOWS, "unless-stopped", "warning", ""),
        (PROBE, KNOWS, "always", "warning", ""),
        (PROBE, ["PROBE_HEAL=runner"], "no", "problem", ""),
        (PROBE, KNOWS, "no", "problem", "set PROBE_HEAL=runner"),
        (PROBE, KNOWS, "", "problem", "set PROBE_HEAL=runner"),
        (PROBE, KNOWS, "on-failure", "problem", "set PROBE_HEAL=runner"),  # Ollama ends with 0
        (
            [*PROBE, "--heal", "restart", "--restart-policy=always"],
            *([], "no", "problem", "give it the policy always"),
        ),
        (PROBE, ENDS, "always", "warning", "set PROBE_RESTART_POLICY=always"),
        (PROBE, ENDS, "no", "warning", "set PROBE_RESTART_POLICY=unless-stopped, and give it"),
        (PROBE, ENDS, "no", "problem", ""),
    ],
)
def test_a_check_that_ends_its_server_needs_a_policy_that_starts_it_again(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    test: list[str],
    inside: list[str],
    policy: str,
    level: str,
    advice: str,
) -> None:
    monkeypatch.setattr(FakeEngine, "host", {"RestartPolicy": {"Name": policy}})
    found = findings(tmp_path, test=test, inside=inside, level=level)
    said = [words for what, words in found if "PROBE_HEAL=restart" in what]
    assert len(said) == bool(advice)
    assert all(advice in words for words in said)


def test_a_task_of_a_swarm_is_replaced_and_needs_no_policy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    labels = {"com.docker.swarm.task.id": "t"}
    for level in ("warning", "problem"):
        found = findings(tmp_path, inside=KNOWS, labels=labels, level=level)
        assert not [what for what, _ in found if "PROBE_HEAL" in what]
