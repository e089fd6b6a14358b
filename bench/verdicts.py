"""Who is right: faults and the harmless states that look like them, and what healthchecks say.

    python -m bench.verdicts [WORD]

Every cell is a container of its own with a real Ollama in that state. The GPU is simulated at
NVML's C ABI, and a server in front of Ollama says in `/api/ps` what one with a GPU would; those
checks that read it ask there. Each check runs three times, as with Docker's `--retries=3`. Its
cell is right when it calls a sick server unhealthy or a well one healthy, and does no harm. Times
are scaled down ten times: each check has one second, and a model that loads for two to four stands
for one that takes half a minute.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import docker
import httpx

from probe.report import parse
from tests.e2e.conftest import OLLAMA, SECOND, Ollama, volume_of_models
from tests.front import Front, in_front_of
from tests.nvml import HEALTHY, Nvml

TRIES = 3
LIMIT_SECONDS = 1.0
PAUSE_SECONDS = 0.6


@dataclass
class Scene:
    """One container, and what was made of it."""

    server: Ollama
    nvml: Nvml
    front: Front

    def probe(self) -> tuple[bool, str]:
        """What our check says now, and its reason."""
        code, line = self.server.probe("check", "--host", self.front.url)
        verdict = parse(line)
        return code == 0, str(verdict.reason) if verdict else line.strip()


Act = Callable[[Scene], None]


def nothing(scene: Scene) -> None:
    pass


@dataclass(frozen=True)
class State:
    """A state of a server.

    Attributes:
        name: what a reader calls it.
        well: whether a restart would be wrong.
        happens: how it comes about.
        before: what is there before, while our check has seen it well.
        model: what a timed generate asks for.
        env: settings of the server and of our check.
        vram_share: how much of each model `/api/ps` says is in VRAM.
    """

    name: str
    well: bool
    happens: Act
    before: Act = nothing
    model: str = "tiny"
    env: dict[str, str] = field(default_factory=dict)
    vram_share: float = 1.0


def use(model: str = "tiny", **options: int) -> Act:
    def act(scene: Scene) -> None:
        scene.server.generate(model, **options)

    return act


def embed(scene: Scene) -> None:
    scene.server.embed("vector")


def see(*lines: str) -> Act:
    return lambda scene: scene.nvml.answer(*lines)


def claim(share: float) -> Act:
    def act(scene: Scene) -> None:
        scene.front.vram_share = share

    return act


def both(first: Act, second: Act) -> Act:
    def act(scene: Scene) -> None:
        first(scene)
        second(scene)

    return act


def load_slowly(scene: Scene) -> None:
    def ask() -> None:
        with suppress(httpx.HTTPError):  # some checks end this, which is the point
            scene.server.generate("big")

    threading.Thread(target=ask, daemon=True).start()
    while not scene.server.pids("ollama runner"):
        time.sleep(0.05)


def ask_at_length(scene: Scene) -> None:
    scene.server.endless_request("tiny").__enter__()


def freeze(words: str) -> Act:
    return lambda scene: scene.server.freeze(words)


def stop_using(scene: Scene) -> None:
    scene.server.request(model="tiny", prompt="", keep_alive=0)
    while scene.server.loaded:
        time.sleep(0.05)


EMPTY = "device GPU-1 24576 0 0"
OTHERS = "device GPU-1 24576 24574 0"

STATES = [
    State("nothing is loaded", True, nothing),
    State("a user's model, with his own context length", True, use(num_ctx=1024)),
    State("a large model is being loaded", True, load_slowly, model="big"),
    State(
        "a long request, and no free slot",
        *(True, ask_at_length),
        env={"OLLAMA_NUM_PARALLEL": "1"},
    ),
    State("a model that only embeds", True, embed, model="vector"),
    State("unloaded after idling, VRAM empty", True, both(stop_using, see(EMPTY)), use()),
    State("kept on the CPU from the start", True, use(), vram_share=0.0),
    State("partly in VRAM: larger than the card", True, use(), vram_share=0.5),
    State("the server hangs", False, freeze("ollama serve")),
    State("the model's process hangs", False, freeze("ollama runner"), use()),
    State(
        "the required model is missing", False, nothing, model="gone", env={"PROBE_MODEL": "gone"}
    ),
    State("NVML fails (`daemon-reload` on the host)", False, see("error 999"), use()),
    State("a GPU is gone", False, see(""), use()),
    State("fell back to the CPU", False, claim(0.0), use()),
    State("on the CPU, while `/api/ps` says 100 % GPU", False, see(EMPTY), use()),
    State("others hold the VRAM", False, both(see(OTHERS), claim(0.0)), use()),
]

Check = Callable[[Scene, State], bool]


def answers(path: str) -> Check:
    def check(scene: Scene, state: State) -> bool:
        try:
            return httpx.get(scene.server.url + path, timeout=LIMIT_SECONDS).is_success
        except httpx.HTTPError:
            return False

    return check


def command(word: str) -> Check:
    def check(scene: Scene, state: State) -> bool:
        done = subprocess.run(
            [
                *("docker", "exec", scene.server.name),
                *("timeout", str(LIMIT_SECONDS), "ollama", word),
            ],
            capture_output=True,
        )
        return done.returncode == 0

    return check


def all_in_vram(scene: Scene, state: State) -> bool:
    try:
        models = httpx.get(f"{scene.front.url}/api/ps", timeout=LIMIT_SECONDS).json()["models"]
    except httpx.HTTPError:
        return False
    return bool(all(model["size"] == model["size_vram"] for model in models))


def timed_generate(scene: Scene, state: State) -> bool:
    body = {"model": state.model, "prompt": "a", "stream": False, "options": {"num_predict": 1}}
    try:
        url = f"{scene.server.url}/api/generate"
        return httpx.post(url, json=body, timeout=LIMIT_SECONDS).is_success
    except httpx.HTTPError:
        return False


OURS = "ollama-probe"
CHECKS: dict[str, Check] = {
    "`curl /`": answers("/"),
    "`ollama list`": command("list"),
    "`ollama ps`": command("ps"),
    "`size = size_vram`": all_in_vram,
    "timed generate": timed_generate,
    OURS: lambda scene, state: scene.probe()[0],
}


def main(word: str = "") -> int:
    engine = docker.from_env()
    print(f"| | {' | '.join(CHECKS)} |\n|---|{'---|' * len(CHECKS)}", flush=True)
    right = dict.fromkeys(CHECKS, 0)
    states = [state for state in STATES if word in state.name]
    with volume_of_models(engine, f"bench-{os.getpid()}") as models:
        for state in states:
            cells = []
            for name, check in CHECKS.items():
                cell = judge(engine, models, state, name, check)
                right[name] += cell.startswith("✓")
                cells.append(cell)
            kind = "well" if state.well else "**sick**"
            print(f"| {kind}: {state.name} | {' | '.join(cells)} |", flush=True)
    totals = " | ".join(f"{count} of {len(states)}" for count in right.values())
    print(f"| right | {totals} |")
    return 0 if right[OURS] == len(states) else 1


def judge(engine: docker.DockerClient, models: str, state: State, name: str, check: Check) -> str:
    """One cell of the table."""
    with scene_of(engine, models, state) as scene:
        state.before(scene)
        if name == OURS and state.before is not nothing:
            for _ in range(2):
                scene.probe()
        state.happens(scene)
        before = trace(scene) if state.well else {}
        healthy = False
        for _ in range(TRIES):
            healthy = check(scene, state) or healthy
            time.sleep(PAUSE_SECONDS)
        if healthy != state.well:
            return "✗ says well" if healthy else "✗ says sick"
        harm = harm_done(before, trace(scene), scene) if state.well else ""
        if harm:
            return f"✗ {harm}"
        return f"✓ `{scene.probe()[1]}`" if name == OURS else "✓"


@contextmanager
def scene_of(engine: docker.DockerClient, models: str, state: State) -> Iterator[Scene]:
    with ExitStack() as stack:
        nvml = Nvml(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        nvml.answer(HEALTHY)
        env = {"PROBE_TIMEOUT": str(LIMIT_SECONDS), "PROBE_QUIET": "0", **state.env}
        container = engine.containers.run(
            OLLAMA,
            detach=True,
            environment=env,
            volumes={models: {"bind": "/root/.ollama", "mode": "rw"}, **nvml.volume},
            healthcheck={"test": ["CMD", "true"], "interval": 3600 * SECOND},
        )
        stack.callback(container.remove, force=True, v=True)
        server = Ollama(container)
        server.wait_listening()
        bridge = engine.networks.get("bridge").attrs["IPAM"]["Config"][0]["Gateway"]
        front = stack.enter_context(in_front_of(server.url, str(bridge)))
        front.vram_share = state.vram_share
        yield Scene(server, nvml, front)


def trace(scene: Scene) -> dict[str, Any]:
    """What a check must not change."""
    return {
        "pids": set(scene.server.pids("ollama runner")),
        "expiry": {m["name"]: m["expires_at"] for m in scene.server.loaded},
    }


def harm_done(before: dict[str, Any], after: dict[str, Any], scene: Scene) -> str:
    if "aborting load" in scene.server.log:
        return "throws the load away"
    if after["expiry"].keys() - before["expiry"].keys():
        return "loads what nobody asked for"
    if before["pids"] - after["pids"]:
        return "makes it load again"
    for name, text in before["expiry"].items():
        moved = moment(after["expiry"].get(name, text)) - moment(text)
        if moved > 1 and not unfinished(scene):
            return "keeps it loaded"
    return ""


def moment(text: str) -> float:
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text)).timestamp()


def unfinished(scene: Scene) -> bool:
    """A model's first request, while it goes on, moves its expiry itself."""
    first, second = scene.server.loaded, scene.server.loaded
    return first != second


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
