"""What /proc says of Ollama's runners, on a recorded tree."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from probe.runners import Runner, find, server_is_here

STAT = "7 (ollama runner) x) S 1 " + "0 " * 9 + "150 50 " + "0 " * 6 + "4242 0 256\n"
CPUINFO = "".join(
    f"processor\t: {i}\nphysical id\t: 0\ncore id\t\t: {i // 2}\n\n" for i in range(8)
)


def process(proc: Path, command: str, pid: int = 7) -> None:
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "cmdline").write_bytes(command.replace(" ", "\0").encode() + b"\0")
    (proc / str(pid) / "stat").write_text(STAT)
    (proc / "cpuinfo").write_text(CPUINFO)


def test_a_runners_options_are_read_from_its_command_line(tmp_path: Path) -> None:
    process(
        tmp_path,
        "/bin/ollama runner --model /m/blobs/sha256-ab --ctx-size 8192 --batch-size 256 "
        "--n-gpu-layers 33 --threads 3 --parallel 4 --port 40001",
    )
    [runner] = find(str(tmp_path))
    assert (runner.pid, runner.started, runner.port, runner.blob) == (7, 4242, 40001, "sha256-ab")
    assert (runner.num_ctx, runner.num_batch, runner.num_thread) == (2048, 256, 3)
    assert runner.runnable_seconds == pytest.approx(2.0)
    assert runner.memory_bytes == 256 * os.sysconf("SC_PAGE_SIZE")
    assert not runner.model_on_cpu_by_choice
    assert "40001" not in runner.shape


def test_a_runner_that_waits_for_a_cpu_has_something_to_run(tmp_path: Path) -> None:
    process(tmp_path, "/bin/ollama runner --model m --port 1")
    for thread, waited in [(7, 500_000_000), (8, 1_000_000_000)]:
        (tmp_path / f"7/task/{thread}").mkdir(parents=True)
        (tmp_path / f"7/task/{thread}/stat").write_text(STAT)
        (tmp_path / f"7/task/{thread}/schedstat").write_text(f"2000000 {waited} 12\n")
    [runner] = find(str(tmp_path))
    assert runner.runnable_seconds == pytest.approx(2.0 + 1.5)
    assert not runner.runnable
    (tmp_path / "7/task/8/stat").write_text(STAT.replace(") S", ") R"))
    assert find(str(tmp_path))[0].runnable


def test_how_often_a_runner_sent_something_is_known_where_the_kernel_tells(tmp_path: Path) -> None:
    process(tmp_path, "/bin/ollama runner --model m --port 1")
    assert find(str(tmp_path))[0].writes is None
    (tmp_path / "7/io").write_text("rchar: 1\nwchar: 8000\nsyscr: 3\nsyscw: 42\nread_bytes: 5\n")
    assert find(str(tmp_path))[0].writes == 42


@pytest.mark.parametrize(
    ("before", "after", "ran"),
    [
        (Runner(7, 1, cpu_seconds=2.0), Runner(7, 1, cpu_seconds=2.5), 0.5),
        (Runner(7, 1, queued_seconds=1.0), Runner(7, 1, queued_seconds=3.0), 2.0),
        # a thread that ends takes along what it had waited
        (Runner(7, 1, queued_seconds=9.0), Runner(7, 1, cpu_seconds=0.5), 0.5),
        (Runner(7, 1, runnable=True), Runner(7, 1), 0.0),
        (Runner(7, 1), Runner(7, 1, runnable=True), 0.0),
        # it has waited for a CPU all the while, and the kernel has not counted that yet
        (Runner(7, 1, runnable=True), Runner(7, 1, runnable=True), 4.0),
        (Runner(7, 1, runnable=True), None, 0.0),
    ],
)
def test_a_runner_that_wants_a_cpu_at_both_looks_has_wanted_it_throughout(
    before: Runner, after: Runner | None, ran: float
) -> None:
    assert before.ran(after, 4.0) == ran


@pytest.mark.parametrize(("threads", "chosen"), [(8, None), (4, None), (6, 6)])
def test_threads_are_a_choice_only_where_the_server_would_take_another_number(
    tmp_path: Path, threads: int, chosen: int | None
) -> None:
    process(tmp_path, f"/bin/ollama runner --model m --threads {threads} --port 1")
    assert find(str(tmp_path))[0].num_thread == chosen


def test_a_model_kept_off_the_gpu_is_seen_as_a_choice(tmp_path: Path) -> None:
    process(tmp_path, "/bin/ollama runner --model m --n-gpu-layers 0 --port 1")
    assert find(str(tmp_path))[0].model_on_cpu_by_choice


def test_a_newer_runner_that_says_less_is_seen_too(tmp_path: Path) -> None:
    process(tmp_path, "/usr/bin/ollama runner --ollama-engine --model /b/sha256-cd --port 5")
    [runner] = find(str(tmp_path))
    assert (runner.port, runner.blob, runner.num_ctx) == (5, "sha256-cd", None)


@pytest.mark.parametrize("command", ["/bin/ollama serve", "/bin/sh", ""])
def test_other_processes_are_no_runners(tmp_path: Path, command: str) -> None:
    process(tmp_path, command)
    assert find(str(tmp_path)) == ()


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
    for entry, link in [("self", "pid:[1]"), ("7", namespace)]:
        (tmp_path / entry / "ns").mkdir(parents=True)
        (tmp_path / entry / "ns/pid").symlink_to(link)
    assert server_is_here(str(tmp_path)) is here
