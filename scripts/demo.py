"""`make demo`: break a real Ollama on purpose, and watch it being found and healed.

Loads a small model, freezes the process that serves it (the server itself goes on answering),
and prints what happens, in seconds since the fault.
"""

from __future__ import annotations

import hashlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import httpx
from docker.models.containers import Container

from autoheal.incident import COMPOSE_NUMBER, COMPOSE_PROJECT, COMPOSE_SERVICE
from probe.report import parse
from scripts import small_model
from scripts.say import FailedError, main, say, step

MODEL = "autoheal-demo"
PROJECT = "ollama-autoheal"
PATIENCE_SECONDS = 300
URL = f"http://127.0.0.1:{os.environ.get('OLLAMA_PORT') or '11434'}"


def demo() -> None:
    client, container = find_server()
    with step("loading a small model"):
        _make_model(container)
        _ask(30)
    processes = container.top(ps_args="-eo pid,args")["Processes"]
    runners = [int(pid) for pid, args in processes if "ollama runner" in args]
    if not runners:
        raise FailedError("the model is loaded, but no process of Ollama serves it")
    say(f"\nFreezing the process that serves it (SIGSTOP to {runners[0]}). Ollama's API goes on:\n")
    began = time.time()
    times: dict[str, float] = {}
    try:
        os.kill(runners[0], signal.SIGSTOP)
    except (PermissionError, ProcessLookupError):
        container.exec_run(["/bin/sh", "-c", _FREEZE])
    _line(0, "FAULT", "the model answers nobody; " + _says_it_is_fine())
    for moment, what, words in _timeline(client, container, began):
        times.setdefault(what, moment)
        _line(moment, what, words)
        if what == "HEALTHY":
            break
    else:
        raise FailedError(f"not healed within {PATIENCE_SECONDS} s; see: docker compose logs")
    answered = _ask(60)
    httpx.request("DELETE", f"{URL}/api/delete", json={"model": MODEL}, timeout=10)
    _line(time.time() - began, "ANSWERS", f"a user's request took {answered:.1f} s")
    say(
        f"""
  {times["CHECK"]:6.1f} s   until the probe saw it
  {times["UNHEALTHY"]:6.1f} s   until Docker called it unhealthy (3 checks in a row)
  {times["KILL"] - times["UNHEALTHY"]:6.2f} s   from there until autoheal had it killed
  {times["HEALTHY"] - times["KILL"]:6.1f} s   from there until it was healthy again
"""
    )


def find_server() -> tuple[docker.DockerClient, Container]:
    """The engine and the Ollama that `make up` has started; raises `FailedError`."""
    try:
        client = docker.from_env()
        found = client.containers.list(
            filters={
                "label": [
                    f"{COMPOSE_PROJECT}={PROJECT}",
                    f"{COMPOSE_SERVICE}=ollama",
                    COMPOSE_NUMBER,  # not one that only has our image
                ]
            }
        )
    except docker.errors.DockerException:
        raise FailedError("no Docker engine answers; run `make up` first") from None
    if not found:
        raise FailedError("there is no Ollama of ours here; run `make up` first")
    return client, found[0]


def _make_model(container: Container) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "model.gguf"
        small_model.write(file, layers=2, width=128)
        digest = _upload(file.read_bytes())
    reply = httpx.post(
        f"{URL}/api/create",
        json={"model": MODEL, "files": {"model.gguf": digest}, "stream": False},
        timeout=60,
    )
    if reply.status_code != 200:
        raise FailedError(f"Ollama did not take the model: {reply.text}")


def _upload(content: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    httpx.post(f"{URL}/api/blobs/{digest}", content=content, timeout=60).raise_for_status()
    return digest


def _ask(seconds: float) -> float:
    """A user's request; returns how long it took."""
    began = time.monotonic()
    body = {"model": MODEL, "prompt": "hello", "stream": False, "options": {"num_predict": 5}}
    httpx.post(f"{URL}/api/generate", json=body, timeout=seconds).raise_for_status()
    return time.monotonic() - began


def _says_it_is_fine() -> str:
    answers = [
        f"{p} {httpx.get(URL + p, timeout=5).status_code}" for p in ("/api/version", "/api/ps")
    ]
    return ", ".join(answers)


def _timeline(
    client: docker.DockerClient, container: Container, began: float
) -> Iterator[tuple[float, str, str]]:
    """What the engine reports of the container: seconds since the fault, what, in words."""
    events = client.events(
        decode=True,
        filters={"container": container.id},
        since=int(began),
        until=int(began + PATIENCE_SECONDS),
    )
    said: set[str] = set()
    killed = False
    for event in events:
        moment = event["timeNano"] / 1e9 - began
        action = event["Action"]
        if moment < 0:
            continue
        if action.startswith("exec_die"):
            for entry in _checks(container):
                if entry["Start"] not in said and entry["ExitCode"] != 0 and not killed:
                    said.add(entry["Start"])
                    verdict = parse(entry["Output"])
                    words = f"{verdict.reason}: {verdict.message}" if verdict else entry["Output"]
                    yield moment, "CHECK", words
        elif action == "health_status: unhealthy":
            yield moment, "UNHEALTHY", "Docker tells whoever listens"
        elif action == "kill" and not killed:
            killed = True
            yield moment, "KILL", "autoheal restarts the container"
        elif action == "start":
            yield moment, "START", "the container runs again"
        elif action == "health_status: healthy" and killed:
            yield moment, "HEALTHY", "the probe is content"


def _checks(container: Container) -> list[dict[str, Any]]:
    container.reload()
    return list(container.attrs["State"]["Health"]["Log"] or ())


def _line(moment: float, what: str, words: str) -> None:
    say(f"  {moment:6.1f} s  {what:<10} {words}")


_FREEZE = """
for p in /proc/[0-9]*; do
    tr '\\0' ' ' <$p/cmdline | grep -q 'ollama runner' && kill -STOP ${p#/proc/}
done
"""
"""The same from inside, for an engine whose processes are not ours to signal."""


if __name__ == "__main__":
    main(demo)
