"""Who is right, and who does harm: states of a server, and what healthchecks say about them.

    python -m bench.verdicts [--image NAME=IMAGE] [--server NAME=URL] [WORD ...]

`bench/generations.py` says what these name; a WORD selects the states whose names contain it. Each
state is made on a real server, once for our probe and once for the other checks. As with Docker's
`--retries=3`, a check calls a server unhealthy when it fails three times in a row. It is right when
it calls an unhealthy server unhealthy or a healthy one healthy. It does harm when a model that is
not hung loses its process, a model that nobody requires is loaded or has its expiry moved, a user's
request fails, or a conversation loses its place in the prompt cache.

`ollama list` and `ollama ps` are made as the calls that they make: `HEAD /`, then a `GET`. A check
has two seconds on an idle machine, more on a busy one, and at most PROBE_TIMEOUT's default of ten.
Servers have one slot, the default since Ollama 0.10. A process hangs because it was stopped
(SIGSTOP).

States of GPUs, and a call that hangs, need a container. There, NVML is a stand-in of its C ABI, a
server in front of Ollama says in `/api/ps` what one with a GPU says, and a library that a runner
loads first keeps a call from returning.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import docker
import httpx
import psutil

from bench.generations import GPUS, Generation, User, arguments, generations
from probe.report import parse
from testbed.deadlines import scaled
from testbed.faults import freeze
from testbed.front import Front, in_front_of
from testbed.network import bridge_gateway
from testbed.nvml import HEALTHY
from testbed.runs import unique

CHECKS_BEFORE = 3
CHECKS_AT_LEAST = 5
HANG_SECONDS = 75.0
"""Five checks at the default interval: so long our probe is asked about what is not healthy."""

FAILURES = 3
LIMIT_SECONDS = 2.0
LONGEST_LIMIT_SECONDS = 10.0
PAUSE_SECONDS = 1.0

OURS = "ollama-probe"
NOT_RUN = "not run"


@dataclass
class Scene:
    """A server in one state.

    Attributes:
        server: it.
        front: the server in front of it, in the states of GPUs.
        users: those whose requests are under way.
        exempt: processes that are hung or killed: whoever ends these does no harm.
        turn: how long the prompt of a paused conversation took, in seconds.
    """

    server: Generation
    front: Front | None = None
    users: list[User] = field(default_factory=list)
    exempt: set[int] = field(default_factory=set)
    turn: float | None = None

    def see(self, *lines: str) -> None:
        assert self.server.nvml is not None
        self.server.nvml.answer(*lines)


Act = Callable[[Scene], None]


def nothing(scene: Scene) -> None:
    pass


@dataclass(frozen=True)
class State:
    """A state of a server.

    Attributes:
        name: what a reader calls it.
        healthy: whether a restart would be wrong; None where the server heals itself within seconds
            of the next request, so that both are right.
        happens: how it comes about.
        before: what is there before, while our probe sees it healthy.
        model: what a timed generate asks for.
        models: what the server must have.
        required: the models that `PROBE_MODEL` names.
        env: more settings of our probe.
        vram_share: how much of each model `/api/ps` says is in VRAM; None: no GPU is simulated.
        in_call: whether something happens in the middle of a call.
        ends: whether the server ends.
    """

    name: str
    healthy: bool | None
    happens: Act = nothing
    before: Act = nothing
    model: str = "tiny"
    models: tuple[str, ...] = ("tiny",)
    required: str = ""
    env: dict[str, str] = field(default_factory=dict)
    vram_share: float | None = None
    in_call: bool = False
    ends: bool = False


# --- acts -------------------------------------------------------------------------------------


def use(model: str = "tiny", **options: Any) -> Act:
    def act(scene: Scene) -> None:
        scene.server.generate(model, options=options)

    return act


def embed(scene: Scene) -> None:
    scene.server.embed("vector")


def generating(model: str = "mid") -> Act:
    """A user gets tokens without end."""

    def act(scene: Scene) -> None:
        user = User(scene.server, model, again=True, options={"num_predict": 1_000_000})
        user.wait(2)
        scene.users.append(user)

    return act


def queueing(scene: Scene) -> None:
    """Five users want the one slot."""
    generating()(scene)
    for _ in range(4):
        scene.users.append(User(scene.server, "mid", again=True, options={"num_predict": 200}))


def asking(scene: Scene) -> None:
    """A user asks, and gets nothing while the server hangs."""
    scene.users.append(User(scene.server, "tiny", again=False, options={"num_predict": 50}))
    time.sleep(1)  # until the server has passed it on


def long_prompt(scene: Scene) -> None:
    user = User(
        scene.server, "mid", again=True, prompt="b c d f " * 450, options={"num_predict": 1}
    )
    scene.users.append(user)
    time.sleep(1)


def converse(scene: Scene) -> None:
    """A user's turn of some 600 tokens, and a pause."""
    answer = scene.server.generate("mid", "a b c d " * 75)
    scene.turn = answer["prompt_eval_duration"] / 1e9


