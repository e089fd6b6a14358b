"""HTTP to Ollama: loaded models, a timed generation. The only file that imports `httpx`."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import httpcore
import httpx

from probe.deadline import alarm
from probe.dialects import health, health_path, slots, token_answer, token_request
from probe.observation import Answer, Ask, Dialect, LoadedModel, Runner, RunnerHealth

PROMPT = "a"

_NO_TLS = object()

_ONLY_EMBEDS = "does not support generate"


_BODY_LIMIT_BYTES = 8 << 20

_Body = dict[str, Any]


class ApiError(Exception):
    """The server gave no usable answer; its text says what it gave instead."""


class SilenceError(ApiError):
    """The server gave no answer in time."""


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

    def installed(self, timeout: float) -> dict[str, str]:
        """The models that the server has, by name: on disk (`yes`), or run in the `cloud`.

        Raises:
            ApiError: where it does not say.
        """
        rows = self._get("/api/tags", timeout).get("models") or ()
        return {str(row.get("name", "")): "cloud" if _is_remote(row) else "yes" for row in rows}

    def blob(self, model: str, timeout: float) -> str:
        """File name of the weights of a model, `sha256-...`; empty when the server does not say."""
        match = re.search(rb"FROM [^\"]*?(sha256-\w+)", self._show(model, timeout))
        return match[1].decode() if match else ""

    def traits(self, model: str, timeout: float) -> tuple[int | None, bool] | None:
        """For how many tokens a model was trained, None where the server does not say, and
        whether it only embeds; None where the server does not answer."""
        content = self._show(model, timeout)
        if not content:
            return None
        match = re.search(rb'"[\w-]+\.context_length":\s*(\d+)', content)
        embeds = b'"capabilities":["embedding"]' in content.replace(b" ", b"")
        return int(match[1]) if match else None, embeds

    def _show(self, model: str, timeout: float) -> bytes:
        with contextlib.suppress(httpx.HTTPError, ApiError, TimeoutError, ValueError):
            body = _Body({"model": model})
            status, content = _request(self._client, "POST", "/api/show", body, timeout)
            return content if status == 200 else b""
        return b""

    def ask(self, model: str, ask: Ask, timeout: float) -> Answer:
        """Ask for tokens of a loaded model, or for an embedding where it only embeds.

        Args:
            model: a model that is loaded. The request ends with `timeout`, and if the server
                had to load the model for it, that load is aborted.
            ask: what is asked.
            timeout: in seconds.
        """
        common: _Body = {"model": model}
        if ask.keep:
            common["keep_alive"] = -1
        prompt = PROMPT if ask.tokens else ""
        generate = {
            **common,
            "prompt": prompt,
            "raw": bool(ask.tokens),  # no template, no system prompt, no thinking
            "stream": False,
            "options": {**ask.options, "num_predict": max(ask.tokens, 1)},
        }
        answer = _post(self._client, "/api/generate", generate, timeout)
        if answer.status == 400 and _ONLY_EMBEDS in answer.message:
            embed = {**common, "input": prompt, "options": ask.options}
            answer = _post(self._client, "/api/embed", embed, max(timeout - answer.seconds, 0.001))
        return answer

    def load(self, model: str, timeout: float) -> Answer:
        """Ask for a model that is not loaded; its load outlives `timeout`, when we go away.

        Ollama aborts a load when the client that asked for it hangs up. It learns of that by
        reading one byte ahead on the connection, so a line break behind the request (which
        HTTP allows, RFC 9112 section 2.2) leaves it one byte to read, and hides our going.
        The load goes on in the server; no process has to stay behind to hold it. It generates
        nothing, so that nothing of ours is in the model's prompt cache.
        """
        other = Server(self.url, last_words=b"\r\n")
        with other._client:
            return other.ask(model, Ask("server", tokens=0, keep=True), timeout)

    def runner_health(self, runner: Runner, timeout: float) -> RunnerHealth | None:
        """Ask a runner process itself, which costs nobody anything.

        A `llama-server` that is ready is asked for its slots: its inference loop answers.

        Returns:
            None when it does not speak as any known runner does.
        """
        path, end = health_path(runner.command.dialect), time.monotonic() + timeout
        try:
            found = health(runner.command.dialect, *self._of_runner(runner, path, timeout))
            if found is None or found.state != "ready":
                return found
            if runner.command.dialect is not Dialect.LLAMA_SERVER:
                return found
            content = self._of_runner(runner, "/slots", max(end - time.monotonic(), 0.001))
            return replace(found, slots=slots(*content))
        except (httpx.TimeoutException, TimeoutError):
            return RunnerHealth("silent")
        except httpx.ConnectError:
            return RunnerHealth("gone")
        except (httpx.HTTPError, ApiError):
            return None

    def is_mute(self, runner: Runner, timeout: float) -> bool:
        """Whether a runner does not even answer for its health, which needs no inference."""
        try:
            self._of_runner(runner, health_path(runner.command.dialect), timeout)
        except (httpx.TimeoutException, TimeoutError):
            return True
        except (httpx.HTTPError, ApiError):
            pass
        return False

    def ask_runner(self, runner: Runner, ask: Ask, timeout: float) -> Answer:
        """Ask a runner itself for a token, which moves no expiry and goes by no schedule."""
        request = token_request(runner.command, ask.slot, ask.tokens)
        if request is None or runner.command.port is None:
            return Answer("error", message="this runner cannot be asked")
        path, body = request
        url, started = f"http://127.0.0.1:{runner.command.port}{path}", time.monotonic()
        try:
            status, content = _request(self._client, "POST", url, body, timeout)
            return token_answer(status, content, time.monotonic() - started)
        except (httpx.TimeoutException, TimeoutError):
            return Answer("silent", time.monotonic() - started)
        except (httpx.HTTPError, ApiError) as error:
            return Answer("error", time.monotonic() - started, message=_words(error))

    def version(self, timeout: float) -> str:
        """The server's version; raises `ApiError`."""
        return str(self._get("/api/version", timeout).get("version", ""))

    def _of_runner(self, runner: Runner, path: str, timeout: float) -> tuple[int, bytes]:
        return _get(self._client, f"http://127.0.0.1:{runner.command.port}{path}", timeout)

    def _get(self, path: str, timeout: float) -> dict[str, Any]:
        try:
            status, content = _get(self._client, path, timeout)
        except (httpx.TimeoutException, TimeoutError):
            raise SilenceError(
                f"{path}: no answer from {self.url} within {timeout:.1f} s"
            ) from None
        except httpx.HTTPError as error:
            words = _unreachable(error, self.url) or f"{path}: {self.url}: {_words(error)}"
            raise ApiError(words) from None
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


def _loaded_model(row: dict[str, Any], offset: float) -> LoadedModel:
    text = row["expires_at"]
    moment = datetime.fromisoformat(text)
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
        words = "an answer without a token" if status == 200 else f"HTTP {status}"
        return Answer("error", seconds, None, status, message or words)
    if count < 2 or spent <= 0:
        return Answer("token", seconds, embedding=embedding)
    return Answer("token", max(seconds - spent, 0), (count - 1) / spent)


def _unreachable(error: BaseException, url: str) -> str | None:
    """Why no connection was made, and what to check; None where another thing went wrong."""
    cause: BaseException | None = error if isinstance(error, httpx.ConnectError) else None
    while cause is not None:
        if isinstance(cause, ConnectionRefusedError):
            return (
                f"nothing listens at {url} (connection refused): is `ollama serve` running, and is "
                "OLLAMA_HOST right?"
            )
        if isinstance(cause, socket.gaierror):
            return f"cannot resolve {httpx.URL(url).host} (OLLAMA_HOST)"
        cause = cause.__context__  # httpcore hides it from `__cause__`
    return None


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
