"""When a model is slow, as tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from probe.judge import judge
from probe.observation import Answer
from probe.report import Reason
from probe.settings import Settings
from tests.unit.rows import (
    ANY,
    NOW,
    OTHER,
    OTHER_RUNNER,
    RUNNER,
    TO_SERVER,
    TOKEN,
    asked,
    check,
    model,
    past,
)

FLOOR = Settings(min_tokens_per_second=10.0)
FEW, MANY = Answer("token", 0.5, 2.0), Answer("token", 0.5, 40.0)


@pytest.mark.parametrize(
    ("to", "ran", "slow_checks", "settings", "reason"),
    [
        (FEW, 0.0, 2, FLOOR, "slow"),
        (FEW, 0.0, 1, FLOOR, "ready"),  # not often enough
        (FEW, 0.0, 1, replace(FLOOR, slow_checks=2), "slow"),
        (FEW, 9.0, 2, FLOOR, "ready"),  # users' work stands in its way
        (FEW, 0.4, 2, FLOOR, "slow"),  # a little CPU time between two checks is none
        (FEW, 0.0, 2, ANY, "ready"),  # off
        (FEW, 0.0, 9, ANY, "ready"),
        (MANY, 0.0, 9, FLOOR, "ready"),  # as fast as it should be again
        (TOKEN, 0.0, 2, FLOOR, "ready"),  # its rate was not measured
    ],
)
def test_slow_is_below_the_limit_several_times_while_nobody_else_is_served(
    to: Answer, ran: float, slow_checks: int, settings: Settings, reason: str
) -> None:
    one = model(runner=replace(RUNNER, cpu_seconds=50.0 + ran))
    observation = check(one, to=(asked(TO_SERVER, to),))
    verdict, _ = judge(observation, past(slow_checks=slow_checks), settings, NOW)
    assert verdict.reason is Reason(reason), verdict.message


def test_a_model_is_not_slow_because_another_one_is_used() -> None:
    """They share a GPU."""
    memory = past(slow_checks=2)
    known = replace(memory.models["d1"], name="other:latest", runner=OTHER_RUNNER.identity)
    memory = replace(memory, models={**memory.models, "d2": known})
    used = replace(OTHER, runner=replace(OTHER_RUNNER, cpu_seconds=59.0))
    for two, reason in ((used, Reason.READY), (OTHER, Reason.SLOW)):
        observation = check(model(), two, to=(asked(TO_SERVER, FEW),))
        assert judge(observation, memory, FLOOR, NOW)[0].reason is reason
