"""What /proc says of Ollama's runners, on recorded trees."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from probe.activity import work_seconds
from probe.observation import CommandLine, Dialect, LoadedModel, Runner
from probe.runners import descends_from, find, match, server_is_here, server_pid

CPUINFO = "".join(
    f"processor\t: {i}\nphysical id\t: 0\ncore id\t\t: {i // 2}\n\n" for i in range(8)
)
TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:2CAA 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 4241 1
   1: {address}:2CAA {zeros}:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1
"""
OLLAMA_RUNNER = "/bin/ollama runner --model /m/blobs/sha256-ab --ctx-size 8192 --parallel 4"
LLAMA_SERVER = "/usr/lib/ollama/llama-server --model /m/blobs/sha256-ab --port 40001 -c 8192 -np 2"


def stat(parent: int = 1, state: str = "S") -> str:
    fields = f"{state} {parent} " + "0 " * 9 + "150 50 " + "0 " * 6 + "4242 0 256\n"
    return f"7 (ollama runner) x) {fields}"


def process(proc: Path, command: str, pid: int = 7, parent: int = 1) -> None:
    (proc / str(pid) / "ns").mkdir(parents=True)
    (proc / str(pid) / "cmdline").write_bytes(command.replace(" ", "\0").encode() + b"\0")
    (proc / str(pid) / "stat").write_text(stat(parent))
    (proc / str(pid) / "ns/pid").symlink_to("pid:[1]")
    (proc / "cpuinfo").write_text(CPUINFO)
    if not (proc / "self").exists():
        (proc / "self/ns").mkdir(parents=True)
        (proc / "self/ns/pid").symlink_to("pid:[1]")


def listens(proc: Path, pid: int, socket: str = "socket:[4242]") -> None:
    (proc / str(pid) / "fd").mkdir()
    (proc / str(pid) / "fd/0").symlink_to("/dev/null")
    (proc / str(pid) / "fd/3").symlink_to(socket)


@pytest.mark.parametrize("command", [OLLAMA_RUNNER, LLAMA_SERVER])
def test_a_runner_is_its_process_and_its_command_line(tmp_path: Path, command: str) -> None:
    process(tmp_path, command, parent=3)
    [runner] = find(str(tmp_path))
    assert (runner.pid, runner.started, runner.parent) == (7, 4242, 3)
    assert runner.command.weights == "/m/blobs/sha256-ab"
    assert runner.runnable_seconds == pytest.approx(2.0)
    assert runner.memory_bytes == 256 * os.sysconf("SC_PAGE_SIZE")


def test_the_size_of_weights_is_known_where_they_can_be_seen(tmp_path: Path) -> None:
    weights = tmp_path / "sha256-ab"
    process(tmp_path, f"/bin/llama-server --model {weights} --port 1")
    assert find(str(tmp_path))[0].blob_bytes is None
    weights.write_bytes(b"GGUF")
    assert find(str(tmp_path))[0].blob_bytes == 4


def test_a_runner_that_waits_for_a_cpu_has_something_to_run(tmp_path: Path) -> None:
    process(tmp_path, LLAMA_SERVER)
    for thread, waited in [(7, 500_000_000), (8, 1_000_000_000)]:
        (tmp_path / f"7/task/{thread}").mkdir(parents=True)
        (tmp_path / f"7/task/{thread}/stat").write_text(stat())
        (tmp_path / f"7/task/{thread}/schedstat").write_text(f"2000000 {waited} 12\n")
    [runner] = find(str(tmp_path))
    assert runner.runnable_seconds == pytest.approx(2.0 + 1.5)
    assert not runner.runnable
    (tmp_path / "7/task/8/stat").write_text(stat(state="R"))
    assert find(str(tmp_path))[0].runnable


@pytest.mark.parametrize(
    ("io", "writes", "read_bytes"),
    [
        (None, None, None),
        ("", None, None),
        # recorded: a load by `read` from the page cache, and one by `mmap` from a disk
        ("rchar: 2510798\nsyscw: 183\nread_bytes: 0\n", 183, 2_510_798),
        ("rchar: 9136\nsyscw: 42\nread_bytes: 1368399776\n", 42, 1_368_399_776),
        ("rchar: many\n", None, None),
    ],
)
def test_what_a_runner_read_and_sent_is_known_where_the_kernel_tells(
    tmp_path: Path, io: str | None, writes: int | None, read_bytes: int | None
) -> None:
    process(tmp_path, LLAMA_SERVER)
    if io is not None:
        (tmp_path / "7/io").write_text(io)
    [runner] = find(str(tmp_path))
    assert (runner.writes, runner.read_bytes) == (writes, read_bytes)


