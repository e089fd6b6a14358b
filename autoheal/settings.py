"""Process settings from flags and the environment; a container's own `Policy` from its labels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from probe.settings import Knob, one_of, read, seconds

_interval, _interval_allowed = seconds(1, 86_400)
_period, _period_allowed = seconds(0, 86_400)
_stop, _stop_allowed = seconds(0, 3_600)
_api, _api_allowed = seconds(1, 3_600)
_log, _log_allowed = one_of("text", "json")


def _label(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", text):
        raise ValueError(text)
    return text


def _boolean(text: str) -> bool:
    try:
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
            text.lower()
        ]
    except KeyError:
        raise ValueError(text) from None


def _engine_url(text: str) -> str:
    """A Docker engine's address; a bare path is a unix socket."""
    if text.startswith("/"):
        return f"unix://{text}"
    if not re.fullmatch(r"unix:///\S+|(tcps?|https?)://[^/\s]+/?", text):
        raise ValueError(text)
    return text


def _web_url(text: str) -> str | None:
    if text and not re.fullmatch(r"https?://[^/\s]\S*", text):
        raise ValueError(text)
    return text or None


def _words(text: str) -> str:
    if not text:
        raise ValueError(text)
    return text


KNOBS: tuple[Knob, ...] = (
    Knob(
        "container_label",
        "AUTOHEAL_CONTAINER_LABEL",
        "autoheal",
        _label,
        "a label's name, or all",
        "Containers with this label set to true are watched; all: every container, except "
        "those with autoheal=false.",
    ),
    Knob(
        "interval",
        "AUTOHEAL_INTERVAL",
        "30",
        _interval,
        _interval_allowed,
        "How often all containers are listed, should an event have been lost.",
    ),
    Knob(
        "start_period",
        "AUTOHEAL_START_PERIOD",
        "0",
        _period,
        _period_allowed,
        "How long to wait after the start before anything is healed.",
    ),
    Knob(
        "default_stop_timeout",
        "AUTOHEAL_DEFAULT_STOP_TIMEOUT",
        "10",
        _stop,
        _stop_allowed,
        "How long a container may take to stop before it is killed. Label: autoheal.stop.timeout.",
    ),
    Knob(
        "only_monitor_running",
        "AUTOHEAL_ONLY_MONITOR_RUNNING",
        "false",
        _boolean,
        "true or false",
        "Known from docker-autoheal. A container that somebody stopped or paused is left alone "
        "with either value.",
    ),
    Knob(
        "docker_sock",
        "DOCKER_SOCK",
        "",
        lambda text: _engine_url(text) if text else None,
        "a socket's path, tcp://host:port or tcps://host:port",
        "The engine: a unix socket, tcp://, or tcps:// with the certificates in /certs. "
        "Before DOCKER_HOST; with neither, /var/run/docker.sock.",
    ),
    Knob(
        "api_timeout",
        "CURL_TIMEOUT",
        "30",
        _api,
        _api_allowed,
        "How long one call to the engine may take.",
    ),
    Knob(
        "webhook_url",
        "WEBHOOK_URL",
        "",
        _web_url,
        "an http:// or https:// address",
        "Told of every heal, as JSON by POST.",
        secret=True,
    ),
    Knob(
        "webhook_json_key",
        "WEBHOOK_JSON_KEY",
        "text",
        _words,
        "a word",
        "The key of the text in that JSON.",
    ),
    Knob(
        "apprise_url",
        "APPRISE_URL",
        "",
        _web_url,
        "an http:// or https:// address",
        "An Apprise API server, told of every heal.",
        secret=True,
    ),
    Knob(
        "post_restart_script",
        "POST_RESTART_SCRIPT",
        "",
        lambda text: text or None,
        "a program's path",
        "Run after every restart with name, short id, state and stop timeout.",
    ),
    Knob(
        "log_format",
        "AUTOHEAL_LOG_FORMAT",
        "text",
        _log,
        _log_allowed,
        "How the log is written: text, or JSON, one object a line.",
    ),
    Knob(
        "state_dir",
        "AUTOHEAL_STATE_DIR",
        "/dev/shm",
        str,
        "a directory",
        "Where the heartbeat for `autoheal health` is kept (tmpfs).",
    ),
)


@dataclass(frozen=True)
class Settings:
    """The supervisor's settings; see `KNOBS` for meaning and bounds. Times are in seconds."""

    container_label: str = "autoheal"
    interval: float = 30.0
    start_period: float = 0.0
    default_stop_timeout: float = 10.0
    only_monitor_running: bool = False
    docker_sock: str | None = None
    api_timeout: float = 30.0
    webhook_url: str | None = None
    webhook_json_key: str = "text"
    apprise_url: str | None = None
    post_restart_script: str | None = None
    log_format: str = "text"
    state_dir: str = "/dev/shm"

    @classmethod
    def from_flags_and_env(
        cls, flags: Mapping[str, str | None], env: Mapping[str, str]
    ) -> Settings:
        """Read `KNOBS`; raises `SettingError`."""
        return cls(**read(KNOBS, flags, env))


@dataclass(frozen=True)
class Policy:
    """How one container is treated.

    Attributes:
        watched: it may be healed.
        stop_timeout: seconds it may take to stop before it is killed.
        problems: what is wrong with its labels; the defaults hold instead.
    """

    watched: bool = False
    stop_timeout: int = 10
    problems: tuple[str, ...] = ()


def policy(labels: Mapping[str, str], settings: Settings) -> Policy:
    """Read a container's labels. A bad value is a problem to report, never an error."""
    if settings.container_label == "all":
        watched = labels.get("autoheal", "").lower() != "false"
    else:
        watched = labels.get(settings.container_label, "").lower() == "true"
    problems = []
    stop_timeout = settings.default_stop_timeout
    text = labels.get("autoheal.stop.timeout", "")
    if text:
        try:
            stop_timeout = _stop(text)
        except ValueError:
            problems.append(
                f"label autoheal.stop.timeout={text!r}: must be {_stop_allowed}; "
                f"using {stop_timeout:g}"
            )
    return Policy(watched, round(stop_timeout), tuple(problems))