def load_slowly(scene: Scene) -> None:
    """A user waits for a load that goes on at a tenth of its speed."""
    user = User(scene.server, "big", again=False, options={"num_predict": 1})
    scene.users.append(user)
    while not (found := scene.server.runners()):
        time.sleep(0.01)

    def slow_down() -> None:
        with suppress(psutil.Error):
            while not user.ended.is_set() and not user.over.is_set():
                for process in found:
                    process.suspend()
                time.sleep(0.09)
                for process in found:
                    process.resume()
                time.sleep(0.01)

    threading.Thread(target=slow_down, daemon=True).start()


def freeze_runners(model: str = "") -> Act:
    def act(scene: Scene) -> None:
        for process in scene.server.runners(model):
            scene.exempt.add(process.pid)
            freeze(process.pid)

    return act


def kill_runners(scene: Scene) -> None:
    for process in scene.server.runners():
        scene.exempt.add(process.pid)
        process.kill()
    time.sleep(0.3)


def hang(scene: Scene) -> None:
    """The call that computes never returns, and the rest of the process goes on."""
    assert scene.server.decode is not None
    [process] = scene.server.runners("tiny")
    scene.exempt.add(process.pid)
    scene.server.decode.hit(process.pid, "hang")


def freeze_server(scene: Scene) -> None:
    freeze(scene.server.process.pid)


def kill_server(scene: Scene) -> None:
    for process in [*scene.server.runners(), scene.server.process]:
        scene.exempt.add(process.pid)
        with suppress(psutil.Error):
            process.kill()
    time.sleep(0.5)


def see(*lines: str) -> Act:
    return lambda scene: scene.see(*lines)


def claim(share: float) -> Act:
    def act(scene: Scene) -> None:
        assert scene.front is not None
        scene.front.vram_share = share

    return act


def stop_using(model: str = "tiny") -> Act:
    def act(scene: Scene) -> None:
        scene.server.generate(model, "", keep_alive=0)
        while scene.server.loaded() or scene.server.runners():
            time.sleep(0.05)

    return act


def each(*acts: Act) -> Act:
    def act(scene: Scene) -> None:
        for one in acts:
            one(scene)

    return act


EMPTY = "device GPU-1 24576 0 0"
OTHERS = "device GPU-1 24576 24574 0"
GPU: dict[str, Any] = {"vram_share": 1.0}
REQUIRED_GPU: dict[str, Any] = {**GPU, "env": {"PROBE_GPU": "required"}}
"""As in all our examples with a GPU. With `auto` it is unknown from 0.11.5 to 0.29, which do not
show whether a user has asked for the CPU."""
BOTH = ("tiny", "mid")

