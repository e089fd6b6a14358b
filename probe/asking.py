"""Ask loaded models for a token, of whom it costs nothing. Hands only; `plan.py` has the rules."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from probe import runners
from probe.activity import past_of, work_seconds
from probe.connections import have_taken_all
from probe.deadline import RESERVE_SECONDS, Budget
from probe.memory import Memory
from probe.observation import Ask, Asked, Dialect, Model, Observation, Runner
from probe.ollama import ApiError, Server
from probe.plan import (
    doubt,
    failed_tries,
    free_slot,
    has_failed,
    is_suspected,
    is_suspicious,
    keep,
    routine,
    sees_load,
    suspicion,
)
from probe.settings import Settings

_MORE_TRIES, _TRY_SECONDS = 2, 2.5
"""A runner that says that it cannot do what it is asked is asked again, so many seconds later."""

_TOKEN_SHARE = 0.4
"""A runner that gives no token in this share of the time left is silent: the server is asked next,
and needs time as well."""


class Asking:
    """The requests of one check for tokens."""

    def __init__(self, server: Server, settings: Settings, memory: Memory, budget: Budget) -> None:
        self._server, self._settings = server, settings
        self._memory, self._budget = memory, budget

    def all_of(self, observation: Observation) -> dict[str, tuple[Asked, ...]]:
        """Ask every model what may be asked of it; each has its share of the remaining time."""
        settings, memory, models = self._settings, self._memory, observation.models
        asked: dict[str, tuple[Asked, ...]] = {}
        now = observation.began_at  # as for what is remembered of it
        in_vain = observation.in_vain_seconds
        # A request for another model than the one that is loaded would wait, and prove nothing.
        loads = sees_load(observation)
        askable = [m for m in models if m.state != "ready" or not loads]
        suspected = [m for m in askable if is_suspected(m, memory, settings, now)]
        plans: list[tuple[Model, Ask | None]] = [(m, suspicion(m, settings)) for m in suspected]
        for model in askable:
            if model not in suspected and is_suspected(
                model, memory, settings, now, in_vain=in_vain
            ):
                suspected.append(model)
                plans.append((model, doubt(model, settings)))
        for model in models:
            if model not in suspected:
                plans.append((model, keep(model, memory, settings, now)))
                plans.append((model, routine(model, memory, settings)))
        wanted = [(model, ask) for model, ask in plans if ask is not None]
        for place, (model, ask) in enumerate(wanted):
            if not self._has_time_for(model):
                break
            share = max(self._budget.remaining / (len(wanted) - place), self._budget.enough)
            asked[model.row.key] = (
                *asked.get(model.row.key, ()),
                *self._answers(model, ask, share),
            )
        for model, ask in wanted:
            if ask.via == "runner" and failed_tries(asked.get(model.row.key, ())) > 1:
                asked[model.row.key] = (*asked[model.row.key], *self._once_more(model, ask))
        return asked

    def _has_time_for(self, model: Model) -> bool:
        """Whether a model can be asked: in less time its silence would prove nothing."""
        if not self._budget.has_time:
            self._budget.no_time = self._budget.no_time or f"to ask {model.row.name} for a token"
            return False
        return True

    def _answers(self, model: Model, ask: Ask, seconds: float) -> Iterator[Asked]:
        if ask.via == "server":
            if self._is_still_there(model):
                yield self._of_server(model, ask, seconds)
            return
        assert model.runner is not None
        if ask.slot is not None and not self._is_still_free(model):
            return
        answer = self._server.ask_runner(model.runner, ask, seconds * _TOKEN_SHARE)
        yield self._afterwards(model, Asked(ask, answer))
        again = suspicion(model, self._settings)
        if not is_suspicious(answer) or again is None or again.via != "server":
            return
        if self._has_time_for(model) and self._is_still_there(model):
            yield self._of_server(
                model, again, max(seconds * (1 - _TOKEN_SHARE), self._budget.enough)
            )

    def _once_more(self, model: Model, ask: Ask) -> Iterator[Asked]:
        """Ask a runner again that has said that it cannot do what it was asked, until it can."""
        assert model.runner is not None
        for _ in range(_MORE_TRIES):
            left = self._budget.remaining - _TRY_SECONDS - RESERVE_SECONDS
            if left < RESERVE_SECONDS:
                return
            time.sleep(_TRY_SECONDS)
            if ask.slot is not None and not self._is_still_free(model):
                return
            one = Asked(ask, self._server.ask_runner(model.runner, ask, left))
            yield self._afterwards(model, one)
            if not has_failed(one):
                return

    def _is_still_there(self, model: Model) -> bool:
        """Whether a model is loaded yet: if it is not, a request would load it again."""
        with suppress(ApiError):
            if all(row.key != model.row.key for row in self._server.loaded(RESERVE_SECONDS)):
                return False
        return model.runner is None or runners.again(model.runner) is not None

    def _is_still_free(self, model: Model) -> bool:
        """Whether no user has come since its slots were read."""
        assert model.runner is not None
        health = self._server.runner_health(model.runner, RESERVE_SECONDS)
        slots = health.slots if health else None
        return slots is not None and free_slot(slots, past_of(model, self._memory)) is not None

    def _of_server(self, model: Model, ask: Ask, seconds: float) -> Asked:
        # The rest is for its runner, and for a second look at its GPU.
        rest = 2 * RESERVE_SECONDS if model.row.size_vram_bytes else RESERVE_SECONDS
        seconds = max(seconds - rest, seconds / 2)
        answer, row = self._server.ask(model.row.name, ask, seconds), None
        with suppress(ApiError):
            rows = self._server.loaded(RESERVE_SECONDS)
            row = next((row for row in rows if row.key == model.row.key), None)
        one = self._afterwards(model, Asked(ask, answer, row=row))
        if answer.outcome != "silent" or one.runner is None:
            return one
        health = self._server.runner_health(one.runner, RESERVE_SECONDS)
        return replace(
            one,
            still_silent=health is not None and health.state == "silent",
            slots=health.slots if health else None,
            taken=self._have_taken_all(one.runner),
        )

    def _have_taken_all(self, runner: Runner) -> bool:
        ports = (self._settings.port, runner.command.port or 0)
        return self._settings.is_local and have_taken_all(ports)

    def _afterwards(self, model: Model, asked: Asked) -> Asked:
        """What the request has done to the model's runner."""
        if model.runner is None:
            return asked
        later = runners.again(model.runner)
        worked = work_seconds(model.runner, later, asked.answer.seconds)
        answered = asked.answer.outcome == "token"
        health = None
        if later and answered and later.command.dialect is Dialect.LLAMA_SERVER:
            health = self._server.runner_health(later, RESERVE_SECONDS)
        slots = health.slots if health else None
        ended = later is None
        return replace(asked, runner=later, ended=ended, runnable_seconds=worked, slots=slots)
