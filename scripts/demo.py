"""`make demo`: break a real Ollama on purpose, and watch autoheal find and heal it.

Loads two small models, freezes the process that serves one of them while users wait for an answer
(the server itself goes on answering), and prints what happens, in seconds since the fault.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import docker
import httpx
from docker.models.containers import Container

from autoheal.incident import COMPOSE_NUMBER, COMPOSE_PROJECT, COMPOSE_SERVICE, seconds_of
from probe.report import parse
from scripts.compose import PROJECT
from scripts.say import FailedError, main, say, step
from testbed import models

MODEL = "autoheal-demo"
BESIDE = "autoheal-demo-beside"
"""Nothing happens to this one."""

WAITING = 2
"""So many users ask after the fault, beside the one who was getting an answer."""
PATIENCE_SECONDS = 300


def demo() -> None:
    client, container = find_server()
    say("This takes half a minute. It touches only the Ollama container that `make up` started.")
    url = _url(container)
    with step("loading two small models"):
        beside, runner = [_load(url, container, name) for name in (BESIDE, MODEL)]
        _wait_for_a_check(container)
    say(f"\nFreezing the process that serves one of them (SIGSTOP to {runner}):\n")
    answering = Event()
    Thread(target=_get_an_answer, args=(url, answering), daemon=True).start()
    answering.wait(30)
    began = time.time()
    times: dict[str, float] = {}
    container.exec_run(["/bin/sh", "-c", f"kill -STOP {runner}"])
    users = ThreadPoolExecutor(WAITING)
    served: list[float] = []
    waiting = [users.submit(_wait, url, began, served) for _ in range(WAITING)]
    _line(0, "FAULT", "/api/generate hangs; others answer: " + _says_it_is_fine(url))
    for moment, what, words in _timeline(client, container, began):
        times.setdefault(what, moment)
        _line(moment, what, words)
        if what == "HEALTHY":
            break
    else:
        raise FailedError(f"Not healed within {PATIENCE_SECONDS} s. See: docker compose logs")
    futures.wait(waiting)
    answered = _ask(url, MODEL, 60)
    well = times["HEALTHY"] - times["HEAL"]
    same = beside in _runners(container)
    for name in (MODEL, BESIDE):
        _unload(url, name)
        httpx.request("DELETE", f"{url}/api/delete", json={"model": name}, timeout=10)
    say(
        f"""
  {times["CHECK"]:6.1f} s   until a check of the probe failed
  {times["UNHEALTHY"]:6.1f} s   until Docker reported it unhealthy
  {times["HEAL"] - times["UNHEALTHY"]:6.2f} s   from there until autoheal began to heal it
{_served(served, times["HEAL"])}  {well:6.1f} s   from there until a check found it healthy

{len(served)} of the {WAITING} users who waited got their answer; a new one took {answered:.1f} s.
The other model's process {"never stopped" if same else "was stopped by the restart"}.

Next: `docker compose exec autoheal autoheal history`, or the page of incidents.
"""
    )


def _wait(url: str, began: float, served: list[float]) -> None:
    """A user who waits for an answer from the fault on; notes when it came."""
    _ask(url, MODEL, PATIENCE_SECONDS)
    served.append(time.time() - began)
    if len(served) == 1:
        _line(served[0], "SERVED", "a user who waited got an answer")


def _served(seconds: list[float], since: float) -> str:
    """When the first user who waited was served; both in seconds since the fault."""
    if not seconds:
        return ""
    return f"  {min(seconds) - since:6.1f} s   from there until a user who waited got an answer\n"


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


def _load(url: str, container: Container, model: str) -> int:
    """Make and load a model; returns the id, in the container, of the process that serves it."""
    _make_model(url, model)
    _unload(url, model)  # an earlier demo's
    others = _runners(container)  # another model may be loaded, which is left alone
    _ask(url, model, 30)
    runners = _runners(container) - others
    if len(runners) != 1:
        raise FailedError(
            "The model is loaded, but its process was not found. Run `make demo` again."
        )
    return runners.pop()


def _make_model(url: str, model: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "model.gguf"
        # Models of the same content would share one process.
        models.write(file, layers=3 if model == BESIDE else 2, width=128)
        digest = _upload(url, file.read_bytes())
    reply = httpx.post(
        f"{url}/api/create",
        json={"model": model, "files": {"model.gguf": digest}, "stream": False},
        timeout=60,
    )
    if reply.status_code != 200:
        raise FailedError(f"Ollama refused the model: {reply.text}")


def _upload(url: str, content: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    httpx.post(f"{url}/api/blobs/{digest}", content=content, timeout=60).raise_for_status()
    return digest


def _ask(url: str, model: str, seconds: float) -> float:
    """A user's request; returns how long it took."""
    began = time.monotonic()
    body = {"model": model, "prompt": "hello", "stream": False, "options": {"num_predict": 5}}
    httpx.post(f"{url}/api/generate", json=body, timeout=seconds).raise_for_status()
    return time.monotonic() - began


def _get_an_answer(url: str, answering: Event) -> None:
    """A user's request that is being answered when the fault comes."""
    body = {"model": MODEL, "prompt": "hello", "options": {"num_predict": 1_000_000}}
    with (
        suppress(httpx.HTTPError),
        httpx.stream("POST", f"{url}/api/generate", json=body, timeout=PATIENCE_SECONDS) as reply,
    ):
        for _ in reply.iter_lines():
            answering.set()


def _unload(url: str, model: str) -> None:
    httpx.post(f"{url}/api/generate", json={"model": model, "keep_alive": 0}, timeout=30)
    while f'"{model}:latest"' in httpx.get(f"{url}/api/ps", timeout=30).text:
        time.sleep(0.1)


def _says_it_is_fine(url: str) -> str:
    answers = [
        f"{p} {httpx.get(url + p, timeout=5).status_code}" for p in ("/api/version", "/api/tags")
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
    healing = False
    for event in events:
        moment = event["timeNano"] / 1e9 - began
        action = event["Action"]
        if moment < 0:
            continue
        if action.startswith("exec_die"):
            for entry in _checks(container):
                is_new = entry["Start"] not in said and seconds_of(entry["Start"]) >= began
                if is_new and entry["ExitCode"] != 0 and not healing:
                    said.add(entry["Start"])
                    verdict = parse(entry["Output"])
                    words = f"{verdict.reason}: {verdict.message}" if verdict else entry["Output"]
                    yield moment, "CHECK", words
        elif action == "health_status: unhealthy":
            yield moment, "UNHEALTHY", "Docker reports the container unhealthy"
        elif action.startswith("exec_create") and "end-runner" in action and not healing:
            healing = True
            yield moment, "HEAL", "autoheal ends only the stuck process"
        elif action == "kill" and not healing:
            healing = True
            yield moment, "HEAL", "autoheal restarts the container"
        elif action == "start":
            yield moment, "START", "the container runs again"
        elif action == "health_status: healthy" and healing:
            yield moment, "HEALTHY", "the health check passes"


def _wait_for_a_check(container: Container) -> None:
    """Wait for a whole check: a model that no check has seen loaded may still be loading."""
    began = time.time()
    while not any(seconds_of(entry["Start"]) > began for entry in _checks(container)):
        if time.time() - began > PATIENCE_SECONDS:
            raise FailedError("The health check does not run. See: docker compose ps")
        time.sleep(0.2)


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
