"""`make demo`: break a real Ollama on purpose, and watch autoheal find and heal it.

Loads a small model, freezes the process that serves it while a user waits for an answer (the server
itself goes on answering), and prints what happens, in seconds since the fault.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import docker
import httpx
from docker.models.containers import Container

from autoheal.incident import COMPOSE_NUMBER, COMPOSE_PROJECT, COMPOSE_SERVICE
from probe.report import parse
from scripts.compose import PROJECT
from scripts.say import FailedError, main, say, step
from testbed import models

MODEL = "autoheal-demo"
PATIENCE_SECONDS = 300


def demo() -> None:
    client, container = find_server()
    say("This takes 1 to 2 minutes. It restarts only the Ollama container that `make up` started.")
    url = _url(container)
    with step("loading a small model"):
        _make_model(url)
        _unload(url)  # an earlier demo's
        others = _runners(container)
        _ask(url, 30)
    runners = _runners(container) - others  # another model may be loaded, which is left alone
    if len(runners) != 1:
        raise FailedError(
            "The model is loaded, but its process was not found. Run `make demo` again."
        )
    [runner] = runners
    say(f"\nFreezing the process that serves it (SIGSTOP to {runner}):\n")
    answering = Event()
    Thread(target=_wait_for_an_answer, args=(url, answering), daemon=True).start()
    answering.wait(30)
    began = time.time()
    times: dict[str, float] = {}
    container.exec_run(["/bin/sh", "-c", f"kill -STOP {runner}"])
    _line(0, "FAULT", "/api/generate hangs; others answer: " + _says_it_is_fine(url))
    for moment, what, words in _timeline(client, container, began):
        times.setdefault(what, moment)
        _line(moment, what, words)
        if what == "HEALTHY":
            break
    else:
        raise FailedError(f"Not healed within {PATIENCE_SECONDS} s. See: docker compose logs")
    answered = _ask(url, 60)
    _unload(url)
    httpx.request("DELETE", f"{url}/api/delete", json={"model": MODEL}, timeout=10)
    _line(time.time() - began, "ANSWERS", f"a new request took {answered:.1f} s")
    say(
        f"""
  {times["CHECK"]:6.1f} s   until a check of the probe failed
  {times["UNHEALTHY"]:6.1f} s   until Docker reported it unhealthy (3 checks in a row)
  {times["KILL"] - times["UNHEALTHY"]:6.2f} s   from there until autoheal killed it
  {times["HEALTHY"] - times["KILL"]:6.1f} s   from there until it was healthy again

Next: `docker compose exec autoheal autoheal history`, or the page of incidents.
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
        raise FailedError("No Docker Engine answers. Run `make up` first.") from None
    if not found:
        raise FailedError("The Ollama container of `make up` is not running. Run `make up` first.")
    return client, found[0]


def _runners(container: Container) -> set[int]:
    """Ids, in the container, of the processes that serve a model each."""
    listed = container.exec_run(["/bin/sh", "-c", _LIST]).output
    return set(map(int, listed.split()))  # type: ignore[union-attr]


def _url(container: Container) -> str:
    """Where this machine reaches the server, whatever OLLAMA_PORT `make up` was given."""
    [published] = container.attrs["NetworkSettings"]["Ports"]["11434/tcp"]
    return f"http://127.0.0.1:{published['HostPort']}"


def _make_model(url: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "model.gguf"
        models.write(file, layers=2, width=128)
        digest = _upload(url, file.read_bytes())
    reply = httpx.post(
        f"{url}/api/create",
        json={"model": MODEL, "files": {"model.gguf": digest}, "stream": False},
        timeout=60,
    )
    if reply.status_code != 200:
        raise FailedError(f"Ollama refused the model: {reply.text}")


def _upload(url: str, content: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    httpx.post(f"{url}/api/blobs/{digest}", content=content, timeout=60).raise_for_status()
    return digest


def _ask(url: str, seconds: float) -> float:
    """A user's request; returns how long it took."""
    began = time.monotonic()
    body = {"model": MODEL, "prompt": "hello", "stream": False, "options": {"num_predict": 5}}
    httpx.post(f"{url}/api/generate", json=body, timeout=seconds).raise_for_status()
    return time.monotonic() - began


def _wait_for_an_answer(url: str, answering: Event) -> None:
    """A user's request that is being answered when the fault comes, and is cut off by the heal."""
    body = {"model": MODEL, "prompt": "hello", "options": {"num_predict": 1_000_000}}
    with (
        suppress(httpx.HTTPError),
        httpx.stream("POST", f"{url}/api/generate", json=body, timeout=PATIENCE_SECONDS) as reply,
    ):
        for _ in reply.iter_lines():
            answering.set()


def _unload(url: str) -> None:
    httpx.post(f"{url}/api/generate", json={"model": MODEL, "keep_alive": 0}, timeout=30)
    while MODEL in httpx.get(f"{url}/api/ps", timeout=30).text:
        time.sleep(0.1)


def _says_it_is_fine(url: str) -> str:
    answers = [
        f"{p} {httpx.get(url + p, timeout=5).status_code}" for p in ("/api/version", "/api/ps")
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
            yield moment, "UNHEALTHY", "Docker reports the container unhealthy"
        elif action == "kill" and not killed:
            killed = True
            yield moment, "KILL", "autoheal restarts the container"
        elif action == "start":
            yield moment, "START", "the container runs again"
        elif action == "health_status: healthy" and killed:
            yield moment, "HEALTHY", "the health check passes"


def _checks(container: Container) -> list[dict[str, Any]]:
    container.reload()
    return list(container.attrs["State"]["Health"]["Log"] or ())


def _line(moment: float, what: str, words: str) -> None:
    say(f"  {moment:6.1f} s  {what:<10} {words}")


# `llama-server` since Ollama 0.30; the brackets keep this shell itself from matching.
_LIST = """
for p in /proc/[0-9]*; do
    tr '\\0' ' ' 2>/dev/null <$p/cmdline | grep -qE '[o]llama runner|[l]lama-server --model' &&
        echo ${p#/proc/}
done
"""


if __name__ == "__main__":
    main(demo)
