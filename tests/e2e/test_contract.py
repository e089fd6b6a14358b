"""What the probe and the tests rely on in an Ollama server, checked on each kind of server.

The twin (testbed/twin) is one of them, and is only worth something as far as it behaves like a
real server. To check another one, name its image:

    OLLAMA_TEST_IMAGE=ollama/ollama:0.34.2 pytest tests/e2e/test_contract.py

Where no image registry answers, an image of a server that was built by hand will do: the twin's,
with the real `ollama` at /usr/bin/ollama and its libraries in /usr/lib/ollama.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import docker
import httpx
import pytest

from testbed import runner, runs
from testbed.containers import OLLAMA, remove
from testbed.deadlines import LONG_SECONDS, Deadline, scaled
from testbed.faults import freeze
from testbed.ollama import SharedOllama
from testbed.stuck import ENDLESS, SYSCTLS, send, stuck

pytestmark = pytest.mark.more


@dataclass(frozen=True)
class Generation:
    """What differs between generations of Ollama.

    Attributes:
        shows_options: the command line of a runner has the options that it was started with.
        lists_loads: a model is listed while it loads, and not only once it is ready.
        tells_context: the list has the context length of each model.
        has_slots: the runner tells what it is doing, at `/slots`.
        ping_blocks_list: the list waits while the server pings a runner that a request wants.
        default_context: the context length of a model whose user names none, without a GPU.
    """

    shows_options: bool
    lists_loads: bool
    tells_context: bool
    has_slots: bool
    ping_blocks_list: bool
    default_context: int


GENERATIONS = {
    (0, 9): Generation(True, True, False, False, False, 2048),
    (0, 12): Generation(False, False, True, False, False, 4096),
    (0, 30): Generation(True, False, True, True, True, 4096),
}
"""By the version from which on they hold; seen on 0.9.3, 0.24.0 and 0.34.2.

Not here, as it is a matter of luck: on 0.9.3 a request for a model that is being loaded may fail
with the client that began the load. Newer ones keep it in the queue.
"""

QUEUE = 2
KEEP_SECONDS = 300
HANGS_SECONDS = 5
"""Longer than the list takes on any server that is well, shorter than the server's ping."""


class Server(SharedOllama):
    """A server under test."""

    @property
    def generation(self) -> Generation:
        version = httpx.get(f"{self.url}/api/version").json()["version"]
        numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
        return max((since, one) for since, one in GENERATIONS.items() if since <= numbers)[1]

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=scaled(LONG_SECONDS))

    @property
    def runner(self) -> int:
        """The process id of the only runner."""
        [pid] = runner.pids(self)
        return pid


def await_(holds: Callable[[], Any], what: str, seconds: float = LONG_SECONDS) -> Any:
    """Wait until something holds, and return it: a server announces none of these."""
    deadline = Deadline(seconds)
    while not (found := holds()):
        assert not deadline.passed, f"in time not {what}"
        time.sleep(0.02)
    return found


_IMAGES = ["twin", OLLAMA, *filter(None, [os.environ.get("OLLAMA_TEST_IMAGE")])]


@pytest.fixture(scope="module", params=_IMAGES)
def _server(
    engine: docker.DockerClient, models: str, request: pytest.FixtureRequest
) -> Iterator[Server]:
    image = request.getfixturevalue("twin_image") if request.param == "twin" else request.param
    container = engine.containers.run(
        image,
        detach=True,
        labels=runs.LABELS,
        environment={"OLLAMA_NUM_PARALLEL": "1", "OLLAMA_MAX_QUEUE": str(QUEUE)},
        volumes={models: {"bind": "/root/.ollama", "mode": "rw"}},
        healthcheck={"test": ["NONE"]},
        sysctls=SYSCTLS,
    )
    one = Server(container)
    one.wait_listening()
    yield one
    remove(container)


@pytest.fixture
def server(_server: Server) -> Iterator[Server]:
    """A server that has no model loaded."""
    _server.begin()
    yield _server
    _server.unload()


@pytest.fixture
def new(server: Server) -> Server:
    """The same, and it is one of the newer generation."""
    if not server.generation.has_slots:
        pytest.skip("not of this generation")
    return server


