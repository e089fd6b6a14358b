"""The command lines and answers of every generation of Ollama's runners, as facts.

Pure. What it reads comes from other programs: whatever it is, nothing here raises.

| Ollama | process | options |
|---|---|---|
| to 0.11.4 | `ollama runner [--ollama-engine] --model B --ctx-size N ...` | on the command line |
| 0.11.5 to 0.29 | `ollama runner --model B --port N`, or `--ollama-engine` | in a request |
| since 0.30 | `llama-server --model B ...` | on the command line |
| MLX to 0.33 | `ollama runner --mlx-engine --model NAME --port N` | none |
| MLX since 0.34 | `ollama runner --model NAME --port N` | none |
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from probe.observation import Answer, CommandLine, Dialect, RunnerHealth, Slot

_ALIASES = {
    "-m": "--model",
    "-c": "--ctx-size",
    "-np": "--parallel",
    "-b": "--batch-size",
    "-t": "--threads",
    "-ngl": "--n-gpu-layers",
    "--gpu-layers": "--n-gpu-layers",
    "-mg": "--main-gpu",
    "--embeddings": "--embedding",
}

# Ollama starts these for a moment, to learn which GPUs and features there are.
_DISCOVERY = {"--list-devices", "--version", "--help"}

# The image engines take a model's name and give no tokens, as far as the probe knows.
_NAMED_MODEL_ENGINES = {"--mlx-engine", "--imagegen-engine", "--image-engine"}

# Ollama loads a model again when a request's `Runner` options differ from those it was loaded
# with (`needsReload` in server/sched.go): num_ctx, num_batch, num_thread, main_gpu, use_mmap, and
# draft_num_predict since 0.30. `num_gpu` does not count in a request that names none. Adapters
# count by path: a model of the same weights, created again with other adapters, is another one.
#
# The server adds `--main-gpu` by itself, too, since 0.30 where a model fits on one of several GPUs:
# whether a user chose it does not show. `--load-mode none`, which it adds on a CPU, means
# `use_mmap: false` in either case (measured on 0.34.2).
_HIDING_OPTIONS: dict[Dialect, set[str]] = {
    Dialect.OLLAMA_RUNNER: {"--lora", "--main-gpu"},
    Dialect.LLAMA_SERVER: {
        "--lora",
        "--main-gpu",
        "--spec-type",
        "--spec-draft-model",
        "--spec-draft-n-max",
    },
}

_State = Literal["ready", "loading"]

# llm.ServerStatus: 2 is "loading" up to 0.11.4 and "launched" after it, 3 is "loading" then. The
# earliest runners, and `llama-server`, use words instead.
_NUMBERS: dict[object, _State] = {0: "ready", 1: "ready", 2: "loading", 3: "loading"}
_WORDS: dict[object, _State] = {
    "ok": "ready",
    "no slot available": "ready",
    "launched": "loading",
    "loading model": "loading",
}
_STATES: dict[Dialect, dict[object, _State]] = {
    Dialect.OLLAMA_RUNNER: _NUMBERS | _WORDS,
    Dialect.OLLAMA_ENGINE: _NUMBERS | _WORDS,
    Dialect.LLAMA_SERVER: _WORDS,
    Dialect.MLX: {0: "ready"},  # it listens only once its model is loaded
}


def command_line(words: Sequence[str]) -> CommandLine | None:
    """Read the command line of a process; None when it is no runner that serves a model.

    A runner of `--ollama-engine` may also be a short-lived one that looks for GPUs: their command
    lines are the same.
    """
    options = _options(words)
    dialect = _dialect(words, options)
    if dialect is None:
        return None
    model = options.get("--model", "")
    ctx_size, parallel = _positive(options, "--ctx-size"), _positive(options, "--parallel")
    return CommandLine(
        dialect=dialect,
        port=_positive(options, "--port"),
        weights="" if dialect is Dialect.MLX else model,
        model=model if dialect is Dialect.MLX else "",
        num_ctx=ctx_size // (parallel or 1) if ctx_size else None,
        num_batch=_positive(options, "--batch-size"),
        num_thread=_positive(options, "--threads"),
        num_gpu=_whole(options.get("--n-gpu-layers", "")),
        parallel=parallel,
        embedding="--embedding" in options,
        use_mmap=False if options.get("--load-mode") == "none" else None,
        options_visible=_options_visible(dialect, options, ctx_size),
    )


def serves(words: Sequence[str]) -> bool:
    """Whether this is the command line of an Ollama server, `ollama serve`."""
    # `start` is the same command under another name.
    return _program(words) == "ollama" and words[1] in ("serve", "start")


def health_path(dialect: Dialect) -> str:
    """Return the path at which a runner answers for its health."""
    return "/v1/status" if dialect is Dialect.MLX else "/health"


def health(dialect: Dialect, status: int, content: bytes) -> RunnerHealth | None:
    """Read a runner's answer for its health; None when it is none that this dialect gives.

    Args:
        dialect: which program answered.
        status: the HTTP status.
        content: the body.
    """
    body = _lower_keys(_json(content))
    error = _lower_keys(body.get("error"))  # `llama-server` while it loads
    word = body.get("status", error.get("message"))
    if isinstance(word, bool) or not isinstance(word, int | str):
        return None
    state = _STATES[dialect].get(word.lower() if isinstance(word, str) else word)
    if state == "ready":
        return RunnerHealth(state) if status == 200 else None
    if state is None or status not in (200, 503):
        return None
    progress = _number(body.get("progress"))
    return RunnerHealth(state, progress if progress is not None and 0 <= progress <= 1 else None)


def slots(status: int, content: bytes) -> tuple[Slot, ...] | None:
    """Read `llama-server`'s answer to `/slots`; None when it is none."""
    rows = _json(content)
    if status != 200 or not isinstance(rows, list) or not rows:
        return None
    found = tuple(slot for row in rows if (slot := _slot(row)) is not None)
    return found if len(found) == len(rows) else None


