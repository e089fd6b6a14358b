"""Settings of both programs: every form that is allowed, and one clear line for the rest."""

from __future__ import annotations

import math

import pytest

import autoheal.settings
import probe.settings
from autoheal.cli import app
from probe.settings import SettingError, Settings, ollama_keep_alive, ollama_url


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:11434", "http://127.0.0.1:11434"),
        (":8080", "http://127.0.0.1:8080"),
        ("example", "http://example:11434"),
        ("example:1234", "http://example:1234"),
        ("http://example", "http://example:80"),
        ("https://example", "https://example:443"),
        ("https://example:8443/base/", "https://example:8443/base"),
        ("::", "http://[::1]:11434"),
        ("::1", "http://[::1]:11434"),
        ("[::]:11434", "http://[::1]:11434"),
        ("[fe80::1]", "http://[fe80::1]:11434"),
        ('"10.0.0.1"', "http://10.0.0.1:11434"),
    ],
)
def test_ollama_host_is_read_as_ollama_reads_it(text: str, url: str) -> None:
    assert ollama_url(text) == url


@pytest.mark.parametrize("text", ["ftp://x", "x:port", "x:70000", "a b", "user@host", "[::1"])
def test_an_address_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match=r"^OLLAMA_HOST=.*: must be an address as Ollama takes"):
        Settings.from_flags_and_env({}, {"OLLAMA_HOST": text})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5m", 300), ("1h30m", 5400), ("90", 90), ("-1", math.inf), ("-1m", math.inf), ("soon", 300)],
)
def test_ollama_keep_alive_is_read_as_ollama_reads_it(text: str, seconds: float) -> None:
    assert ollama_keep_alive(text) == seconds


def test_a_flag_goes_before_a_variable_and_a_variable_before_the_default() -> None:
    env = {"PROBE_TIMEOUT": "7"}
    assert Settings.from_flags_and_env({"timeout": "3"}, env).timeout == 3
    assert Settings.from_flags_and_env({"timeout": None}, env).timeout == 7
    assert Settings.from_flags_and_env({}, {"PROBE_TIMEOUT": ""}).timeout == 10


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            {"PROBE_TIMEOUT": "abc"},
            "PROBE_TIMEOUT='abc': must be a number of seconds from 1 to 300",
        ),
        (
            {"PROBE_TIMEOUT": "nan"},
            "PROBE_TIMEOUT='nan': must be a number of seconds from 1 to 300",
        ),
        ({"PROBE_GPU": "yes"}, "PROBE_GPU='yes': must be one of auto, required, off"),
        (
            {"PROBE_MIN_VRAM_PERCENT": "0"},
            "PROBE_MIN_VRAM_PERCENT='0': must be a percentage above 0 and up to 100",
        ),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(env: dict[str, str], message: str) -> None:
    with pytest.raises(SettingError) as caught:
        Settings.from_flags_and_env({}, env)
    assert str(caught.value) == message


@pytest.mark.parametrize("module", [probe.settings, autoheal.settings])
def test_the_defaults_in_the_table_are_those_of_the_settings(module: object) -> None:
    knobs = module.KNOBS  # type: ignore[attr-defined]
    settings = module.Settings  # type: ignore[attr-defined]
    assert settings.from_flags_and_env({}, {}) == settings()
    assert len({knob.env for knob in knobs}) == len(knobs)


@pytest.mark.parametrize(
    ("label", "labels", "watched"),
    [
        ("autoheal", {"autoheal": "true"}, True),
        ("autoheal", {"autoheal": "True"}, True),
        ("autoheal", {"autoheal": "false"}, False),
        ("autoheal", {}, False),
        ("mine", {"mine": "true"}, True),
        ("mine", {"autoheal": "true"}, False),
        ("all", {}, True),
        ("all", {"autoheal": "False"}, False),
    ],
)
def test_a_label_says_who_is_watched(label: str, labels: dict[str, str], watched: bool) -> None:
    settings = autoheal.settings.Settings(container_label=label)
    assert autoheal.settings.policy(labels, settings).watched is watched


def test_a_bad_label_is_a_problem_and_the_default_holds() -> None:
    labels = {"autoheal": "true", "autoheal.stop.timeout": "x"}
    policy = autoheal.settings.policy(labels, autoheal.settings.Settings())
    assert policy.stop_timeout == 10
    assert policy.problems == (
        "label autoheal.stop.timeout='x': must be a number of seconds from 0 to 3600; using 10",
    )


@pytest.mark.parametrize(
    ("words", "value", "address"),
    [
        ([], None, None),
        (["--web"], "on", ("127.0.0.1", 8787)),
        (["--web", ":80"], ":80", ("0.0.0.0", 80)),
        (["--web", "[::1]:80"], "[::1]:80", ("::1", 80)),
        (["--web", "off"], "off", None),
    ],
)
def test_the_page_has_an_address_of_its_own_or_the_one_that_is_given(
    words: list[str], value: str | None, address: tuple[str, int] | None
) -> None:
    flags = app.commands["run"].make_context("run", words).params
    assert flags["web"] == value
    assert autoheal.settings.Settings.from_flags_and_env(flags, {}).web == address


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            {"AUTOHEAL_WEB": "everywhere"},
            "AUTOHEAL_WEB='everywhere': must be on, off, or an address: host:port or :port",
        ),
        (
            {"AUTOHEAL_WEB_TOKEN": "short"},
            "AUTOHEAL_WEB_TOKEN=(hidden): must be at least 16 printable characters without a space",
        ),
        (
            {"AUTOHEAL_WEB_HOSTS": "a b"},
            "AUTOHEAL_WEB_HOSTS='a b': must be names of hosts, separated by commas",
        ),
        ({"AUTOHEAL_HOST_IP": "here"}, "AUTOHEAL_HOST_IP='here': must be an IP address"),
    ],
)
def test_a_bad_setting_of_the_page_is_named_and_a_secret_not_shown(
    env: dict[str, str], message: str
) -> None:
    with pytest.raises(SettingError) as caught:
        autoheal.settings.Settings.from_flags_and_env({}, env)
    assert str(caught.value) == message
