"""Process settings from flags and the environment; a container's own `Policy` from its labels."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any

from autoheal.incident import Action, News
from probe.knobs import Knob, address, number, one_of, read, seconds

DEFAULT_WEB = ("127.0.0.1", 8787)

MEMORY = ":memory:"
"""A ledger that lives as long as this container's memory."""

_interval, _interval_allowed = seconds(1, 86_400)
_number, _number_allowed = number(1, 10_000, "a whole number")
_percent, _percent_allowed = number(0.1, 100_000, "a percentage")
_bytes, _bytes_allowed = number(1, 1e15, "a number of bytes per second")
_log_size, _log_size_allowed = number(10_000, 1e12, "a number of bytes")
_scope, _scope_allowed = one_of("service", "stack")
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


def _whole(text: str) -> int:
    value = _number(text)
    if value != int(value):
        raise ValueError(text)
    return int(value)


def _optional(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: parse(text) if text else None


def _action(text: str) -> Action | None:
    return None if text.lower() == "ladder" else Action(text.lower())


def _ladder(text: str) -> tuple[Action, ...]:
    actions = tuple(Action(word.strip().lower()) for word in text.split(","))
    if Action.NONE in actions:
        raise ValueError(text)
    return actions


def _news(text: str) -> frozenset[News]:
    if text.lower() in ("all", "true"):
        return frozenset(News)
    if text.lower() in ("none", "false"):
        return frozenset()
    return frozenset(News(word.strip().lower()) for word in text.split(","))


def _urls(text: str) -> tuple[str, ...]:
    """Apprise's addresses; which services there are is for Apprise to say."""
    urls = tuple(url for url in re.split(r"[\s,]+(?=[a-z0-9]+://)", text.strip()) if url)
    if not all(re.fullmatch(r"[a-z0-9]+://\S+", url) for url in urls):
        raise ValueError(text)
    return urls


def _absolute(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError(text)
    return text


def _ledger_path(text: str) -> str:
    return text if text == MEMORY else _absolute(text)


def _words(text: str) -> str:
    if not text:
        raise ValueError(text)
    return text


def _web(text: str) -> tuple[str, int] | None:
    if text.lower() in ("on", "true", "1", "yes"):
        return DEFAULT_WEB
    return None if text.lower() in ("", "off", "false", "0", "no") else address(text)


def _token(text: str) -> str:
    if not re.fullmatch(r"[!-~]{16,}", text):
        raise ValueError(text)
    return text


def _hosts(text: str) -> tuple[str, ...]:
    names = tuple(name.strip().lower() for name in text.split(",") if name.strip())
    if not all(re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", name) for name in names):
        raise ValueError(text)
    return names


PROCESS_KNOBS: tuple[Knob, ...] = (
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
        "only_monitor_running",
        "AUTOHEAL_ONLY_MONITOR_RUNNING",
        "false",
        _boolean,
        "true or false",
        "Accepted for compatibility; has no effect. A container that somebody stopped or paused "
        "is left alone with either value.",
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
        "Where notifications are sent as JSON, by POST.",
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
        "An Apprise API server to which notifications are sent.",
        secret=True,
    ),
    Knob(
        "notify_urls",
        "AUTOHEAL_NOTIFY_URLS",
        "",
        _urls,
        "Apprise's addresses (service://...), separated by spaces or commas",
        "Where notifications are sent, by any of the services that Apprise supports.",
        secret=True,
    ),
    Knob(
        "notify_script",
        "AUTOHEAL_NOTIFY_SCRIPT",
        "",
        _optional(_absolute),
        "a program's absolute path",
        "Run for each notification, with the event, the container's name and the text.",
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
        _absolute,
        "a directory",
        "Where the heartbeat for `autoheal health` is kept, and a ledger in memory (tmpfs).",
    ),
    Knob(
        "ledger",
        "AUTOHEAL_LEDGER",
        MEMORY,
        _ledger_path,
        "a file's absolute path, or :memory:",
        "Where incidents, attempts and steps are written down before they are taken. In memory, "
        "what was under way is lost with this container.",
    ),
    Knob(
        "history_days",
        "AUTOHEAL_HISTORY_DAYS",
        "90",
        _whole,
        _number_allowed,
        "For how many days the ledger keeps incidents that are over.",
    ),
    Knob(
        "max_at_once",
        "AUTOHEAL_MAX_AT_ONCE",
        "8",
        _whole,
        _number_allowed,
        "How many containers may be in healing at once.",
    ),
    Knob(
        "max_per_minute",
        "AUTOHEAL_MAX_PER_MINUTE",
        "60",
        _whole,
        _number_allowed,
        "How many heals may begin within a minute.",
    ),
    Knob(
        "log_dir",
        "AUTOHEAL_LOG_DIR",
        "",
        _optional(_absolute),
        "a directory's absolute path",
        "Write the log to files there too, each named by the time of its first line.",
    ),
    Knob(
        "log_bytes",
        "AUTOHEAL_LOG_BYTES",
        "2097152",
        _log_size,
        _log_size_allowed,
        "How large such a file may get before the next one is begun.",
    ),
    Knob(
        "log_count",
        "AUTOHEAL_LOG_COUNT",
        "5",
        _whole,
        _number_allowed,
        "How many such files are kept.",
    ),
    Knob(
        "check_interval",
        "CHECK_INTERVAL",
        "120",
        _interval,
        _interval_allowed,
        "How often a container's use of CPU, memory and disk is measured, where one of the "
        "limits below is set.",
    ),
    Knob(
        "max_unhealthy",
        "MAX_UNHEALTHY",
        "3",
        _whole,
        _number_allowed,
        "How many of those measurements in a row must be over a limit before that is a fault.",
    ),
    Knob(
        "max_cpu_percent",
        "MAX_CPU_PERCENT",
        "",
        _optional(_percent),
        _percent_allowed,
        "More CPU than this is a fault (100: one core). Empty: no limit.",
    ),
    Knob(
        "max_memory_percent",
        "MAX_MEMORY_PERCENT",
        "",
        _optional(_percent),
        _percent_allowed,
        "More memory than this is a fault (of its limit, or of the machine). Empty: no limit.",
    ),
    Knob(
        "max_io_bytes",
        "MAX_IO_BYTES",
        "",
        _optional(_bytes),
        _bytes_allowed,
        "More bytes per second to and from disk than this are a fault. Empty: no limit.",
    ),
    Knob(
        "web",
        "AUTOHEAL_WEB",
        "",
        _web,
        "on, off, or an address: host:port or :port",
        "Where the status page, its JSON and the metrics are served; on: 127.0.0.1:8787.",
        alone="on",
    ),
    Knob(
        "web_token",
        "AUTOHEAL_WEB_TOKEN",
        "",
        _optional(_token),
        "at least 16 printable characters without a space",
        "Whoever has it may heal, pause and resume on the page. Empty: the page is read-only.",
        secret=True,
    ),
    Knob(
        "web_hosts",
        "AUTOHEAL_WEB_HOSTS",
        "",
        _hosts,
        "names of hosts, separated by commas",
        "Names with a dot by which the page may be asked for. Addresses and names without a dot "
        "always are allowed.",
    ),
    Knob(
        "host_ip",
        "AUTOHEAL_HOST_IP",
        "",
        lambda text: str(ip_address(text)) if text else "",
        "an IP address",
        "The machine's address, to be shown on the page; a container cannot know it.",
    ),
    Knob(
        "note",
        "AUTOHEAL_NOTE",
        "",
        str,
        "any text",
        "A note about this machine, to be shown on the page.",
    ),
)


@dataclass(frozen=True)
class PolicyKnob(Knob):
    """A setting that a container may have of its own, in a label; the variable is the default."""

    label: str = ""


POLICY_KNOBS: tuple[PolicyKnob, ...] = (
    PolicyKnob(
        "action",
        "AUTOHEAL_ACTION",
        "ladder",
        _action,
        "one of ladder, runner, restart, recreate, redeploy, stop, none",
        "What is done: one action after the other (ladder), the same each time, or only a "
        "notification (none).",
        label="autoheal.action",
    ),
    PolicyKnob(
        "ladder",
        "AUTOHEAL_LADDER",
        "runner,restart,restart,recreate,redeploy",
        _ladder,
        "a list of runner, restart, recreate, redeploy and stop, separated by commas",
        "Which action comes next when the last did not help. At its end it is given up.",
        label="autoheal.ladder",
    ),
    PolicyKnob(
        "stop_timeout",
        "AUTOHEAL_DEFAULT_STOP_TIMEOUT",
        "10",
        lambda text: round(_stop(text)),
        _stop_allowed,
        "How long it may take to stop before it is killed.",
        label="autoheal.stop.timeout",
    ),
    PolicyKnob(
        "max_attempts",
        "AUTOHEAL_MAX_ATTEMPTS",
        "10",
        _whole,
        _number_allowed,
        "How many attempts there may be within the window; then it is given up.",
        label="autoheal.max-attempts",
    ),
    PolicyKnob(
        "window",
        "AUTOHEAL_WINDOW",
        "3600",
        _interval,
        _interval_allowed,
        "The window of that budget.",
        label="autoheal.window",
    ),
    PolicyKnob(
        "backoff",
        "AUTOHEAL_BACKOFF",
        "10",
        _stop,
        _stop_allowed,
        "The wait after the first attempt; it doubles with each that follows, up to 10 minutes, "
        "and each is longer by up to a quarter, at random.",
        label="autoheal.backoff",
    ),
    PolicyKnob(
        "settle",
        "AUTOHEAL_SETTLE",
        "60",
        _period,
        _period_allowed,
        "How long it must stay healthy before an incident is over.",
        label="autoheal.settle",
    ),
    PolicyKnob(
        "delay",
        "AUTOHEAL_DELAY",
        "0",
        _stop,
        _stop_allowed,
        "Delay before the first attempt, so that a load balancer can drain it. It is left alone "
        "if it becomes healthy meanwhile.",
        label="autoheal.delay",
    ),
    PolicyKnob(
        "dry_run",
        "AUTOHEAL_DRY_RUN",
        "false",
        _boolean,
        "true or false",
        "Say what would be done, and do nothing.",
        label="autoheal.dry-run",
    ),
    PolicyKnob(
        "notify",
        "AUTOHEAL_NOTIFY",
        "all",
        _news,
        "all, none, or a list of healed, failed, given_up, operator and degraded",
        "Which events send a notification.",
        label="autoheal.notify",
    ),
    PolicyKnob(
        "redeploy",
        "AUTOHEAL_REDEPLOY",
        "service",
        _scope,
        _scope_allowed,
        "What a redeploy of a Swarm service takes with it: the service, or its whole stack.",
        label="autoheal.redeploy",
    ),
    PolicyKnob(
        "stack_file",
        "AUTOHEAL_STACK_FILE",
        "",
        _optional(_absolute),
        "a file's absolute path",
        "A redeploy of a Swarm stack runs `docker stack deploy` with this file.",
        label="autoheal.stack.file",
    ),
    PolicyKnob(
        "itself",
        "AUTOHEAL_ITSELF",
        "false",
        _boolean,
        "true or false",
        "Heal the container that autoheal runs in too.",
        label="autoheal.itself",
    ),
)

KNOBS: tuple[Knob, ...] = (*PROCESS_KNOBS, *POLICY_KNOBS)


@dataclass(frozen=True)
class Policy:
    """How one container is treated; see `POLICY_KNOBS` for meaning and bounds.

    Attributes:
        watched: it may be healed.
        action: what is done each time; None: what the ladder says.
        problems: what is wrong with its labels; the defaults hold instead.
    """

    watched: bool = False
    action: Action | None = None
    ladder: tuple[Action, ...] = (
        *(Action.RUNNER, Action.RESTART, Action.RESTART),
        *(Action.RECREATE, Action.REDEPLOY),
    )
    stop_timeout: int = 10
    max_attempts: int = 10
    window: float = 3600.0
    backoff: float = 10.0
    settle: float = 60.0
    delay: float = 0.0
    dry_run: bool = False
    notify: frozenset[News] = frozenset(News)
    redeploy: str = "service"
    stack_file: str | None = None
    itself: bool = False
    problems: tuple[str, ...] = ()

    @property
    def rungs(self) -> tuple[Action, ...]:
        """The ladder; one action alone is tried as long as the budget allows."""
        return self.ladder if self.action is None else (self.action,) * (self.max_attempts + 1)


@dataclass(frozen=True)
class Settings:
    """The supervisor's settings; see `PROCESS_KNOBS` for meaning and bounds. Times are in seconds.

    Attributes:
        defaults: how a container is treated that has no labels of its own about that.
    """

    container_label: str = "autoheal"
    interval: float = 30.0
    start_period: float = 0.0
    only_monitor_running: bool = False
    docker_sock: str | None = None
    api_timeout: float = 30.0
    webhook_url: str | None = None
    webhook_json_key: str = "text"
    apprise_url: str | None = None
    notify_urls: tuple[str, ...] = ()
    notify_script: str | None = None
    post_restart_script: str | None = None
    log_format: str = "text"
    state_dir: str = "/dev/shm"
    ledger: str = MEMORY
    history_days: int = 90
    max_at_once: int = 8
    max_per_minute: int = 60
    log_dir: str | None = None
    log_bytes: float = 2 * 1024 * 1024
    log_count: int = 5
    check_interval: float = 120.0
    max_unhealthy: int = 3
    max_cpu_percent: float | None = None
    max_memory_percent: float | None = None
    max_io_bytes: float | None = None
    web: tuple[str, int] | None = None
    web_token: str | None = None
    web_hosts: tuple[str, ...] = ()
    host_ip: str = ""
    note: str = ""
    defaults: Policy = field(default_factory=Policy)

    @classmethod
    def from_flags_and_env(
        cls, flags: Mapping[str, str | None], env: Mapping[str, str]
    ) -> Settings:
        """Read `KNOBS`; raises `SettingError`."""
        defaults = Policy(**read(POLICY_KNOBS, flags, env))
        return cls(**read(PROCESS_KNOBS, flags, env), defaults=defaults)

    @property
    def label_filter(self) -> str:
        """What a container must be labelled with to be watched; empty: every one is."""
        return "" if self.container_label == "all" else f"{self.container_label}=true"

    @property
    def ledger_path(self) -> str:
        """The ledger's file; one in memory lies on tmpfs, where commands find it too."""
        if self.ledger == MEMORY:
            return os.path.join(self.state_dir, "autoheal-ledger.db")
        return self.ledger


def policy(labels: Mapping[str, str], settings: Settings) -> Policy:
    """Read a container's labels. A bad value is a problem to report, never an error."""
    if settings.container_label == "all":
        watched = labels.get("autoheal", "").lower() != "false"
    else:
        watched = labels.get(settings.container_label, "").lower() == "true"
    own: dict[str, Any] = {}
    problems = []
    for knob in POLICY_KNOBS:
        text = labels.get(knob.label, "").strip()
        if text:
            try:
                own[knob.name] = knob.parse(text)
            except ValueError:
                default = _shown(getattr(settings.defaults, knob.name))
                problems.append(
                    f"label {knob.label}={text!r}: must be {knob.allowed}; using {default}"
                )
    return replace(settings.defaults, **own, watched=watched, problems=tuple(problems))


def _shown(value: Any) -> str:
    """A setting's value as a person would write it."""
    if value is None or isinstance(value, bool | str):
        return "none" if value is None else str(value).lower()
    if isinstance(value, float | int):
        return f"{value:g}"
    return ",".join(sorted(value) if isinstance(value, frozenset) else value) or "none"
