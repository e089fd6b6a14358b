"""Settings of both programs: every form that is allowed, and one clear line for the rest."""

from __future__ import annotations

import pytest

import autoheal.settings
import probe.settings
from autoheal.cli import app
from probe.cli import OneLineGroup, main
from probe.knobs import SettingError
from probe.setting_names import retired_names, setting_notes, unknown_names
from probe.settings import RETIRED_FLAGS, SERVE_KNOBS, Settings, ollama_url


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
    ("text", "models"),
    [
        ("", ()),
        ("llama3.1:8b", ("llama3.1:8b",)),
        ("a,b", ("a", "b")),
        (" b , a ,, b", ("b", "a")),
        ("  ", ()),
    ],
)
def test_one_or_several_models_are_required(text: str, models: tuple[str, ...]) -> None:
    assert Settings.from_flags_and_env({}, {"PROBE_MODEL": text}).models == models


def test_the_flag_for_the_required_models_is_model() -> None:
    flags = main.commands["check"].make_context("check", ["--model", "a,b"]).params
    assert Settings.from_flags_and_env(flags, {}).models == ("a", "b")


@pytest.mark.parametrize(("text", "share"), [("auto", None), ("Auto", None), ("50", 50.0)])
def test_how_much_must_be_in_vram_is_a_percentage_or_left_to_the_probe(
    text: str, share: float | None
) -> None:
    assert Settings.from_flags_and_env({}, {"PROBE_MIN_VRAM_PERCENT": text}).min_vram == share


@pytest.mark.parametrize(("text", "rate"), [("off", None), ("5", 5.0), ("learned", None)])
def test_what_is_slow_is_a_fixed_rate_or_nothing(text: str, rate: float | None) -> None:
    env = {"PROBE_MIN_TOKENS_PER_SECOND": text}
    assert Settings.from_flags_and_env({}, env).min_tokens_per_second == rate


RETIRED = {
    "PROBE_QUIET": "60",
    "PROBE_MAX_FIRST_TOKEN": "learned",
    "PROBE_MIN_TOKENS_PER_SECOND": "learned",
}


@pytest.mark.parametrize("env", [RETIRED, {"PROBE_QUIET": "nonsense", "OLLAMA_KEEP_ALIVE": "x"}])
def test_a_setting_that_is_no_longer_used_is_ignored(env: dict[str, str]) -> None:
    assert Settings.from_flags_and_env({}, env) == Settings()


@pytest.mark.parametrize("command", ["check", "status", "serve"])
@pytest.mark.parametrize("flag", RETIRED_FLAGS)
def test_a_flag_that_is_no_longer_used_is_ignored_and_not_in_the_help(
    command: str, flag: str
) -> None:
    found = main.commands[command]
    context = found.make_context(command, [flag, "60"])
    assert set(context.params) == set(found.make_context(command, []).params)
    assert flag not in found.get_help(context)


@pytest.mark.parametrize(
    ("program", "words", "problem"),
    [
        (main, ["serve", "--port", "80"], "No such option '--port'; see ollama-probe serve --help"),
        (
            main,
            ["status", "--tiemout", "5"],
            "No such option '--tiemout'. Did you mean '--timeout'?; see ollama-probe status --help",
        ),
        (app, ["heal"], "Missing argument 'NAME'; see autoheal heal --help"),
    ],
)
def test_a_wrong_command_line_is_one_line_that_names_the_help(
    program: OneLineGroup, words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(words, prog_name=program.name)
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"{program.name}: {problem}\n"


def test_the_help_of_an_option_says_what_is_allowed() -> None:
    command = main.commands["check"]
    text = " ".join(command.get_help(command.make_context("check", [])).split())
    assert "Allowed: one of auto, required, off. [PROBE_GPU; default: auto]" in text


def test_a_setting_that_is_no_longer_used_is_named() -> None:
    assert [name for name, _ in retired_names(RETIRED)] == [
        "PROBE_QUIET",
        "PROBE_MAX_FIRST_TOKEN",
        "PROBE_MIN_TOKENS_PER_SECOND=learned",
    ]
    assert retired_names({"PROBE_QUIET": "", "PROBE_MIN_TOKENS_PER_SECOND": "5"}) == []
    assert unknown_names("PROBE_", probe.settings.KNOBS, RETIRED) == []


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("PROBE_MODLE", "PROBE_MODEL"),
        ("PROBE_MODELS", "PROBE_MODEL"),
        ("PROBE_TIME_OUT", "PROBE_TIMEOUT"),
        ("PROBE_VRAM", None),
        ("PROBE_XYZZY", None),
    ],
)
def test_an_unknown_name_is_found_with_the_nearest_real_one(name: str, nearest: str | None) -> None:
    knobs = (*probe.settings.KNOBS, *SERVE_KNOBS)
    env = {name: "x", "PROBE_GPU": "auto", "PROBE_LISTEN": ":1", "HOME": "/", "MODLE": "x"}
    assert unknown_names("PROBE_", knobs, env) == [(name, nearest)]


def test_the_status_has_a_line_for_each_odd_name() -> None:
    env = {"PROBE_MODLE": "a", "PROBE_XYZZY": "1", "PROBE_QUIET": "0", "PROBE_MODEL": "b"}
    assert setting_notes(env) == [
        "PROBE_MODLE is not a setting; did you mean PROBE_MODEL?",
        "PROBE_XYZZY is not a setting",
        "PROBE_QUIET is no longer used; PROBE_GENERATE says when a check requests a token",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "PROBE_EMPTY",
        # Compose, `make` and the tests
        *("AUTOHEAL_PORT", "AUTOHEAL_TEST_RUN"),
        # Kubernetes and Docker's links, for a service of that name
        *("PROBE_SERVICE_HOST", "PROBE_SERVICE_PORT_HTTP", "PROBE_PORT", "PROBE_NAME"),
        *("AUTOHEAL_PORT_8787_TCP", "AUTOHEAL_PORT_8787_TCP_ADDR", "AUTOHEAL_WEB_SERVICE_HOST"),
    ],
)
def test_a_name_that_is_empty_or_of_another_tool_is_not_unknown(name: str) -> None:
    prefix = name.partition("_")[0] + "_"
    value = "" if name == "PROBE_EMPTY" else "x"
    assert unknown_names(prefix, autoheal.settings.KNOBS, {name: value}) == []


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
        ({"PROBE_MODEL": ","}, "PROBE_MODEL=',': must be names of models, separated by commas"),
        ({"PROBE_GPU": "yes"}, "PROBE_GPU='yes': must be one of auto, required, off"),
        (
            {"PROBE_MIN_VRAM_PERCENT": "0"},
            "PROBE_MIN_VRAM_PERCENT='0': must be auto or a percentage above 0 and up to 100",
        ),
        (
            {"PROBE_GENERATE": "sometimes"},
            "PROBE_GENERATE='sometimes': must be one of auto, always, never",
        ),
        (
            {"PROBE_MIN_TOKENS_PER_SECOND": "fast"},
            "PROBE_MIN_TOKENS_PER_SECOND='fast': must be off or a number of tokens per second from "
            "0.001 to 100000",
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
    assert settings.policy(labels).watched is watched


def test_a_bad_label_is_a_problem_and_the_default_holds() -> None:
    labels = {"autoheal": "true", "autoheal.stop.timeout": "x"}
    policy = autoheal.settings.Settings().policy(labels)
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
