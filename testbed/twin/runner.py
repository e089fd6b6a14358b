"""One `llama-server` process: how it was started, what it is asked, how it ends."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from testbed.twin.client import Client, GoneError, Slots
from testbed.twin.log import say, setting, write
from testbed.twin.store import Model

PROGRAM = Path(os.environ.get("OLLAMA_TWIN_RUNNER") or "/usr/lib/ollama/llama-server")

STOPPED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an "
    "internal error, check ollama server logs for details"
)
_POLL_SECONDS = 0.25
_HEALTH_SECONDS = 0.2
_STALL_SECONDS = 300
_BUFFER = re.compile(r"(\S+): +(\S+) +(model|KV|compute|output|RS) buffer size *= *([\d.]+) MiB")
_ERROR = re.compile(r"error|failed|GGML_ASSERT", re.IGNORECASE)


class RunnerError(Exception):
    """What a request is answered with when its runner fails."""

    def __init__(self, message: str, status: int = 500) -> None:
        super().__init__(message)
        self.status = status


class Process:
    """A `llama-server`, starting up or ready.

    Args:
        options: of the runner, all set; see `scheduler.DEFAULTS`.
        parallel: how many requests it serves at a time.
        shift: whether it goes on when its context is full.
    """

    def __init__(
        self, model: Model, options: Mapping[str, Any], parallel: int, *, shift: bool
    ) -> None:
        self.parallel = parallel
        self.slots = Slots(parallel)
        self.port = _free_port()
        self._buffers: dict[tuple[str, ...], int] = {}
        self._last_error, self._active = "", time.monotonic()
        command = [str(PROGRAM), *_arguments(model, options, parallel, self.port, shift=shift)]
        say("starting llama-server", cmd=" ".join(command))
        path = f"{PROGRAM.parent}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":")
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LD_LIBRARY_PATH": path},
        )
        threading.Thread(target=self._read_log, daemon=True).start()

    @property
    def size(self) -> int:
        """Bytes of its buffers, as its log says."""
        return sum(self._buffers.values())

    def wait_ready(self, client: Client) -> None:
        """Wait until it can be asked; raises `RunnerError`, or `GoneError` with the client."""
        began, ended = time.monotonic(), threading.Event()
        client.when_gone(ended.set)
        stall = setting("OLLAMA_LOAD_TIMEOUT", _STALL_SECONDS) or float("inf")
        while True:
            if client.gone:
                words = "client connection closed before llama-server finished loading"
                say(f"{words}, aborting load", "WARN")
                raise GoneError("timed out waiting for llama-server to start: context canceled")
            if (code := self.process.poll()) is not None:
                message = f"llama-server process has terminated: exit status {code}"
                raise RunnerError(f"{message}: {self._last_error}".removesuffix(": "))
            if time.monotonic() - self._active > stall:
                raise RunnerError("timed out waiting for llama-server to start - ")
            with suppress(OSError, http.client.HTTPException):
                if self.health(_HEALTH_SECONDS) == 200:
                    say(f"llama-server started in {time.monotonic() - began:.2f} seconds")
                    return
            ended.wait(_POLL_SECONDS)

    def health(self, timeout: float) -> int:
        """The status of its health route; raises `OSError` where there is none in time."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with closing(connection):
            connection.request("GET", "/health")
            return connection.getresponse().status

    def ping(self, timeout: float) -> bool:
        """Whether it answers in time, ready or not."""
        try:
            return self.process.poll() is None and self.health(timeout) > 0
        except (OSError, http.client.HTTPException):
            return False

    def complete(self, body: Mapping[str, Any], client: Client) -> Generator[dict[str, Any]]:
        """Its answer, piece by piece, once there is a free slot; the last one has `stop`."""
        with self._slot(client), self._asked("/completion", body, client) as reply:
            for line in reply:
                if line.startswith(b"data: "):
                    piece = json.loads(line[6:])
                    yield piece
                    if piece.get("stop"):
                        return
            if client.gone:
                raise GoneError
            self.kill()
            words = "an error was encountered while running the model"
            raise RunnerError(f"{words}: {self._last_error or 'unexpected EOF'}")

    def embed(self, text: str, client: Client) -> dict[str, Any]:
        """What its embeddings route answers."""
        with self._slot(client):
            return self.ask("/v1/embeddings", {"input": text}, client)

    def ask(self, path: str, body: Mapping[str, Any], client: Client) -> dict[str, Any]:
        """A whole answer of another route."""
        with self._asked(path, body, client) as reply:
            return dict(json.loads(reply.read()))

    def kill(self) -> None:
        """Kill it, and wait for its end without a limit, as Ollama does."""
        self.process.kill()
        self.process.wait()

    @contextmanager
    def _slot(self, client: Client) -> Iterator[None]:
        self.slots.acquire(client)
        try:
            if (code := self.process.poll()) is not None:
                raise RunnerError(f"llama-server process no longer running: {code} ")
            yield
        finally:
            self.slots.release()

    @contextmanager
    def _asked(
        self, path: str, body: Mapping[str, Any], client: Client
    ) -> Iterator[http.client.HTTPResponse]:
        """A request that ends with its client."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        with closing(connection):
            try:
                connection.connect()
                client.when_gone(partial(_shut, connection.sock))
                connection.request("POST", path, json.dumps(body))
                reply = connection.getresponse()
            except (OSError, http.client.HTTPException):
                raise GoneError if client.gone else RunnerError(STOPPED) from None
            if reply.status >= 400:
                raise RunnerError(_message(reply.read()), reply.status)
            yield reply

    def _read_log(self) -> None:
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            line = raw.decode(errors="replace").rstrip("\n")
            self._active = time.monotonic()
            if match := _BUFFER.search(line):
                *key, mebibytes = match.groups()
                self._buffers[tuple(key)] = int(float(mebibytes) * 2**20)
            elif _ERROR.search(line):
                self._last_error = line
            write(line)
        self.process.wait()  # leave no zombie


def _arguments(
    model: Model, options: Mapping[str, Any], parallel: int, port: int, *, shift: bool
) -> Iterator[str]:
    """The arguments of Ollama's, in its order."""
    context, batch = options["num_ctx"] * parallel, options["num_batch"]
    yield from ("--model", str(model.weights), "--port", str(port), "--host", "127.0.0.1")
    yield from ("--no-webui", "--offline", "-c", str(context), "-np", str(parallel))
    yield from ("--log-verbosity", "4", "--no-log-prefix", "--no-log-timestamps")
    for adapter in model.adapters:
        yield from ("--lora", adapter)
    if options["use_mmap"] is False:
        yield from ("--load-mode", "none")
    yield from ("--flash-attn", "auto")
    if model.embeds:
        yield "--embedding"
        batch = min(batch, context)
    yield from ("-b", str(batch), "-ub", str(batch))
    if options["num_gpu"] >= 0:
        yield from ("-ngl", str(options["num_gpu"]))
    if options["num_thread"] > 0:
        yield from ("-t", str(options["num_thread"]))
    if options["main_gpu"] is not None:
        yield from ("--split-mode", "none", "--main-gpu", str(options["main_gpu"]))
    if shift:
        yield from ("--context-shift", "--keep", str(options["num_keep"]))


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _message(content: bytes) -> str:
    try:
        return str(json.loads(content)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return content.decode(errors="replace")


def _shut(one: socket.socket) -> None:
    with suppress(OSError):  # it is closed: the request was answered
        one.shutdown(socket.SHUT_RDWR)
