"""A container of our Ollama image, its users, and the probe in it."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

import httpx
from docker.models.containers import Container

from probe.report import Reason, Verdict, parse
from testbed import runner
from testbed.containers import Workload, wait_log
from testbed.deadlines import LONG_SECONDS, ORDINARY_SECONDS, Deadline, scaled
from testbed.runs import unique

TIME_TO_ASK = {"PROBE_TIMEOUT": f"{max(scaled(2), 10):.0f}"}
"""The default at least: in less there is no time to find out what holds up `/api/ps`."""


def was_asked(verdict: Verdict) -> bool:
    """Whether the check asked for a token, and got it."""
    return verdict.readings.get("first_token_seconds") is not None


class Tokens:
    """How many tokens a user has got."""

    def __init__(self) -> None:
        self._count = 0
        self._more = threading.Condition()

    def add(self) -> None:
        with self._more:
            self._count += 1
            self._more.notify_all()

    def wait(self, more: int) -> None:
        """Wait for so many more."""
        with self._more:
            goal = self._count + more
            assert self._more.wait_for(lambda: self._count >= goal, scaled(ORDINARY_SECONDS)), (
                f"{goal - self._count} tokens did not come"
            )


class Ollama(Workload):
    """A container of our Ollama image."""

    @property
    def url(self) -> str:
        network = self.attributes["NetworkSettings"]["Networks"]["bridge"]
        return f"http://{network['IPAddress']}:11434"

    def generate(self, model: str, tokens: int = 1, **options: int) -> dict[str, Any]:
        """What a user does."""
        return self.request(model=model, options={"num_predict": tokens, **options})

    def request(self, **fields: Any) -> dict[str, Any]:
        """The same, with any field of the request."""
        body = {"prompt": "a b c", "stream": False, "options": {"num_predict": 1}, **fields}
        return self._post("/api/generate", body)

    def embed(self, model: str) -> dict[str, Any]:
        """What another user does."""
        return self._post("/api/embed", {"model": model, "input": "a b c"})

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        reply = httpx.post(self.url + path, json=body, timeout=scaled(LONG_SECONDS))
        assert reply.is_success, f"{path} of {body['model']}: {reply.status_code} {reply.text}"
        return dict(reply.json())

    def probe(self, *words: str, **env: str) -> tuple[int, str]:
        """What an operator runs in the container: exit code and output."""
        done = subprocess.run(
            [
                *("docker", "exec", *(f"--env={name}={value}" for name, value in env.items())),
                *(self.name, "ollama-probe", *words),
            ],
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout + done.stderr

    def check(self, *words: str, **env: str) -> Verdict:
        """Run one check now, as a HEALTHCHECK does, and return its verdict."""
        code, text = self.probe("check", *words, **env)
        verdict = parse(text)
        assert verdict is not None, text
        assert code == verdict.exit_code, text
        return verdict

    def check_until(
        self, holds: Callable[[Verdict], object], *words: str, **env: str
    ) -> list[Verdict]:
        """Check one time after the other until a verdict is as it should be; returns them all."""
        deadline, verdicts = Deadline(LONG_SECONDS), [self.check(*words, **env)]
        while not holds(verdicts[-1]):
            assert not deadline.passed, verdicts[-3:]
            verdicts.append(self.check(*words, **env))
        return verdicts

    def load_seen(self, model: str) -> None:
        """Load a model, and wait until its HEALTHCHECK has seen that: until then, silence is that
        of a load."""
        self.generate(model)
        self.wait_checks(2)  # the first may have begun before

    def wait_loaded(self) -> None:
        """Wait until a check saw its model loaded, if too slow for the check's deadline."""
        loaded = {Reason.READY, Reason.BUSY}
        self.wait(lambda: any(v.reason in loaded for v in self.verdicts), "loaded", LONG_SECONDS)

    def wait_listening(self) -> None:
        """Wait until it has begun to answer."""
        wait_log(self.container, "Listening on")

    @contextmanager
    def endless_request(self, model: str, **fields: Any) -> Iterator[Tokens]:
        """A user's request that is being answered, token by token, until this ends."""
        body = {
            "model": model,
            "prompt": "a b c",
            "options": {"num_predict": 1_000_000, "num_ctx": 2048},
            **fields,
        }
        url, tokens, over = f"{self.url}/api/generate", Tokens(), threading.Event()
        limit = scaled(LONG_SECONDS)

        def read() -> None:
            with (
                suppress(httpx.HTTPError),  # the server may be removed meanwhile
                httpx.stream("POST", url, json=body, timeout=limit) as reply,
            ):
                for _ in reply.iter_lines():
                    tokens.add()
                    if over.is_set():
                        return

        threading.Thread(target=read, daemon=True).start()
        tokens.wait(1)
        yield tokens
        over.set()

    @contextmanager
    def user(self, model: str, patience: float, **options: int) -> Iterator[None]:
        """A user who asks, gives up after some seconds, and asks again, until this ends."""
        url, over = f"{self.url}/api/generate", threading.Event()

        def ask() -> None:
            chosen = {"num_predict": 1, "num_ctx": 2048, **options}
            body = {"model": model, "prompt": "a b c", "stream": False, "options": chosen}
            while not over.is_set():
                with suppress(httpx.HTTPError):
                    httpx.post(url, json=body, timeout=patience)

        threading.Thread(target=ask, daemon=True).start()
        yield
        over.set()

    def long_prompt(self) -> None:
        """Begin a user's request that gives no token for minutes."""
        self.generate("big", num_ctx=8192)
        body = {"model": "big", "prompt": "a b c d " * 1500, "options": {"num_ctx": 8192}}

        self._begin(body)

    def begin_load(self, model: str) -> None:
        """Begin a user's request that loads a model."""
        self._begin({"model": model})

    def _begin(self, body: dict[str, Any]) -> None:
        def ask() -> None:
            with suppress(httpx.HTTPError):  # the server is removed meanwhile
                self.request(**body)

        threading.Thread(target=ask, daemon=True).start()

    @property
    def loaded(self) -> list[dict[str, Any]]:
        reply = httpx.get(f"{self.url}/api/ps", timeout=scaled(ORDINARY_SECONDS))
        return list(reply.json()["models"])

    def expires_at(self, name: str = "") -> float:
        """When a loaded model, or the only one, is unloaded; in seconds of the wall clock."""
        [model] = [m for m in self.loaded if m["name"].startswith(name)]
        text = re.sub(r"(\.\d{6})\d+", r"\1", model["expires_at"])
        return datetime.fromisoformat(text).timestamp()

    def expires_in(self, name: str = "") -> float:
        """Until a loaded model, or the only one, is unloaded."""
        return self.expires_at(name) - time.time()

    @property
    def log(self) -> str:
        """What the engine has read of its log by now, which may be less than was written."""
        return self.container.logs().decode(errors="replace")

    @property
    def whole_log(self) -> str:
        """Its log with all that was written until now; needs a server that answers."""
        last = unique("last")
        httpx.get(f"{self.url}/{last}", timeout=scaled(ORDINARY_SECONDS))
        wait_log(self.container, last)
        return self.log

    def generates(self) -> int:
        """How many requests for tokens have ended by now, those of users and those of checks."""
        return self.whole_log.count('POST     "/api/generate"')


