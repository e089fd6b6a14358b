"""`make up`: from a fresh machine to a healthy Ollama watched by autoheal."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any

from probe.report import Remedy, parse
from scripts import engine, images
from scripts.say import FailedError, main, run, say, step

WAIT_SECONDS = 900
PORTS = {
    "OLLAMA_PORT": os.environ.get("OLLAMA_PORT") or "11434",
    "AUTOHEAL_PORT": os.environ.get("AUTOHEAL_PORT") or "8787",
}


def up() -> None:
    for name, port in PORTS.items():
        if not port.isdigit() or not 0 < int(port) < 65_536:
            raise FailedError(f"{name}={port!r}: must be a port number from 1 to 65535")
    say("1. A Docker Engine")
    engine.ensure()
    say("2. The base images")
    environment = {**os.environ, **images.ensure()}
    files = ["-f", "compose.yaml"]
    if engine.has_gpu_runtime():
        say("The engine has a GPU runtime: Ollama gets the GPUs (compose.gpu.yaml).")
        files += ["-f", "compose.gpu.yaml"]
    compose = ["docker", "compose", *files]
    say("3. The probe and autoheal")
    for service in ("ollama", "autoheal"):
        with step(f"building ollama-autoheal/{service}"):
            run([*compose, "--progress", "plain", "build", service], env=environment, log="build")
    say("4. Both services")
    _check_port(compose, "ollama", "OLLAMA_PORT", "perhaps by an Ollama outside of Docker")
    _check_port(compose, "autoheal", "AUTOHEAL_PORT", "and autoheal's page would have it")
    run([*compose, "up", "--detach", "--no-build"], env=environment, log="up")
    _wait(compose)
    ollama, page = PORTS.values()
    say(
        f"""
Ollama answers at http://127.0.0.1:{ollama}, and is healed when it does not. Look next at

  http://127.0.0.1:{page:<22} models, GPUs, containers and incidents, live

  docker compose ps                      both services and their health
  docker compose exec ollama ollama-probe status
                                         GPUs, models, and what the checks have said
  docker compose logs -f autoheal        what was decided, and why
  docker compose exec ollama ollama run llama3.2:1b
                                         a model to talk to, where it can be pulled
  make demo                              break it, and watch it being healed
  make down                              stop it; the models stay (make clean removes all)"""
    )


def _check_port(compose: list[str], service: str, name: str, who: str) -> None:
    """Say it plainly when another program has the port; the engine's own words are long."""
    if run([*compose, "ps", "--status", "running", "--quiet", service]).strip():
        return
    port = int(PORTS[name])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise FailedError(
                f"Port {port} of this machine is taken, {who}. Stop what has it, or choose "
                f"another: make up {name}={port + 1}"
            ) from None


def _wait(compose: list[str]) -> None:
    """Wait until both services are healthy, and say each change."""
    started = time.monotonic()
    said: dict[str, str] = {}
    while True:
        states = {row["Service"]: row for row in _rows(compose)}
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
                raise FailedError(f"{service} waits for you: {verdict.message}")
            if row["State"] in ("restarting", "exited", "dead"):
                raise FailedError(f"{service} does not stay up; see: docker compose logs {service}")
            if row["Health"] == "unhealthy":
                raise FailedError(f"{service} is unhealthy: {line or 'its check says nothing'}")
        if len(states) == 2 and all(row["Health"] == "healthy" for row in states.values()):
            return
        if time.monotonic() - started > WAIT_SECONDS:
            raise FailedError(f"not healthy after {WAIT_SECONDS} s; see: docker compose logs")
        time.sleep(0.5)


def _rows(compose: list[str]) -> list[dict[str, Any]]:
    output = run([*compose, "ps", "--all", "--format", "json"], log="up")
    return [json.loads(line) for line in output.splitlines() if line.strip()]


def _last_line(container: str) -> str:
    log = json.loads(
        run(["docker", "inspect", "--format", "{{json .State.Health.Log}}", container])
    )
    return str(log[-1]["Output"]).strip() if log else ""


if __name__ == "__main__":
    main(up)
