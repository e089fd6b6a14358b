"""Work for nobody: slots that work while no client is connected to the server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from probe.connections import calls_others, has_clients, have_taken_all, listening, waits
from probe.judge import judge
from probe.memory import Memory
from probe.observation import Observation, RunnerHealth, Slot
from probe.report import Reason, Remedy
from probe.settings import Settings
from testbed.deadlines import Deadline
from tests.unit.rows import ANY, NOW, ON_CPU, PROVEN, SILENT, check, model, past, run, slots

# --- the connections of the server ------------------------------------------------------------

PORT = 0x2CAA
ANYWHERE = "00000000:0000"
LISTENS = ("00000000:2CAA", ANYWHERE, "0A", 1)
LISTENS_6 = (f"{'0' * 32}:2CAA", f"{'0' * 32}:0000", "0A", 1)
USER = ("020011AC:2CAA", "010011AC:9C40", "01", 2)
USER_6 = ("0000000000000000FFFF0000020011AC:2CAA", "0000000000000000FFFF0000010011AC:9C40", "01", 2)
GONE = ("020011AC:2CAA", "010011AC:9C40", "08", 2)
OF_ANOTHER = ("020011AC:1F90", "010011AC:9C40", "01", 3)
OUR_END = ("0100007F:A000", "0100007F:2CAA", "01", 77)
ITS_END = ("0100007F:2CAA", "0100007F:A000", "01", 4)
ITS_END_6 = (
    "0000000000000000FFFF00000100007F:2CAA",
    "0000000000000000FFFF00000100007F:A000",
    "01",
    4,
)


def tables(proc: Path, *rows: tuple[str, str, str, int]) -> str:
    """A /proc with these connections, of which those with inode 77 are this process's."""
    (proc / "net").mkdir()
    for name, width in (("tcp", 8), ("tcp6", 32)):
        lines = [
            f"   0: {address} {peer} {state} 00000000:00000000 00:00000000 00000000 0 0 {inode} 1\n"
            for address, peer, state, inode in rows
            if len(address.partition(":")[0]) == width
        ]
        (proc / "net" / name).write_text("  sl  local_address rem_address\n" + "".join(lines))
    (proc / str(os.getpid()) / "fd").mkdir(parents=True)
    (proc / str(os.getpid()) / "fd/3").symlink_to("socket:[77]")
    return str(proc)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ((LISTENS,), False),
        ((LISTENS, USER), True),
        ((LISTENS_6, USER_6), True),
        ((LISTENS, GONE), False),
        ((LISTENS, OF_ANOTHER), False),
        ((LISTENS, OUR_END, ITS_END), False),
        ((LISTENS_6, OUR_END, ITS_END_6), False),
        ((LISTENS, OUR_END, ITS_END, USER), True),
        ((USER,), None),  # the server is in another network
        ((), None),
    ],
)
def test_a_client_is_whoever_else_is_connected_to_the_server(
    tmp_path: Path, rows: tuple[tuple[str, str, str, int], ...], expected: bool | None
) -> None:
    assert has_clients(PORT, tables(tmp_path, *rows)) is expected


def test_where_the_kernel_tells_nothing_nothing_is_known(tmp_path: Path) -> None:
    assert has_clients(PORT, str(tmp_path)) is None
    assert listening(PORT, str(tmp_path)) == set()


def test_a_line_that_is_cut_off_is_no_connection(tmp_path: Path) -> None:
    proc = tables(tmp_path, LISTENS)
    with (tmp_path / "net/tcp").open("a") as file:
        file.write("   1: 020011AC:2CAA 0100")
    assert has_clients(PORT, proc) is False


OUTSIDE = ("020011AC:D431", "08080808:01BB", "01", 77)
OUTSIDE_6 = (f"{'0' * 32}:D431", "B80D012000000000000000000100000A:01BB", "01", 77)
TO_RUNNER = ("0100007F:D431", "0100007F:9C40", "01", 77)
TO_RUNNER_6 = (f"{'0' * 24}01000000:D431", f"{'0' * 24}01000000:9C40", "01", 77)
TO_RUNNER_MAPPED = (
    "0000000000000000FFFF00000100007F:D431",
    "0000000000000000FFFF00000100007F:9C40",
    *("01", 77),
)
A_CLIENT = ("020011AC:2CAA", "08080808:9C40", "01", 77)
SOMEBODY_ELSE = ("020011AC:D431", "08080808:01BB", "01", 5)


@pytest.mark.parametrize(
    ("row", "calls"),
    [
        (OUTSIDE, True),
        (OUTSIDE_6, True),
        (TO_RUNNER, False),
        (TO_RUNNER_6, False),
        (TO_RUNNER_MAPPED, False),
        (A_CLIENT, False),
        (SOMEBODY_ELSE, False),
    ],
)
def test_a_server_that_has_called_another_machine_may_wait_for_that(
    tmp_path: Path, row: tuple[str, str, str, int], calls: bool
) -> None:
    tables(tmp_path, LISTENS, row)
    (tmp_path / str(os.getpid()) / "net").symlink_to(tmp_path / "net")
    assert calls_others(os.getpid(), PORT, str(tmp_path)) is calls


def test_of_a_server_whose_connections_cannot_be_read_that_is_not_known(tmp_path: Path) -> None:
    assert calls_others(1, PORT, str(tmp_path))


_READS_NO_MORE = """
import socket
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
other, _ = server.accept()
other.setblocking(False)
print(server.getsockname()[1], flush=True)
for line in iter(input, "end"):
    try:
        while line == "send":
            other.send(bytes(1 << 16))
    except BlockingIOError:
        pass
    client.setblocking(False)
    try:
        while line == "read":
            client.recv(1 << 16)
    except BlockingIOError:
        pass
    print(line, flush=True)
"""


