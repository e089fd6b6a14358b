"""Every setting of the probe: how it is named, read and explained."""

from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from probe.knobs import (
    Allowed,
    ReadSettings,
    address,
    knobs_of,
    number,
    one_of,
    seconds,
    setting,
    whole,
)


def _percent(text: str) -> float:
    value = float(text)
    if not 0 < value <= 100:
        raise ValueError(text)
    return value


def _limit(low: float, high: float, what: str) -> Allowed:
    """A parser for a limit that may be off, and what it allows in words."""
    parse_number, bounds = number(low, high, what)

    def parse(text: str) -> float | None:
        # `learned` is a value of older versions, which must not stop a container that has it.
        return None if text.lower() in ("off", LEARNED) else parse_number(text)

    return parse, f"off or {bounds}"


def _names(text: str) -> tuple[str, ...]:
    """Names separated by commas, each once, in their order."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if text and not names:
        raise ValueError(text)  # to require nothing, leave it empty
    return names


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


def _auto_or(allowed: Allowed) -> Allowed:
    """What another one allows, or `auto`, which is None."""
    parse, words = allowed
    return lambda text: None if text.lower() == "auto" else parse(text), f"auto or {words}"


STARTS_AGAIN = ("always", "unless-stopped")
"""Restart policies with which Docker starts a container whose first process has exited with 0."""

LEARNED = "learned"

RETIRED = {
    "PROBE_QUIET": "PROBE_GENERATE says when a check requests a token",
    "PROBE_MAX_FIRST_TOKEN": "PROBE_MIN_TOKENS_PER_SECOND says what is slow",
}
"""Variables of older versions, and what stands in their place. They are accepted and ignored."""

RETIRED_FLAGS = ("--quiet", "--max-first-token", "--keep-alive")
"""Flags of older versions, which a HEALTHCHECK may still use. They are accepted and ignored."""


@dataclass(frozen=True)
class Settings(ReadSettings):
    """The probe's settings. Times are in seconds."""

    host: str = setting(
        "OLLAMA_HOST",
        "127.0.0.1:11434",
        (
            ollama_url,
            "an address as Ollama takes it: host, host:port, :port or http(s)://host:port",
        ),
        "Where the Ollama server listens.",
    )
    models: tuple[str, ...] = setting(
        "PROBE_MODEL",
        "",
        (_names, "names of models, separated by commas"),
        "The models that are required: each is kept loaded, and not having it in memory is a "
        "fault. Empty: every model that is loaded is checked, and none is required.",
        option="--model",
    )
    generate: str = setting(
        "PROBE_GENERATE",
        "auto",
        one_of("auto", "always", "never"),
        "When a check requests a token. auto: from the model's runner where that costs users "
        "nothing; from the server where a hang is suspected. always: from the server at each "
        "check, as a plain health check does; this keeps models loaded. never: rely on what can be "
        "read.",
    )
    gpu: str = setting(
        "PROBE_GPU",
        "auto",
        one_of("auto", "required", "off"),
        "Whether a GPU is expected. auto: when this container has a driver library or a "
        "device node, or an earlier check saw a GPU. required: a missing GPU, or a model on the "
        "CPU, is a fault. off: GPUs are not checked.",
    )
    timeout: float = setting(
        "PROBE_TIMEOUT",
        "10",
        seconds(1, 300),
        "The deadline of one whole check. Keep it below the HEALTHCHECK's own --timeout.",
    )
    load_timeout: float = setting(
        "PROBE_LOAD_TIMEOUT",
        "600",
        seconds(10, 86_400),
        "How long a model may take to load before that counts as stalled. A load that still reads, "
        "or takes more memory, may take longer.",
    )
    busy_timeout: float | None = setting(
        "PROBE_BUSY_TIMEOUT",
        "auto",
        _auto_or(seconds(10, 86_400)),
        "How long a server may be too busy to answer the check, with no token for its users "
        "either, before that counts as stalled. auto: 600, and 3600 for a model with nothing in "
        "VRAM, where a long prompt takes longer.",
    )
    nobody_timeout: float | None = setting(
        "PROBE_NOBODY_TIMEOUT",
        "auto",
        _auto_or(seconds(10, 86_400)),
        "How long a model may work while no client is connected to the server, before that counts "
        "as stalled: a prompt whose user has gone is often read to its end. Known since Ollama "
        "0.30. auto: 600, and 3600 for a model with nothing in VRAM.",
    )
    stopping_timeout: float = setting(
        "PROBE_STOPPING_TIMEOUT",
        "120",
        seconds(10, 86_400),
        "How long a model may be unloading and do nothing (`ollama ps` says Stopping...), while "
        "users wait, before that counts as stalled.",
    )
    min_vram: float | None = setting(
        "PROBE_MIN_VRAM_PERCENT",
        "auto",
        _auto_or((_percent, "a percentage above 0 and up to 100")),
        "How much of a model must be in VRAM where a GPU is there. auto: a model is expected in "
        "VRAM where it was, or would fit.",
    )
    min_tokens_per_second: float | None = setting(
        "PROBE_MIN_TOKENS_PER_SECOND",
        "off",
        _limit(0.001, 100_000, "a number of tokens per second"),
        "The fewest tokens per second; a model below this is slow. Unless it is off, a check that "
        "asks for a token asks for two, to measure the second.",
    )
    slow_checks: int = setting(
        "PROBE_SLOW_CHECKS",
        "3",
        whole(1, 1000),
        "How many checks in a row must be slow before that is a fault.",
    )
    retries: int = setting(
        "PROBE_RETRIES",
        "1",
        whole(1, 1000),
        "How many checks in a row have to find a fault before a check fails, unless one is certain "
        "of it, as of a model whose process hangs. Instead of Docker's own --retries, which counts "
        "every fault alike; 1 leaves the counting to Docker.",
    )
    heal: str = setting(
        "PROBE_HEAL",
        "off",
        one_of("off", "runner", "restart"),
        "What a health check repairs by itself. runner: it ends the process of a stalled model, "
        "once one check is certain or three in a row have found it, up to three times an hour; the "
        "server and its other models go on. restart: it also ends the server when three checks in "
        "a row find a fault that needs a restart (such as api_down, gpu_lost, cpu_fallback), so "
        "that Docker starts the container again; this needs PROBE_RESTART_POLICY. off: nothing.",
    )
    restart_policy: str = setting(
        "PROBE_RESTART_POLICY",
        "none",
        one_of("none", "no", "on-failure", "always", "unless-stopped"),
        "The restart policy of the container, which cannot read its own. PROBE_HEAL=restart ends "
        "the server only if this is always or unless-stopped: with any other policy the container "
        "would stay stopped. none: not stated.",
    )
    state_dir: str = setting(
        "PROBE_STATE_DIR",
        "/dev/shm",
        (str, "a directory"),
        "Where a check leaves a few facts for the next (tmpfs, writable in every container).",
    )
    cache_dir: str = setting(
        "PROBE_CACHE_DIR",
        "/var/cache/ollama-probe",
        (str, "a directory"),
        "Where what is known of GPUs, and the count of servers that checks have ended, survive a "
        "restart of the container.",
    )

    @property
    def port(self) -> int:
        """Where the server listens."""
        parts = urlsplit(self.host)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def is_local(self) -> bool:
        """Whether the server is reached by loopback: it is in the probe's own network."""
        name = urlsplit(self.host).hostname or ""
        return name in ("localhost", "::1") or name.startswith("127.")


@dataclass(frozen=True)
class ServeSettings(ReadSettings):
    """Settings of `serve`.

    Attributes:
        listen: host and port.
        interval: seconds.
        watermark: GiB.
    """

    listen: tuple[str, int] = setting(
        "PROBE_LISTEN",
        "0.0.0.0:11435",
        (address, "host:port or :port, with a port from 1 to 65535"),
        "Where to answer. Only what reaches the container's network gets there.",
    )
    interval: float = setting(
        "PROBE_INTERVAL",
        "15",
        seconds(1, 3600),
        "How often to check. Whoever asks gets what the last check found.",
    )
    watermark: float = setting(
        "PROBE_VRAM_WATERMARK_GB",
        "0.5",
        number(0, 1000),
        "/health answers 503 where less VRAM than this is free (in GiB) and no model is in it: "
        "the next load would find no room. 0: never.",
    )


KNOBS = knobs_of(Settings)
SERVE_KNOBS = knobs_of(ServeSettings)
