"""The C half of this module alone; the other one defines the same in Python first."""

from _datetime import *  # type: ignore[import-not-found] # noqa: F403