def test_a_client_that_reads_no_more_has_not_taken_all() -> None:
    command = [sys.executable, "-c", _READS_NO_MORE]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def do(word: str) -> None:
            print(word, file=process.stdin, flush=True)
            assert process.stdout is not None
            assert process.stdout.readline() == f"{word}\n"

        port = int(process.stdout.readline())
        assert have_taken_all([port])
        do("send")
        assert not have_taken_all([port])
        deadline = Deadline()
        while not have_taken_all([port]):  # the kernel has some of it on its way
            assert not deadline.passed
            do("read")
        print("end", file=process.stdin, flush=True)
    assert not have_taken_all([port])  # nothing shows


def test_a_client_waits_from_its_request_to_the_first_byte_of_the_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert waits(port) == ()
        with socket.create_connection(("127.0.0.1", port)) as client:
            other, _ = server.accept()
            with other:
                assert waits(port) == ()  # it has asked for nothing
                client.send(b"GET / HTTP/1.1\r\n\r\n")
                began = time.monotonic()
                while not (found := waits(port)) or not found[0]:
                    assert time.monotonic() - began < 60
                assert found[0] <= time.monotonic() - began + 0.1
                other.send(b"HTTP/1.1 200 OK\r\n")
                client.recv(100)  # so that the kernel knows that it has arrived
                assert waits(port) == ()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_a_client_of_a_server_for_both_families_is_seen() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.send(b"GET")
            began = time.monotonic()
            while not waits(port):
                assert time.monotonic() - began < 60


def test_where_the_kernel_does_not_tell_who_waits_it_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*args: object) -> socket.socket:
        raise PermissionError

    monkeypatch.setattr(socket, "socket", refused)
    assert waits(PORT) == ()


# --- what it means ----------------------------------------------------------------------------

WORKING = model(health=slots(Slot(0, is_processing=True, task=9, prompt_tokens=4)))
NEXT_TASK = model(health=slots(Slot(0, is_processing=True, task=10, prompt_tokens=4)))
FREE = model(health=slots(Slot(0, task=9, held_tokens=2000)))


def nobody(seconds: float, task: int = 9) -> Memory:
    """It has worked for nobody for so long, as far as the last check knows."""
    return past(nobodys=((0, task, NOW - seconds),))


@pytest.mark.parametrize(
    ("observation", "memory", "settings", "reason", "remedy"),
    [
        (check(WORKING, clients=False), PROVEN, ANY, "ready", "none"),
        (check(WORKING, clients=False), nobody(599), ANY, "ready", "none"),
        (check(WORKING, clients=False), nobody(601), ANY, "stalled", "runner"),
        # a client is there, or nobody knows
        (check(WORKING, clients=True), nobody(601), ANY, "ready", "none"),
        (check(WORKING), nobody(601), ANY, "ready", "none"),
        # it works for another one, or not any more
        (check(NEXT_TASK, clients=False), nobody(601), ANY, "ready", "none"),
        (check(FREE), nobody(601), ANY, "ready", "none"),
        # a CPU takes long for a prompt that a user has given up; so much longer, or as asked for
        (check(replace(WORKING, row=ON_CPU), clients=False), nobody(3599), ANY, "ready", "none"),
        (
            check(replace(WORKING, row=ON_CPU), clients=False),
            nobody(3601),
            ANY,
            "stalled",
            "runner",
        ),
        (
            check(replace(WORKING, row=ON_CPU), clients=False),
            *(nobody(61), Settings(nobody_timeout=60), "stalled", "runner"),
        ),
    ],
)
def test_only_work_that_goes_on_and_on_for_nobody_is_a_stall(
    observation: Observation, memory: Memory, settings: Settings, reason: str, remedy: str
) -> None:
    verdict, _ = judge(observation, memory, settings, NOW)
    assert (str(verdict.reason), str(verdict.remedy)) == (reason, remedy), verdict


def test_it_is_in_the_readings_from_the_second_check_on() -> None:
    verdicts, _ = run(*[check(WORKING, clients=False)] * 3, memory=PROVEN)
    assert [one.readings.get("nobody_seconds") for one in verdicts] == [None, 15, 30]


@pytest.mark.parametrize(
    ("between", "last"),
    [
        (check(WORKING, clients=True), "ready"),
        (check(FREE), "ready"),
        # while its slots cannot be read it may work on
        (check(model(health=RunnerHealth("ready")), clients=False), "stalled"),
    ],
)
def test_a_client_that_came_in_between_begins_the_time_anew(
    between: Observation, last: str
) -> None:
    alone = check(WORKING, clients=False)
    verdicts, _ = run(
        *(alone, alone, between, alone), memory=PROVEN, settings=Settings(nobody_timeout=40)
    )
    assert str(verdicts[-1].reason) == last


def test_the_runner_of_the_model_that_works_for_nobody_is_named() -> None:
    verdict, _ = judge(check(WORKING, clients=False), nobody(700), ANY, NOW)
    assert verdict.readings["runner_pid"] == 7
    assert "has worked for 700 s with no client connected to the server" in verdict.message


def test_a_slot_that_says_nothing_at_all_is_judged_by_its_silence() -> None:
    verdict, _ = judge(check(model(health=SILENT)), nobody(700), ANY, NOW)
    assert verdict.reason is Reason.BUSY
    assert verdict.remedy is Remedy.NONE