STATES = [
    State("nothing is loaded", True),
    State("loaded, idle", True, use(), use()),
    State("a user's model, with their own context length", True, use(num_ctx=1024)),
    State(
        "the same, and required",
        *(True, use(num_ctx=1024)),
        required="tiny",
    ),
    State(
        "required, with a user's own batch size",
        *(True, use(num_ctx=1024, num_batch=256)),
        required="tiny",
    ),
    State(
        "required, trained for fewer tokens than the default",
        *(True, use("short")),
        model="short",
        models=("short",),
        required="short",
    ),
    State("a model that only embeds", True, embed, model="vector", models=("vector",)),
    State("a user gets tokens", True, generating(), model="mid", models=("mid",)),
    State("five users want the only slot", True, queueing, model="mid", models=("mid",)),
    State("a long prompt is being read", True, long_prompt, model="mid", models=("mid",)),
    State("a large model is being loaded", True, load_slowly, model="big", models=("big",)),
    State(
        "a required model is being loaded again, for a user",
        *(True, each(stop_using("big"), load_slowly), use("big")),
        model="big",
        models=("big",),
        required="big",
    ),
    State("a conversation pauses", True, converse, use("mid"), model="mid", models=("mid",)),
    State(
        "a conversation with a required model pauses",
        *(True, converse, use("mid")),
        model="mid",
        models=("mid",),
        required="mid",
    ),
    State(
        "a conversation pauses, with a model that the probe has loaded",
        *(True, converse, each()),  # its checks come first, and load what is required
        model="mid",
        models=("mid",),
        required="mid",
    ),
    State("a required model is not loaded yet", True, required="tiny"),
    State("a required model is not installed", False, model="gone", models=(), required="gone"),
    State("the process was killed while idle", True, kill_runners, use()),
    State("the process hangs, idle", None, freeze_runners(), use()),
    State("the process hangs, idle, then a user asks", None, each(freeze_runners(), asking), use()),
    State(
        "the process hangs in the middle of an answer",
        *(False, freeze_runners(), generating("tiny")),
    ),
    State(
        "one of two models hangs in the middle of an answer",
        *(False, freeze_runners("tiny"), each(use("mid"), generating("tiny"))),
        models=BOTH,
    ),
    State(
        "a model hangs that is not the required one",
        *(False, freeze_runners("tiny"), each(use("mid"), generating("tiny"))),
        model="mid",
        models=BOTH,
        required="mid",
    ),
    State(
        "one call hangs, its process answers for its health, and a user asks",
        *(False, each(hang, asking), generating("tiny")),
        in_call=True,
    ),
    State("the server hangs", False, freeze_server, use()),
    State("the server is gone", False, kill_server, use(), ends=True),
]

GPU_STATES = [
    State("unloaded after idling, VRAM empty", True, each(stop_using(), see(EMPTY)), use(), **GPU),
    State("on the CPU beside a GPU that it never used", True, use(), vram_share=0.0),
    State("partly in VRAM: larger than the card", True, use(), vram_share=0.5),
    State("NVML fails (`daemon-reload` on the host)", False, see("error 999"), use(), **GPU),
    State("a GPU is gone", False, see(""), use(), **GPU),
    State(
        "loaded again on the CPU, though there is room",
        *(False, each(stop_using(), claim(0.0), use()), use()),
        **REQUIRED_GPU,
    ),
    State(
        "loaded again with 20 % in VRAM, though there is room",
        *(False, each(stop_using(), claim(0.2), use()), use()),
        **REQUIRED_GPU,
    ),
    State("on the CPU, while `/api/ps` says 100 % GPU", False, see(EMPTY), use(), **GPU),
    State(
        "others hold the VRAM that a required model needs",
        *(False, nothing, see(OTHERS)),
        required="tiny",
        env={"PROBE_GPU": "required"},
        vram_share=0.0,
    ),
]


# --- checks -----------------------------------------------------------------------------------

Check = Callable[[Scene, State, float], bool]


def answers(path: str, *, head: bool = False) -> Check:
    def check(scene: Scene, state: State, limit: float) -> bool:
        url = scene.server.url
        try:
            return (not head or httpx.head(url, timeout=limit).is_success) and (
                httpx.get(url + path, timeout=limit).is_success
            )
        except httpx.HTTPError:
            return False

    return check


def timed_generate(scene: Scene, state: State, limit: float) -> bool:
    body = {"model": state.model, "prompt": "a", "stream": False, "options": {"num_predict": 1}}
    try:
        return httpx.post(f"{scene.server.url}/api/generate", json=body, timeout=limit).is_success
    except httpx.HTTPError:
        return False


