"""HTTP to Ollama: loaded models, a timed generation. The only file that imports `httpx`."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import httpcore
import httpx

from probe.deadline import alarm

TEN_YEARS_SECONDS = 10 * 365 * 86_400
"""A model that is unloaded later than this is never unloaded; Ollama writes 292 years."""

PROMPT = "a"
FOREVER = -1.0
"""A `keep_alive` that means: never unload."""

_NO_TLS = object()

_ONLY_EMBEDS = "does not support generate"

# llm.ServerStatus of Ollama: ready and out of slots; loading, and in newer ones launched.
_RUNNER_READY = (0, 1)
_RUNNER_LOADING = (2, 3)

_BODY_LIMIT_BYTES = 8 << 20

_Body = dict[str, Any]


class ApiError(Exception):
    """The server gave no usable answer; its text says what it gave instead."""


@dataclass(frozen=True)
class LoadedModel:
    """One row of `/api/ps`.

    Attributes:
        name: full name with its tag, as the server lists it.
        size_bytes: memory it takes in all.
        size_vram_bytes: how much of that Ollama says is in VRAM.
        expires_at: when it is to be unloaded, on this machine's monotonic clock, in seconds.
        expires_text: the same as the server wrote it.
        context_length: tokens; None on servers that do not say.
        digest: names the model's files.
    """

    name: str
    size_bytes: int = 0
    size_vram_bytes: int = 0
    expires_at: float = 0.0
    expires_text: str = ""
    context_length: int | None = None
    digest: str = ""

    def seconds_left(self, now: float) -> float | None:
        """Until it is unloaded, from `now` of the monotonic clock; None when it never is."""
        left = self.expires_at - now
        return None if left > TEN_YEARS_SECONDS else max(left, 0.0)


@dataclass(frozen=True)
class Answer:
    """How a request for a token ended.

    Attributes:
        outcome: `token`, or an embedding of a model that only embeds; `silent`, nothing came in
            time; `error`, the server refused.
        seconds: how long that took; for a `token`, the first one.
        tokens_per_second: rate of the tokens after the first; None when there was none.
        status: HTTP status of an `error`; None when the connection broke.
        message: the server's own words for an `error`.
        embedding: it was one.
    """

    outcome: Literal["token", "silent", "error"]
    seconds: float = 0.0
    tokens_per_second: float | None = None
    status: int | None = None
    message: str = ""
    embedding: bool = False

    @property
    def queue_full(self) -> bool:
        """Whether the server refused because too many requests wait."""
        return self.outcome == "error" and self.status == 503


@dataclass(frozen=True)
class RunnerHealth:
    """What a runner process says of itself: ready, loading with its progress, silent, or gone."""

    state: Literal["ready", "loading", "silent", "gone"]
    progress: float = 0.0


def same_model(a: str, b: str) -> bool:
    """Whether two names mean one model: the tag defaults to `latest`, the case does not matter."""
    return _full_name(a) == _full_name(b)


def loaded_models(rows: Any) -> tuple[LoadedModel, ...]:
    """The rows of an answer to `/api/ps`; raises `ApiError` where they are none."""
    offset = time.monotonic() - time.time()
    try:
        return tuple(_loaded_model(row, offset) for row in rows or () if not _is_remote(row))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ApiError("/api/ps: not an answer of Ollama's") from None


class Server:
    """One Ollama server, asked over one connection. Timeouts are in seconds."""

    def __init__(self, url: str, last_words: bytes = b"") -> None:
        self.url = url
        self._client = _client(url, last_words)

    def loaded(self, timeout: float) -> tuple[LoadedModel, ...]:
        """The models in memory; raises `ApiError`."""
        return loaded_models(self._get("/api/ps", timeout).get("models"))

    def installed(self, model: str, timeout: float) -> Literal["yes", "no", "cloud"]:
        """Whether the server has this model on disk, or runs it elsewhere; raises `ApiError`."""
        rows = self._get("/api/tags", timeout).get("models") or ()
        for row in rows:
            if same_model(str(row.get("name", "")), model):
                return "cloud" if _is_remote(row) else "yes"
        return "no"

    def blob(self, model: str, timeout: float) -> str:
        """File name of the weights of a model, `sha256-...`; empty when the server does not say."""
        with contextlib.suppress(httpx.HTTPError, ApiError, TimeoutError, ValueError):
            body = _Body({"model": model})
            status, content = _request(self._client, "POST", "/api/show", body, timeout)
            match = re.search(rb"FROM [^\"]*?(sha256-\w+)", content)
            return match[1].decode() if match and status == 200 else ""
        return ""

    def ask(
        self,
        model: str,
        *,
        tokens: int,
        keep_alive_seconds: float | None,
        options: Mapping[str, int],
        timeout: float,
    ) -> Answer:
        """Ask a loaded model for tokens, or for an embedding where it only embeds.

        Args:
            model: a model that is loaded. The request ends with `timeout`, and if the server
                had to load the model for it, that load is thrown away.
            tokens: 0 sets `keep_alive` and generates nothing.
            keep_alive_seconds: how long the model is to stay after this request; `FOREVER`; None:
                for as long as after the request before it.
            options: those that the model was loaded with, or else the server loads it anew.
            timeout: in seconds.
        """
        common: _Body = {"model": model}
        if keep_alive_seconds == FOREVER:
            common["keep_alive"] = -1
        elif keep_alive_seconds is not None:
            common["keep_alive"] = f"{max(keep_alive_seconds, 0) * 1000:.0f}ms"
        prompt = PROMPT if tokens else ""
        generate = {
            **common,
            "prompt": prompt,
            "raw": bool(tokens),  # no template, no system prompt, no thinking
            "stream": False,
            "options": {**options, "num_predict": max(tokens, 1)},
        }
        answer = _post(self._client, "/api/generate", generate, timeout)
        if answer.status == 400 and _ONLY_EMBEDS in answer.message:
            embed = {**common, "input": prompt, "options": dict(options)}
            answer = _post(self._client, "/api/embed", embed, max(timeout - answer.seconds, 0.001))
        return answer

    def load(self, model: str, timeout: float) -> Answer:
        """Ask for a model that is not loaded, and go away after `timeout` without ending its load.

        Ollama ends a load when the client that asked for it hangs up. It learns of that by
        reading one byte ahead on the connection, so a line break behind the request (which
        HTTP allows, RFC 9112 section 2.2) leaves it one byte to read, and hides our going.
        The load goes on in the server; no process has to stay behind to hold it.
        """
        other = Server(self.url, last_words=b"\r\n")
        with other._client:
            return other.ask(
                model, tokens=1, keep_alive_seconds=FOREVER, options={}, timeout=timeout
            )

    def runner_health(self, port: int, timeout: float) -> RunnerHealth | None:
        """Ask a runner process itself, which disturbs nothing. None when it does not speak this."""
        url = f"http://127.0.0.1:{port}/health"
        try:
            body = json.loads(_get(self._client, url, timeout)[1])
            status, progress = body["status"], float(body.get("progress", 0))
        except (httpx.TimeoutException, TimeoutError):
            return RunnerHealth("silent")
        except (httpx.HTTPError, ApiError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if status in _RUNNER_LOADING:
            return RunnerHealth("loading", progress)
        return RunnerHealth("ready") if status in _RUNNER_READY else None

    def _get(self, path: str, timeout: float) -> dict[str, Any]:
        try:
            status, content = _get(self._client, path, timeout)
        except (httpx.TimeoutException, TimeoutError):
            raise ApiError(f"{path}: no answer from {self.url} within {timeout:.1f} s") from None
        except httpx.HTTPError as error:
            raise ApiError(f"{path}: {self.url}: {_words(error)}") from None
        if status != 200:
            raise ApiError(f"{path}: {self.url} answered HTTP {status}")
        try:
            body = json.loads(content)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise ApiError(f"{path}: {self.url} did not answer with Ollama's JSON")
        return body


class _Stream(httpcore.NetworkStream):
    """A connection that may have last words before it is closed."""

    def __init__(
        self, stream: httpcore.NetworkStream, last_words: bytes, tls: bool = False
    ) -> None:
        self._stream = stream
        self._last_words = last_words
        self._tls = tls

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        with contextlib.suppress(httpcore.NetworkError, OSError):
            if self._last_words:
                self._stream.write(self._last_words)
        self._stream.close()

    def start_tls(self, *args: Any, **extra: Any) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(*args, **extra), self._last_words, tls=True)

    def get_extra_info(self, info: str) -> Any:
        # To say that a plain one is not TLS, httpcore would import all of TLS.
        if info == "ssl_object" and not self._tls:
            return None
        return self._stream.get_extra_info(info)


class _Backend(httpcore.SyncBackend):
    def __init__(self, last_words: bytes) -> None:
        self._last_words = last_words

    def connect_tcp(self, host: str, *args: Any, **extra: Any) -> httpcore.NetworkStream:
        # As bytes: a text would import the codec for international names, which httpx has applied.
        stream = super().connect_tcp(host.encode(), *args, **extra)  # type: ignore[arg-type]
        return _Stream(stream, self._last_words)


def _client(url: str, last_words: bytes) -> httpx.Client:
    # Making a TLS context takes a tenth of a whole check, and httpx makes one for plain HTTP too.
    context: Any = httpx.create_ssl_context(trust_env=False) if url.startswith("https") else _NO_TLS
    # The server is in this container: a proxy from the environment would only be in the way.
    transport = httpx.HTTPTransport(trust_env=False, verify=context)
    transport._pool = httpcore.ConnectionPool(
        ssl_context=context, network_backend=_Backend(last_words)
    )
    return httpx.Client(base_url=url, trust_env=False, transport=transport)


def _full_name(name: str) -> str:
    name = name.lower()
    return name if ":" in name.rpartition("/")[2] else name + ":latest"


def _loaded_model(row: dict[str, Any], offset: float) -> LoadedModel:
    text = row["expires_at"]
    # Go writes nanoseconds; Python reads at most microseconds.
    moment = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
    context = row.get("context_length")
    return LoadedModel(
        name=row["name"],
        size_bytes=int(row.get("size", 0)),
        size_vram_bytes=int(row.get("size_vram", 0)),
        expires_at=moment.timestamp() + offset,
        expires_text=text,
        context_length=int(context) if context else None,
        digest=str(row.get("digest") or ""),
    )


def _is_remote(row: Mapping[str, Any]) -> bool:
    """Newer servers list models that run in their maker's cloud beside their own."""
    return bool(row.get("remote_host") or row.get("remote_model"))


