"""Which generation a version of Ollama is of, and whether it was tested, as a table."""

from __future__ import annotations

import pytest

from probe.generations import describe, is_known


@pytest.mark.parametrize(
    ("version", "known", "words"),
    [
        ("0.34.2", True, "Ollama 0.34.2 (models run in llama-server): tested"),
        ("0.30.0", True, "(models run in llama-server): not tested; 0.34.2, of the same kind, was"),
        ("0.24.0", True, "(models run in ollama runner, loaded by a request): tested"),
        ("0.11.5", True, "loaded by a request): not tested; 0.24.0, of the same kind, was"),
        ("0.11.4", True, "(models run in ollama runner): not tested; 0.9.3, of the same kind, was"),
        ("0.33.0-rc1", True, "(models run in llama-server): not tested; 0.34.2"),
        ("0.35.0", False, "not tested, and newer than 0.34.2, the newest that was"),
        ("0.0.0", False, "an Ollama of unknown version 0.0.0: not tested"),
        ("", False, "an Ollama of unknown version: not tested"),
        ("nightly", False, "an Ollama of unknown version nightly: not tested"),
    ],
)
def test_a_version_is_known_and_described(version: str, known: bool, words: str) -> None:
    assert is_known(version) is known
    assert words in describe(version)
