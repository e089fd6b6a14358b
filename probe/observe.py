"""One look at everything, within one deadline → `Observation`. Hands only, no rules."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from probe import gpu, runners
from probe.judge import gpu_wanted
from probe.memory import Memory
from probe.observation import Asked, Observation, Seen
from probe.ollama import ApiError, LoadedModel, Server, same_model
from probe.plan import plan
from probe.runners import Runner
from probe.settings import Settings

RESERVE_SECONDS = 0.3
"""Kept back from the deadline for judging and printing."""

_NOTED_SECONDS = 0.5
"""How long a server may take to note what a request of ours has changed."""

_RUNNER_SHARE = 0.5
"""A runner that has not said a word in this share of the time left counts as silent."""


def observe(
    settings: Settings, memory: Memory, end: float, *, ask: bool = True, details: bool = False
) -> Observation:
    """Look at the GPU and the server; never raises, and ends at `end`.

    Args:
        settings: the probe's settings.
        memory: what the checks before left.
        end: the deadline, in seconds of the monotonic clock.
        ask: False only looks, and asks no model for anything.
        details: read of the GPUs what no check needs, too.
    """
    env = os.environ
    hint = settings.gpu == "auto" and (
        gpu.hidden_by(env) is None and (gpu.has_driver_library(env) or gpu.has_device_node())
    )
    look = gpu.Look(env, details=details) if gpu_wanted(settings, memory, hint) else None
    began = time.monotonic()
    clock = time.time() - began
    observation = _Visit(settings, memory, clock, end, ask).pay()
    reading = look.result(end + RESERVE_SECONDS / 2 - time.monotonic()) if look else None
    return replace(observation, began_at=began, clock=clock, gpu=reading)


class _Visit:
    """One visit to a server: what all its steps need."""

    def __init__(
        self, settings: Settings, memory: Memory, clock: float, end: float, ask: bool
    ) -> None:
        self._server = Server(settings.host)
        self._settings = settings
        self._memory = memory
        self._clock = clock
        self._end = end
        self._ask = ask

    def pay(self) -> Observation:
        """Look at the server, and ask of it what may be asked."""
        settings = self._settings
        try:
            listed = self._server.loaded(self._left())
            found = runners.find() if listed else ()
            served = dict(self._served(listed, found))
            gone = self._gone(listed, found, served)
            models = tuple(m for m in listed if m not in gone)
            wanted = tuple(
                m for m in models if settings.model is None or same_model(m.name, settings.model)
            )
            if settings.model is not None and not wanted:
                observation = self._ask_for(settings.model)
            else:
                observation = self._look_at(wanted, served)
            others = tuple(Seen(m, served.get(m.name)) for m in models if m not in wanted)
            strays = max(len(found) - len(models), 0)
            return replace(observation, others=others, gone=gone, strays=strays)
        except ApiError as error:
            return Observation(api_error=str(error))

    def _ask_for(self, model: str) -> Observation:
        """The required model is not loaded."""
        installed = self._server.installed(model, self._left())
        if installed != "yes" or not self._ask:
            return Observation(installed=installed)
        return Observation(installed=installed, loaded=self._server.load(model, self._left()))

    def _look_at(self, wanted: tuple[LoadedModel, ...], served: dict[str, Runner]) -> Observation:
        started = time.monotonic()
        seen = [self._seen(model, served.get(model.name)) for model in wanted]
        waited = time.monotonic() - started
        seen = self._again(seen)
        asked = dict(self._asked(seen)) if self._ask else {}
        silent = [s.runner for s in seen if s.runner and s.health and s.health.state == "silent"]
        after = {r.identity: r for r in runners.find()} if served and (asked or silent) else {}
        if asked:
            asked = _look_back(self._server, asked, {s.model.name: s for s in seen}, after)
        return Observation(
            seen=tuple(seen),
            asked=asked,
            waited=waited,
            silent_runnable_seconds=sum(r.ran(after.get(r.identity), waited) for r in silent),
        )

    def _served(
        self, models: tuple[LoadedModel, ...], found: tuple[Runner, ...]
    ) -> Iterator[tuple[str, Runner]]:
        """Each model's name with its runner process, where that can be told."""
        share = _RUNNER_SHARE / max(len(models), 1)
        known = {name: past.runner for name, past in self._memory.models.items()}
        return runners.match(
            [model.name for model in models],
            found,
            lambda name: self._server.blob(name, self._left() * share),
            known,
        )

    def _gone(
        self,
        listed: tuple[LoadedModel, ...],
        found: tuple[Runner, ...],
        served: dict[str, Runner],
    ) -> tuple[LoadedModel, ...]:
        """Models without a process, where there would be one to see."""
        if len(found) >= len(listed) or not self._settings.is_local or not runners.server_is_here():
            return ()
        return tuple(model for model in listed if model.name not in served)

    def _seen(self, model: LoadedModel, runner: Runner | None) -> Seen:
        if runner is None or runner.port is None:
            return Seen(model, runner)
        patience = self._left() * _RUNNER_SHARE
        return Seen(model, runner, self._server.runner_health(runner.port, patience))

    def _again(self, seen: list[Seen]) -> list[Seen]:
        """Look again where an expiry has moved since the last check: it may be moving still."""
        known = self._memory.models
        if all(
            s.model.name in known and known[s.model.name].left == s.model.expires_text for s in seen
        ):
            return seen
        again = {m.name: m.expires_text for m in self._server.loaded(self._left())}
        return [
            replace(s, unfinished=again[s.model.name] != s.model.expires_text)
            for s in seen
            if s.model.name in again
        ]

    def _asked(self, seen: list[Seen]) -> Iterator[tuple[str, Asked]]:
        """Ask every model what may be asked of it; each has its share of the time that is left."""
        for place, one in enumerate(seen):
            request = plan(one, self._memory, self._settings, time.monotonic(), self._clock)
            if request is not None and self._left() > RESERVE_SECONDS:
                answer = self._server.ask(
                    one.model.name,
                    tokens=request.tokens,
                    keep_alive_seconds=request.keep_alive_seconds,
                    options=request.options,
                    timeout=self._left() / (len(seen) - place),
                )
                yield one.model.name, Asked(request, answer, time.monotonic())

    def _left(self) -> float:
        return max(self._end - time.monotonic(), 0.001)


def _look_back(
    server: Server, asked: dict[str, Asked], seen: dict[str, Seen], after: dict[str, Runner]
) -> dict[str, Asked]:
    """What our requests changed: each model's expiry, its runner's work, its process."""
    present: dict[str, LoadedModel] = {}
    with suppress(ApiError):
        # The server answers first and notes the new expiry then; while a user's request is
        # under way it notes none.
        end, pause = time.monotonic() + _NOTED_SECONDS, 0.005
        while True:
            present = {m.name: m for m in server.loaded(RESERVE_SECONDS)}
            late = any(
                name in present and present[name].expires_text == seen[name].model.expires_text
                for name in asked
            )
            if not late or time.monotonic() > end:
                break
            time.sleep(pause)
            pause *= 2
    result = {}
    for name, one in asked.items():
        runner = seen[name].runner
        later = None if runner is None else after.get(runner.identity)
        result[name] = replace(
            one,
            model=present.get(name),
            runner=later,
            reloaded=runner is not None and later is None and name in present,
        )
    return result
