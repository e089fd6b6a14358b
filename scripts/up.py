"""`make up`: from a fresh machine to a healthy Ollama watched by autoheal."""

from __future__ import annotations

import json
import os
import shutil
import time
from typing import Any

from probe.report import Remedy, parse
from scripts import compose, engine, images, machine, preflight
from scripts.engine_plan import socket_to_mount
from scripts.say import FailedError, duration, main, run, say, step

WAIT_SECONDS = 900
PORTS = {"ollama": "OLLAMA_PORT", "autoheal": "AUTOHEAL_PORT"}
"""The variable that sets the port of each service on this machine."""


def up() -> None:
    started = time.monotonic()
    ports = _ports()
    say("The first time, this takes 2 to 5 minutes, plus the download of base images.")
    say("1. Docker Engine")
    here = machine.inspect()
    todo = engine.decide(here)
    if here.answer != "yes":
        preflight.check_ports(ports, {})  # nothing of ours runs, and nothing is installed yet
        preflight.check_disk("/var", shutil.disk_usage("/var").free)
    here = engine.carry_out(todo, here)
    compose.check_clone()
    if here.is_local:
        preflight.check_ports(ports, {n: _is_ours(s, ports[n]) for s, n in PORTS.items()})
    information = preflight.docker_info()
    built = all(map(images.is_here, compose.IMAGES))
    preflight.check_engine(information, None if built else preflight.free_bytes(information))
    preflight.say_proxy(information)
    say("2. Base images")
    environment = {**compose.environment(), **images.ensure()}
    socket = socket_to_mount(here)
    if socket is not None:
        environment.setdefault("DOCKER_SOCKET", socket)
    command = compose.command()
    if "nvidia" in information.get("Runtimes", {}):
        say("  The engine has the NVIDIA runtime: Ollama gets the GPUs (compose.gpu.yaml).")
        command = compose.command("compose.gpu.yaml")
    say("3. The images of the probe and of autoheal")
    build = [*command, "--progress", "plain", "build"]
    build += preflight.proxy_build_arguments(os.environ)
    for service in PORTS:
        with step(f"building {compose.PROJECT}/{service}", "up to 1 min"):
            run([*build, service], env=environment, log="build")
    say("4. Both services")
    run([*command, "up", "--detach", "--no-build"], env=environment, log="up")
    _wait(command, environment)
    say(
        f"""
Done in {duration(time.monotonic() - started)}. Ollama answers at \
http://127.0.0.1:{ports["OLLAMA_PORT"]}, and autoheal restarts it when it does not. Next:

  http://127.0.0.1:{ports["AUTOHEAL_PORT"]:<22} models, GPUs, containers and incidents, live

  docker compose ps                      both services and their health
  docker compose exec ollama ollama-probe status
                                         GPUs, models, and the last checks
  docker compose logs --follow autoheal  what autoheal decides, and why
  docker compose exec ollama ollama pull llama3.2:1b
                                         a model, where the Ollama registry can be reached
  make demo                              break Ollama on purpose and watch it heal (30 s)
  make down                              stop both services; models and images stay
  make clean                             remove everything that `make` created, models included"""
    )


def _ports() -> dict[str, int]:
    ports = {}
    for name, default in zip(PORTS.values(), ("11434", "8787"), strict=True):
        text = os.environ.get(name) or default
        if not text.isdigit() or not 0 < int(text) < 65_536:
            raise FailedError(f"{name}={text!r}: must be a port number from 1 to 65535")
        ports[name] = int(text)
    if len(set(ports.values())) < len(ports):
        raise FailedError(f"{' and '.join(ports)} are both {text}: they must differ")
    return ports


def _is_ours(service: str, port: int) -> bool:
    """Whether a service of `make up` has this port of this machine already."""
    inside = {"ollama": "11434", "autoheal": "8787"}[service]
    try:
        published = run([*compose.command(), "port", service, inside], env=compose.environment())
    except FailedError:  # it does not run
        return False
    return published.strip().endswith(f":{port}")


def _wait(command: list[str], environment: dict[str, str]) -> None:
    """Wait until both services are healthy, and say each change."""
    started = time.monotonic()
    said: dict[str, str] = {}
    while True:
        states = {row["Service"]: row for row in _rows(command, environment)}
        for service, row in states.items():
            state, line = row["Health"] or row["State"], ""
            if row["Health"] in ("starting", "unhealthy"):
                line = _last_line(row["ID"])
            verdict = parse(line)
            what = state if verdict is None else f"{state} ({verdict.reason}: {verdict.message})"
            if said.get(service) != what:
                said[service] = what
                say(f"  {time.monotonic() - started:4.0f} s  {service}: {what}")
            if verdict is not None and verdict.remedy is Remedy.OPERATOR:
                raise FailedError(f"{service} needs an operator: {verdict.message}")
            if row["State"] in ("restarting", "exited", "dead"):
                raise FailedError(f"{service} keeps exiting. See: docker compose logs {service}")
            if row["Health"] == "unhealthy":
                raise FailedError(
                    f"{service} is unhealthy: {line or 'its check printed nothing'}\n"
                    f"See: docker compose logs {service}"
                )
        if len(states) == 2 and all(row["Health"] == "healthy" for row in states.values()):
            return
        if time.monotonic() - started > WAIT_SECONDS:
            unhealthy = " and ".join(s for s, row in states.items() if row["Health"] != "healthy")
            raise FailedError(
                f"{unhealthy} did not become healthy within {duration(WAIT_SECONDS)}. "
                "See: docker compose logs"
            )
        time.sleep(0.5)


def _rows(command: list[str], environment: dict[str, str]) -> list[dict[str, Any]]:
    output = run([*command, "ps", "--all", "--format", "json"], env=environment, log="up")
    return [json.loads(line) for line in output.splitlines() if line.strip()]


def _last_line(container: str) -> str:
    log = json.loads(
        run(["docker", "inspect", "--format", "{{json .State.Health.Log}}", container])
    )
    return str(log[-1]["Output"]).strip() if log else ""


if __name__ == "__main__":
    main(up)
