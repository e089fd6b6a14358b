"""The HTTP API, as far as the tests need it."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from testbed.twin import store
from testbed.twin.client import Client, GoneError
from testbed.twin.log import duration, say, timestamp, write
from testbed.twin.runner import RunnerError
from testbed.twin.scheduler import Request, Runner, Scheduler

VERSION = "0.33.0-twin"

_SAMPLING: dict[str, Any] = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_penalty": 1.0,
    "repeat_last_n": 64,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "seed": -1,
    "stop": [],
}
_CONTEXTS = 10
"""An answer without an end is cut after so many times the context."""
_REPEATS = 30
"""An answer of as many equal tokens is ended with an error."""
_GONE = 499

_Body = dict[str, Any]


class AnswerError(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    """Each connection has a thread of its own."""

    protocol_version = "HTTP/1.1"
    scheduler: Scheduler

    def do_GET(self) -> None:
        self._answer({"/": _root, "/api/version": _version, "/api/tags": _tags, "/api/ps": _ps})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self._answer({"/api/generate": _generate, "/api/embed": _embed, "/api/show": _show})

    def _answer(self, routes: Mapping[str, Any]) -> None:
        began, client, status = time.monotonic(), Client(), 200
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.command == "POST":
            threading.Thread(target=self._watch, args=(client,), daemon=True).start()
        try:
            if self.path not in routes:
                raise AnswerError(404, "404 page not found")
            try:
                body = json.loads(content) if self.command == "POST" else {}
            except ValueError as error:
                raise AnswerError(400, str(error) if content else "missing request body") from None
            answer = routes[self.path](self.scheduler, client, body)
            if isinstance(answer, Generator):
                with closing(answer):
                    self._stream(answer)
            else:
                self._send(200, answer)
        except (AnswerError, RunnerError) as error:
            status = error.status
            self._send(status, {"error": str(error)} if self.path in routes else str(error))
        except (GoneError, OSError):
            status, self.close_connection = _GONE, True
        finally:
            client.end()
            when = time.strftime("%Y/%m/%d - %H:%M:%S")
            took, who = f"{(time.monotonic() - began) * 1000:.3f}ms", self.client_address[0]
            asked = f'{self.command:<7}  "{self.path}"'
            write(f"[GIN] {when} | {status} | {took:>13} | {who:>15} | {asked}")

    def _watch(self, client: Client) -> None:
        """End the request when its client goes.

        As in Go, a byte that they sent after the request hides that, as it is what would be read.
        """
        poll = select.poll()
        poll.register(self.connection, select.POLLIN | select.POLLRDHUP)
        while not client.gone:
            if poll.poll(100):
                try:
                    there = bool(self.connection.recv(1, socket.MSG_PEEK))
                except OSError:
                    there = False
                if not there:
                    client.end()
                return

    def _send(self, status: int, answer: _Body | str) -> None:
        text, kind = answer, "text/plain"
        if not isinstance(answer, str):
            text, kind = json.dumps(answer, separators=(",", ":")), "application/json"
        content = str(text).encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _stream(self, pieces: Generator[_Body]) -> None:
        first = next(pieces)  # what fails before the first piece has a status of its own
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._chunk(first)
        try:
            for piece in pieces:
                self._chunk(piece)
        except RunnerError as error:
            self._chunk({"error": str(error)})
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, piece: _Body) -> None:
        line = json.dumps(piece, separators=(",", ":")).encode() + b"\n"
        self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))

    def log_message(self, *args: Any) -> None:
        """The line is written when the answer is over."""


def _root(*_: Any) -> str:
    return "Ollama is running"


def _version(*_: Any) -> _Body:
    return {"version": VERSION}


def _tags(*_: Any) -> _Body:
    return {"models": [_tag(model) for model in store.all_models()]}


def _tag(model: store.Model) -> _Body:
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": timestamp(model.manifest.stat().st_mtime),
        "size": model.size,
        "digest": model.digest,
        "details": model.details,
        "capabilities": _capabilities(model),
    }


def _ps(scheduler: Scheduler, *_: Any) -> _Body:
    return {"models": [_row(runner, expires) for runner, expires in scheduler.rows()]}


def _row(runner: Runner, expires: float) -> _Body:
    """A loaded model; all of it in VRAM where OLLAMA_TWIN_ON_GPU says so."""
    return {
        "name": runner.model.name,
        "model": runner.model.name,
        "size": runner.process.size,
        "digest": runner.model.digest,
        "details": runner.model.details,
        "expires_at": timestamp(expires),
        "size_vram": runner.process.size if os.environ.get("OLLAMA_TWIN_ON_GPU") else 0,
        "context_length": runner.options["num_ctx"],
    }


def _show(_: Scheduler, __: Client, body: _Body) -> _Body:
    model = _model(body, "model '{}:latest' not found")
    parameters = [f"{name:<30} {json.dumps(value)}" for name, value in model.options.items()]
    return {
        "modelfile": f"# FROM {model.name}\n\nFROM {model.weights}\nTEMPLATE {{{{ .Prompt }}}}\n",
        "parameters": "\n".join(parameters),
        "template": "{{ .Prompt }}",
        "details": model.details,
        "model_info": model.info,
        "capabilities": _capabilities(model),
        "modified_at": timestamp(model.manifest.stat().st_mtime),
    }


def _generate(scheduler: Scheduler, client: Client, body: _Body) -> _Body | Generator[_Body]:
    began = time.monotonic()
    model = _model(body, "model '{}' not found")
    request = _request(model, client, body)
    if not body.get("prompt") and request.keep_alive == 0:
        scheduler.expire(model)
        return {**_head(body), "response": "", "done": True, "done_reason": "unload"}
    if model.embeds:
        raise AnswerError(400, f'"{body["model"]}" does not support generate')
    runner = scheduler.runner(request)
    if not body.get("prompt"):
        return {**_head(body), "response": "", "done": True, "done_reason": "load"}
    pieces = _tokens(runner, request, body, began, time.monotonic())
    if body.get("stream", True):
        return pieces
    try:
        *parts, last = pieces
    except ValueError:  # not one, as its runner has failed
        return {"model": "", "created_at": "0001-01-01T00:00:00Z", "response": "", "done": False}
    return {**last, "response": "".join(part["response"] for part in parts) + last["response"]}


def _tokens(
    runner: Runner, request: Request, body: _Body, began: float, loaded: float
) -> Generator[_Body]:
    """The answer of a model, piece by piece."""
    named = {key: value for key, value in request.given.items() if value is not None}
    most = _CONTEXTS * runner.options["num_ctx"]
    wanted = int(named.get("num_predict", -1))
    asked = {
        **{name: named.get(name, value) for name, value in _SAMPLING.items()},
        "prompt": body["prompt"],
        "stream": True,
        "cache_prompt": True,
        "n_predict": most if wanted < 0 else min(wanted, most),
        "n_keep": 4,
    }
    text, last, repeated = "", "", 0
    with closing(runner.process.complete(asked, request.client)) as pieces:
        for piece in pieces:
            if "error" in piece:
                return  # and says nothing, as 0.34.2 does (measured)
            token, text = piece["content"].strip(), text + piece["content"]
            repeated, last = (repeated + 1 if token == last else 0), token
            if repeated > _REPEATS:
                raise RunnerError("prediction aborted, token repeat limit reached")
            if piece.get("stop"):
                break
            if piece["content"]:
                yield {**_head(body), "response": piece["content"], "done": False}
        end = {"done": True, "done_reason": "stop"}
        if piece.get("stop_type") == "limit":
            end["done_reason"] = "length"
        if not body.get("raw"):
            prompt = {"content": body["prompt"] + text}
            end["context"] = runner.process.ask("/tokenize", prompt, request.client)["tokens"]
        times = _times(piece["timings"], began, loaded)
        yield {**_head(body), "response": piece["content"], **end, **times}


def _times(timings: _Body, began: float, loaded: float) -> dict[str, int]:
    nanoseconds = {
        "total_duration": (time.monotonic() - began) * 1e9,
        "load_duration": (loaded - began) * 1e9,
        "prompt_eval_count": timings["prompt_n"] + timings.get("cache_n", 0),
        "prompt_eval_cached_count": timings.get("cache_n", 0),
        "prompt_eval_duration": timings["prompt_ms"] * 1e6,
        "eval_count": timings["predicted_n"],
        "eval_duration": timings["predicted_ms"] * 1e6,
    }
    return {name: int(value) for name, value in nanoseconds.items()}


def _embed(scheduler: Scheduler, client: Client, body: _Body) -> _Body:
    began = time.monotonic()
    model = _model(body, 'model "{}" not found, try pulling it first')
    runner = scheduler.runner(_request(model, client, body))
    loaded, given = time.monotonic(), body.get("input") or []
    texts = [given] if isinstance(given, str) else given
    replies = [runner.process.embed(text, client) for text in texts]
    return {
        "model": body["model"],
        "embeddings": [_normal(reply["data"][0]["embedding"]) for reply in replies],
        "total_duration": int((time.monotonic() - began) * 1e9),
        "load_duration": int((loaded - began) * 1e9),
        "prompt_eval_count": sum(reply["usage"]["prompt_tokens"] for reply in replies),
    }


def _normal(vector: Iterable[float]) -> list[float]:
    values = list(vector)
    length = math.sqrt(sum(value * value for value in values)) or 1.0
    return [value / length for value in values]


def _model(body: _Body, missing: str) -> store.Model:
    name = str(body.get("model") or "")
    model = store.find(name)
    if model is None:
        raise AnswerError(404, missing.format(name))
    return model


def _request(model: store.Model, client: Client, body: _Body) -> Request:
    keep_alive = body.get("keep_alive")
    try:
        seconds = None if keep_alive is None else duration(keep_alive)
    except ValueError as error:
        raise AnswerError(400, str(error)) from None
    given = {**model.options, **(body.get("options") or {})}
    return Request(model, client, given, seconds, shift=body.get("shift") is not False)


def _head(body: _Body) -> _Body:
    return {"model": body["model"], "created_at": timestamp(time.time())}


def _capabilities(model: store.Model) -> list[str]:
    return ["embedding" if model.embeds else "completion"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    """Serve until SIGTERM."""
    Handler.scheduler = scheduler = Scheduler()

    def stop(*_: object) -> None:
        scheduler.kill_all()
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    host, _, port = os.environ.get("OLLAMA_HOST", "127.0.0.1:11434").rpartition(":")
    with _Server((host, int(port)), Handler) as server:
        say(f"this is a twin of Ollama {VERSION}: a real llama-server, and a stand-in around it")
        say(f"Listening on {host}:{port} (version {VERSION})")
        server.serve_forever()
