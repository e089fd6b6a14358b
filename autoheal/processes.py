"""What tells one process from another that has its number later: when it started."""

from __future__ import annotations


def started(pid: int, proc: str = "/proc") -> str | None:
    """When a process started, in clock ticks since the boot; None when there is none."""
    try:
        with open(f"{proc}/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return None