@pytest.mark.parametrize(
    ("before", "after", "ran"),
    [
        ({"cpu_seconds": 2.0}, {"cpu_seconds": 2.5}, 0.5),
        ({"queued_seconds": 1.0}, {"queued_seconds": 3.0}, 2.0),
        # on a crowded machine one waits as long only to answer for its health
        ({"queued_seconds": 1.0}, {"queued_seconds": 2.5, "cpu_seconds": 0.1}, 0.1),
        # ... and what waits at the end of it is not counted yet
        ({"queued_seconds": 1.0}, {"queued_seconds": 2.5, "runnable": True}, 1.5),
        # a thread that ends takes along what it had waited
        ({"queued_seconds": 9.0}, {"cpu_seconds": 0.5}, 0.5),
        ({"runnable": True}, {}, 0.0),
        ({}, {"runnable": True}, 0.0),
        # it has waited for a CPU all the while, and the kernel has not counted that yet
        ({"runnable": True}, {"runnable": True}, 4.0),
        ({"runnable": True}, None, 0.0),
    ],
)
def test_a_runner_that_wants_a_cpu_in_both_readings_has_wanted_it_throughout(
    before: dict[str, float], after: dict[str, float] | None, ran: float
) -> None:
    def runner(fields: dict[str, float]) -> Runner:
        return Runner(7, 1, CommandLine(Dialect.LLAMA_SERVER), **fields)  # type: ignore[arg-type]

    later = None if after is None else runner(after)
    assert work_seconds(runner(before), later, 4.0) == ran


@pytest.mark.parametrize(
    ("command", "default"),
    [
        (OLLAMA_RUNNER, True),
        (f"{OLLAMA_RUNNER} --threads 8", True),
        (f"{OLLAMA_RUNNER} --threads 4", True),
        (f"{OLLAMA_RUNNER} --threads 6", False),
        (LLAMA_SERVER, True),
        (f"{LLAMA_SERVER} -t 8", False),  # the server names no threads by itself
    ],
)
def test_threads_are_a_default_where_the_server_takes_them_by_itself(
    tmp_path: Path, command: str, default: bool
) -> None:
    process(tmp_path, command)
    assert find(str(tmp_path))[0].default_threads is default


@pytest.mark.parametrize("command", ["/bin/ollama serve", "/bin/llama-server --list-devices", ""])
def test_other_processes_are_no_runners(tmp_path: Path, command: str) -> None:
    process(tmp_path, command)
    assert find(str(tmp_path)) == ()


def test_a_process_that_ends_meanwhile_is_left_out(tmp_path: Path) -> None:
    process(tmp_path, LLAMA_SERVER)
    (tmp_path / "7/stat").write_text("")
    assert find(str(tmp_path)) == ()
    (tmp_path / "7/stat").unlink()
    assert find(str(tmp_path)) == ()


def runner(pid: int, weights: str = "", model: str = "") -> Runner:
    dialect = Dialect.MLX if model else Dialect.LLAMA_SERVER
    path = f"/m/blobs/{weights}" if weights else ""
    return Runner(pid, 1, CommandLine(dialect, weights=path, model=model))


OLD, NEW = LoadedModel("a:latest", digest="0123456789abcdef"), LoadedModel("a:latest", digest="new")
A, OTHER = LoadedModel("a:latest"), LoadedModel("b:latest", digest="other")
BLOBS = {"a:latest": "sha256-a", "b:latest": "sha256-b"}
SPLIT = ".ollama-split-0123456789ab-17/model-00001-of-00002.gguf"


@pytest.mark.parametrize(
    ("models", "found", "known", "matched"),
    [
        ([OLD], [], {}, {}),
        ([], [runner(1)], {}, {}),
        # by what the last check knew
        ([OLD, OTHER], [runner(1), runner(2)], {OLD.digest: "2/1"}, {OLD.digest: 2, "other": 1}),
        ([A], [runner(1), runner(2)], {"a:latest": "2/1"}, {"a:latest": 2}),
        ([OLD, NEW], [runner(1)], {OLD.digest: "1/1", "new": "1/1"}, {OLD.digest: 1}),
        # a process that is gone, and another one with its number
        ([OLD], [runner(2), runner(3)], {OLD.digest: "2/0"}, {}),
        # by their weights
        (
            [OTHER, OLD],
            [runner(1, "sha256-a"), runner(2, "sha256-b")],
            {},
            {OLD.digest: 1, "other": 2},
        ),
        ([OLD], [runner(1, "sha256-b"), runner(2, "sha256-a")], {}, {OLD.digest: 2}),
        ([OLD], [runner(1, "sha256-c"), runner(2, SPLIT)], {}, {OLD.digest: 2}),
        # by their name
        (
            [OLD, OTHER],
            [runner(1, model="b"), runner(2, model="a:latest")],
            {},
            {OLD.digest: 2, "other": 1},
        ),
        # by what is left
        ([OLD], [runner(1)], {}, {OLD.digest: 1}),
        ([OLD, OTHER], [runner(1), runner(2, "sha256-b")], {}, {OLD.digest: 1, "other": 2}),
        ([OLD, OTHER], [runner(1)], {}, {}),
        # but not by a load of another model, which newer servers do not list
        ([OLD], [runner(1, "sha256-c")], {}, {}),
        ([LoadedModel("c:latest")], [runner(1, "sha256-c")], {}, {"c:latest": 1}),
        # created again while it was loaded: the name means the newer one
        ([OLD, NEW], [runner(1, "sha256-a"), runner(2, "sha256-0")], {}, {}),
        (
            [OLD, NEW],
            [runner(1, "sha256-a"), runner(2, "sha256-0")],
            {OLD.digest: "2/1"},
            {OLD.digest: 2, "new": 1},
        ),
        (
            [OLD, NEW],
            [runner(1, "sha256-a"), runner(2, "sha256-0")],
            {"new": "1/1"},
            {"new": 1},
        ),
    ],
)
def test_a_model_is_matched_with_the_runner_that_serves_it(
    models: list[LoadedModel],
    found: list[Runner],
    known: dict[str, str],
    matched: dict[str, int],
) -> None:
    def blob(name: str) -> str:
        return BLOBS.get(name, "")

    pairs = list(match(models, found, blob, known))
    assert {key: runner.pid for key, runner in pairs} == matched
    assert len(pairs) == len(matched)