def test_it_says_which_version_it_is_and_a_twin_says_so(server: Server) -> None:
    assert httpx.get(server.url).text == "Ollama is running"
    version = httpx.get(f"{server.url}/api/version").json()["version"]
    assert version.endswith("-twin") == ("this is a twin" in server.container.logs().decode())
    assert server.pids("ollama serve")


def test_a_loaded_model_is_listed_with_its_expiry(server: Server) -> None:
    server.generate("tiny")
    [row] = server.loaded
    [tag] = (
        tag
        for tag in httpx.get(f"{server.url}/api/tags").json()["models"]
        if tag["name"] == "tiny:latest"
    )
    assert row["name"] == row["model"] == "tiny:latest"
    assert row["digest"] == tag["digest"]
    assert row["details"]["quantization_level"] == tag["details"]["quantization_level"] == "F16"
    assert row["size_vram"] == 0
    assert KEEP_SECONDS - scaled(30) < server.expires_in() < KEEP_SECONDS + 1
    told = server.generation.default_context if server.generation.tells_context else None
    assert row.get("context_length") == told


def test_an_answer_says_what_it_took(server: Server) -> None:
    first, again = (server.generate("tiny", tokens=3) for _ in range(2))
    assert first["load_duration"] > again["load_duration"] > 0
    assert first["total_duration"] > first["load_duration"]
    assert first["eval_count"] == 3
    assert first["prompt_eval_count"] > 0
    assert (first["done"], first["done_reason"]) == (True, "length")
    assert first["response"]


def test_a_stream_is_one_line_a_token_and_one_with_the_figures(server: Server) -> None:
    body = {"model": "tiny", "prompt": "a b c", "options": {"num_predict": 3}}
    with httpx.stream("POST", f"{server.url}/api/generate", json=body, timeout=60) as reply:
        *tokens, last = map(json.loads, reply.iter_lines())
    assert 0 < len(tokens) <= 3
    assert not any(token["done"] for token in tokens)
    assert last["done"]
    assert last["eval_count"] == 3


def test_every_request_is_a_line_of_the_log(server: Server) -> None:
    before = server.log.count('POST     "/api/generate"')
    server.generate("tiny")
    await_(lambda: server.log.count('POST     "/api/generate"') > before, "logged")


def test_an_expiry_moves_when_a_request_ends_and_not_before(server: Server) -> None:
    server.generate("tiny", num_ctx=8192)
    before = server.expires_at()
    with server.endless_request("tiny", options=ENDLESS) as tokens:
        tokens.wait(20)
        assert server.expires_at() == before
    await_(lambda: server.expires_at() > before, "moved by a client that gave up")


def test_a_keep_alive_holds_for_later_requests_that_name_none(server: Server) -> None:
    server.request(model="tiny", keep_alive="20m")
    server.generate("tiny")
    await_(lambda: 1100 < server.expires_in() < 1201, "20 min")
    server.request(model="tiny", keep_alive=-1)
    server.generate("tiny")
    await_(lambda: server.loaded[0]["expires_at"] > "2300", "for ever")


def test_a_keep_alive_of_nothing_unloads(server: Server) -> None:
    server.generate("tiny")
    reply = server.post("/api/generate", model="tiny", keep_alive=0).json()
    assert reply["done_reason"] == "unload"
    await_(lambda: not server.loaded and not runner.pids(server), "unloaded")


def test_a_model_in_use_is_unloaded_once_its_user_is_gone(server: Server) -> None:
    with server.endless_request("tiny", options=ENDLESS):
        server.post("/api/generate", model="tiny", keep_alive=0)
        assert server.expires_in() <= 0
    await_(lambda: not server.loaded and not runner.pids(server), "unloaded")


def test_a_request_that_names_other_options_loads_the_model_again(server: Server) -> None:
    seen = []
    for options in ({"num_ctx": 1024}, {"num_ctx": 1024}, {"num_ctx": 512}, {}, {"num_batch": 64}):
        server.request(model="tiny", options={"num_predict": 1, **options})
        seen.append(server.runner)
    assert seen[0] == seen[1]
    assert len(set(seen)) == 4, seen