READING: dict[str, Check] = {
    "`curl /`": answers("/"),
    "`ollama list`": answers("/api/tags", head=True),
    "`ollama ps`": answers("/api/ps", head=True),
}
GENERATE = "timed generate"
NAMES = [*READING, GENERATE, OURS]


class Probe:
    """Our probe, with a memory of its own."""

    def __init__(self, scene: Scene, state: State, limit: float) -> None:
        self.reason = ""
        self._scene = scene
        self._memory = unique("checks")
        self._env = {"PROBE_TIMEOUT": f"{limit:g}", **state.env}
        if state.required:
            self._env["PROBE_MODEL"] = state.required
        if scene.front is not None:
            self._env |= {"OLLAMA_HOST": scene.front.url, "LD_LIBRARY_PATH": GPUS}

    def check(self) -> bool:
        code, line = self._scene.server.probe(self._memory, self._env)
        print(f"    {line}", file=sys.stderr, flush=True)
        verdict = parse(line)
        self.reason = str(verdict.reason) if verdict else line
        return code == 0


def says_healthy(check: Callable[[], bool], seconds: float = 0.0) -> bool:
    """What Docker makes of a check that it repeats.

    Args:
        check: makes one check.
        seconds: for how long a healthy one is repeated at least.
    """
    failures, count, began = 0, 0, time.monotonic()
    while count < CHECKS_AT_LEAST or time.monotonic() - began < seconds:
        failures, count = 0 if check() else failures + 1, count + 1
        if failures == FAILURES:
            return False
        time.sleep(PAUSE_SECONDS)
    return True


# --- harm -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trace:
    """What a check must not change."""

    processes: frozenset[psutil.Process]
    expiries: dict[str, str]


def trace(scene: Scene) -> Trace:
    processes = frozenset(p for p in scene.server.runners() if p.pid not in scene.exempt)
    with suppress(httpx.HTTPError):
        return Trace(processes, scene.server.loaded(LIMIT_SECONDS))
    return Trace(processes, {})  # a server that hangs shows none


def harm(scene: Scene, state: State, before: Trace) -> str:
    """What has been lost since; empty: nothing."""
    if failed := next((user.failed for user in scene.users if user.failed), ""):
        return f"a user's request fails ({failed[:60]})" if not scene.exempt else ""
    if any(not process.is_running() for process in before.processes):
        if "being loaded" in state.name:
            return "throws the load away"
        return "makes it load again"
    after = trace(scene)
    if scene.turn is not None:
        answer = scene.server.generate("mid", "a b c d " * 75 + "f g")
        cached = answer.get("prompt_eval_cached_count")  # since 0.34
        if cached is not None and cached < answer["prompt_eval_count"] / 2:
            return f"of {answer['prompt_eval_count']} tokens of the conversation {cached} are left"
        turn = answer.get("prompt_eval_duration", 0) / 1e9
        if cached is None and turn > scene.turn / 2:
            return f"the next turn takes {turn / scene.turn:.0%} of a new conversation"
    required = {state.required}
    if (new := after.expiries.keys() - before.expiries.keys() - required) and not scene.users:
        return f"loads {', '.join(new)}"
    if not scene.users and not scene.exempt:
        for name in before.expiries.keys() & after.expiries.keys() - required:
            if before.expiries[name] != after.expiries[name]:
                return "keeps it loaded"
    return ""


# --- cells ------------------------------------------------------------------------------------


@contextmanager
def scene_of(server: Generation, state: State) -> Iterator[Scene]:
    with ExitStack() as stack:
        scene = Scene(server)
        if state.vram_share is not None:
            scene.front = stack.enter_context(
                in_front_of(server.url, bridge_gateway(docker.from_env()))
            )
            scene.front.vram_share = state.vram_share
            scene.see(HEALTHY)
        try:
            if server.is_alive:
                server.reset()
                state.before(scene)
            yield scene
        finally:
            for user in scene.users:
                user.over.set()
            stack.close()
            if not state.ends:
                server.reset()


