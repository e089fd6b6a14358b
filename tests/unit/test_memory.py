"""What one check leaves for the next, and what garbage does to it: nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from probe import memory
from probe.memory import Episode, Load, Memory, MemoryFile, ModelMemory, Record

HOST = "http://127.0.0.1:11434"
FULL = Memory(
    checked_at=5.0,
    clock=1.7e9,
    proven=True,
    gpus=("GPU-1",),
    load=Load(1.0, 2.0, (0.5, 3.0)),
    models={"tiny": ModelMemory("7/1", 3.0, "then", 300.0, 250.0, 0.1, 2.5, 9.0, 7.0, 2.0)},
    records={"tiny": Record(100.0, 0.2, 40.0, 1)},
    opaque=("runner",),
    episodes=(Episode(1.0, 2.0, 3, True, "ready", "tiny"),),
)


def load(directory: Path) -> Memory:
    file = MemoryFile(str(directory), HOST)
    file.acquire()
    try:
        return file.load()
    finally:
        file.release()


def save(directory: Path, content: Memory = FULL) -> MemoryFile:
    file = MemoryFile(str(directory), HOST)
    file.acquire()
    file.save(content)
    file.release()
    return file


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    file = save(tmp_path)
    assert load(tmp_path) == FULL
    assert [str(p) for p in tmp_path.iterdir()] == [file.path]


@pytest.mark.parametrize(
    "garbage", ["", "{", "[]", "null", '{"models": 3}', '{"models": {}}', "\0" * 99, "[" * 99_999]
)
def test_garbage_is_empty(tmp_path: Path, garbage: str) -> None:
    Path(save(tmp_path).path).write_text(garbage)
    assert load(tmp_path) == Memory()


def test_a_file_of_another_version_costs_what_the_two_do_not_share(tmp_path: Path) -> None:
    path = Path(save(tmp_path).path)
    fields = json.loads(path.read_text())
    del fields["records"]
    path.write_text(json.dumps({**fields, "of_a_later_one": 1}))
    assert load(tmp_path).models == FULL.models
    assert load(tmp_path).records == {}


def test_a_file_of_another_life_of_the_container_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path)
    monkeypatch.setattr(memory, "_life", lambda: "after a restart")
    assert load(tmp_path) == Memory()


def test_a_link_a_directory_and_a_place_that_is_not_there_are_empty_and_say_so(
    tmp_path: Path,
) -> None:
    path = Path(save(tmp_path).path)
    path.rename(tmp_path / "real")
    path.symlink_to(tmp_path / "real")
    assert load(tmp_path) == Memory()
    path.unlink()
    path.mkdir()
    assert "directory" in (save(tmp_path).problem or "")
    assert "No such file" in (save(tmp_path / "nowhere").problem or "")


def test_a_disk_that_is_full_leaves_no_old_memory_behind(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    small = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(mount)]
    if subprocess.run(small, capture_output=True).returncode:
        pytest.skip("may not mount a small file system here")
    try:
        assert save(mount).problem is None
        with suppress(OSError):
            (mount / "ballast").write_bytes(bytes(1 << 20))
        full = save(mount, Memory(records={str(i): Record(1.0) for i in range(1000)}))
        assert "space" in (full.problem or "")
        assert load(mount) == Memory()
    finally:
        subprocess.run(["umount", mount], check=True)


def test_checks_at_the_same_time_take_turns_and_lose_nothing(tmp_path: Path) -> None:
    count = 20
    script = (
        "import sys\n"
        "from dataclasses import replace\n"
        "from probe.memory import MemoryFile\n"
        f"file = MemoryFile(sys.argv[1], {HOST!r})\n"
        "file.acquire()\n"
        "before = file.load()\n"
        "file.save(replace(before, gpus=(*before.gpus, sys.argv[2])))\n"
        "file.release()\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, tmp_path, str(i)]) for i in range(count)
    ]
    assert [p.wait() for p in processes] == [0] * count
    assert sorted(load(tmp_path).gpus, key=int) == [str(i) for i in range(count)]