def test_a_request_that_names_what_is_loaded_loads_nothing(server: Server) -> None:
    server.generate("tiny")
    before, context = server.runner, server.generation.default_context
    for options in ({"num_ctx": context}, {"num_gpu": -1}, {"temperature": 0.1}, {"seed": 1}):
        server.request(model="tiny", options={"num_predict": 1, **options})
        assert server.runner == before, options


def test_a_context_longer_than_the_model_was_trained_for_is_cut(new: Server) -> None:
    new.generate("tiny", num_ctx=50_000)
    before = new.runner
    assert new.loaded[0]["context_length"] == 8192
    new.generate("tiny", num_ctx=8192)
    assert new.runner == before


def test_a_runner_carries_its_options_on_its_command_line(new: Server) -> None:
    new.generate("tiny", num_ctx=1024, num_thread=2)
    words = runner.arguments(new.runner)
    assert words[0].endswith("/llama-server")
    assert re.fullmatch(r"/.*/blobs/sha256-[0-9a-f]{64}", words[words.index("--model") + 1])
    options = {"-c": "1024", "-np": "1", "-t": "2", "--host": "127.0.0.1"}
    assert {key: words[words.index(key) + 1] for key in options} == options


def test_a_models_own_parameters_are_its_defaults(server: Server) -> None:
    server.generate("tuned")
    before = server.runner
    server.generate("tuned", num_ctx=1536)
    assert server.runner == before
    assert ("--lora" in runner.arguments(before)) == server.generation.shows_options
    server.generate("tiny", num_ctx=1536)  # of the same weights
    assert server.runner != before


def test_a_load_is_listed_as_this_generation_does(server: Server) -> None:
    for load in _loads(server):
        listed = bool(server.loaded)
        if not load.done():  # else it was ready by then
            break
    assert listed == server.generation.lists_loads
    load.result()
    assert server.loaded[0]["name"] == "big:latest"


def _loads(server: Server) -> Iterator[Future[dict[str, Any]]]:
    """Loads of the big model, one after the other, each as soon as its process is there."""
    with ThreadPoolExecutor(1) as pool:
        while True:
            load = pool.submit(server.request, model="big", prompt="")
            await_(lambda: runner.pids(server), "loading")
            yield load
            load.result()
            server.unload()


def test_a_client_that_goes_away_aborts_its_load(server: Server) -> None:
    with send(server, model="big"):
        await_(lambda: runner.pids(server), "loading")
    await_(lambda: not runner.pids(server) and not server.loaded, "aborted")
    assert re.search("aborting load|context canceled", server.log)


def test_a_byte_behind_a_request_hides_that_its_client_goes(server: Server) -> None:
    with send(server, model="big") as connection:
        [loading] = await_(lambda: runner.pids(server), "loading")
        connection.sendall(b"\r\n")
    server.request(model="big", prompt="")
    assert server.runner == loading


