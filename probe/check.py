"""One whole check: what the last one left, a look at everything, a verdict, what the next needs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from probe.knobs import SettingError
from probe.report import Reason, Remedy, Verdict, render, to_json
from probe.settings import Settings

if TYPE_CHECKING:
    from probe.memory import Memory
    from probe.observation import Observation

    Save = Callable[[Memory], bool]
    Act = Callable[[Verdict, Observation, Memory, Save], tuple[Verdict, Memory]]


def look(
    settings: Settings, act: Act | None = None, *, counts: bool = False
) -> tuple[Verdict, Observation]:
    """Make one check within `settings.timeout` seconds: the verdict, and what it rests on.

    Args:
        settings: the probe's settings.
        act: what to do about what was found, while no other check looks. It gets the verdict, what
            it rests on, what the next check should know, and a function that leaves that for it
            and says whether it could; it returns the first and the third, changed or not.
        counts: as `judge` has it.
    """
    from probe.deadline import RESERVE_SECONDS, alarm
    from probe.judge import judge
    from probe.memory_file import MemoryFile
    from probe.observe import observe
    from probe.retries import may_be_doubted

    began = time.monotonic()
    end = began + settings.timeout - RESERVE_SECONDS
    middle = (began + end) / 2
    file = MemoryFile(settings)
    with suppress(TimeoutError), alarm(middle):
        file.acquire()  # the alarm may ring when it is held already
    try:
        past = file.load()
        observation = observe(settings, past, end)
        verdict, present = judge(observation, past, settings, time.monotonic(), counts=counts)
        wait = middle - time.monotonic()
        if counts and not past.kept and may_be_doubted(verdict, settings) and wait > 0:
            # No check knows of another: this one has to look twice by itself.
            time.sleep(wait)
            observation = observe(settings, present, end)
            verdict, present = judge(observation, present, settings, time.monotonic(), counts=True)
        if act is not None:
            verdict, present = act(verdict, observation, present, file.save)
        file.save(present)
    finally:
        file.release()
    if file.problem is not None:
        verdict = replace(verdict, readings={**verdict.readings, "memory": file.problem})
    if file.gpu_problem is not None:
        verdict = replace(verdict, readings={**verdict.readings, "gpu_memory": file.gpu_problem})
    return verdict, observation


def glance(settings: Settings) -> tuple[Verdict, Observation, Memory]:
    """Only look, at GPUs in detail: ask no model for anything, and leave nothing behind.

    Returns:
        The verdict, what it rests on, and what the checks before have left.
    """
    from probe.deadline import RESERVE_SECONDS
    from probe.judge import judge
    from probe.memory_file import MemoryFile
    from probe.observe import observe

    end = time.monotonic() + settings.timeout - RESERVE_SECONDS
    past = MemoryFile(settings).peek()
    observation = observe(settings, past, end, ask=False, details=True)
    verdict, _ = judge(observation, past, settings, time.monotonic(), counts=False)
    last = past.episodes[-1] if past.episodes else None
    if verdict.reason is Reason.BUSY and last is not None and not last.healthy:
        # Only asking shows whether it is over; until then what the last check found stands.
        reason = Reason(last.reason)
        remedy = Remedy(last.remedy) if last.remedy else reason.remedy
        verdict = Verdict(False, reason, last.message, verdict.readings, remedy)
    return verdict, observation, past


def run(flags: Mapping[str, str | None], *, as_json: bool = False) -> None:
    """Make one check, print its verdict and end the process with its exit code."""
    try:
        settings = Settings.from_flags_and_env(flags, os.environ)
        # A person who looks, at a terminal, ends nothing.
        heals = settings.heal != "off" and not os.isatty(0)
        verdict, _ = look(settings, partial(_heal, settings) if heals else None, counts=True)
    except SettingError as error:
        verdict = Verdict(False, Reason.MISCONFIGURED, str(error))
    except Exception as error:  # no fault of the server's, and no reason to restart it
        words = f"the probe itself failed, which is a bug of its own: {error!r}"
        verdict = Verdict(False, Reason.MISCONFIGURED, words)
    print(to_json(verdict) if as_json else render(verdict), flush=True)
    # An NVML call that hangs holds a thread; the verdict is out, so nothing waits for it.
    os._exit(verdict.exit_code)


def _heal(
    settings: Settings, verdict: Verdict, observation: Observation, memory: Memory, save: Save
) -> tuple[Verdict, Memory]:
    # What a healthy server needs none of is not imported.
    if verdict.remedy is Remedy.RUNNER:
        from probe.end_runner import heal

        verdict, memory = heal(settings, verdict, observation, memory, save)
    # One that had no time repeats what another has found.
    heals = settings.heal == "restart" and not observation.no_time
    if verdict.remedy is Remedy.RESTART and heals:
        from probe.end_server import heal as heal_by_restart

        verdict, memory = heal_by_restart(settings, verdict, memory, save)
    return verdict, memory
