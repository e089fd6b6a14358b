"""What one check leaves for the next, and what garbage does to it: nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from probe.memory import Memory, ModelMemory, load, path, save

FULL = Memory(
    checked_at=5.0,
    proven=True,
    gpus=("GPU-1",),
    loading_since=1.0,
    busy_since=2.0,
    models={"tiny": ModelMemory("7/1", 3.0, "then", 300.0, 250.0, 0.1)},
    opaque=("runner",),
)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    file = path(str(tmp_path), "http://127.0.0.1:11434")
    save(file, FULL)
    assert load(file) == FULL
    assert [p.name for p in tmp_path.iterdir()] == [Path(file).name]


@pytest.mark.parametrize(
    "garbage", ["", "{", "[]", "null", '{"models": 3}', '{"models": {}}', "\0" * 99, "[" * 99_999]
)
def test_garbage_is_empty(tmp_path: Path, garbage: str) -> None:
    file = tmp_path / "memory"
    file.write_text(garbage)
    assert load(str(file)) == Memory()


def test_a_missing_file_a_link_and_a_directory_are_empty(tmp_path: Path) -> None:
    save(str(tmp_path / "real"), FULL)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name in ("missing", "link", "."):
        assert load(str(tmp_path / name)) == Memory()


def test_a_directory_that_cannot_be_written_is_no_error() -> None:
    save("/proc/nowhere/memory", FULL)