def token_request(
    command: CommandLine, slot: int | None, tokens: int = 1
) -> tuple[str, dict[str, object]] | None:
    """Return path and JSON body of the request for tokens, or for an embedding, from a runner.

    It goes to the runner itself: Ollama's schedule, expiry and options are not touched by it.
    Only `llama-server` says on its command line that a model only embeds. A token must not be
    asked of such a model elsewhere: Ollama's server prevents that, the runner does not.

    Args:
        command: the runner's command line.
        slot: the slot to use, of a `llama-server`; None leaves the choice to it.
        tokens: how many.

    Returns:
        None where the runner cannot be asked.
    """
    if command.dialect is Dialect.MLX:
        return None
    if command.embedding:
        return "/embedding", {"content": "a"}
    if command.dialect is Dialect.LLAMA_SERVER:
        body: dict[str, object] = {"prompt": "a", "n_predict": tokens, "cache_prompt": False}
        return "/completion", body if slot is None else body | {"id_slot": slot}
    # Without `options` it would generate until it is stopped: their default is no limit.
    return "/completion", {"prompt": "a", "options": {"num_predict": tokens}}


def token_answer(status: int, content: bytes, seconds: float) -> Answer:
    """Read a runner's answer to `token_request`.

    `llama-server` sends one JSON object, Ollama's own runners one a line.

    Args:
        status: the HTTP status.
        content: the body.
        seconds: how long it took.
    """
    parts = _parts(content)
    last = parts[-1] if parts else None
    if status != 200:
        return Answer("error", seconds, None, status, _message(last, content) or f"HTTP {status}")
    if isinstance(last, list):
        last = last[0] if last else None
    if not isinstance(last, dict):
        return Answer("error", seconds, None, status, "not an answer of a runner")
    if last.get("embedding"):
        return Answer("token", seconds, embedding=True)
    timings = _lower_keys(last.get("timings"))
    # A token can be without text: an end of the answer, or a part of a character.
    count = max(_number(last.get(key)) or 0.0 for key in ("tokens_predicted", "eval_count"))
    spent = (_number(timings.get("predicted_ms")) or 0.0) / 1e3
    spent = spent or (_number(last.get("eval_duration")) or 0.0) / 1e9
    if count < 1 or not (last.get("done") is True or "tokens_predicted" in last):
        message = _message(last, b"") or "the answer is not complete"
        return Answer("error", seconds, None, status, message)
    rate = (count - 1) / spent if count >= 2 and spent > 0 else math.inf
    if not math.isfinite(rate):
        return Answer("token", seconds)
    return Answer("token", max(seconds - spent, 0.0), rate)


