"""End the server, so that the container's restart policy starts it again (`PROBE_HEAL=restart`)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace

from probe import runners
from probe.end_process import may_end, send
from probe.healing import restart_is_due
from probe.memory import Memory
from probe.processes import all_visible, first_child, name_of, started
from probe.report import Remedy, Verdict
from probe.restarts import Restarts
from probe.settings import Settings

TERM_SECONDS = 10.0
"""A server that was asked to end (SIGTERM) has ended within this, or is made to."""

KILL_SECONDS = 20.0
"""One that was made to end after this has still not: the check cannot end it."""

_INITS = ("docker-init", "tini", "dumb-init", "catatonit")
"""As the first process of a container, these end when the process that they have started ends."""


def heal(
    settings: Settings, verdict: Verdict, memory: Memory, save: Callable[[Memory], bool]
) -> tuple[Verdict, Memory]:
    """What a health check does about a fault against which only a restart helps.

    The remedy is none while it does something about it. Where it may not, or has done what it may,
    the message says why, and the remedy stays: somebody else has to restart the container.

    Args:
        settings: the probe's settings.
        verdict: what the check found; its remedy is `restart`.
        memory: what the next check should know.
        save: leaves that for it, and says whether it could.
    """
    now, pid = time.monotonic(), runners.server_pid(settings.port)
    start = int(started(pid) or 0) if pid is not None else 0
    if (refusal := _why_not(settings, memory, pid)) is not None or not pid or not start:
        words = refusal or "its server is not there"
        return _with(verdict, memory, f"PROBE_HEAL=restart: {words}", verdict.remedy)
    identity = f"{pid}/{start}"
    if not restart_is_due(memory, settings, now):
        words = "its server is ended if the next checks find this as well (PROBE_HEAL)"
        return _with(verdict, memory, words, Remedy.NONE)
    if memory.server_ended == identity:
        return _again(verdict, memory, pid, start, now)
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - start / os.sysconf("SC_CLK_TCK")
    if not memory.proven and age < settings.load_timeout:
        words = (
            f"its server is ended if this goes on (PROBE_HEAL): it has run for {age:.0f} s, and "
            f"may take {settings.load_timeout:g} s to begin"
        )
        return _with(verdict, memory, words, Remedy.NONE)
    restarts = Restarts(settings.cache_dir)
    if (spent := restarts.spent(now)) is not None:
        words = f"its server was ended {spent}, as often as it may be (PROBE_HEAL)"
        return _with(verdict, memory, words, verdict.remedy)
    if restarts.problem is None and (wait := restarts.wait(now)):
        words = f"its server is ended again in {wait:.0f} s if this goes on (PROBE_HEAL)"
        return _with(verdict, memory, words, Remedy.NONE)
    ended = replace(memory, server_ended=identity, server_ended_at=now, server_killed_at=None)
    if not restarts.note(now) or not save(ended):
        words = f"nothing is ended: {restarts.problem or 'no check could know of it afterwards'}"
        return _with(verdict, memory, f"PROBE_HEAL=restart: {words}", verdict.remedy)
    if send(pid, start, signal.SIGTERM) == "denied":
        words = f"PROBE_HEAL=restart: user {os.geteuid()} may not end the server"
        return _with(verdict, memory, words, verdict.remedy)
    send(pid, start, signal.SIGCONT)  # one that is stopped takes no signal before
    words = "its server was asked to end, for Docker to start it again (PROBE_HEAL)"
    return _with(verdict, ended, words, Remedy.NONE)


def _why_not(settings: Settings, memory: Memory, pid: int | None) -> str | None:
    """Why the server may not be ended here at all."""
    if settings.restart_policy == "none":
        return "state this container's restart policy in PROBE_RESTART_POLICY, or it may stay down"
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "in Kubernetes a liveness probe does this (`ollama-probe serve`, /livez)"
    if not settings.is_local:
        return "the server is not in this container"
    if all_visible():
        return "this container has the processes of its host"
    if pid is not None and pid != 1 and not (name_of(1) in _INITS and first_child(1) == pid):
        return f"the container would not end with its server: its first process is {name_of(1)}"
    if pid is not None and not may_end(pid):
        return f"user {os.geteuid()} may not end the server"
    return None if memory.kept else "no check knows of another (PROBE_STATE_DIR)"


def _again(
    verdict: Verdict, memory: Memory, pid: int, start: int, now: float
) -> tuple[Verdict, Memory]:
    """The server was asked to end, and is still there."""
    seconds = now - memory.server_ended_at
    words, remedy = f"its server was asked to end {seconds:.0f} s ago (PROBE_HEAL)", Remedy.NONE
    if memory.server_killed_at is not None:
        if now - memory.server_killed_at > KILL_SECONDS:
            words, remedy = f"{words}, and does not: restart the container", verdict.remedy
    elif seconds > TERM_SECONDS:
        # The kernel spares the first process of a container from SIGKILL that comes from within,
        # and not from SIGQUIT, on which a Go program writes down what it does, and ends.
        number = signal.SIGQUIT if pid == 1 else signal.SIGKILL
        send(pid, start, number)
        words = f"{words}, and was made to now ({number.name})"
        memory = replace(memory, server_killed_at=now)
    return _with(verdict, memory, words, remedy)


def _with(verdict: Verdict, memory: Memory, words: str, remedy: Remedy) -> tuple[Verdict, Memory]:
    """The verdict and the memory with what was done; a check without time repeats that."""
    verdict = replace(verdict, message=f"{verdict.message}; {words}", remedy=remedy)
    last = replace(memory.episodes[-1], message=verdict.message, remedy=str(remedy))
    return verdict, replace(memory, episodes=(*memory.episodes[:-1], last))
