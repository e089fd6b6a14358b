"""The clients of the `ollama` package, by which `OllamaGPUMonitor` may be given a server."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

from probe.observation import LoadedModel
from probe.ollama import ApiError, loaded_models
from probe.settings import Settings

TIMEOUT_SECONDS = 5.0
"""How long the server may take for its list of loaded models."""


class ReadError(Exception):
    """Something could not be read; its text says why."""


def default_url() -> str:
    """Where the server of `OLLAMA_HOST` is."""
    return Settings.from_flags_and_env({}, {"OLLAMA_HOST": os.environ.get("OLLAMA_HOST", "")}).host


def url_of(client: Any) -> str:
    """Where a client's server is."""
    inner = getattr(client, "_client", None)
    return str(inner.base_url).rstrip("/") if inner is not None else default_url()


def without_loop(client: Any) -> Any:
    """A client without an event loop for the server of one that has."""
    import ollama

    inner = client._client
    headers = {k: v for k, v in inner.headers.items() if k not in ("content-length", "host")}
    return ollama.Client(host=url_of(client), headers=headers, timeout=TIMEOUT_SECONDS)


async def ask_async(ps: Callable[[], Awaitable[Any]]) -> tuple[LoadedModel, ...]:
    """What an asynchronous client's `ps` says; raises `ReadError`."""
    try:
        return rows_of(await ps())
    except Exception as error:  # each client has errors of its own
        raise ReadError(f"{error or type(error).__name__}") from None


def rows_of(answer: Any) -> tuple[LoadedModel, ...]:
    """The models of what a client's `ps` returned."""
    body = answer if isinstance(answer, dict) else answer.model_dump(mode="json")
    rows = [{**row, "name": row.get("name") or row.get("model")} for row in body["models"]]
    try:
        return loaded_models(rows)
    except ApiError as error:
        raise ReadError(str(error)) from None
