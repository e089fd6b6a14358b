"""What one check leaves for the next, and what garbage does to it: nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probe.memory import (
    Crashes,
    Episode,
    FailedLoad,
    Load,
    Memory,
    ModelMemory,
    SentLoad,
    Served,
)
from probe.memory_file import MemoryFile
from probe.settings import Settings
from tests.unit.strategies import memories

FULL = Memory(
    checked_at=5.0,
    no_time_since=4.0,
    fault_since=6.0,
    fault_checks=2,
    certain_at=7.0,
    certain_counts=(1.0, 2.0, 3.0),
    server_ended="1/500",
    server_ended_at=8.0,
    server_killed_at=9.0,
    restart_checks=2,
    proven=True,
    version="0.33.0",
    gpus=("GPU-1",),
    gpus_read=True,
    used_gpus=("GPU-1",),
    free_bytes=1 << 34,
    load=Load("tiny", 1.0, 2.0, (0.5, 3.0), "7/70", 1.5, blocked_at=2.5, seen_at=3.5),
    listed=("7/1",),
    unending={"7/1": 3.0},
    sent_load=SentLoad("tiny", 3.0, {"other": 9.0}),
    served={"d1": Served("tiny:latest", "7/70", "2026-11-27T10:00:00Z", 4.0)},
    crashes={"d1": Crashes(2, 3.0, of_users=True)},
    failed_loads={"tiny": FailedLoad("invalid magic", 1.0, 2.0, 2)},
    evictions=(("tiny", "other"),),
    models={
        "d1": ModelMemory(
            *("tiny", "7/1"),
            own_tasks=((0, 1),),
            tokens=((0, 1, -1),),
            nobodys=((0, 1, 2.0),),
            due_since=2.0,
        )
    },
    waited_at=2.0,
    doubted_at=1.0,
    vram_percents={"tiny": 100.0},
    episodes=(Episode(1.0, 2.0, 3, True, "ready", "tiny"),),
)
SURVIVORS = Memory(gpus=("GPU-1",), used_gpus=("GPU-1",))
LOST = replace(SURVIVORS, kept=False)
"""What an earlier check left could not be read."""


def knobs(directory: Path, **more: object) -> Settings:
    return Settings(state_dir=str(directory), cache_dir=str(directory / "cache"), **more)  # type: ignore[arg-type]


def load(directory: Path, **more: object) -> Memory:
    file = MemoryFile(knobs(directory, **more))
    file.acquire()
    try:
        return file.load()
    finally:
        file.release()


def save(directory: Path, content: Memory = FULL, **more: object) -> MemoryFile:
    with suppress(OSError):
        (directory / "cache").mkdir()
    file = MemoryFile(knobs(directory, **more))
    file.acquire()
    file.save(content)
    file.release()
    return file


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    file = save(tmp_path)
    assert load(tmp_path) == FULL
    assert {path.name for path in tmp_path.iterdir()} == {"cache", Path(file.path).name}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(memories)
def test_every_memory_is_read_back_as_it_was(tmp_path: Path, memory: Memory) -> None:
    save(tmp_path, memory)
    assert load(tmp_path) == memory


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_a_file_that_was_cut_is_empty(tmp_path: Path, data: st.DataObject) -> None:
    path = Path(save(tmp_path).path)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    assert load(tmp_path) == LOST


GARBAGE = ["", "{", "[]", "null", '{"models": 3}', '{"models": {}}', "\0" * 99, "[" * 99_999]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_is_empty(tmp_path: Path, garbage: str) -> None:
    Path(save(tmp_path).path).write_text(garbage)
    assert load(tmp_path) == LOST


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from(sorted(FULL.__dataclass_fields__)), JSON)
def test_a_field_of_another_kind_makes_the_memory_empty(
    tmp_path: Path, name: str, value: object
) -> None:
    """Or it is what that field may be: then it is read back so."""
    path = Path(save(tmp_path).path)
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    loaded = load(tmp_path)
    if loaded != LOST:
        save(tmp_path, loaded)
        assert load(tmp_path) == loaded
        assert type(getattr(loaded, name)) in _kinds(name)


def _kinds(name: str) -> set[type]:
    kinds = {type(getattr(FULL, name)), type(getattr(Memory(), name))}
    return kinds | {int} if float in kinds else kinds


@pytest.mark.parametrize("change", ["left out", "added"])
def test_a_file_of_another_version_is_empty(tmp_path: Path, change: str) -> None:
    path = Path(save(tmp_path).path)
    content = json.loads(path.read_text())
    if change == "left out":
        content["about"].remove("proven: <class 'bool'>")
    else:
        content["of_a_later_one"] = 1
    path.write_text(json.dumps(content))
    assert load(tmp_path) == LOST


def test_a_check_by_hand_of_other_models_has_a_memory_of_its_own(tmp_path: Path) -> None:
    save(tmp_path)
    save(tmp_path, Memory(checked_at=9.0), models=("x",))
    assert load(tmp_path) == FULL
    assert load(tmp_path, host="http://127.0.0.1:1") == SURVIVORS


# --- what survives a restart of the container ---------------------------------------------


def test_only_what_is_known_of_gpus_survives_a_restart(tmp_path: Path) -> None:
    Path(save(tmp_path).path).unlink()
    assert load(tmp_path) == SURVIVORS


def test_a_check_that_saw_no_gpu_does_not_forget_those_before(tmp_path: Path) -> None:
    save(tmp_path)
    Path(save(tmp_path, Memory()).path).unlink()
    assert load(tmp_path) == SURVIVORS


@pytest.mark.parametrize(
    "garbage",
    [
        *GARBAGE,
        '{"gpus": ["GPU-1"]}',
        '{"gpus": "GPU-1", "used_gpus": []}',
        '{"gpus": {"GPU-1": 1}, "used_gpus": []}',
        '{"gpus": [], "used_gpus": null}',
        '{"gpus": [1], "used_gpus": []}',
    ],
)
def test_garbage_of_gpus_is_empty(tmp_path: Path, garbage: str) -> None:
    Path(save(tmp_path).path).unlink()
    for file in (tmp_path / "cache").iterdir():
        file.write_text(garbage)
    assert load(tmp_path) == Memory()


def test_where_nothing_can_be_written_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    file = save(tmp_path)
    assert "cache" in (file.gpu_problem or "")
    assert load(tmp_path) == FULL


def test_a_memory_that_cannot_be_kept_says_so_and_knows_the_gpus(tmp_path: Path) -> None:
    Path(save(tmp_path).path).unlink()
    file = MemoryFile(Settings(state_dir="/nowhere", cache_dir=str(tmp_path / "cache")))
    file.acquire()
    memory = file.load()
    assert (memory.kept, memory.gpus) == (False, ("GPU-1",))
    assert "nowhere" in (file.problem or "")


def test_somebody_who_only_looks_waits_for_nobody(tmp_path: Path) -> None:
    save(tmp_path)
    holder = MemoryFile(knobs(tmp_path))
    holder.acquire()
    assert MemoryFile(knobs(tmp_path)).peek() == FULL
    holder.release()


# --- the file itself ----------------------------------------------------------------------


def test_a_file_of_another_life_of_the_container_is_empty(tmp_path: Path) -> None:
    """It has another first process, and its PID namespace, in the file's name, may be reused."""
    restarted = ["unshare", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*restarted, "true"], capture_output=True).returncode:
        pytest.skip("may not make a PID namespace here")
    path = save(tmp_path).path
    script = (
        "import os, sys\n"
        "from probe.memory_file import MemoryFile\n"
        "from probe.settings import Settings\n"
        "file = MemoryFile(Settings(state_dir=sys.argv[1], cache_dir='/nowhere'))\n"
        "os.rename(sys.argv[2], file.path)\n"
        "file.acquire()\n"
        "print(file.load().proven)\n"
    )
    again = [sys.executable, "-c", script, str(tmp_path), path]
    assert subprocess.check_output(again, text=True) == "True\n"
    assert subprocess.check_output([*restarted, *again], text=True) == "False\n"


def test_a_link_a_directory_and_a_place_that_is_not_there_are_empty_and_say_so(
    tmp_path: Path,
) -> None:
    path = Path(save(tmp_path).path)
    path.rename(tmp_path / "real")
    path.symlink_to(tmp_path / "real")
    assert load(tmp_path) == LOST
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
        full = save(mount, Memory(vram_percents={str(i): 1.0 for i in range(9999)}))
        assert "space" in (full.problem or "")
        assert load(mount) == LOST
    finally:
        subprocess.run(["umount", mount], check=True)


def test_checks_at_the_same_time_take_turns_and_lose_nothing(tmp_path: Path) -> None:
    count = 20
    script = (
        "import sys\n"
        "from dataclasses import replace\n"
        "from probe.memory_file import MemoryFile\n"
        "from probe.settings import Settings\n"
        "file = MemoryFile(Settings(state_dir=sys.argv[1], cache_dir='/nowhere'))\n"
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
