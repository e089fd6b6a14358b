"""What servers of several ages answer. Recorded answers: no machine here runs them all."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import httpcore
import httpx
import pytest

from probe.observation import Answer, Ask
from probe.ollama import ApiError, Server, _Backend, _Stream

ROW = {
    "name": "tiny:latest",
    "size": 900,
    "size_vram": 600,
    "expires_at": "2026-11-22T12:00:00.123456789+01:00",
}
CLOUD = {**ROW, "name": "gpt-oss:120b-cloud", "remote_host": "https://ollama.com:443"}


def server(answers: dict[str, Any], seen: list[tuple[str, Any]] | None = None) -> Server:
    """A server that answers so; a mock, since these are several."""

    def handle(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append((request.url.path, json.loads(request.content or b"null")))
        answer = answers[request.url.path]
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)

    one = Server("http://127.0.0.1:1")
    one._client = httpx.Client(base_url=one.url, transport=httpx.MockTransport(handle))
    return one


@pytest.mark.parametrize(
    ("row", "context_length"), [(ROW, None), ({**ROW, "context_length": 4096}, 4096)]
)
def test_a_loaded_model_is_read_with_and_without_its_context_length(
    row: dict[str, Any], context_length: int | None
) -> None:
    [model] = server({"/api/ps": {"models": [row]}}).loaded(1)
    assert (model.name, model.size_bytes, model.size_vram_bytes) == ("tiny:latest", 900, 600)
    assert model.context_length == context_length


def test_a_port_where_nothing_listens_is_named_with_what_to_check() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(ApiError) as caught:
        Server(url).loaded(5)
    assert str(caught.value) == (
        f"nothing listens at {url} (connection refused): is `ollama serve` running, and is "
        "OLLAMA_HOST right?"
    )


def test_a_host_that_cannot_be_resolved_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ApiError) as caught:
        Server("http://nosuchhost.invalid:11434").loaded(5)
    assert str(caught.value) == "cannot resolve nosuchhost.invalid (OLLAMA_HOST)"


def test_a_model_that_runs_in_the_cloud_is_not_loaded_here() -> None:
    [model] = server({"/api/ps": {"models": [CLOUD, ROW]}}).loaded(1)
    assert model.name == "tiny:latest"


def test_a_model_is_installed_here_or_elsewhere() -> None:
    installed = server({"/api/tags": {"models": [ROW, CLOUD]}}).installed(1)
    assert installed == {"tiny:latest": "yes", CLOUD["name"]: "cloud"}


@pytest.mark.parametrize(
    ("reply", "traits"),
    [
        ({"model_info": {"llama.context_length": 4096}}, (4096, False)),
        ({"model_info": {}, "capabilities": ["embedding"]}, (None, True)),
        (httpx.Response(500, json={"error": "oh"}), None),
    ],
)
def test_what_a_model_was_trained_for_is_known_or_unknown(
    reply: object, traits: tuple[int | None, bool] | None
) -> None:
    assert server({"/api/show": reply}).traits("tiny", 1) == traits


def ask(one: Server, tokens: int = 1, *, keep: bool = False) -> Answer:
    return one.ask("tiny", Ask("server", tokens, keep=keep), timeout=1)


Check = Callable[[Answer], bool]


@pytest.mark.parametrize(
    ("reply", "holds"),
    [
        ({"response": "a", "done": True}, lambda a: a.outcome == "token"),
        # a thinking model: what it thinks is no response, and still a token
        ({"response": "", "thinking": "so", "done": True}, lambda a: a.outcome == "token"),
        ({"response": "a", "done": False}, lambda a: a.outcome == "error"),
        (httpx.Response(200, text="hello"), lambda a: a.message == "not an answer of Ollama's"),
        (httpx.Response(200, json=[1]), lambda a: a.message == "not an answer of Ollama's"),
        (httpx.Response(500, json={"error": "oh"}), lambda a: (a.status, a.message) == (500, "oh")),
        (
            {"done": True, "eval_count": 3, "eval_duration": 500_000_000},
            lambda a: a.tokens_per_second == pytest.approx(4.0),
        ),
        ({"done": True, "eval_count": 1, "eval_duration": 9}, lambda a: not a.tokens_per_second),
    ],
)
def test_an_answer_is_a_token_or_it_is_not(reply: Any, holds: Check) -> None:
    assert holds(ask(server({"/api/generate": reply})))


@pytest.mark.parametrize("tokens", [0, 1])
def test_a_model_that_only_embeds_is_asked_for_an_embedding(tokens: int) -> None:
    refused = httpx.Response(400, json={"error": '"tiny" does not support generate'})
    requests: list[tuple[str, Any]] = []
    answers = {"/api/generate": refused, "/api/embed": {"embeddings": [[0.1]]}}
    assert ask(server(answers, requests), tokens).outcome == "token"
    path, body = requests[-1]
    assert path == "/api/embed"
    assert bool(body["input"]) == bool(tokens)
    assert "keep_alive" not in body  # the server would apply it to users' later requests


def test_a_model_that_is_required_is_loaded_for_ever_and_generates_nothing() -> None:
    requests: list[tuple[str, Any]] = []
    answers = {"/api/generate": {"done": True}}
    assert ask(server(answers, requests), 0, keep=True).outcome == "token"
    [(_, body)] = requests
    assert (body["prompt"], body["keep_alive"]) == ("", -1)


def test_an_answer_without_an_end_is_not_waited_for() -> None:
    def for_ever() -> Iterator[bytes]:
        while True:
            yield bytes(1 << 20)

    answer = ask(server({"/api/generate": httpx.Response(200, content=for_ever())}))
    assert (answer.outcome, answer.message) == ("error", "/api/generate: the answer has no end")


def test_a_models_weights_are_found_in_what_the_server_shows() -> None:
    shown = {"modelfile": "# FROM tiny\nFROM /m/blobs/sha256-0ab1\nTEMPLATE x", "license": "FROM"}
    assert server({"/api/show": shown}).blob("tiny", 1) == "sha256-0ab1"
    assert server({"/api/show": {}}).blob("tiny", 1) == ""


class Wire(httpcore.NetworkStream):
    """A connection that writes down what is written to it; TLS on it is another one."""

    def __init__(self) -> None:
        self.written = b""
        self.tls: Wire | None = None

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.written += buffer

    def close(self) -> None:
        pass

    def start_tls(self, *args: Any, **extra: Any) -> Wire:
        self.tls = Wire()
        return self.tls


def test_a_load_is_left_with_a_line_break_over_tls_as_over_plain_http() -> None:
    """Without it Ollama would notice the going, and throw the load away."""
    plain, wire = Wire(), Wire()
    _Stream(plain, b"\r\n").close()
    _Stream(wire, b"\r\n").start_tls(ssl.create_default_context()).close()
    assert plain.written == b"\r\n"
    assert wire.tls is not None
    assert (wire.written, wire.tls.written) == (b"", b"\r\n")
    pool = Server("https://127.0.0.1:1", b"\r\n")._client._transport._pool  # type: ignore[attr-defined]
    assert isinstance(pool._network_backend, _Backend)
