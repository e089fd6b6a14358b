"""One look at everything, within one deadline → `Observation`. Hands only, no rules."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import FrameType

from probe import gpu, judge, runners
from probe.judge import Asked, Observation, Seen
from probe.memory import Memory
from probe.ollama import ApiError, LoadedModel, Server, same_model
from probe.runners import Runner
from probe.settings import Settings

_RESERVE_SECONDS = 0.3
"""Kept back from the deadline for judging and printing."""

_NOTED_SECONDS = 0.5
"""How long a server may take to note what a request of ours has changed."""

_RUNNER_SHARE = 0.5
"""A runner that has not said a word in this share of the deadline counts as silent."""


def observe(settings: Settings, memory: Memory) -> Observation:
    """Look at the GPU and the server; never raises, and ends before `settings.timeout` seconds."""
    end = time.monotonic() + settings.timeout - _RESERVE_SECONDS
    hint = settings.gpu != "off" and (gpu.has_driver_library(os.environ) or gpu.has_device_node())
    look = gpu.Look() if judge.gpu_wanted(settings, memory, hint) else None
    with _alarm(end):
        observation = _ask_server(settings, memory, end)
    reading = look.result(end + _RESERVE_SECONDS / 2 - time.monotonic()) if look else None
    return replace(observation, gpu=reading)


def _ask_server(settings: Settings, memory: Memory, end: float) -> Observation:
    server = Server(settings.host)
    try:
        models = server.loaded(_left(end))
        wanted = tuple(
            m for m in models if settings.model is None or same_model(m.name, settings.model)
        )
        if settings.model is not None and not wanted:
            if not server.is_installed(settings.model, _left(end)):
                return Observation(installed=False)
            return Observation(installed=True, loaded=server.load(settings.model, _left(end)))
        return _ask_models(server, wanted, settings, memory, end)
    except ApiError as error:
        return Observation(api_error=str(error))
    except TimeoutError:
        return Observation(api_error=f"{settings.host}: no answer within {settings.timeout:g} s")


def _ask_models(
    server: Server,
    models: tuple[LoadedModel, ...],
    settings: Settings,
    memory: Memory,
    end: float,
) -> Observation:
    processes = {m.name: r for m, r in _served_by(server, models, end)}
    patience = settings.timeout * _RUNNER_SHARE
    started = time.monotonic()
    seen = []
    for model in models:
        runner = processes.get(model.name)
        health = None
        if runner is not None and runner.port is not None:
            health = server.runner_health(runner.port, min(patience, _left(end)))
        seen.append(Seen(model, runner, health))
    waited = time.monotonic() - started
    again = {m.name: m for m in server.loaded(_left(end))} if models else {}
    seen = [
        replace(s, unfinished=again[s.model.name].expires_text != s.model.expires_text)
        for s in seen
        if s.model.name in again
    ]
    asked: dict[str, Asked] = {}
    for s in seen:
        ask = judge.plan(s, memory, settings, time.monotonic())
        if ask is not None and _left(end) > _RESERVE_SECONDS:
            answer = server.generate(
                s.model.name,
                token=ask.token,
                keep_alive_seconds=ask.keep_alive_seconds,
                options=ask.options,
                timeout=_left(end),
            )
            asked[s.model.name] = Asked(ask, answer, time.monotonic())
    before = {s.model.name: s.runner for s in seen}
    after = {r.identity: r for r in runners.find()} if any(before.values()) else {}
    if asked:
        expiries = {s.model.name: s.model.expires_text for s in seen if s.model.name in asked}
        asked = _look_back(server, asked, expiries, before, after)
    silent = [s.runner for s in seen if s.runner and s.health and s.health.state == "silent"]
    return Observation(
        seen=tuple(seen),
        asked=asked,
        waited=waited,
        silent_cpu_seconds=sum(_used(r, after) for r in silent),
    )


def _served_by(
    server: Server, models: tuple[LoadedModel, ...], end: float
) -> Iterator[tuple[LoadedModel, Runner]]:
    """Each model with its runner process, where that can be told."""
    found = runners.find() if models else ()
    if len(models) == 1 and len(found) == 1:
        yield models[0], found[0]
        return
    by_blob = {runner.blob: runner for runner in found}
    for model in models:
        runner = by_blob.get(server.blob(model.name, _left(end)))
        if runner is not None:
            yield model, runner


def _look_back(
    server: Server,
    asked: dict[str, Asked],
    expiries: dict[str, str],
    before: dict[str, Runner | None],
    after: dict[str, Runner],
) -> dict[str, Asked]:
    """What our requests changed: each model's expiry, its runner's CPU time, its process."""
    present: dict[str, LoadedModel] = {}
    with suppress(ApiError, TimeoutError):
        # The server answers first and notes the new expiry then; while a user's request is
        # under way it notes none.
        end, pause = time.monotonic() + _NOTED_SECONDS, 0.005
        while True:
            present = {m.name: m for m in server.loaded(_RESERVE_SECONDS)}
            late = any(
                name in present and present[name].expires_text == expiry
                for name, expiry in expiries.items()
            )
            if not late or time.monotonic() > end:
                break
            time.sleep(pause)
            pause *= 2
    result = {}
    for name, one in asked.items():
        runner = before.get(name)
        result[name] = replace(
            one,
            model=present.get(name),
            cpu_seconds=None if runner is None else _used(runner, after),
            reloaded=runner is not None and runner.identity not in after and name in present,
        )
    return result


def _used(runner: Runner, after: dict[str, Runner]) -> float:
    now = after.get(runner.identity)
    return 0.0 if now is None else now.cpu_seconds - runner.cpu_seconds


def _left(end: float) -> float:
    return max(end - time.monotonic(), 0.001)


@contextmanager
def _alarm(end: float) -> Iterator[None]:
    """Raise `TimeoutError` in this thread at `end`, whatever it waits for.

    A timeout of the HTTP client bounds each read, and a server that sends a byte now and then
    stays below it for ever. Signals reach the main thread only; elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, _left(end))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
