"""The settings of the process; those of one container are in `policy.py`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Self

from autoheal import policy
from probe.knobs import (
    BOOLEAN,
    ReadSettings,
    absolute,
    address,
    knobs_of,
    number,
    one_of,
    optional,
    seconds,
    setting,
    whole,
)

DEFAULT_WEB = ("127.0.0.1", 8787)

MEMORY = ":memory:"
"""A ledger that lives as long as this container's memory."""


def _label(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", text):
        raise ValueError(text)
    return text


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


def _urls(text: str) -> tuple[str, ...]:
    """Apprise's addresses; which services there are is for Apprise to say."""
    urls = tuple(url for url in re.split(r"[\s,]+(?=[a-z0-9]+://)", text.strip()) if url)
    if not all(re.fullmatch(r"[a-z0-9]+://\S+", url) for url in urls):
        raise ValueError(text)
    return urls


_path, _ = absolute("a file's absolute path")


def _ledger_path(text: str) -> str:
    return text if text == MEMORY else _path(text)


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


@dataclass(frozen=True)
class Settings(ReadSettings):
    """The supervisor's settings. Times are in seconds.

    Attributes:
        defaults: how a container is treated that has no labels of its own about that.
    """

    container_label: str = setting(
        "AUTOHEAL_CONTAINER_LABEL",
        "autoheal",
        (_label, "a label's name, or all"),
        "Containers with this label set to true are watched; all: every container, except "
        "those with autoheal=false.",
    )
    interval: float = setting(
        "AUTOHEAL_INTERVAL",
        "30",
        seconds(1, 86_400),
        "How often all containers are listed, should an event have been lost.",
    )
    start_period: float = setting(
        "AUTOHEAL_START_PERIOD",
        "0",
        seconds(0, 86_400),
        "How long to wait after the start before anything is healed.",
    )
    only_monitor_running: bool = setting(
        "AUTOHEAL_ONLY_MONITOR_RUNNING",
        "false",
        BOOLEAN,
        "Accepted for compatibility; has no effect. A container that somebody stopped or paused "
        "is left alone with either value.",
    )
    docker_sock: str | None = setting(
        "DOCKER_SOCK",
        "",
        (
            lambda text: _engine_url(text) if text else None,
            "a socket's path, tcp://host:port or tcps://host:port",
        ),
        "The engine: a unix socket, tcp://, or tcps:// with the certificates in /certs. "
        "Before DOCKER_HOST; with neither, /var/run/docker.sock.",
    )
    api_timeout: float = setting(
        "CURL_TIMEOUT",
        "30",
        seconds(1, 3_600),
        "How long one call to the engine may take.",
    )
    webhook_url: str | None = setting(
        "WEBHOOK_URL",
        "",
        (_web_url, "an http:// or https:// address"),
        "Where notifications are sent as JSON, by POST.",
        secret=True,
    )
    webhook_json_key: str = setting(
        "WEBHOOK_JSON_KEY",
        "text",
        (_words, "a word"),
        "The key of the text in that JSON.",
    )
    apprise_url: str | None = setting(
        "APPRISE_URL",
        "",
        (_web_url, "an http:// or https:// address"),
        "An Apprise API server to which notifications are sent.",
        secret=True,
    )
    notify_urls: tuple[str, ...] = setting(
        "AUTOHEAL_NOTIFY_URLS",
        "",
        (_urls, "Apprise's addresses (service://...), separated by spaces or commas"),
        "Where notifications are sent, by any of the services that Apprise supports.",
        secret=True,
    )
    notify_script: str | None = setting(
        "AUTOHEAL_NOTIFY_SCRIPT",
        "",
        optional(absolute("a program's absolute path")),
        "Run for each notification, with the event, the container's name and the text.",
    )
    post_restart_script: str | None = setting(
        "POST_RESTART_SCRIPT",
        "",
        (lambda text: text or None, "a program's path"),
        "Run after every restart with name, short id, state and stop timeout.",
    )
    log_format: str = setting(
        "AUTOHEAL_LOG_FORMAT",
        "text",
        one_of("text", "json"),
        "How the log is written: text, or JSON, one object a line.",
    )
    state_dir: str = setting(
        "AUTOHEAL_STATE_DIR",
        "/dev/shm",
        absolute("a directory"),
        "Where the heartbeat for `autoheal health` is kept, and a ledger in memory (tmpfs).",
    )
    ledger: str = setting(
        "AUTOHEAL_LEDGER",
        MEMORY,
        (_ledger_path, "a file's absolute path, or :memory:"),
        "Where incidents, attempts and steps are written down before they are taken. In memory, "
        "what was under way is lost with this container.",
    )
    history_days: int = setting(
        "AUTOHEAL_HISTORY_DAYS",
        "90",
        whole(1, 10_000),
        "For how many days the ledger keeps incidents that are over.",
    )
    max_at_once: int = setting(
        "AUTOHEAL_MAX_AT_ONCE",
        "8",
        whole(1, 10_000),
        "How many containers may be in healing at once.",
    )
    max_per_minute: int = setting(
        "AUTOHEAL_MAX_PER_MINUTE",
        "60",
        whole(1, 10_000),
        "How many heals may begin within a minute.",
    )
    log_dir: str | None = setting(
        "AUTOHEAL_LOG_DIR",
        "",
        optional(absolute("a directory's absolute path")),
        "Write the log to files there too, each named by the time of its first line.",
    )
    log_bytes: float = setting(
        "AUTOHEAL_LOG_BYTES",
        "2097152",
        number(10_000, 1e12, "a number of bytes"),
        "How large such a file may get before the next one is begun.",
    )
    log_count: int = setting(
        "AUTOHEAL_LOG_COUNT",
        "5",
        whole(1, 10_000),
        "How many such files are kept.",
    )
    check_interval: float = setting(
        "CHECK_INTERVAL",
        "120",
        seconds(1, 86_400),
        "How often a container's use of CPU, memory and disk is measured, where one of the "
        "limits below is set.",
    )
    max_unhealthy: int = setting(
        "MAX_UNHEALTHY",
        "3",
        whole(1, 10_000),
        "How many of those measurements in a row must be over a limit before that is a fault.",
    )
    max_cpu_percent: float | None = setting(
        "MAX_CPU_PERCENT",
        "",
        optional(number(0.1, 100_000, "a percentage")),
        "More CPU than this is a fault (100: one core). Empty: no limit.",
    )
    max_memory_percent: float | None = setting(
        "MAX_MEMORY_PERCENT",
        "",
        optional(number(0.1, 100_000, "a percentage")),
        "More memory than this is a fault (of its limit, or of the machine). Empty: no limit.",
    )
    max_io_bytes: float | None = setting(
        "MAX_IO_BYTES",
        "",
        optional(number(1, 1e15, "a number of bytes per second")),
        "More bytes per second to and from disk than this are a fault. Empty: no limit.",
    )
    web: tuple[str, int] | None = setting(
        "AUTOHEAL_WEB",
        "",
        (_web, "on, off, or an address: host:port or :port"),
        "Where the status page, its JSON and the metrics are served; on: 127.0.0.1:8787.",
        alone="on",
    )
    web_token: str | None = setting(
        "AUTOHEAL_WEB_TOKEN",
        "",
        optional((_token, "at least 16 printable characters without a space")),
        "Whoever has it may heal, pause and resume on the page. Empty: the page is read-only.",
        secret=True,
    )
    web_hosts: tuple[str, ...] = setting(
        "AUTOHEAL_WEB_HOSTS",
        "",
        (_hosts, "names of hosts, separated by commas"),
        "Names with a dot by which the page may be asked for. Addresses and names without a dot "
        "always are allowed.",
    )
    host_ip: str = setting(
        "AUTOHEAL_HOST_IP",
        "",
        (lambda text: str(ip_address(text)) if text else "", "an IP address"),
        "The machine's address, to be shown on the page; a container cannot know it.",
    )
    note: str = setting(
        "AUTOHEAL_NOTE",
        "",
        (str, "any text"),
        "A note about this machine, to be shown on the page.",
    )
    defaults: policy.Policy = field(default_factory=policy.Policy)

    @classmethod
    def from_flags_and_env(
        cls, flags: Mapping[str, str | None], env: Mapping[str, str], **more: Any
    ) -> Self:
        """Those of the process, and the defaults of all containers."""
        defaults = policy.Policy.from_flags_and_env(flags, env)
        return super().from_flags_and_env(flags, env, defaults=defaults, **more)

    def policy(self, labels: Mapping[str, str]) -> policy.Policy:
        """How a container with these labels is treated."""
        return policy.policy(labels, self.container_label, self.defaults)

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


PROCESS_KNOBS = knobs_of(Settings)
KNOBS = (*PROCESS_KNOBS, *policy.KNOBS)