def _options(words: Sequence[str]) -> dict[str, str]:
    """Every flag with the word after it, which is its value where it takes one."""
    flat: list[str] = []
    for word in words[1:]:
        flag, equals, value = word.partition("=")
        flat += [flag, value] if equals and flag.startswith("--") else [word]
    return {
        _ALIASES.get(flag, flag): value
        for flag, value in pairwise([*flat, ""])
        if flag.startswith("-")
    }


def _dialect(words: Sequence[str], options: Mapping[str, str]) -> Dialect | None:
    program, model = _program(words), options.get("--model", "")
    if program == "llama-server":
        return Dialect.LLAMA_SERVER if model and not _DISCOVERY & options.keys() else None
    if program != "ollama" or words[1] != "runner":
        return None
    if "--ctx-size" in options:
        return Dialect.OLLAMA_RUNNER
    if _NAMED_MODEL_ENGINES & options.keys() or (model and not os.path.isabs(model)):
        return Dialect.MLX
    return Dialect.OLLAMA_ENGINE


def _program(words: Sequence[str]) -> str:
    """Base name of a program that was given at least one argument; else empty."""
    return os.path.basename(words[0]) if len(words) > 1 else ""


def _options_visible(dialect: Dialect, options: Mapping[str, str], ctx_size: int | None) -> bool:
    hiding = _HIDING_OPTIONS.get(dialect)
    if hiding is None or ctx_size is None or hiding & options.keys():
        return False
    if dialect is Dialect.LLAMA_SERVER:
        # Given unless a request says `shift: false`, the model is of DeepSeek 2's family, or (up
        # to 0.30.8) the context is 8,192 tokens and more.
        if "--context-shift" not in options:
            return False
        # Shown is what fits into the context, which may be less than was asked for.
        if "--embedding" in options and (_positive(options, "--batch-size") or 0) >= ctx_size:
            return False
    return True


def _slot(row: Any) -> Slot | None:
    number = _count(row.get("id")) if isinstance(row, dict) else None
    if number is None:
        return None
    given = row.get("next_token")
    given = given[0] if isinstance(given, list) and given else given
    return Slot(
        id=number,
        is_processing=row.get("is_processing") is True,
        task=_count(row.get("id_task")),  # -1 in a slot that was never used
        prompt_tokens=_count(row.get("n_prompt_tokens_processed")) or 0,
        decoded_tokens=(_count(given.get("n_decoded")) if isinstance(given, dict) else None) or 0,
        held_tokens=_count(row.get("n_prompt_tokens")),
    )


def _json(content: bytes) -> Any:
    """What the text says; None when it is no JSON, or nested too deeply to be anybody's answer."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _parts(content: bytes) -> list[Any]:
    whole = _json(content)
    return [whole] if whole is not None else [_json(line) for line in content.splitlines() if line]


def _lower_keys(value: Any) -> dict[str, Any]:
    """A JSON object without regard to case, as Go reads one; empty where it is none."""
    return {key.lower(): entry for key, entry in value.items()} if isinstance(value, dict) else {}


def _message(body: Any, content: bytes) -> str:
    """What an error says: `{"error": {"message": …}}`, `{"error": …}`, or plain text."""
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    if isinstance(error, str):
        return error[:200]
    return "" if body is not None else content[:200].decode(errors="replace").strip()


def _count(value: Any) -> int | None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return value if is_whole and value >= 0 else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _whole(text: str) -> int | None:
    # Not `isdigit`, which is true of "²". Ten digits are more than any option has.
    return int(text) if text.isdecimal() and len(text) <= 10 else None


def _positive(options: Mapping[str, str], flag: str) -> int | None:
    return _whole(options.get(flag, "")) or None
