"""Recorded command lines and answers of every generation of runners, and what they mean.

Recorded from 0.9.3, 0.24.0 and 0.34.2 on a CPU; rows of other versions, and of GPUs, follow the
code that writes them in Ollama's sources. Paths are shortened, and `params` left out of slots.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe import dialects
from probe.observation import Answer, CommandLine, Dialect, RunnerHealth, Slot

B = "/models/blobs/sha256-43df"

OLLAMA_RUNNER = f"/usr/bin/ollama runner --model {B} --ctx-size 8192 --batch-size 512"
LLAMA_SERVER = (
    f"/usr/lib/ollama/llama-server --model {B} --port 40907 --host 127.0.0.1 --no-webui --offline "
    "-c 4096 -np 1 --log-verbosity 4 --no-log-prefix --no-log-timestamps"
)
SHIFT = "--context-shift --keep 4"
EMBEDDING = f"{LLAMA_SERVER} --flash-attn auto --embedding"

RUNNER = CommandLine(Dialect.OLLAMA_RUNNER, weights=B, num_ctx=8192, num_batch=512)
ENGINE = CommandLine(Dialect.OLLAMA_ENGINE, port=42939)
SERVER = CommandLine(Dialect.LLAMA_SERVER, 40907, B, num_ctx=4096, parallel=1)
MLX = CommandLine(Dialect.MLX, 5)


def command_line(text: str) -> CommandLine | None:
    return dialects.command_line([*text.split(" "), ""])  # as /proc/PID/cmdline ends


@pytest.mark.parametrize(
    ("text", "command"),
    [
        (
            f"{OLLAMA_RUNNER} --threads 2 --no-mmap --parallel 2 --port 40001",
            replace(RUNNER, port=40001, num_ctx=4096, num_thread=2, parallel=2),
        ),
        (f"{OLLAMA_RUNNER} --n-gpu-layers 33", replace(RUNNER, num_gpu=33)),
        # 0.9's other engine has its options on the command line as well
        (OLLAMA_RUNNER.replace("--model", "--ollama-engine --model"), RUNNER),
        (f"/usr/bin/ollama runner --model {B} --port 42939", replace(ENGINE, weights=B)),
        (
            f"ollama runner --ollama-engine --model {B} --port 42939",
            replace(ENGINE, weights=B),
        ),
        ("/usr/bin/ollama runner --ollama-engine --port 42939", ENGINE),
        (
            f"{LLAMA_SERVER} --load-mode none --flash-attn auto -b 512 -ub 512 {SHIFT}",
            replace(SERVER, num_batch=512, use_mmap=False),
        ),
        (
            f"{LLAMA_SERVER} -b 1024 -ub 1024 -ngl 99 -t 3 {SHIFT}",
            replace(SERVER, num_batch=1024, num_gpu=99, num_thread=3),
        ),
        (
            f"llama-server -m {B} --port=40907 --ctx-size=8192 --parallel 2 --batch-size 512 "
            f"--gpu-layers 0 --threads 3 --embeddings {SHIFT}",
            replace(SERVER, parallel=2, num_batch=512, num_gpu=0, num_thread=3, embedding=True),
        ),
        (f"{EMBEDDING} -b 2048 -ub 2048 {SHIFT}", replace(SERVER, num_batch=2048, embedding=True)),
        # up to 0.33, and since 0.34
        ("ollama runner --mlx-engine --model qwen3:4b --port 5", replace(MLX, model="qwen3:4b")),
        ("/usr/bin/ollama runner --model qwen3:4b --port 5", replace(MLX, model="qwen3:4b")),
        ("ollama runner --imagegen-engine --model x/flux --port 5", replace(MLX, model="x/flux")),
    ],
)
def test_a_command_line_says_what_a_process_serves(text: str, command: CommandLine) -> None:
    found = command_line(text)
    assert found is not None
    assert replace(found, options_visible=False) == command


@pytest.mark.parametrize(
    "text",
    [
        "",
        "llama-server",
        "/usr/lib/ollama/llama-server --port 50000 --host 127.0.0.1 --no-webui --offline --verbose",
        "/usr/lib/ollama/llama-server --list-devices --offline --verbose",
        f"llama-server --version --model {B}",
        "ollama",
        "/usr/bin/ollama serve",
        "/usr/bin/ollama gpu-discover",
        "/usr/bin/ollama run runner",
        f"grep runner --model {B} --port 1",
        "/bin/sh -c ollama runner --model x",
    ],
)
def test_other_processes_are_no_runners(text: str) -> None:
    assert command_line(text) is None


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        (OLLAMA_RUNNER, True),
        (f"{OLLAMA_RUNNER} --no-mmap", True),  # the server's own choice on a CPU
        (f"{OLLAMA_RUNNER} --lora /models/blobs/sha256-l", False),
        (f"{OLLAMA_RUNNER} --main-gpu 1", False),
        (f"/usr/bin/ollama runner --model {B} --port 42939", False),
        ("/usr/bin/ollama runner --ollama-engine --port 42939", False),
        ("ollama runner --mlx-engine --model qwen3:4b --port 5", False),
        (f"{LLAMA_SERVER} {SHIFT}", True),
        (f"{LLAMA_SERVER} --mmproj {B} {SHIFT}", True),
        (f"{LLAMA_SERVER} --load-mode none {SHIFT}", True),  # the server's own choice on a CPU
        (f"{LLAMA_SERVER} --load-mode dio {SHIFT}", True),  # and on an integrated GPU
        # and where a model fits on one of several GPUs
        (f"{LLAMA_SERVER} --split-mode none --main-gpu 0 {SHIFT}", False),
        (LLAMA_SERVER, False),
        (f"{LLAMA_SERVER} --lora /models/blobs/sha256-l {SHIFT}", False),
        (f"{LLAMA_SERVER} --spec-type draft-mtp --spec-draft-n-max 8 {SHIFT}", False),
        (f"llama-server --model {B} {SHIFT}", False),
        (f"{EMBEDDING} -b 2048 -ub 2048 {SHIFT}", True),
        # it may have been asked for more than fits into the context
        (f"{EMBEDDING} -b 4096 -ub 4096 {SHIFT}", False),
    ],
)
def test_options_are_visible_where_a_request_can_repeat_them(text: str, visible: bool) -> None:
    found = command_line(text)
    assert found is not None
    assert found.options_visible is visible


@pytest.mark.parametrize(
    ("text", "serves"),
    [
        ("/usr/bin/ollama serve", True),
        ("ollama start", True),
        ("ollama run serve", False),
        ("ollama", False),
        ("serve", False),
        ("", False),
    ],
)
def test_a_server_is_known_by_its_command(text: str, serves: bool) -> None:
    assert dialects.serves(text.split(" ")) is serves


LOADING = '{"error":{"message":"Loading model","type":"unavailable_error","code":503}}'
READY = RunnerHealth("ready")


@pytest.mark.parametrize(
    ("dialect", "status", "content", "health"),
    [
        (Dialect.OLLAMA_RUNNER, 200, '{"status":"ok","progress":1}', READY),
        (Dialect.OLLAMA_RUNNER, 200, '{"status":"no slot available","progress":1}', READY),
        (
            Dialect.OLLAMA_RUNNER,
            200,
            '{"status":"loading model","progress":0.4}',
            RunnerHealth("loading", 0.4),
        ),
        (Dialect.OLLAMA_RUNNER, 200, '{"status":0,"progress":1}', READY),
        (Dialect.OLLAMA_RUNNER, 200, '{"status":1,"progress":1}', READY),
        (Dialect.OLLAMA_RUNNER, 200, '{"status":2,"progress":0.25}', RunnerHealth("loading", 0.25)),
        (Dialect.OLLAMA_RUNNER, 200, '{"status":4,"progress":0}', None),
        (Dialect.OLLAMA_ENGINE, 200, '{"status":0,"progress":1}', READY),
        (Dialect.OLLAMA_ENGINE, 200, '{"status":2,"progress":0}', RunnerHealth("loading", 0.0)),
        (
            Dialect.OLLAMA_ENGINE,
            200,
            '{"status":3,"progress":0.0095}',
            RunnerHealth("loading", 0.0095),
        ),
        (Dialect.OLLAMA_ENGINE, 404, "404 page not found", None),
        (Dialect.LLAMA_SERVER, 200, '{"status":"ok"}', READY),
        (Dialect.LLAMA_SERVER, 503, LOADING, RunnerHealth("loading")),
        (Dialect.LLAMA_SERVER, 500, LOADING, None),
        (Dialect.LLAMA_SERVER, 503, '{"status":"ok"}', None),
        (Dialect.LLAMA_SERVER, 200, '{"status":0}', None),
        (Dialect.LLAMA_SERVER, 401, '{"error":{"message":"Invalid API Key"}}', None),
        (
            Dialect.MLX,
            200,
            '{"Status":0,"Progress":100,"ContextLength":32768,"Memory":2147483648}',
            READY,
        ),
        (Dialect.MLX, 200, '{"Status":5}', None),
        (Dialect.MLX, 200, "[0]", None),
        (Dialect.OLLAMA_ENGINE, 200, '{"status":false}', None),
        (Dialect.OLLAMA_ENGINE, 200, '{"status":[0]}', None),
        (Dialect.OLLAMA_ENGINE, 200, '{"status":3,"progress":NaN}', RunnerHealth("loading")),
        (Dialect.OLLAMA_ENGINE, 200, '{"status":3,"progress":"half"}', RunnerHealth("loading")),
    ],
)
def test_an_answer_for_health_means_the_same_in_every_dialect(
    dialect: Dialect, status: int, content: str, health: RunnerHealth | None
) -> None:
    assert dialects.health(dialect, status, content.encode()) == health


def test_an_mlx_runner_answers_for_its_health_at_another_path() -> None:
    paths = {dialect: dialects.health_path(dialect) for dialect in Dialect}
    assert paths.pop(Dialect.MLX) == "/v1/status"
    assert set(paths.values()) == {"/health"}


FRESH = {"id": 0, "n_ctx": 4096, "speculative": False, "is_processing": False}
READING = FRESH | {
    "is_processing": True,
    "id_task": 313,
    "n_prompt_tokens": 1027,
    "n_prompt_tokens_processed": 512,
    "n_prompt_tokens_cache": 3,
    "next_token": [{"has_next_token": False, "has_new_line": False, "n_remain": 1, "n_decoded": 0}],
}
GENERATING = FRESH | {
    "is_processing": True,
    "id_task": 8,
    "n_prompt_tokens": 85,
    "n_prompt_tokens_processed": 3,
    "next_token": [{"has_next_token": True, "n_remain": 217, "n_decoded": 83}],
}


@pytest.mark.parametrize(
    ("rows", "slots"),
    [
        ([FRESH], (Slot(0),)),
        ([READING], (Slot(0, True, 313, 512, held_tokens=1027),)),
        ([GENERATING], (Slot(0, True, 8, 3, 83, 85),)),
        ([FRESH, GENERATING | {"id": 1}], (Slot(0), Slot(1, True, 8, 3, 83, 85))),
        ([FRESH | {"id_task": -1, "next_token": {"n_decoded": 7}}], (Slot(0, decoded_tokens=7),)),
        ([FRESH | {"id_task": None, "next_token": []}], (Slot(0),)),
        ([FRESH | {"n_prompt_tokens_processed": -1, "next_token": [None]}], (Slot(0),)),
        ([], None),
        ([FRESH, {}], None),
        ([FRESH, None], None),
        ([FRESH | {"id": True}], None),
        (FRESH, None),
        (None, None),
    ],
)
def test_slots_say_what_each_of_them_does(rows: Any, slots: tuple[Slot, ...] | None) -> None:
    assert dialects.slots(200, json.dumps(rows).encode()) == slots


@pytest.mark.parametrize(
    ("status", "content"), [(503, LOADING), (404, "404 page not found"), (503, f"[{FRESH}]")]
)
def test_a_runner_without_slots_says_nothing_about_them(status: int, content: str) -> None:
    assert dialects.slots(status, content.encode()) is None


COMPLETION = {"prompt": "a", "n_predict": 1, "cache_prompt": False}
ONE_TOKEN = {"prompt": "a", "options": {"num_predict": 1}}


@pytest.mark.parametrize(
    ("command", "slot", "request_"),
    [
        (SERVER, None, ("/completion", COMPLETION)),
        (SERVER, 0, ("/completion", COMPLETION | {"id_slot": 0})),
        (replace(SERVER, embedding=True), 1, ("/embedding", {"content": "a"})),
        (RUNNER, None, ("/completion", ONE_TOKEN)),
        (ENGINE, 3, ("/completion", ONE_TOKEN)),
        (replace(ENGINE, embedding=True), None, ("/embedding", {"content": "a"})),
        (MLX, None, None),
    ],
)
def test_a_runner_is_asked_for_one_token_in_its_own_dialect(
    command: CommandLine, slot: int | None, request_: tuple[str, dict[str, object]] | None
) -> None:
    assert dialects.token_request(command, slot) == request_


def completion(tokens: int, milliseconds: float, content: str = " bana") -> str:
    """The answer of `llama-server`, without its settings."""
    timings = {"prompt_n": 3, "prompt_ms": 22.363, "predicted_n": tokens}
    return json.dumps(
        {
            "index": 0,
            "content": content,
            "id_slot": 0,
            "stop": True,
            "tokens_predicted": tokens,
            "tokens_evaluated": 3,
            "stop_type": "limit",
            "timings": timings | {"predicted_ms": milliseconds},
        }
    )


# 0.24.0 for one token, and for four; 0.9.3 gives the same fields.
PART = (
    '{"content":" noke","done_reason":0,"done":false,"prompt_eval_count":0,'
    '"prompt_eval_duration":0,"eval_count":0,"eval_duration":0}\n'
)
ONE = (
    '{"content":"","done_reason":1,"done":true,"prompt_eval_count":3,'
    '"prompt_eval_duration":534512,"eval_count":1,"eval_duration":0}\n'
)
FOUR = (
    '{"content":"","done_reason":1,"done":true,"prompt_eval_count":3,'
    '"prompt_eval_duration":1144933658,"eval_count":4,"eval_duration":3000000000}\n'
)
NO_EMBEDDINGS = (
    '{"error":{"code":501,"message":"This server does not support embeddings. Start it with '
    '`--embeddings`","type":"not_supported_error"}}'
)
TOKEN, EMBEDDED = Answer("token", 4.0), Answer("token", 4.0, embedding=True)
INCOMPLETE = Answer("error", 4.0, None, 200, "the answer is not complete")
FOREIGN = Answer("error", 4.0, None, 200, "not an answer of a runner")


@pytest.mark.parametrize(
    ("status", "content", "answer"),
    [
        (200, completion(1, 0.001), TOKEN),
        (200, completion(1, 0.001, content=""), TOKEN),
        (200, completion(4, 1500.0), Answer("token", 2.5, 2.0)),
        (200, completion(4, 0.0), TOKEN),
        (200, completion(0, 0.0), INCOMPLETE),
        (503, LOADING, Answer("error", 4.0, None, 503, "Loading model")),
        (200, PART + ONE, TOKEN),
        (200, ONE, TOKEN),  # an end of the answer at once
        (200, PART * 4 + FOUR, Answer("token", 1.0, 1.0)),
        (200, PART, INCOMPLETE),
        (200, PART + '{"content":"', FOREIGN),
        (200, PART + '{"error":"gone"}', Answer("error", 4.0, None, 200, "gone")),
        (500, "Failed to load cache\n", Answer("error", 4.0, None, 500, "Failed to load cache")),
        (500, "", Answer("error", 4.0, None, 500, "HTTP 500")),
        (200, '[{"index":0,"embedding":[[0.1,-0.2]]}]', EMBEDDED),
        (200, '{"embedding":[-0.74779236,-0.76270694]}', EMBEDDED),
        (200, '{"embedding":null}', INCOMPLETE),
        (
            501,
            NO_EMBEDDINGS,
            Answer("error", 4.0, None, 501, json.loads(NO_EMBEDDINGS)["error"]["message"]),
        ),
        (200, "", FOREIGN),
        (200, "[]", FOREIGN),
        (200, "<html>", FOREIGN),
    ],
)
def test_a_token_is_told_from_every_other_answer(status: int, content: str, answer: Answer) -> None:
    assert dialects.token_answer(status, content.encode(), 4.0) == answer


FIELDS = (
    "status", "error", "message", "progress", "id", "id_task", "is_processing", "next_token",
    "n_decoded", "n_prompt_tokens_processed", "done", "eval_count", "eval_duration", "embedding",
    "tokens_predicted", "timings", "predicted_ms",
)  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers(-2, 4)
    | st.sampled_from([10**400, -(10**400), "ok", "loading model"])
    | st.text(max_size=4)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=4), inner, max_size=8)
    ),
    max_leaves=20,
)
CONTENT = (
    st.binary()
    | VALUES.map(lambda value: json.dumps(value).encode())
    | st.lists(VALUES, max_size=3).map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
    | st.sampled_from([b"[" * 100_000, b"9" * 5_000, b'{"status": ' + b"9" * 4_000 + b"}"])
)


@given(status=st.sampled_from([200, 503, 404]), content=CONTENT)
def test_answers_of_strangers_are_read_without_an_error(status: int, content: bytes) -> None:
    for dialect in Dialect:
        dialects.health(dialect, status, content)
    dialects.slots(status, content)
    answer = dialects.token_answer(status, content, 1.0)
    assert answer.tokens_per_second is None or 0 <= answer.tokens_per_second < float("inf")


WORDS = st.sampled_from(
    ["ollama", "/bin/llama-server", "runner", "serve", "--model", "-c", "-np", "--port=²", "-t=1"]
) | st.text(max_size=6)


@given(words=st.lists(WORDS, max_size=8))
def test_command_lines_of_strangers_are_read_without_an_error(words: list[str]) -> None:
    dialects.command_line(words)
    dialects.serves(words)
