"""Which runner serves a request, and when one is unloaded: Ollama's scheduler, in its order."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed.twin.client import Client, GoneError
from testbed.twin.log import default_keep_alive, say, setting
from testbed.twin.runner import Process, RunnerError
from testbed.twin.store import Model

DEFAULTS: dict[str, Any] = {
    "num_ctx": 4096,
    "num_batch": 512,
    "num_gpu": -1,
    "num_thread": 0,
    "main_gpu": None,
    "use_mmap": None,
    "draft_num_predict": 0,
}
"""The options with which a model is loaded; a request that wants others loads it again."""

PING_SECONDS = 10
_AUTOMATIC = {"num_ctx", "num_batch"}
_MAX_LOADED = 3
_EMBEDDING_BATCH = 2048
_BUSY = "server busy, please try again.  maximum pending requests exceeded"


@dataclass
class Request:
    """A request for a model.

    Attributes:
        given: the options that it and its Modelfile name.
        keep_alive: in seconds, if it names one.
    """

    model: Model
    client: Client
    given: Mapping[str, Any]
    keep_alive: float | None = None
    shift: bool = True
    outcome: queue.SimpleQueue[Runner | Exception] = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        named = {name: self.given[name] for name in DEFAULTS if self.given.get(name) is not None}
        self.automatic = _AUTOMATIC - set(named)
        context = setting("OLLAMA_CONTEXT_LENGTH", 0)
        self.automatic -= {"num_ctx"} if context else set()
        self.options = {**DEFAULTS, "num_ctx": context or DEFAULTS["num_ctx"], **named}
        self.options["num_ctx"] = max(self.options["num_ctx"], 4)
        if self.model.embeds and "num_batch" in self.automatic:
            self.options["num_batch"] = min(_EMBEDDING_BATCH, self.options["num_ctx"])
            self.automatic -= {"num_batch"}


class Runner:
    """A loaded model. Its lock is held while it is pinged, and `/api/ps` waits for it."""

    def __init__(self, request: Request, process: Process, options: dict[str, Any]) -> None:
        self.lock = threading.Lock()
        self.model, self.process, self.options = request.model, process, options
        self.shift, self.automatic = request.shift, request.automatic
        self.automatic_mmap = request.options["use_mmap"] is None
        named = request.keep_alive
        self.keep_seconds = default_keep_alive() if named is None else named
        self.expires_at = 0.0
        self.requests = 0
        self.unloaded = False
        self.timer: threading.Timer | None = None

    def needs_reload(self, request: Request) -> bool:
        """Whether it cannot serve a request as it is."""
        with self.lock:
            if self.unloaded:
                return True
            wanted = dict(request.options)
            wanted["num_ctx"] = _effective(wanted["num_ctx"], self.model)
            for name in self.automatic & request.automatic:
                wanted[name] = self.options[name]
            if self.automatic_mmap and wanted["use_mmap"] is None:
                wanted["use_mmap"] = self.options["use_mmap"]
            if wanted["num_gpu"] < 0:
                wanted["num_gpu"] = self.options["num_gpu"]
            return (
                self.shift != request.shift
                or self.model.adapters != request.model.adapters
                or any(self.options[name] != wanted[name] for name in DEFAULTS)
                or not self.process.ping(PING_SECONDS)
            )

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Scheduler:
    """Loads one model at a time, and unloads in another thread."""

    def __init__(self) -> None:
        self._loaded: dict[Path, Runner] = {}
        self._lock = threading.Lock()
        self._pending: queue.Queue[Request] = queue.Queue(setting("OLLAMA_MAX_QUEUE", 512))
        self._events: queue.SimpleQueue[tuple[str, Runner]] = queue.SimpleQueue()
        self._unloaded: queue.SimpleQueue[Runner] = queue.SimpleQueue()
        for loop in (self._serve_pending, self._serve_events):
            threading.Thread(target=loop, daemon=True).start()

    def runner(self, request: Request) -> Runner:
        """A runner for a request, once it is loaded; raises `RunnerError` or `GoneError`."""
        runner = self._find(request.model)
        if runner is not None and not runner.needs_reload(request):
            self._use(runner, request)
        else:
            try:
                self._pending.put_nowait(request)
            except queue.Full:
                raise RunnerError(_BUSY, 503) from None
        request.client.when_gone(lambda: request.outcome.put(GoneError()))
        outcome = request.outcome.get()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def rows(self) -> list[tuple[Runner, float]]:
        """The loaded models and when they expire, the last one to expire first."""
        with self._lock:
            runners = list(self._loaded.values())
        rows = []
        for runner in runners:
            with runner.lock:
                if not runner.unloaded:
                    rows.append((runner, runner.expires_at or time.time() + runner.keep_seconds))
        return sorted(rows, key=lambda row: -int(row[1]))

    def expire(self, model: Model) -> None:
        """Unload a model as soon as nobody uses it."""
        runner = self._find(model)
        if runner is not None:
            with runner.lock:
                runner.expires_at = time.time()
            self._expire(runner)

    def kill_all(self) -> None:
        """Kill every runner, at the end of the server."""
        for runner in list(self._loaded.values()):
            runner.process.process.kill()

    def _find(self, model: Model) -> Runner | None:
        with self._lock:
            return self._loaded.get(model.weights)

    def _expire(self, runner: Runner) -> None:
        with runner.lock:
            runner.stop_timer()
            runner.keep_seconds = 0.0
            if runner.requests <= 0:
                self._events.put(("expired", runner))

    def _use(self, runner: Runner, request: Request) -> None:
        with runner.lock:
            runner.requests += 1
            runner.stop_timer()
            if request.keep_alive is not None:
                runner.keep_seconds = request.keep_alive
        request.outcome.put(runner)
        request.client.when_gone(lambda: self._events.put(("finished", runner)))

    def _serve_pending(self) -> None:
        while True:
            request = self._pending.get()
            while not request.client.gone and not self._serve(request):
                pass

    def _serve(self, request: Request) -> bool:
        """Serve a request, or make room for it and return False."""
        while not self._unloaded.empty():
            self._unloaded.get()
        runner = self._find(request.model)
        if runner is not None and not runner.needs_reload(request):
            self._use(runner, request)
            return True
        if runner is None:
            if len(self._loaded) < setting("OLLAMA_MAX_LOADED_MODELS", _MAX_LOADED):
                self._load(request)
                return True
            runner = self._least_wanted()
        if runner is not None:
            self._expire(runner)
            self._unloaded.get()
        return False

    def _least_wanted(self) -> Runner | None:
        with self._lock:
            runners = list(self._loaded.values())
        runners.sort(key=lambda one: (one.requests > 0, one.keep_seconds, one.model.weights))
        return runners[0] if runners else None

    def _load(self, request: Request) -> None:
        options, model = dict(request.options), request.model
        parallel = 1 if model.embeds else max(setting("OLLAMA_NUM_PARALLEL", 1), 1)
        options["num_ctx"] = _effective(options["num_ctx"], model)
        if "num_batch" in request.automatic:
            options["num_batch"] = _batch(options["num_ctx"] * parallel)
        if options["use_mmap"] is None:
            options["use_mmap"] = False  # on a CPU
        options["num_keep"] = request.given.get("num_keep", 4)
        process = Process(model, options, parallel, shift=request.shift)
        try:
            process.wait_ready(request.client)
        except (RunnerError, GoneError) as error:
            say("Load failed", model=model.weights, error=error)
            process.kill()
            request.outcome.put(error)
            return
        runner = Runner(request, process, options)
        with self._lock:
            self._loaded[model.weights] = runner
            say("loaded runners", count=len(self._loaded))
        self._use(runner, request)

    def _serve_events(self) -> None:
        while True:
            what, runner = self._events.get()
            with runner.lock:
                if what == "finished":
                    self._finished(runner)
                elif runner.requests > 0:
                    threading.Timer(0.01, self._events.put, [("expired", runner)]).start()
                elif not runner.unloaded:
                    with self._lock:
                        runner.stop_timer()
                        runner.process.kill()
                        runner.unloaded = True
                        self._loaded.pop(runner.model.weights, None)
                    _wait_for_vram()
                    self._unloaded.put(runner)

    def _finished(self, runner: Runner) -> None:
        """A request has ended; the runner's lock is held."""
        runner.requests -= 1
        if runner.requests > 0:
            return
        runner.stop_timer()
        if runner.keep_seconds <= 0:
            self._events.put(("expired", runner))
            return
        seconds = min(runner.keep_seconds, threading.TIMEOUT_MAX)
        runner.timer = threading.Timer(seconds, self._events.put, [("expired", runner)])
        runner.timer.daemon = True
        runner.timer.start()
        runner.expires_at = time.time() + runner.keep_seconds


def _wait_for_vram() -> None:
    """On a GPU a server waits until VRAM is free again, and lists nothing; here while a file is
    there that OLLAMA_TWIN_VRAM names."""
    while os.path.exists(os.environ.get("OLLAMA_TWIN_VRAM", "")):
        time.sleep(0.05)


def _effective(num_ctx: int, model: Model) -> int:
    return min(num_ctx, model.trained_context or num_ctx)


def _batch(context: int) -> int:
    return 2048 if context > 32_768 else 1024 if context > 4096 else 512
