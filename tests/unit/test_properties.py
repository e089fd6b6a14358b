"""What holds of every verdict, whatever was observed and remembered."""

from __future__ import annotations

from copy import deepcopy

import hypothesis
from hypothesis import given

from probe.crashes import crashed
from probe.judge import judge
from probe.memory import Memory
from probe.observation import Model, Observation
from probe.plan import is_suspected, keep, options_of, routine, suspicion
from probe.report import Reason, Remedy, parse, render
from probe.settings import Settings
from tests.unit.strategies import memories, models, observations, settings

NOW = 10_000.0

with_time = hypothesis.settings(deadline=None, max_examples=400)


@with_time
@given(observations, memories, settings)
def test_every_observation_has_a_verdict_and_the_same_one_each_time(
    observation: Observation, memory: Memory, knobs: Settings
) -> None:
    before = deepcopy((observation, memory))
    first = judge(observation, memory, knobs, NOW)
    assert judge(observation, memory, knobs, NOW) == first
    assert (observation, memory) == before
    verdict, present = first
    assert verdict.healthy == (verdict.exit_code == 0)
    line = parse(render(verdict))
    assert line is not None
    assert (line.healthy, line.reason, line.remedy) == (
        verdict.healthy,
        verdict.reason,
        verdict.remedy,
    )
    judge(observation, present, knobs, NOW + 15)


@with_time
@given(observations, memories, settings)
def test_a_healthy_verdict_has_a_healthy_reason_and_no_remedy(
    observation: Observation, memory: Memory, knobs: Settings
) -> None:
    verdict, _ = judge(observation, Memory(proven=memory.proven), knobs, NOW)
    harmless = {Reason.READY, Reason.IDLE, Reason.BUSY, Reason.LOADING}
    if verdict.healthy:
        assert verdict.reason in harmless
        assert verdict.remedy is Remedy.NONE
    else:
        assert verdict.reason not in harmless - {Reason.LOADING}


@with_time
@given(observations, memories, settings)
def test_where_the_server_could_be_asked_and_was_not_no_model_is_stalled(
    observation: Observation, memory: Memory, knobs: Settings
) -> None:
    asked = any(
        one.ask.via == "server" and one.answer.outcome != "token"
        for every in observation.asked.values()
        for one in every
    )
    askable = all(
        (ask := suspicion(model, knobs)) and ask.via == "server" for model in observation.models
    )
    loads = [model for model in observation.models if model.state == "loading"]
    loads_known = observation.loading or observation.load or observation.missing or memory.load
    hypothesis.assume(not observation.unending)  # a killed process that is there is its own proof
    if askable and not asked and not loads and not loads_known and not observation.no_time:
        verdict, present = judge(observation, memory, knobs, NOW)
        exits = {one.message for one in crashed(present)}  # users' requests were seen to fail
        assert verdict.reason is not Reason.STALLED or verdict.message in exits


@with_time
@given(models, memories, settings)
def test_nothing_is_asked_of_the_server_with_options_that_do_not_show(
    model: Model, memory: Memory, knobs: Settings
) -> None:
    asks = (
        routine(model, memory, knobs),
        suspicion(model, knobs),
        keep(model, memory, knobs, NOW),
    )
    is_suspected(model, memory, knobs, NOW)
    for ask in asks:
        if ask is not None and ask.via == "server" and model.runner is not None:
            assert ask.options == options_of(model)
        if ask is not None:
            assert not model.gone
            assert not ask.keep or not ask.tokens
