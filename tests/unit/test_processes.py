"""Whose container a process is in, told by the names of its control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from probe.processes import containers_of, name_of, pid_inside, started

A, B = "a1" * 32, "b2" * 32


@pytest.mark.parametrize(
    ("cgroup", "ids"),
    [
        (f"12:memory:/docker/{A}\n11:cpu,cpuacct:/docker/{A}\n", (A,)),  # version 1
        (f"0::/system.slice/docker-{A}.scope\n", (A,)),  # version 2, by systemd
        (f"0::/docker/{A}\n", (A,)),  # version 2, by Docker itself
        (f"0::/../{A}\n", (A,)),  # seen from a container with a cgroup namespace
        (f"0::/default/{A}\n", (A,)),  # containerd's ctr
        (f"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{A}.scope\n", (A,)),
        (f"4:memory:/docker/{A}/docker/{B}\n", (A, B)),  # Docker in Docker
        ("0::/user.slice/user-1000.slice\n", ()),
        (f"0::/sha256{A}{B}\n", ()),
        ("", ()),
    ],
)
def test_a_container_is_known_by_its_control_group(
    cgroup: str, ids: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/cgroup").write_text(cgroup)
    assert containers_of(7, str(tmp_path)) == ids


@pytest.mark.parametrize(
    ("status", "pid"),
    [
        ("Name:\tollama\nNSpid:\t4242\t31\t9\nNSpgid:\t4242\t31\t1\n", 9),
        ("Name:\tollama\nNSpid:\t4242\nNSpgid:\t4242\n", 4242),  # in the host's own namespace
        ("Name:\tollama\n", None),
        ("", None),
    ],
)
def test_a_process_has_a_number_in_its_own_container(
    status: str, pid: int | None, tmp_path: Path
) -> None:
    (tmp_path / "4242").mkdir()
    (tmp_path / "4242/status").write_text(status)
    assert pid_inside(4242, str(tmp_path)) == pid


def test_a_process_that_has_gone_has_no_name_and_no_start(tmp_path: Path) -> None:
    assert (name_of(7, str(tmp_path)), started(7, str(tmp_path))) == (None, None)
    assert name_of(os.getpid())
    assert (started(os.getpid()) or "").isdigit()