class SharedOllama(Ollama):
    """One that a worker's tests use in turn; each has a memory of checks and a log of its own.

    Attributes:
        env: what is set for the probe, beside what a test gives.
    """

    def __init__(self, container: Container) -> None:
        super().__init__(container)
        self.env: dict[str, str] = {}
        self._since = 0.0

    def begin(self) -> None:
        """Begin a test: nothing is loaded, no check has been."""
        memory = f"/tmp/{unique('checks')}"
        assert self.container.exec_run(["mkdir", memory]).exit_code == 0
        self.env = {"PROBE_STATE_DIR": memory, "PROBE_CACHE_DIR": memory}
        self._since = time.time()

    def probe(self, *words: str, **env: str) -> tuple[int, str]:
        return super().probe(*words, **{**self.env, **env})

    @property
    def log(self) -> str:
        return self.container.logs(since=self._since).decode(errors="replace")

    def unload(self) -> None:
        """Unload every model, and wait until it is gone with its process."""
        deadline = Deadline(LONG_SECONDS)
        while self.loaded or runner.pids(self):
            for model in self.loaded:
                self._post("/api/generate", {"model": model["name"], "keep_alive": 0})
            assert not deadline.passed, self.loaded
            time.sleep(0.05)  # the server says to nobody when a model is unloaded
