"""Observe everything, within one deadline → `Observation`. Hands only, no rules."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from probe import nvml, runners
from probe.activity import CALM_SECONDS, is_processing, still_serves, work_seconds
from probe.asking import Asking
from probe.connections import calls_others, has_clients, waits
from probe.deadline import RESERVE_SECONDS, Budget
from probe.gpu_reading import GpuFault
from probe.judge import gpu_wanted
from probe.loads import is_under_way, load_next
from probe.memory import Memory, Served
from probe.observation import (
    Dialect,
    LoadedModel,
    Model,
    Observation,
    Runner,
    RunnerHealth,
)
from probe.ollama import ApiError, Server, SilenceError
from probe.plan import in_vain_seconds, may_stand, same_model
from probe.processes import all_visible, is_at_work
from probe.settings import Settings

_LIST_SHARE = 0.6
"""The list of loaded models may take this share; the rest is for what holds it up."""

_MUTE_SECONDS = 1.0
"""A runner that hangs says nothing for longer than this; one that works answers in milliseconds."""

_STANDS_SECONDS = 1.5
"""A request of which nothing comes for so long may hang."""

_LOOK_SECONDS = 0.1

_RUNNER_SHARE = 0.25
"""A runner that says nothing in this share of the remaining time counts as silent."""


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
    budget = Budget(end, settings.timeout)
    version = details or call is not None
    check = _Check(settings, memory, budget, began, call, ask=ask, version=version)
    observation, last = check.run(), end + RESERVE_SECONDS / 2
    reading = call.result(last - time.monotonic()) if call else None
    if reading and reading.rest and _may_wait_for_a_gpu(observation):
        later = nvml.BackgroundRead(env).result(last - time.monotonic())
        reading = replace(reading, rest=later.rest)
    if reading and reading.fault is GpuFault.HANGS and end - began < budget.enough:
        reading = None
        observation = replace(observation, no_time=observation.no_time or "to read the GPU")
    unending = runners.unending(settings.port) if settings.is_local else ()
    observation = replace(observation, began_at=began, clock=clock, gpu=reading, unending=unending)
    return replace(observation, ends_at=end + RESERVE_SECONDS)


def _may_wait_for_a_gpu(observation: Observation) -> bool:
    """Whether a model seems to do nothing whose GPU may have begun to work since it was read."""
    models = (*observation.models, *observation.held_by)
    still = [model for model in models if model.stands or model.state == "silent"]
    return any(model.row.size_vram_bytes for model in still)


class _Check:
    """What all steps of one check of a server need."""

    def __init__(
        self,
        settings: Settings,
        memory: Memory,
        budget: Budget,
        began: float,
        gpus: nvml.BackgroundRead | None,
        *,
        ask: bool,
        version: bool,
    ) -> None:
        self._began = began
        self._gpus = gpus
        self._server = Server(settings.host)
        self._settings = settings
        self._memory = memory
        self._budget = budget
        self._ask = ask
        self._version = version and not memory.version
        self._server_pid: int | None = None

    def run(self) -> Observation:
        """Read what the server and its runners say, and ask what may be asked."""
        settings, enough = self._settings, self._budget.has_time
        held_by: tuple[Model, ...] = ()
        try:
            try:
                # Kept back is the time to look for what holds it up, where that is possible.
                share = _LIST_SHARE if settings.is_local and self._memory.models else 1.0
                listed = self._server.loaded(
                    max(self._budget.remaining * share, self._budget.enough)
                )
            except SilenceError:
                held_by = tuple(self._holding()) if enough else ()
                if held_by or self._budget.remaining < RESERVE_SECONDS:
                    raise
                listed = self._server.loaded(self._budget.remaining)
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
                version = self._server.version(self._budget.remaining * _RUNNER_SHARE)
        found = self._ours(runners.find(), len(listed))
        models = tuple(self._models(listed, found))
        serving = {model.runner.identity for model in models if model.runner}
        others = tuple(runner for runner in found if runner.identity not in serving)
        loading = tuple(self._loading(others)) if self._server_pid is not None else ()
        works = settings.is_local and any(map(is_processing, models))
        observation = Observation(
            began_at=self._began,
            models=models,
            clients=has_clients(settings.port) if works else None,
            loading=loading,
            strays=len(others) - len(loading),
            version=version,
        )
        if models and settings.is_local:
            observation = replace(observation, in_vain_seconds=self._in_vain(observation))
        present = [model.row.name for model in models if not model.gone]
        names = [m for m in settings.models if not any(same_model(m, row) for row in present)]
        try:
            if names and not loading:
                observation = self._missing(names, observation)
            # Loading one may have ended another: what was read of them holds no more.
            if self._ask and observation.load is None:
                asking = Asking(self._server, settings, self._memory, self._budget)
                observation = replace(observation, asked=asking.all_of(observation))
        except ApiError as error:
            return Observation(api_error=str(error))
        return replace(observation, no_time=self._budget.no_time)

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
                lambda name: self._server.blob(name, self._budget.remaining * share),
                known,
            )
        )
        present = {runner.identity for runner in found}
        all_serve = len(served) == len(found)
        sent = self._memory.sent_load
        models = []
        for row in listed:
            runner, before = served.get(row.key), known.get(row.key)
            if row.key not in self._memory.models and sent and same_model(sent.name, row.name):
                before = sent.runner or None  # loaded by the last check, and read by none yet
            if before is None and all_serve:  # loaded since the last check, and no process left
                before = self._memory.served.get(row.key, Served()).runner or None
            gone = runner is None and before is not None and before not in present
            models.append(self._with_health(Model(row, runner, gone=gone), share))
        if any(model.gone for model in models):
            models = list(self._still_listed(models))
        is_silent = any(model.state == "silent" for model in models)
        after = {runner.identity: runner for runner in runners.find()} if is_silent else {}
        standing = self._standing(models)
        for model in models:
            if model.runner and model.runner.identity in standing:
                model = replace(model, stands=self._stands(model))
            if model.state == "silent" and model.runner is not None:
                later = after.get(model.runner.identity)
                worked = work_seconds(model.runner, later, model.silent_seconds)
                both = model.runner.and_then(later)
                model = replace(model, runner=both, runnable_seconds=worked)
            yield model

    def _standing(self, models: list[Model]) -> set[str]:
        """Identities of runners that had nothing to run, for as long as we looked; one that works
        has some at once, and is looked at no longer."""
        if not self._ask or not self._settings.is_local:
            return set()
        in_vram = any(model.row.size_vram_bytes and is_processing(model) for model in models)
        rest = in_vram and self._gpus_rest()
        left = {
            model.runner.identity: model.runner
            for model in models
            if model.runner and may_stand(model, self._memory, self._began, gpus_rest=rest)
        }
        if self._budget.remaining - _STANDS_SECONDS < self._budget.enough:
            return set()  # there would be no time left to ask
        began = time.monotonic()
        while left and time.monotonic() - began < _STANDS_SECONDS:
            time.sleep(_LOOK_SECONDS)
            now, waited = {one.identity: one for one in runners.find()}, time.monotonic() - began
            left = {
                name: runner
                for name, runner in left.items()
                if name in now
                and not now[name].blocked
                and work_seconds(runner, now[name], waited) <= CALM_SECONDS
            }
        return set(left)

    def _gpus_rest(self) -> bool:
        """Whether no GPU worked when the check began; False where that is not known yet."""
        return self._gpus is not None and self._gpus.result(RESERVE_SECONDS).rest

    def _stands(self, model: Model) -> bool:
        """Whether a runner that had nothing to run is in the middle of the same request."""
        assert model.runner is not None
        patience = self._budget.remaining * _RUNNER_SHARE
        health = self._server.runner_health(model.runner, patience)
        return health is not None and still_serves(model, health.slots)

    def _still_listed(self, models: list[Model]) -> Iterator[Model]:
        """Without those whose processes the server was just ending: these it lists no more."""
        exits = any(one.runner for one in runners.unending(self._settings.port))
        rows = {model.row.key for model in models}
        try:
            now = self._server.loaded(self._budget.remaining * _RUNNER_SHARE)
            rows = {row.key for row in now}
        except ApiError:
            exits = True  # it may be ending one right now
        for model in models:
            if not model.gone or model.row.key in rows:
                yield replace(model, exits=model.gone and exits)

    def _with_health(self, model: Model, share: float) -> Model:
        runner = model.runner
        if runner is None or runner.command.port is None:
            return model
        model, runner = self._with_traits(model, runner)
        enough, began = self._budget.has_time, time.monotonic()
        health = self._server.runner_health(runner, self._budget.remaining * share)
        if health is not None and health.state == "silent" and not enough:
            self._budget.no_time = f"to ask the runner of {model.row.name}"
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
            traits = self._server.traits(model.row.name, self._budget.remaining * _RUNNER_SHARE)
            trained, embeds = traits or (None, False)
            same = trained is not None and trained == runner.command.num_ctx
            clamped = same if traits else None
        runner = replace(runner, command=replace(runner.command, embedding=embeds))
        return replace(model, clamped=clamped, runner=runner), runner

    def _in_vain(self, observation: Observation) -> float:
        """For how long a user waits in vain; 0 where it may be for an answer from elsewhere."""
        port, now = self._settings.port, time.monotonic()
        seconds = in_vain_seconds(waits(port), observation, self._memory, now)
        if not seconds:
            return 0.0
        server = self._server_pid or runners.server_pid(port)
        if server is None or calls_others(server, port) or is_at_work(server):
            return 0.0
        return seconds

    def _loading(self, others: tuple[Runner, ...]) -> Iterator[tuple[Runner, RunnerHealth]]:
        """Since Ollama 0.30 a model is listed when it is loaded: before, it is a process only."""
        candidates = [
            runner
            for runner in others
            if runner.command.dialect is Dialect.LLAMA_SERVER
            and runner.identity not in self._memory.listed
        ]
        for runner in candidates:
            health = self._server.runner_health(runner, self._budget.remaining * _RUNNER_SHARE)
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
            self._server.version(self._budget.remaining / 2)
        except ApiError:
            return  # it is the server itself
        known = {past.runner: (key, past) for key, past in self._memory.models.items()}
        servers = [one for one in runners.find() if one.command.dialect is Dialect.LLAMA_SERVER]
        suspects = [one for one in servers if one.identity in known and one.command.port]
        for place, runner in enumerate(suspects):
            left = self._budget.remaining - RESERVE_SECONDS
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
                runnable_seconds=work_seconds(runner, later, silent),
            )

    def _missing(self, names: list[str], observation: Observation) -> Observation:
        """Required models are not loaded."""
        enough = self._budget.has_time
        try:
            installed = self._server.installed(self._budget.remaining)
        except SilenceError:
            if enough:
                raise
            self._budget.no_time = f"to ask for {', '.join(names)}"
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
        answer = self._server.load(name, self._budget.remaining)
        began = [one for one in runners.find() if one.identity not in before]
        observation = replace(observation, load=(name, answer))
        if answer.outcome != "token":
            return observation
        blob, row = self._server.blob(name, RESERVE_SECONDS), None
        ours = [one.identity for one in began if blob and one.command.weights.endswith(blob)]
        with suppress(ApiError):
            rows = self._server.loaded(RESERVE_SECONDS)
            row = next((row for row in rows if same_model(row.name, name)), None)
        runner = ours[0] if len(ours) == 1 else ""
        return replace(observation, load_runner=runner, load_row=row)
