"""Observe everything, within one deadline → `Observation`. Hands only, no rules."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from probe import nvml, runners
from probe.gpu_reading import GpuFault
from probe.judge import gpu_wanted
from probe.loads import is_under_way, load_next
from probe.memory import Memory
from probe.observation import (
    Ask,
    Asked,
    Dialect,
    LoadedModel,
    Model,
    Observation,
    Runner,
    RunnerHealth,
)
from probe.ollama import ApiError, Server, SilenceError
from probe.plan import (
    free_slot,
    is_suspected,
    is_suspicious,
    keep,
    past_of,
    routine,
    same_model,
    suspicion,
)
from probe.processes import all_visible
from probe.settings import Settings

RESERVE_SECONDS = 0.3
"""Kept back from the deadline for judging and printing."""

ENOUGH_SHARE = 0.4
"""Silence proves something only where there was this share of the deadline to answer in.

It is less than half, which is what waiting for another check may leave (`check.look`).
"""

_LIST_SHARE = 0.6
"""The list of loaded models may take this share; the rest is for what holds it up."""

_MUTE_SECONDS = 1.0
"""A runner that hangs says nothing for longer than this; one that works answers in milliseconds."""

_RUNNER_SHARE = 0.25
"""A runner that says nothing in this share of the remaining time counts as silent."""

_TOKEN_SHARE = 0.4
"""The same for a token that is asked of it: the server is asked next, and needs time as well."""


def observe(
    settings: Settings, memory: Memory, end: float, *, ask: bool = True, details: bool = False
) -> Observation:
    """Observe the GPU and the server; never raises, and ends at `end`.

    Args:
        settings: the probe's settings.
        memory: what the checks before left.
        end: the deadline, in seconds of the monotonic clock.
        ask: False only reads, and asks no model for anything.
        details: read of the GPUs what no check needs, too.
    """
    env = os.environ
    hint = settings.gpu == "auto" and nvml.is_likely(env)
    call = nvml.BackgroundRead(env, details=details) if gpu_wanted(settings, memory, hint) else None
    began, clock = time.monotonic(), time.time() - time.monotonic()
    observation = _Check(settings, memory, end, ask, version=details or call is not None).run()
    reading = call.result(end + RESERVE_SECONDS / 2 - time.monotonic()) if call else None
    if reading and reading.fault is GpuFault.HANGS and end - began < _enough(settings):
        reading = None
        observation = replace(observation, no_time=observation.no_time or "to read the GPU")
    observation = replace(observation, began_at=began, clock=clock, gpu=reading)
    return replace(observation, ends_at=end + RESERVE_SECONDS)


class _Check:
    """What all steps of one check of a server need."""

    def __init__(
        self, settings: Settings, memory: Memory, end: float, ask: bool, version: bool
    ) -> None:
        self._server = Server(settings.host)
        self._settings = settings
        self._memory = memory
        self._end = end
        self._ask = ask
        self._version = version and not memory.version
        self._no_time = ""
        self._server_pid: int | None = None
        self._enough = _enough(settings)

    def run(self) -> Observation:
        """Read what the server and its runners say, and ask what may be asked."""
        settings, enough = self._settings, self._has_time()
        held_by: tuple[Model, ...] = ()
        try:
            try:
                # Kept back is the time to look for what holds it up, where that is possible.
                share = _LIST_SHARE if settings.is_local and self._memory.models else 1.0
                listed = self._server.loaded(max(self._remaining() * share, self._enough))
            except SilenceError:
                held_by = tuple(self._holding()) if enough else ()
                if held_by or self._remaining() < RESERVE_SECONDS:
                    raise
                listed = self._server.loaded(self._remaining())
        except ApiError as error:
            if not isinstance(error, SilenceError):
                return Observation(api_error=str(error))
            if not enough:
                return Observation(no_time="to ask the server", answered=False)
            loads = tuple(self._loading_unlisted())
            return Observation(api_error=str(error), loading=loads, held_by=held_by)
        version = self._memory.version
        if self._version:
            with suppress(ApiError):
                version = self._server.version(self._remaining() * _RUNNER_SHARE)
        found = self._ours(runners.find(), len(listed))
        models = tuple(self._models(listed, found))
        serving = {model.runner.identity for model in models if model.runner}
        others = tuple(runner for runner in found if runner.identity not in serving)
        loading = tuple(self._loading(others)) if self._server_pid is not None else ()
        observation = Observation(
            models=models,
            loading=loading,
            strays=len(others) - len(loading),
            version=version,
        )
        present = [model.row.name for model in models if not model.gone]
        names = [m for m in settings.models if not any(same_model(m, row) for row in present)]
        try:
            if names and not loading:
                observation = self._missing(names, observation)
            # Loading one may have ended another: what was read of them holds no more.
            if self._ask and observation.load is None:
                observation = replace(observation, asked=self._asked(models))
        except ApiError as error:
            return Observation(api_error=str(error))
        return replace(observation, no_time=self._no_time)

    # --- reading --------------------------------------------------------------------------

    def _ours(self, found: tuple[Runner, ...], listed: int) -> tuple[Runner, ...]:
        """The runners of this server: with the host's processes those of others are visible."""
        if not self._settings.is_local or (len(found) <= listed and not all_visible()):
            return found
        self._server_pid = runners.server_pid(self._settings.port)
        if self._server_pid is None:
            return found
        return tuple(one for one in found if runners.descends_from(one, self._server_pid))

    def _models(
        self, listed: tuple[LoadedModel, ...], found: tuple[Runner, ...]
    ) -> Iterator[Model]:
        share = _RUNNER_SHARE / max(len(listed), 1)
        known = {key: past.runner for key, past in self._memory.models.items() if past.runner}
        served = dict(
            runners.match(
                listed,
                found,
                lambda name: self._server.blob(name, self._remaining() * share),
                known,
            )
        )
        present = {runner.identity for runner in found}
        sent = self._memory.sent_load
        models = []
        for row in listed:
            runner, before = served.get(row.key), known.get(row.key)
            if row.key not in self._memory.models and sent and same_model(sent.name, row.name):
                before = sent.runner or None  # loaded by the last check, and read by none yet
            gone = runner is None and before is not None and before not in present
            models.append(self._with_health(Model(row, runner, gone=gone), share))
        is_silent = any(model.state == "silent" for model in models)
        after = {runner.identity: runner for runner in runners.find()} if is_silent else {}
        for model in models:
            if model.state == "silent" and model.runner is not None:
                later = after.get(model.runner.identity)
                ran = model.runner.ran(later, model.silent_seconds)
                model = replace(model, runner=model.runner.and_then(later), runnable_seconds=ran)
            yield model

    def _with_health(self, model: Model, share: float) -> Model:
        runner = model.runner
        if runner is None or runner.command.port is None:
            return model
        model, runner = self._with_traits(model, runner)
        enough, began = self._has_time(), time.monotonic()
        health = self._server.runner_health(runner, self._remaining() * share)
        if health is not None and health.state == "silent" and not enough:
            self._no_time = f"to ask the runner of {model.row.name}"
            health = RunnerHealth("unknown")
        state = health.state if health else None
        under_way = state == "silent" and is_under_way(model, self._memory)
        # Silence ends no load; and before its port is open a process that lives is loading.
        if under_way or (state == "gone" and runners.again(runner) is not None):
            return replace(model, health=RunnerHealth("loading"))
        silent = time.monotonic() - began if state == "silent" else 0.0
        return replace(model, health=health, silent_seconds=silent)

    def _with_traits(self, model: Model, runner: Runner) -> tuple[Model, Runner]:
        """What a runner of Ollama's own does not show of its model; asked once a model."""
        if runner.command.dialect not in (Dialect.OLLAMA_RUNNER, Dialect.OLLAMA_ENGINE):
            return model, runner
        past = self._memory.models.get(model.row.key)
        clamped: bool | None
        if past is not None and past.runner == runner.identity and past.clamped is not None:
            clamped, embeds = past.clamped, past.only_embeds
        else:
            traits = self._server.traits(model.row.name, self._remaining() * _RUNNER_SHARE)
            trained, embeds = traits or (None, False)
            same = trained is not None and trained == runner.command.num_ctx
            clamped = same if traits else None
        runner = replace(runner, command=replace(runner.command, embedding=embeds))
        return replace(model, clamped=clamped, runner=runner), runner

    def _loading(self, others: tuple[Runner, ...]) -> Iterator[tuple[Runner, RunnerHealth]]:
        """Since Ollama 0.30 a model is listed when it is loaded: before, it is a process only."""
        candidates = [
            runner
            for runner in others
            if runner.command.dialect is Dialect.LLAMA_SERVER
            and runner.identity not in self._memory.listed
        ]
        for runner in candidates:
            health = self._server.runner_health(runner, self._remaining() * _RUNNER_SHARE)
            if health is not None and health.state in ("loading", "gone"):
                yield runner, replace(health, state="loading")

    def _loading_unlisted(self) -> Iterator[tuple[Runner, RunnerHealth]]:
        """Since 0.32.4 `/api/ps` waits while an MLX model is loaded."""
        found = tuple(one for one in runners.find() if one.command.dialect is Dialect.MLX)
        for runner in self._ours(found, 0):
            if self._server_pid is not None and runner.identity not in self._memory.listed:
                yield runner, RunnerHealth("loading")

    def _holding(self) -> Iterator[Model]:
        """Runners that do not answer for their health, while `/api/ps` waits and others answer.

        Since 0.30 the server asks a runner for its health under the lock that its list needs.
        """
        try:
            self._server.version(self._remaining() / 2)
        except ApiError:
            return  # it is the server itself
        known = {past.runner: (key, past) for key, past in self._memory.models.items()}
        servers = [one for one in runners.find() if one.command.dialect is Dialect.LLAMA_SERVER]
        suspects = [one for one in servers if one.identity in known and one.command.port]
        for place, runner in enumerate(suspects):
            left = self._remaining() - RESERVE_SECONDS
            if left < _MUTE_SECONDS:
                return
            patience = max(left / (len(suspects) - place), _MUTE_SECONDS)
            began = time.monotonic()
            mute, silent = self._server.is_mute(runner, patience), time.monotonic() - began
            later = runners.again(runner)
            if not mute or later is None:
                continue
            key, past = known[runner.identity]
            yield Model(
                LoadedModel(past.name, 0, past.vram_bytes, past.expires_at, digest=key),
                runner.and_then(later),
                RunnerHealth("silent"),
                silent_seconds=silent,
                runnable_seconds=runner.ran(later, silent),
            )

    # --- asking ---------------------------------------------------------------------------

    def _missing(self, names: list[str], observation: Observation) -> Observation:
        """Required models are not loaded."""
        enough = self._has_time()
        try:
            installed = self._server.installed(self._remaining())
        except SilenceError:
            if enough:
                raise
            self._no_time = f"to ask for {', '.join(names)}"
            return observation
        missing = {
            name: next((how for row, how in installed.items() if same_model(row, name)), "no")
            for name in names
        }
        observation = replace(observation, missing=missing)
        name = load_next(missing, observation.models, self._memory, time.monotonic())
        if name is None or not self._ask:
            return observation
        before = {runner.identity for runner in runners.find()}
        answer = self._server.load(name, self._remaining())
        began = [one for one in runners.find() if one.identity not in before]
        blob = self._server.blob(name, RESERVE_SECONDS) if answer.outcome == "token" else ""
        ours = [one.identity for one in began if blob and one.command.weights.endswith(blob)]
        runner = ours[0] if len(ours) == 1 else ""
        return replace(observation, load=(name, answer), load_runner=runner)

    def _asked(self, models: tuple[Model, ...]) -> dict[str, tuple[Asked, ...]]:
        """Ask every model what may be asked of it; each has its share of the remaining time."""
        settings, memory = self._settings, self._memory
        asked: dict[str, tuple[Asked, ...]] = {}
        now = time.monotonic()
        suspected = [model for model in models if is_suspected(model, memory, settings, now)]
        plans: list[tuple[Model, Ask | None]] = [(m, suspicion(m, settings)) for m in suspected]
        for model in models:
            if model not in suspected:
                plans.append((model, keep(model, settings, now)))
                plans.append((model, routine(model, memory, settings)))
        wanted = [(model, ask) for model, ask in plans if ask is not None]
        for place, (model, ask) in enumerate(wanted):
            if not self._has_time_for(model):
                break
            share = max(self._remaining() / (len(wanted) - place), self._enough)
            asked[model.row.key] = (
                *asked.get(model.row.key, ()),
                *self._answers(model, ask, share),
            )
        return asked

    def _has_time_for(self, model: Model) -> bool:
        """Whether a model can be asked: in less time its silence would prove nothing."""
        if not self._has_time():
            self._no_time = self._no_time or f"to ask {model.row.name} for a token"
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
            yield self._of_server(model, again, max(seconds * (1 - _TOKEN_SHARE), self._enough))

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
        seconds = max(seconds - RESERVE_SECONDS, seconds / 2)  # the rest is for its runner
        answer, row = self._server.ask(model.row.name, ask, seconds), None
        with suppress(ApiError):
            rows = self._server.loaded(RESERVE_SECONDS)
            row = next((row for row in rows if row.key == model.row.key), None)
        one = self._afterwards(model, Asked(ask, answer, row=row))
        if answer.outcome != "silent" or one.runner is None:
            return one
        return replace(one, still_silent=self._server.is_silent(one.runner, RESERVE_SECONDS))

    def _afterwards(self, model: Model, asked: Asked) -> Asked:
        """What the request has done to the model's runner."""
        if model.runner is None:
            return asked
        later = runners.again(model.runner)
        ran = model.runner.ran(later, asked.answer.seconds)
        answered = asked.answer.outcome == "token"
        health = None
        if later and answered and later.command.dialect is Dialect.LLAMA_SERVER:
            health = self._server.runner_health(later, RESERVE_SECONDS)
        slots = health.slots if health else None
        return replace(asked, runner=later, runnable_seconds=ran, slots=slots)

    def _remaining(self) -> float:
        return max(self._end - time.monotonic(), 0.001)

    def _has_time(self) -> bool:
        """Whether what is silent from now on can be blamed for it."""
        return self._remaining() >= self._enough


def _enough(settings: Settings) -> float:
    """Seconds in which a server that is well answers."""
    return ENOUGH_SHARE * (settings.timeout - RESERVE_SECONDS)
