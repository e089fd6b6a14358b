"""End the server, so that the container's restart policy starts it again (`PROBE_HEAL=restart`)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace

from probe import runners
from probe.end_process import send
from probe.healing import restart_is_due, with_words
from probe.memory import Memory
from probe.processes import all_visible, first_child, name_of, started
from probe.report import Remedy, Verdict
from probe.restarts import Restarts
from probe.settings import STARTS_AGAIN, Settings

TERM_SECONDS = 10.0
"""A server that was asked to end (SIGTERM) has ended within this, or is made to."""

KILL_SECONDS = 20.0
"""One that was made to end after this has still not: the check cannot end it."""

_DENIED = f"user {os.geteuid()} may not signal it"

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
    if (words := _why_not(settings, memory, pid, start)) is not None or pid is None:
        return with_words(verdict, memory, f"server not ended: {words}", verdict.remedy)
    identity = f"{pid}/{start}"
    if not restart_is_due(memory, settings, now):
        words = "the server will be ended if the next checks find the same (PROBE_HEAL)"
        return with_words(verdict, memory, words, Remedy.NONE)
    if memory.server_ended == identity:
        return _again(verdict, memory, pid, start, now)
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - start / os.sysconf("SC_CLK_TCK")
    if not memory.proven and age < settings.load_timeout:
        words = (
            f"the server started {age:.0f} s ago, and will not be ended before it has run for "
            f"{settings.load_timeout:g} s (PROBE_LOAD_TIMEOUT)"
        )
        return with_words(verdict, memory, words, Remedy.NONE)
    restarts = Restarts(settings.cache_dir)
    if (spent := restarts.spent(now)) is not None:
        words = f"server not ended: it was ended {spent}, which is the limit"
        return with_words(verdict, memory, words, verdict.remedy)
    if restarts.problem is None and (wait := restarts.wait(now)):
        words = f"the server will be ended again in {wait:.0f} s if this goes on (PROBE_HEAL)"
        return with_words(verdict, memory, words, Remedy.NONE)
    ended = replace(memory, server_ended=identity, server_ended_at=now, server_killed_at=None)
    if not restarts.note(now) or not save(ended):
        words = restarts.problem or "PROBE_STATE_DIR cannot be written"
        return with_words(verdict, memory, f"server not ended: {words}", verdict.remedy)
    if send(pid, start, signal.SIGTERM) == "denied":
        return with_words(verdict, memory, f"server not ended: {_DENIED}", verdict.remedy)
    send(pid, start, signal.SIGCONT)  # one that is stopped takes no signal before
    words = "sent SIGTERM to the server, so that Docker starts the container again (PROBE_HEAL)"
    return with_words(verdict, ended, words, Remedy.NONE)


def _why_not(settings: Settings, memory: Memory, pid: int | None, start: int) -> str | None:
    """Why the server may not be ended here at all."""
    if settings.restart_policy == "none":
        return "set PROBE_RESTART_POLICY to this container's restart policy"
    if settings.restart_policy not in STARTS_AGAIN:
        return f"with the restart policy {settings.restart_policy} the container would stay stopped"
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "in Kubernetes a liveness probe does this (`ollama-probe serve`, /livez)"
    if not settings.is_local:
        return "the server is not in this container"
    if all_visible():
        return "the container uses the host's processes (pid: host)"
    if pid is None or not start:
        return f"no Ollama server found on port {settings.port}"
    if pid != 1 and not (name_of(1) in _INITS and first_child(1) == pid):
        return (
            f"process 1 is {name_of(1)}, not Ollama: start it with `exec ollama serve`, or set "
            "`init: true`"
        )
    if send(pid, start, 0) == "denied":
        return _DENIED
    return None if memory.kept else "PROBE_STATE_DIR cannot be used"


def _again(
    verdict: Verdict, memory: Memory, pid: int, start: int, now: float
) -> tuple[Verdict, Memory]:
    """The server was asked to end, and is still there."""
    seconds = now - memory.server_ended_at
    words, remedy = f"sent SIGTERM to the server {seconds:.0f} s ago (PROBE_HEAL)", Remedy.NONE
    if memory.server_killed_at is not None:
        if now - memory.server_killed_at > KILL_SECONDS:
            words, remedy = f"{words}; it does not exit: restart the container", verdict.remedy
    elif seconds > TERM_SECONDS:
        # The kernel spares the first process of a container from SIGKILL that comes from within,
        # and not from SIGQUIT, on which a Go program writes down what it does, and ends.
        number = signal.SIGQUIT if pid == 1 else signal.SIGKILL
        send(pid, start, number)
        words = f"{words}; it did not exit, and gets {number.name} now"
        memory = replace(memory, server_killed_at=now)
    return with_words(verdict, memory, words, remedy)
