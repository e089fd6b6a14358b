"""Whose turn it is, as tables."""

from __future__ import annotations

import pytest

from autoheal.turns import Ended, Waiting, broken_until, turns

NOW = 1000.0


def queue(*attempts: int) -> list[Waiting]:
    """Containers a, b, c, ... that were tried so often, and have waited since in that order."""
    return [Waiting(chr(97 + n), tries, NOW + n / 100) for n, tries in enumerate(attempts)]


@pytest.mark.parametrize(
    ("waiting", "running", "begun", "now", "again"),
    [
        ([], 0, 0, "", None),
        (queue(0), 0, 0, "a", None),
        (queue(0, 0, 0), 0, 0, "abc", None),
        (queue(0, 0, 0, 0, 0), 0, 0, "abcd", None),  # four at once
        (queue(0, 0, 0), 3, 0, "a", None),
        (queue(0, 0, 0), 4, 0, "", None),
        (queue(0, 0, 0), 0, 9, "a", NOW - 30 + 60),  # ten a minute
        (queue(0, 0, 0), 0, 10, "", NOW - 30 + 60),
        (queue(7, 0, 1), 2, 0, "bc", None),  # who was tried least goes first
    ],
)
def test_so_many_at_once_and_in_a_minute(
    waiting: list[Waiting], running: int, begun: int, now: str, again: float | None
) -> None:
    chosen = turns(waiting, running, [NOW - 30] * begun, at_once=4, per_minute=10, now=NOW)
    assert ("".join(chosen.now), chosen.again) == (now, again)


def test_a_minute_later_the_limit_is_free_again() -> None:
    chosen = turns(queue(0), 0, [NOW - 61] * 50, at_once=4, per_minute=10, now=NOW)
    assert chosen.now == ("a",)


@pytest.mark.parametrize(
    ("ended", "broken"),
    [
        ("aF bF cF dF eF", True),
        ("aF bF cF dF", False),
        ("aF aF aF aF aF", False),  # it is the container
        ("aF aF bF bF bF", False),
        ("aF bF cF dF eS", False),
        ("eS aF bF cF dF fF", True),
    ],
)
def test_when_the_heals_of_several_fail_in_a_row_healing_is_broken(
    ended: str, broken: bool
) -> None:
    rows = [Ended(word[0], NOW, word[1] == "F") for word in ended.split()]
    assert broken_until(rows) == (NOW + 60 if broken else None)
