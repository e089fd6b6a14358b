"""Which runs of the tests are dead: only those whose end can be seen from here."""

from __future__ import annotations

import os

from testbed import runs


def test_a_run_is_dead_when_its_process_is_gone_or_its_boot_is_over() -> None:
    alive = runs.identity(os.getpid())
    place, boot, pid, started = alive.split("-")
    assert not runs.is_dead(alive)
    assert runs.is_dead(f"{place}-{boot}-{pid}-{int(started) - 1}")
    assert runs.is_dead(f"{place}-00000000-{pid}-{started}")


def test_a_run_on_another_machine_or_in_another_pid_namespace_is_never_called_dead() -> None:
    """Its processes cannot be seen from here, and it may use the same engine."""
    _, boot, pid, started = runs.identity(os.getpid()).split("-")
    assert not runs.is_dead(f"000000-{boot}-{pid}-{int(started) - 1}")
    assert not runs.is_dead(f"000000-00000000-{pid}-{started}")


def test_what_is_no_runs_identity_is_not_called_dead() -> None:
    assert not runs.is_dead("production")