def test_a_load_that_one_client_gave_up_is_done_for_the_next(new: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        with send(new, model="big"):
            await_(lambda: runner.pids(new), "loading")
            second = pool.submit(new.post, "/api/generate", model="big")
            with pytest.raises(TimeoutError):
                second.result(0.2)
        assert second.result().is_success


def test_more_requests_than_the_queue_holds_are_refused(new: Server) -> None:
    with ThreadPoolExecutor(QUEUE + 2) as pool:
        loads = [pool.submit(new.post, "/api/generate", model="big")]
        await_(lambda: runner.pids(new), "loading")
        loads += [pool.submit(new.post, "/api/generate", model="big") for _ in range(QUEUE + 1)]
        replies = [load.result() for load in loads]
    assert sorted(reply.status_code for reply in replies) == [*[200] * (QUEUE + 1), 503]
    [refused] = (reply for reply in replies if reply.status_code == 503)
    assert refused.json()["error"].startswith("server busy, please try again")


def test_a_request_waits_for_the_only_slot(server: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        with server.endless_request("tiny", options=ENDLESS):
            options = {**ENDLESS, "num_predict": 1}
            waiting = pool.submit(server.request, model="tiny", options=options)
            with pytest.raises(TimeoutError):
                waiting.result(1)
        assert waiting.result()["done"]


def test_an_unknown_model_is_not_found(server: Server) -> None:
    reply = server.post("/api/generate", model="nothing", prompt="a")
    assert (reply.status_code, reply.json()["error"]) == (404, "model 'nothing' not found")
    assert server.post("/api/embed", model="nothing", input="a").status_code == 404
    assert server.post("/api/show", model="nothing").status_code == 404


def test_a_model_that_embeds_does_nothing_else(server: Server) -> None:
    [vector] = server.embed("vector")["embeddings"]
    assert sum(number**2 for number in vector) == pytest.approx(1, abs=0.01)
    assert server.loaded[0]["name"] == "vector:latest"
    reply = server.post("/api/generate", model="vector", prompt="a")
    assert (reply.status_code, reply.json()["error"]) == (
        400,
        '"vector" does not support generate',
    )


def test_a_description_names_the_file_of_the_weights(server: Server) -> None:
    text = server.post("/api/show", model="tiny").json()["modelfile"]
    server.generate("tiny")
    words = runner.arguments(server.runner)
    assert f"FROM {words[words.index('--model') + 1]}\n" in text


def test_a_runner_can_be_asked_without_moving_the_expiry(server: Server) -> None:
    server.generate("tiny")
    before = server.loaded
    body = {"prompt": "a", "n_predict": 1, "options": {"num_predict": 1}, "cache_prompt": False}
    assert runner.ask(server.runner, "/completion", body)[0] == 200
    assert runner.ask(server.runner, "/health")[0] == 200
    assert server.loaded == before


def test_the_slots_of_a_runner_answer_while_it_generates(new: Server) -> None:
    with new.endless_request("tiny", options=ENDLESS) as tokens:
        tokens.wait(20)
        seen = []
        for _ in range(2):
            [slot] = json.loads(runner.ask(new.runner, "/slots")[1])
            seen.append(slot["next_token"][0]["n_decoded"])
            tokens.wait(20)
    assert slot["is_processing"]
    assert seen[0] < seen[1]
    await_(
        lambda: not json.loads(runner.ask(new.runner, "/slots")[1])[0]["is_processing"],
        "free after its user gave up",
    )


def test_a_model_whose_runner_was_killed_is_loaded_again(server: Server) -> None:
    server.generate("tiny")
    before = server.runner
    os.kill(before, signal.SIGKILL)
    await_(lambda: not runner.pids(server), "gone")
    assert server.loaded[0]["name"] == "tiny:latest"  # nobody has noticed
    server.generate("tiny")
    assert server.runner != before


def test_a_user_whose_runner_is_killed_gets_an_error(server: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        asked = {"model": "tiny", "prompt": "a", "stream": False, "options": ENDLESS}
        user = pool.submit(server.post, "/api/generate", **asked)
        await_(lambda: runner.pids(server) and server.loaded, "loaded")
        os.kill(server.runner, signal.SIGKILL)
        assert user.result().status_code == 500


def test_a_user_who_stops_reading_holds_the_model_even_without_its_runner(new: Server) -> None:
    new.generate("tiny", num_ctx=8192)
    with stuck(new, "tiny"):
        new.post("/api/generate", model="tiny", keep_alive=0)
        os.kill(new.runner, signal.SIGKILL)
        await_(lambda: not runner.pids(new), "gone")
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{new.url}/api/generate", json={"model": "tiny"}, timeout=1)
        assert new.expires_in() < 0
    await_(lambda: not new.loaded, "unloaded")
    new.generate("tiny")


def test_a_frozen_runner_is_replaced_and_the_list_may_hang_until_then(server: Server) -> None:
    server.generate("tiny")
    frozen = server.runner
    freeze(frozen)
    with ThreadPoolExecutor(1) as pool:
        user = pool.submit(server.generate, "tiny")
        hung = False
        while not user.done() and not hung:
            hung = _list_hangs(server)
            if not server.generation.ping_blocks_list:
                break
        assert hung == server.generation.ping_blocks_list
        assert user.result()["done"]
    assert server.runner != frozen


def _list_hangs(server: Server) -> bool:
    try:
        httpx.get(f"{server.url}/api/ps", timeout=HANGS_SECONDS)
    except httpx.ReadTimeout:
        return True
    return False