def _post(client: httpx.Client, path: str, body: _Body, timeout: float) -> Answer:
    started = time.monotonic()
    try:
        status, content = _request(client, "POST", path, body, timeout)
        return _answer(status, content, time.monotonic() - started)
    except (httpx.TimeoutException, TimeoutError):
        return Answer("silent", time.monotonic() - started)
    except (httpx.HTTPError, ApiError) as error:
        return Answer("error", time.monotonic() - started, message=_words(error))


def _request(
    client: httpx.Client, method: str, path: str, body: _Body | None, timeout: float
) -> tuple[int, bytes]:
    """Status and content of an answer that has an end; raises `ApiError` where it has none.

    httpx's own timeout bounds each read, and a server that sends a byte now and then stays below
    it for ever: the alarm bounds them all together.
    """
    with (
        alarm(time.monotonic() + timeout),
        client.stream(method, path, json=body, timeout=timeout) as reply,
    ):
        content = b""
        for chunk in reply.iter_bytes():
            content += chunk
            if len(content) > _BODY_LIMIT_BYTES:
                raise ApiError(f"{path}: the answer has no end")
    return reply.status_code, content


def _get(client: httpx.Client, path: str, timeout: float) -> tuple[int, bytes]:
    """The same for a question, which may be asked again where its connection was just closed."""
    try:
        return _request(client, "GET", path, None, timeout)
    except (httpx.NetworkError, httpx.RemoteProtocolError):
        return _request(client, "GET", path, None, timeout)


def _answer(status: int, content: bytes, seconds: float) -> Answer:
    try:
        body = json.loads(content)
        message = str(body.get("error", ""))
        embedding = "embeddings" in body
        done = embedding or bool(body.get("done"))
        count, spent = int(body.get("eval_count", 0)), int(body.get("eval_duration", 0)) / 1e9
    except (ValueError, TypeError, AttributeError):
        return Answer("error", seconds, None, status, "not an answer of Ollama's")
    if status != 200 or message or not done:
        return Answer("error", seconds, None, status, message or f"HTTP {status}")
    if count < 2 or spent <= 0:
        return Answer("token", seconds, embedding=embedding)
    return Answer("token", max(seconds - spent, 0), (count - 1) / spent)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
