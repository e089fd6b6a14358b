"""End the one process that a model is stalled in: the server and its other models go on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from probe.activity import marks_of, progress_of, slots_of
from probe.end_process import Evidence, end, evidence
from probe.healing import (
    MOST,
    culprit,
    has_rested,
    is_certain,
    is_due,
    is_spent,
    with_blocked,
    with_end,
    with_suspect,
    with_words,
)
from probe.memory import Memory
from probe.observation import Ask, Asked, LoadedModel, Model, Observation, Runner
from probe.plan import free_slot, has_failed
from probe.report import Reading, Reason, Remedy, Verdict
from probe.retries import CHECKS, without_fault
from probe.settings import Settings

if TYPE_CHECKING:
    from probe.ollama import Server

_DONE = {
    "gone": "its process has ended by itself meanwhile",
    "denied": "this user may not end its process",
    "stuck": "its process was sent SIGKILL, and has not ended yet (PROBE_HEAL)",
}

_NOT_ENDED = {
    "gone": "its process has ended meanwhile",
    "denied": "this user may not end its process",
    "stuck": "its process does not end, which needs an operator: the driver may hold it",
}


_ENDED = "its runner was ended (end-runner)"

SHORT_SECONDS = 0.5
"""A runner that was silent for a whole check, and says nothing for this long, is silent still."""


@dataclass(frozen=True)
class Outcome:
    """What came of `end-runner`.

    Attributes:
        result: `refused`: there is nothing to end. `failed`: it was tried.
        message: the same in words.
        verdict: what the check found that decided it.
        pid: of the process that was meant; None where there is none.
        evidence: what that process was doing before; None where there is none.
    """

    result: Literal["ended", "refused", "failed", "dry_run"]
    message: str
    verdict: Verdict
    pid: int | None = None
    evidence: Evidence | None = None

    @property
    def exit_code(self) -> int:
        """0: done, or it would be; 1: failed; 3: refused."""
        return {"failed": 1, "refused": 3}.get(self.result, 0)

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        found = self.verdict
        verdict = {"reason": found.reason, "remedy": found.remedy, "message": found.message}
        return {
            "result": self.result,
            "message": self.message,
            "model": None if self.pid is None else found.readings.get("model"),
            "pid": self.pid,
            "evidence": asdict(self.evidence) if self.evidence else None,
            "verdict": verdict,
        }


def end_runner(settings: Settings, model: str | None, *, dry_run: bool = False) -> Outcome:
    """End the runner that a check has just named, or else names now; refuse where none does.

    Args:
        settings: the probe's settings.
        model: end only the runner of this model; None: of any.
        dry_run: end nothing.
    """
    from probe.check import look
    from probe.memory_file import MemoryFile

    if found := _found(settings, MemoryFile(settings).peek(), model):
        outcome = _end(settings, *found, model, dry_run=dry_run)
        if outcome.result == "ended":
            _note(settings, found[0])
        return outcome
    outcomes: list[Outcome] = []

    def act(
        verdict: Verdict, observation: Observation, memory: Memory, save: object
    ) -> tuple[Verdict, Memory]:
        outcome = _end(settings, verdict, observation, model, dry_run=dry_run)
        outcomes.append(outcome)
        return verdict, _noted(verdict, memory) if outcome.result == "ended" else memory

    look(settings, act)
    return outcomes[0]


def _noted(verdict: Verdict, memory: Memory) -> Memory:
    """The memory after the end of a runner, which no check repeats that has no time to look."""
    memory = without_fault(with_suspect(memory, None))
    return _with(verdict, memory, _ENDED, Remedy.NONE)[1]


def _note(settings: Settings, verdict: Verdict) -> None:
    """Leave that for the next check, unless one is under way: that will leave what it finds."""
    from probe.deadline import alarm
    from probe.memory_file import MemoryFile

    file = MemoryFile(settings)
    with suppress(TimeoutError), alarm(time.monotonic() + SHORT_SECONDS):
        file.acquire()
    try:
        memory = file.load()
        if memory.episodes and memory.episodes[-1].remedy == Remedy.RUNNER:
            file.save(_noted(verdict, memory))
    finally:
        file.release()


def _found(
    settings: Settings, past: Memory, model: str | None
) -> tuple[Verdict, Observation] | None:
    """What the last check was certain of, where a short look shows that it still stands.

    Users wait, and another check may be under way: for neither a whole one is made. The runner must
    be as silent as it was, and have done nothing at all since; or still say that it cannot do what
    it is asked.
    """
    from probe import runners
    from probe.ollama import Server

    last = past.episodes[-1] if past.episodes else None
    if last is None or last.remedy != Remedy.RUNNER or not is_certain(past, time.monotonic()):
        return None
    runner = next((one for one in runners.find() if one.identity == past.suspect), None)
    known = [one for one in past.models.values() if one.runner == past.suspect]
    if runner is None or len(known) != 1:
        return None
    [before] = known
    hung = before.silent_since is not None or before.held_since is not None
    if hung and before.vram_bytes and not _gpus_rest():
        return None
    server = Server(settings.host)
    health = server.runner_health(runner, SHORT_SECONDS)
    slots = health.slots if health else None
    # It says nothing, or is in the middle of the same requests.
    served = {mark for mark in before.tokens or () if mark[2] >= 0}
    stands = bool(served) and marks_of(slots) == served
    silent = health is not None and health.state == "silent"
    later = runners.again(runner)
    if later is None:
        return None
    if hung:
        rests = has_rested(later, past, time.monotonic(), answers=stands)
        still = rests and (silent or stands)
    else:
        still = slots is not None and _fails(server, runner, free_slot(slots, before))
    if not still:
        return None
    name = before.name
    readings: dict[str, Reading] = {"model": name, "runner_pid": runner.pid}
    verdict = Verdict(False, Reason(last.reason), last.message, readings, Remedy.RUNNER)
    observation = Observation(models=(Model(LoadedModel(name), later),))
    return None if culprit(verdict, observation, model) is None else (verdict, observation)


def _gpus_rest() -> bool:
    from probe.nvml import BackgroundRead

    return BackgroundRead(os.environ).result(SHORT_SECONDS).rest


def _fails(server: Server, runner: Runner, slot: int | None) -> bool:
    """Whether a runner that serves nobody says once more that it cannot do what it is asked."""
    if slot is None:
        return False
    ask = Ask("runner", slot=slot)
    return has_failed(Asked(ask, server.ask_runner(runner, ask, SHORT_SECONDS)))


def _end(
    settings: Settings,
    verdict: Verdict,
    observation: Observation,
    model: str | None,
    *,
    dry_run: bool,
) -> Outcome:
    runner = culprit(verdict, observation, model)
    if runner is None:
        asked = f" of {model}" if model else ""
        found = f"{'healthy' if verdict.healthy else 'unhealthy'} {verdict.reason}"
        words = f"no runner{asked} has to be ended: {found}: {verdict.message}"
        return Outcome("refused", words, verdict)
    if over := _is_over(verdict, observation, runner, settings):
        words = f"no runner has to be ended: {over} ({verdict.message})"
        return Outcome("refused", words, verdict)
    name, seen = verdict.readings.get("model"), evidence(runner.pid)
    what = f"the runner of {name} (process {runner.pid})"
    if dry_run:
        words = f"{what} would be ended: {verdict.message}"
        return Outcome("dry_run", words, verdict, runner.pid, seen)
    result = end(runner.pid, runner.started)
    if result != "ended":
        words = f"{what} was not ended: {_NOT_ENDED[result]}"
        kind: Literal["refused", "failed"] = "refused" if result == "gone" else "failed"
        return Outcome(kind, words, verdict, runner.pid, seen)
    return Outcome("ended", f"{what} was ended: {verdict.message}", verdict, runner.pid, seen)


def _is_over(
    verdict: Verdict, observation: Observation, runner: Runner, settings: Settings
) -> str | None:
    """What has happened since the check, where a runner need not be ended for it any more."""
    if "nobody_seconds" in verdict.readings:
        from probe.connections import has_clients

        return None if has_clients(settings.port) is False else "a client has come meanwhile"
    served = [slots_of(model) or () for model in observation.models if model.runner == runner]
    marks = marks_of(chain.from_iterable(served))
    refused = "http_status" in verdict.readings
    if not marks and not refused:
        return None
    from probe.ollama import Server

    health = Server(settings.host).runner_health(runner, SHORT_SECONDS)
    now = health.slots if health else None
    if refused:
        answers = any(slot.is_processing and slot.decoded_tokens for slot in now or ())
        return "its runner gives tokens by now" if answers else None
    stands = now is None or marks <= {progress_of(slot) for slot in now}
    return None if stands else "its runner goes on by now"


def heal(
    settings: Settings,
    verdict: Verdict,
    observation: Observation,
    memory: Memory,
    save: Callable[[Memory], bool],
) -> tuple[Verdict, Memory]:
    """What a health check does about a stalled model, if it is time; within the check's lock.

    As long as it can do something nobody else has to: the remedy is none.

    Args:
        settings: the probe's settings.
        verdict: what the check found.
        observation: what it rests on.
        memory: what the next check should know.
        save: leaves that for it, and says whether it could.
    """
    runner, now = culprit(verdict, observation), time.monotonic()
    # Without a memory nobody knows how often this was found, and what was done.
    if runner is None or not memory.kept or not save(memory):
        return verdict, memory
    if is_spent(memory, now):
        words = f"its runner was ended {MOST} times within an hour, which did not help"
        return _with(verdict, memory, words, Remedy.RESTART)
    if over := _is_over(verdict, observation, runner, settings):
        return _with(verdict, memory, over, Remedy.NONE)
    if not is_due(memory):
        words = f"its runner is ended if {CHECKS} checks in a row find this (PROBE_HEAL)"
        return _with(verdict, memory, words, Remedy.NONE)
    before, memory = memory, with_end(memory, now)
    if not save(memory):
        return verdict, memory
    seen = evidence(runner.pid)
    result = end(runner.pid, runner.started)
    if result == "stuck":
        memory = replace(before, ended=memory.ended)  # Docker is told of it as before
    words = _DONE.get(result, f"its runner (process {runner.pid}) was ended (PROBE_HEAL)")
    remedy = Remedy.RESTART if result == "denied" else Remedy.NONE
    return _with(verdict, memory, words, remedy, _readings(runner, seen))


def _readings(runner: Runner, seen: Evidence) -> dict[str, Reading]:
    return {
        "runner_pid": runner.pid,
        "runner_state": seen.state,
        "runner_waits_in": seen.waits_in,
        "runner_cpu_seconds": seen.cpu_seconds,
    }


def _with(
    verdict: Verdict,
    memory: Memory,
    words: str,
    remedy: Remedy,
    readings: Mapping[str, Reading] | None = None,
) -> tuple[Verdict, Memory]:
    verdict = with_blocked(replace(verdict, remedy=remedy), memory, time.monotonic())
    verdict, memory = with_words(verdict, memory, words, verdict.remedy, readings)
    # It has asked for the end of a runner, which the check cannot do.
    checks = memory.restart_checks + (verdict.remedy is Remedy.RESTART)
    return verdict, replace(memory, restart_checks=checks)
