"""Every knob of the probe, and the small machine that reads knobs for both programs.

A knob is read from its flag, else from its environment variable, else it has its
default. A bad value is one `SettingError`: what, where, and what is allowed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Literal
from urllib.parse import urlsplit

Limit = float | Literal["learned"] | None
"""A limit that the user sets, one learned from the best that was seen, or none."""


class SettingError(ValueError):
    """A setting has a value that is not allowed; its text is the whole message for the user."""


@dataclass(frozen=True)
class Knob:
    """One setting: its name, how it is read, what it means.

    Attributes:
        name: attribute name in the settings object; the flag is `--` plus it with dashes.
        env: the environment variable.
        default: the default, as a user would write it.
        parse: text to value; raises `ValueError` for what is not allowed.
        allowed: what is allowed, in words that end the error message.
        help: one line for `--help` and the documentation.
        secret: its value must never be shown, not even when it is wrong.
        alone: the value that the flag means without one; None where it needs one.
    """

    name: str
    env: str
    default: str
    parse: Callable[[str], Any]
    allowed: str
    help: str
    secret: bool = False
    alone: str | None = None

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def read(
    knobs: Sequence[Knob], flags: Mapping[str, str | None], env: Mapping[str, str]
) -> dict[str, Any]:
    """Read every knob.

    Args:
        knobs: what to read.
        flags: values given as flags, by knob name; None where a flag was not given.
        env: the environment. A variable that is empty counts as not set.

    Returns:
        One parsed value for each knob's name.

    Raises:
        SettingError: for the first value that is not allowed.
    """
    values = {}
    for knob in knobs:
        flag = flags.get(knob.name)
        if flag is not None:
            source, text = knob.flag, flag
        elif env.get(knob.env, "") != "":
            source, text = knob.env, env[knob.env]
        else:
            source, text = knob.env, knob.default
        try:
            values[knob.name] = knob.parse(text.strip())
        except ValueError:
            shown = "(hidden)" if knob.secret else repr(text)
            raise SettingError(f"{source}={shown}: must be {knob.allowed}") from None
    return values


def number(low: float, high: float, what: str = "a number") -> tuple[Callable[[str], float], str]:
    """A parser for a number within bounds (both allowed), and those bounds in words."""

    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return parse, f"{what} from {low:g} to {high:g}"


def seconds(low: float, high: float) -> tuple[Callable[[str], float], str]:
    """A parser for a number of seconds within bounds (both allowed), and those bounds in words."""
    return number(low, high, "a number of seconds")


def one_of(*choices: str) -> tuple[Callable[[str], str], str]:
    """A parser for one of some words, in any case, and those words."""

    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(text)
        return text.lower()

    return parse, "one of " + ", ".join(choices)


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 1000:
        raise ValueError(text)
    return value


def _percent(text: str) -> float:
    value = float(text)
    if not 0 < value <= 100:
        raise ValueError(text)
    return value


def limit(low: float, high: float, what: str) -> tuple[Callable[[str], Limit], str]:
    """A parser for a limit that may be off, or learned, and what it allows in words."""
    parse_number, bounds = number(low, high, what)

    def parse(text: str) -> Limit:
        if text.lower() in ("off", "learned"):
            return None if text.lower() == "off" else "learned"
        return parse_number(text)

    return parse, f"off, learned, or {bounds}"


def address(text: str) -> tuple[str, int]:
    """`host:port`, all interfaces where the host is left out; raises `ValueError`."""
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ValueError(text)
    return host.strip("[]") or "0.0.0.0", int(port)


def ollama_url(text: str) -> str:
    """The URL at which a client in the same container reaches the server of `OLLAMA_HOST`.

    Follows Ollama's own reading of the variable: the scheme defaults to http, the port to
    11434 (80 and 443 where a scheme was written), and an address that means "all
    interfaces" when listening means loopback here.

    Raises:
        ValueError: when no server can be meant by it.
    """
    scheme, separator, rest = text.strip().strip("\"'").partition("://")
    if not separator:
        scheme, rest = "http", scheme
    if scheme not in ("http", "https"):
        raise ValueError(text)
    default_port = 11434 if not separator else 443 if scheme == "https" else 80
    hostport, slash, path = rest.partition("/")
    if hostport.count(":") > 1 and not hostport.startswith("["):
        hostport = f"[{hostport}]"  # a bare IPv6 address
    parts = urlsplit(f"//{hostport}")
    host, port = parts.hostname or "127.0.0.1", parts.port
    if parts.username is not None or any(c.isspace() or c in "?#" for c in hostport):
        raise ValueError(text)
    try:
        address = ip_address(host)
    except ValueError:
        pass
    else:
        if address.is_unspecified:
            address = ip_address("127.0.0.1" if address.version == 4 else "::1")
        host = f"[{address}]" if address.version == 6 else str(address)
    return f"{scheme}://{host}:{default_port if port is None else port}{slash}{path}".rstrip("/")


_GO_DURATION = re.compile(r"(\d+(?:\.\d*)?)(h|ms|m|s|us|µs|ns)")
_GO_UNITS = {"h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def ollama_keep_alive(text: str) -> float:
    """`OLLAMA_KEEP_ALIVE` in seconds, infinite where negative; 5 minutes for nonsense."""
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
    if digits.isdigit():
        value = float(digits)
    elif digits and not _GO_DURATION.sub("", digits):
        value = sum(float(n) * _GO_UNITS[unit] for n, unit in _GO_DURATION.findall(digits))
    else:
        return 300.0
    return math.inf if sign < 0 else value


_timeout, _timeout_allowed = seconds(1, 300)
_load, _load_allowed = seconds(10, 86_400)
_busy, _busy_allowed = seconds(10, 86_400)
_interval, _interval_allowed = seconds(1, 3600)
_watermark, _watermark_allowed = number(0, 1000)
_quiet, _quiet_allowed = seconds(0, 3600)
_first, _first_allowed = limit(0.001, 300, "a number of seconds")
_rate, _rate_allowed = limit(0.001, 100_000, "a number of tokens per second")
_gpu, _gpu_allowed = one_of("auto", "required", "off")

KNOBS: tuple[Knob, ...] = (
    Knob(
        "host",
        "OLLAMA_HOST",
        "127.0.0.1:11434",
        ollama_url,
        "an address as Ollama takes it: host, host:port, :port or http(s)://host:port",
        "Where the Ollama server listens.",
    ),
    Knob(
        "model",
        "PROBE_MODEL",
        "",
        lambda text: text or None,
        "a model's name",
        "A model that is required: it is kept loaded, and not having it is a fault. "
        "Empty: look at whatever is loaded.",
    ),
    Knob(
        "gpu",
        "PROBE_GPU",
        "auto",
        _gpu,
        _gpu_allowed,
        "Whether a GPU is expected. auto: when this container has a driver library or a "
        "device node, or an earlier check saw a GPU.",
    ),
    Knob(
        "timeout",
        "PROBE_TIMEOUT",
        "10",
        _timeout,
        _timeout_allowed,
        "The deadline of one whole check. Keep it below the HEALTHCHECK's own --timeout.",
    ),
    Knob(
        "load_timeout",
        "PROBE_LOAD_TIMEOUT",
        "600",
        _load,
        _load_allowed,
        "How long a model may take to load before that counts as stalled.",
    ),
    Knob(
        "busy_timeout",
        "PROBE_BUSY_TIMEOUT",
        "auto",
        lambda text: None if text.lower() == "auto" else _busy(text),
        f"auto or {_busy_allowed}",
        "How long a server may be too busy to answer the check, with no token for its users "
        "either, before that counts as stalled. auto: 600, and 3600 for a model with nothing in "
        "VRAM, where a long prompt takes longer.",
    ),
    Knob(
        "min_vram",
        "PROBE_MIN_VRAM_PERCENT",
        "1",
        _percent,
        "a percentage above 0 and up to 100",
        "How much of a model must be in VRAM where a GPU is there: of one that is required or was "
        "there before, and with PROBE_GPU=required of every one.",
    ),
    Knob(
        "quiet",
        "PROBE_QUIET",
        "60",
        _quiet,
        _quiet_allowed,
        "For how long after a user's request the model is asked for nothing: the request has "
        "proven it, and a token of ours could take the conversation's place in the prompt cache.",
    ),
    Knob(
        "max_first_token",
        "PROBE_MAX_FIRST_TOKEN",
        "off",
        _first,
        _first_allowed,
        "A first token that takes longer is slow. learned: than five times this container's "
        "best, and a second.",
    ),
    Knob(
        "min_tokens_per_second",
        "PROBE_MIN_TOKENS_PER_SECOND",
        "off",
        _rate,
        _rate_allowed,
        "Fewer are slow. learned: than a fifth of this container's best. Unless it is off, a check "
        "asks for two tokens, to measure the second.",
    ),
    Knob(
        "slow_checks",
        "PROBE_SLOW_CHECKS",
        "3",
        _count,
        "a whole number from 1 to 1000",
        "How many checks in a row must be slow before that is a fault.",
    ),
    Knob(
        "keep_alive",
        "OLLAMA_KEEP_ALIVE",
        "5m",
        ollama_keep_alive,
        "a duration as Ollama takes it",
        "The server's own setting: for how long it keeps a model that nobody uses.",
    ),
    Knob(
        "state_dir",
        "PROBE_STATE_DIR",
        "/dev/shm",
        str,
        "a directory",
        "Where a check leaves a few facts for the next (tmpfs, writable in every container).",
    ),
)


SERVE_KNOBS: tuple[Knob, ...] = (
    Knob(
        "listen",
        "PROBE_LISTEN",
        "0.0.0.0:11435",
        address,
        "host:port or :port, with a port from 1 to 65535",
        "Where to answer. Only what reaches the container's network gets there.",
    ),
    Knob(
        "interval",
        "PROBE_INTERVAL",
        "15",
        _interval,
        _interval_allowed,
        "How often to check. Whoever asks gets what the last check found.",
    ),
    Knob(
        "watermark",
        "PROBE_VRAM_WATERMARK_GB",
        "0.5",
        _watermark,
        _watermark_allowed,
        "/health answers 503 where less VRAM than this is free (in GiB) and no model is in it: "
        "the next load would find no room. 0: never.",
    ),
)


@dataclass(frozen=True)
class Settings:
    """The probe's settings; see `KNOBS` for meaning and bounds. Times are in seconds."""

    host: str = "http://127.0.0.1:11434"
    model: str | None = None
    gpu: str = "auto"
    timeout: float = 10.0
    load_timeout: float = 600.0
    busy_timeout: float | None = None
    min_vram: float = 1.0
    quiet: float = 60.0
    max_first_token: Limit = None
    min_tokens_per_second: Limit = None
    slow_checks: int = 3
    keep_alive: float = 300.0
    state_dir: str = "/dev/shm"

    @property
    def is_local(self) -> bool:
        """Whether the server is reached by loopback: it is in the probe's own network."""
        name = urlsplit(self.host).hostname or ""
        return name in ("localhost", "::1") or name.startswith("127.")

    @classmethod
    def from_flags_and_env(
        cls, flags: Mapping[str, str | None], env: Mapping[str, str]
    ) -> Settings:
        """Read `KNOBS`; raises `SettingError`."""
        return cls(**read(KNOBS, flags, env))


@dataclass(frozen=True)
class ServeSettings:
    """Settings of `serve`; see `SERVE_KNOBS` for meaning and bounds.

    Attributes:
        listen: host and port.
        interval: seconds.
        watermark: GiB.
    """

    listen: tuple[str, int] = ("0.0.0.0", 11435)
    interval: float = 15.0
    watermark: float = 0.5

    @classmethod
    def from_flags_and_env(
        cls, flags: Mapping[str, str | None], env: Mapping[str, str]
    ) -> ServeSettings:
        """Read `SERVE_KNOBS`; raises `SettingError`."""
        return cls(**read(SERVE_KNOBS, flags, env))
