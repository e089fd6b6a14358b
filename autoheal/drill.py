"""`autoheal drill`: break a container on purpose, and watch it being healed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from autoheal.engine import Engine, EngineError, GoneError
from autoheal.healthcheck import environment, probe_setting
from autoheal.incident import Health, Sighting

LOOK_SECONDS = 0.1

_SIGNAL_RUNNERS = """
found=1
for p in /proc/[0-9]*; do
    if tr '\\0' ' ' <$p/cmdline 2>/dev/null |
        grep -qE '^[^ ]*(ollama[^ ]* runner|llama-server --model)'; then
        kill -%s ${p#/proc/} && found=0
    fi
done
exit $found
"""


@dataclass
class Times:
    """What was seen, in seconds since the fault; None for what was not.

    Attributes:
        steps: each change of state and health, in order.
        unhealthy: when Docker called it unhealthy.
        killed: when it was stopped, or was gone.
        healthy: when it was healthy again.
    """

    steps: list[tuple[float, str]] = field(default_factory=list)
    unhealthy: float | None = None
    killed: float | None = None
    healthy: float | None = None


def drill(
    engine: Engine, name: str, fault: str, patience: float, say: Callable[[float, str], None]
) -> Times:
    """Break a container and watch until it is healthy again.

    Args:
        engine: where it runs.
        name: of the container, which must be healthy.
        fault: one of `cli.FAULTS`.
        patience: after so many seconds without a heal, a frozen container is thawed.
        say: is told of each change, in seconds since the fault.

    Raises:
        EngineError: when the engine refuses, or the container is gone for good.
    """
    try:
        before = engine.look(name)
        env = environment(engine.inspect(name)["Config"].get("Env"))
    except GoneError:
        raise EngineError(f"no such container: {name}") from None
    if fault == "freeze" and probe_setting(before.test, env, "--heal", "off").lower() == "restart":
        raise EngineError(
            f"{name} has PROBE_HEAL=restart: Docker takes a container that got a signal from it "
            "for one that was stopped by hand, and would not start it again. Freeze the process "
            "on its host instead: kill -STOP $(docker inspect --format '{{.State.Pid}}' "
            f"{name})"
        )
    if before.state != "running" or before.health is not Health.HEALTHY:
        raise EngineError(
            f"{name} is {before.state} and {before.health}: a drill begins with a healthy one"
        )
    times = Times()
    began = time.monotonic()
    _break(engine, before, fault)
    seen: tuple[str, Health, str] = (before.state, before.health, before.started_at)
    while (elapsed := time.monotonic() - began) < patience:
        state = _state(engine, name)
        if state != seen:
            _note(times, elapsed, seen, state, say)
            seen = state
        if times.healthy is not None:
            return times
        if fault == "kill-runner" and elapsed > patience / 2 and times.unhealthy is None:
            return times
        time.sleep(LOOK_SECONDS)
    _undo(engine, before, fault)
    return times


def summary(times: Times) -> str:
    """The times for a person."""
    lines = [
        (times.unhealthy, "until Docker called it unhealthy"),
        (times.killed, "until it was stopped"),
        (times.healthy, "until it was healthy again"),
    ]
    text = [f"  {at:7.1f} s  {words}" for at, words in lines if at is not None]
    if times.healthy is None:
        text.append("It was not healed in time; what could be undone of the fault was undone.")
        text.append("Docker's restart policy may leave it alone until somebody restarts it.")
    return "\n".join(["", *text])


def _state(engine: Engine, name: str) -> tuple[str, Health, str]:
    try:
        now = engine.look(name)
    except GoneError:
        return "gone", Health.NONE, ""
    return now.state, now.health, now.started_at


def _note(
    times: Times,
    elapsed: float,
    before: tuple[str, Health, str],
    now: tuple[str, Health, str],
    say: Callable[[float, str], None],
) -> None:
    words = f"{now[0]}, {now[1]}" if now[1] is not Health.NONE else now[0]
    times.steps.append((elapsed, words))
    say(elapsed, words)
    if now[1] is Health.UNHEALTHY and times.unhealthy is None:
        times.unhealthy = elapsed
    if times.killed is None and (now[0] != "running" or now[2] != before[2]):
        times.killed = elapsed
    if now[0] == "running" and now[1] is Health.HEALTHY:
        times.healthy = elapsed


def _break(engine: Engine, one: Sighting, fault: str) -> None:
    if fault == "freeze":
        engine.kill(one.id, "SIGSTOP")
        return
    signal = "STOP" if fault == "freeze-runner" else "KILL"
    code, output = engine.run_in(one.id, ["/bin/sh", "-c", _SIGNAL_RUNNERS % signal])
    if code != 0:
        raise EngineError(
            f"{one.name}: no process serves a model there{': ' if output.strip() else ''}"
            f"{output.strip()}; load one first (ollama run MODEL)"
        )


def _undo(engine: Engine, one: Sighting, fault: str) -> None:
    """A drill must not be worse than what it is a drill for."""
    if fault == "freeze":
        engine.kill(one.id, "SIGCONT")
    elif fault == "freeze-runner":
        engine.run_in(one.id, ["/bin/sh", "-c", _SIGNAL_RUNNERS % "CONT"])
