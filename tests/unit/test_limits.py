"""Which container uses more than it may, as a table."""

from __future__ import annotations

import pytest

from autoheal.engine import Usage
from autoheal.limits import over
from autoheal.settings import Settings

MIB = 1 << 20
BEFORE = Usage(cpu_seconds=100, memory_bytes=100 * MIB, memory_limit_bytes=1000 * MIB, io_bytes=0)


@pytest.mark.parametrize(
    ("cpu", "memory", "io", "settings", "words"),
    [
        (0, 100, 0, {}, ""),
        (60, 990, 10**12, {}, ""),  # no limit is set
        (5, 100, 0, {"max_cpu_percent": 80}, ""),
        (9, 100, 0, {"max_cpu_percent": 80}, "over_limit: CPU 90 %, more than 80 %"),
        (20, 100, 0, {"max_cpu_percent": 150}, "over_limit: CPU 200 %, more than 150 %"),
        (0, 800, 0, {"max_memory_percent": 80}, ""),
        (0, 810, 0, {"max_memory_percent": 80}, "over_limit: memory 81 %, more than 80 %"),
        (0, 0, 10**9, {"max_io_bytes": 1e8}, ""),
        (
            *(0, 0, 10**9 + 10**8, {"max_io_bytes": 1e8}),
            "over_limit: disk 110000000 bytes/s, more than 100000000 bytes/s",
        ),
        (
            *(9, 900, 0, {"max_cpu_percent": 80, "max_memory_percent": 80}),
            "over_limit: CPU 90 %, more than 80 %; memory 90 %, more than 80 %",
        ),
    ],
)
def test_a_container_is_over_its_limits(
    cpu: float, memory: int, io: int, settings: dict[str, float], words: str
) -> None:
    now = Usage(100 + cpu, memory * MIB, 1000 * MIB, io)
    assert over(BEFORE, now, 10.0, Settings(**settings)) == words  # type: ignore[arg-type]


def test_memory_without_a_limit_of_its_own_is_no_fault() -> None:
    now = Usage(100, 5 * MIB, 0, 0)
    assert over(BEFORE, now, 10.0, Settings(max_memory_percent=1)) == ""