def ours(server: Generation, state: State, limit: float) -> str:
    with scene_of(server, state) as scene:
        probe = Probe(scene, state, limit)
        if state.before is not nothing:
            for _ in range(CHECKS_BEFORE):
                probe.check()
        state.happens(scene)
        print("    ...", file=sys.stderr)
        before = trace(scene)
        healthy = says_healthy(probe.check, 0.0 if state.healthy else HANG_SECONDS)
        return cell(state, healthy, harm(scene, state, before), probe.reason)


def others(server: Generation, state: State, limit: float) -> dict[str, str]:
    cells = {}
    with scene_of(server, state) as scene:
        if server.is_alive:
            state.happens(scene)
        before = trace(scene)
        for name, check in {**READING, GENERATE: timed_generate}.items():
            healthy = says_healthy(partial(check, scene, state, limit))
            lost = harm(scene, state, before) if name == GENERATE else ""
            cells[name] = cell(state, healthy, lost)
    return cells


def cell(state: State, healthy: bool, lost: str, reason: str = "") -> str:
    right = state.healthy in (healthy, None)
    said = f"`{reason}`" if reason else "healthy" if healthy else "unhealthy"
    if not right and reason:
        said += " (healthy)" if healthy else " (unhealthy)"
    return f"{'✓' if right else '✗'} {said}" + (f", **{lost}**" if lost else "")


def column(server: Generation, states: list[State]) -> dict[str, dict[str, str]]:
    """Every check's cell in every state, on one server."""
    table: dict[str, dict[str, str]] = {}
    has = server.installed()
    print(f"\n**{server.name}**\n\n| | {' | '.join(NAMES)} |\n|---|{'---|' * len(NAMES)}")
    for state in states:
        runs = set(state.models) <= has
        runs &= server.nvml is not None or state.vram_share is None
        runs &= server.decode is not None or not state.in_call
        runs &= server.container is None or not state.ends
        cells = dict.fromkeys(NAMES, NOT_RUN)
        if runs:
            limit = min(scaled(LIMIT_SECONDS), LONGEST_LIMIT_SECONDS)
            print(f"{server.name}: {state.name} ({limit:.0f} s)", file=sys.stderr, flush=True)
            cells = {OURS: ours(server, state, limit), **others(server, state, limit)}
        table[state.name] = cells
        print(f"| {row_name(state)} | {' | '.join(cells[n] for n in NAMES)} |", flush=True)
    for what, count in totals(table).items():
        print(f"| {what} | {' | '.join(count[n] for n in NAMES)} |", flush=True)
    return table


def row_name(state: State) -> str:
    kinds = {True: "healthy", False: "**unhealthy**", None: "heals itself"}
    return f"{kinds[state.healthy]}: {state.name}"


def totals(table: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    counts: dict[str, dict[str, str]] = {"right": {}, "does harm": {}}
    for name in NAMES:
        cells = [row[name] for row in table.values() if row[name] != NOT_RUN]
        right = sum(one.startswith("✓") for one in cells)
        counts["right"][name] = f"{right} of {len(cells)}"
        counts["does harm"][name] = str(sum("**" in one for one in cells))
    return counts


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("words", nargs="*", metavar="WORD")
    options = parser.parse_args()
    words = options.words or [""]
    states = [s for s in (*STATES, *GPU_STATES) if any(word in s.name for word in words)]
    states.sort(key=lambda state: state.ends)
    tables = {server.name: column(server, states) for server in generations(options)}
    print(f"\n**{OURS}**\n\n| | {' | '.join(tables)} |\n|---|{'---|' * len(tables)}")
    for state in states:
        cells = [table[state.name][OURS] for table in tables.values()]
        print(f"| {row_name(state)} | {' | '.join(cells)} |")
    ours_only = [row[OURS] for table in tables.values() for row in table.values()]
    return int(any(one.startswith("✗") or "**" in one for one in ours_only))


if __name__ == "__main__":
    sys.exit(main())