def test_a_server_is_not_asked_for_the_weights_of_a_model_that_is_known() -> None:
    def blob(name: str) -> str:
        raise AssertionError(name)

    assert [key for key, _ in match([A], [runner(1)], blob, {"a:latest": "1/1"})] == ["a:latest"]


@pytest.mark.parametrize(
    ("command", "namespace", "here"),
    [
        ("/usr/bin/ollama serve", "pid:[1]", True),
        ("ollama serve", "pid:[1]", True),
        ("ollama serve", "pid:[2]", False),  # a container's, seen from its host
        ("/usr/bin/ollama run tiny", "pid:[1]", False),
        ("", "pid:[1]", False),
    ],
)
def test_a_server_is_here_where_it_runs_among_our_own_processes(
    tmp_path: Path, command: str, namespace: str, here: bool
) -> None:
    process(tmp_path, command)
    (tmp_path / "7/ns/pid").unlink()
    (tmp_path / "7/ns/pid").symlink_to(namespace)
    assert server_is_here(str(tmp_path)) is here


def unreadable(proc: Path) -> None:
    """A server of another user, whose open files cannot be listed."""


def readable(proc: Path) -> None:
    listens(proc, 7)


def elsewhere(proc: Path) -> None:
    listens(proc, 7, "socket:[9]")


def second(proc: Path) -> None:
    process(proc, "/usr/bin/ollama serve", 8)
    listens(proc, 8, "socket:[9]")


def second_unreadable(proc: Path) -> None:
    process(proc, "/usr/bin/ollama serve", 8)


@pytest.mark.parametrize(
    ("tables", "setup", "pid"),
    [
        ("tcp", [readable], 7),
        ("tcp6", [readable], 7),
        ("tcp", [readable, second], 7),
        ("tcp", [second, readable], 7),
        ("tcp", [readable, second_unreadable], 7),
        ("tcp", [elsewhere], None),  # something else holds the port
        ("tcp", [unreadable], 7),
        ("tcp", [unreadable, second], None),
        ("tcp", [unreadable, second_unreadable], None),
        ("none", [readable], 7),
        ("none", [readable, second], None),
    ],
)
def test_the_server_is_the_process_that_listens_on_its_port(
    tmp_path: Path, tables: str, setup: list[Callable[[Path], None]], pid: int | None
) -> None:
    process(tmp_path, "/usr/bin/ollama serve")
    (tmp_path / "net").mkdir()
    zeros = "00000000" * (4 if tables == "tcp6" else 1)
    (tmp_path / "net" / tables).write_text(TCP.format(address=zeros, zeros=zeros))
    for step in setup:
        step(tmp_path)
    assert server_pid(11434, str(tmp_path)) == pid


def test_without_a_server_there_is_no_process_of_one(tmp_path: Path) -> None:
    process(tmp_path, LLAMA_SERVER)
    assert server_pid(11434, str(tmp_path)) is None


@pytest.mark.parametrize(
    ("parents", "descends"),
    [
        ({7: 1}, True),
        ({7: 5, 5: 1}, True),
        ({7: 0}, False),
        ({7: 5, 5: 0}, False),
        ({7: 5}, False),  # its parent has ended meanwhile
        ({7: 5, 5: 6, 6: 5}, False),
    ],
)
def test_a_runner_descends_from_the_server_that_started_it(
    tmp_path: Path, parents: dict[int, int], descends: bool
) -> None:
    for pid, parent in parents.items():
        process(tmp_path, LLAMA_SERVER if pid == 7 else "/bin/sh", pid, parent)
    [runner] = find(str(tmp_path))
    assert descends_from(runner, 1, str(tmp_path)) is descends
