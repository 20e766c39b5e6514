"""A plan under other traffic than the planned."""

from __future__ import annotations

import numpy as np
import pytest
from factories import make_plan

from optsched.domain.scenario import EngineSpec, LatencyTarget, Slo
from optsched.domain.workload import Workload
from optsched.planner.robustness import disturbed, robustness

ENGINE = EngineSpec(max_batched_tokens=512, max_sequences=64)


def steady(number: int, rate_per_s: float) -> Workload:
    arrival_s = np.cumsum(np.random.default_rng(1).exponential(1 / rate_per_s, number))
    return Workload(
        np.arange(number), arrival_s, np.arange(number + 1), np.full(number, 300), np.full(number, 100), np.zeros(number)
    )


@pytest.fixture(scope="module")
def plan():
    made = make_plan(["mixed"], kv_blocks=4000, policy="collocated", parameters={"admission": 0}, engine=ENGINE)
    given = Slo(ttft=LatencyTarget(seconds=0.5), tpot=LatencyTarget(seconds=0.03))
    return made.replace(slo=made.slo.replace(ttft=given.ttft, tpot=given.tpot))


def test_the_break_point_lies_between_what_is_kept_and_what_is_missed(plan) -> None:
    workload = steady(300, 30.0)
    found = robustness(plan, workload)
    for what, factor in (("rate", found.rate_breaks), ("outputs", found.outputs_break)):
        assert 0 < factor < np.inf
        kept = robustness(plan, disturbed(workload, what, factor), rates=(1.0,), outputs=())
        missed = robustness(plan, disturbed(workload, what, 1.012 * factor), rates=(1.0,), outputs=())
        assert kept.rate[0].met
        assert not missed.rate[0].met


def test_more_traffic_is_cheaper_per_token_and_attains_less(plan) -> None:
    found = robustness(plan, steady(300, 30.0), rates=(0.5, 1.0, 2.0, 8.0), outputs=())
    prices = [each.usd_per_million_tokens for each in found.rate]
    assert prices == sorted(prices, reverse=True)
    assert found.rate[-1].attainment < found.rate[0].attainment == 1


def test_a_plan_that_keeps_or_misses_everything_has_no_break_point(plan) -> None:
    workload = steady(30, 1e-3)
    easy = plan.replace(slo=plan.slo.replace(ttft=LatencyTarget(seconds=1e4), tpot=LatencyTarget(seconds=1e4)))
    assert robustness(easy, workload, rates=(), outputs=()).rate_breaks == np.inf
    hard = plan.replace(slo=plan.slo.replace(ttft=LatencyTarget(seconds=1e-6)))
    assert robustness(hard, workload, rates=(), outputs=()).rate_breaks == 0


def test_contexts_that_fit_nowhere_attain_nothing(plan) -> None:
    found = robustness(plan, steady(10, 1.0), rates=(), outputs=(1.0, 900.0))
    assert [each.met for each in found.outputs] == [True, False]
    assert found.outputs[1].usd_per_million_tokens is None
    assert found.outputs_break < 900
