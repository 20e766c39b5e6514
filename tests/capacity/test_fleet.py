"""The fleet program against enumeration, published problems and its own rules."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from capacity_problems import enumerated, fleet_problems, melange
from hypothesis import given, settings
from hypothesis import strategies as st

from optsched.capacity.prices import relaxation_prices
from optsched.capacity.problem import FleetPlan, FleetProblem
from optsched.capacity.solve import FleetInfeasibleError, relaxed_value, solve_fleet
from optsched.capacity.survival import fatal_failures
from optsched.errors import InfeasibleError, ProblemError


@settings(max_examples=60, deadline=None)
@given(fleet_problems())
def test_no_fleet_is_cheaper_than_the_one_found(problem: FleetProblem) -> None:
    best = enumerated(problem)
    try:
        answer = solve_fleet(problem)
    except FleetInfeasibleError:
        assert best is None
        return
    assert best is not None
    assert answer.status == "OPTIMAL"
    assert answer.value == pytest.approx(best[0], rel=1e-6)
    assert answer.bound <= answer.value
    assert not problem.violations(answer.plan)


@settings(max_examples=40, deadline=None)
@given(fleet_problems(lossy=True))
def test_a_fleet_that_survives_any_failure_is_the_cheapest_that_does(problem: FleetProblem) -> None:
    best = enumerated(problem)
    try:
        answer = solve_fleet(problem)
    except FleetInfeasibleError:
        assert best is None
        return
    assert best is not None
    assert fatal_failures(problem, answer.plan) == []
    assert answer.value == pytest.approx(best[0], rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(fleet_problems())
def test_the_limits_named_are_enough_and_none_is_superfluous(problem: FleetProblem) -> None:
    try:
        solve_fleet(problem)
    except FleetInfeasibleError as error:
        relax = error.relax
    else:
        return
    if not relax:
        return
    needed = {each.limit: each.needed for each in relax}
    limits = np.array([needed.get(name, limit) for name, limit in zip(problem.resources, problem.limits, strict=True)])
    assert solve_fleet(dataclasses.replace(problem, limits=limits + 1e-6)).value > 0
    with pytest.raises(FleetInfeasibleError):
        solve_fleet(dataclasses.replace(problem, limits=limits - 0.01))


def test_melange_s_example_costs_what_it_says_with_whole_buckets_and_less_when_they_may_be_split() -> None:
    whole, split = solve_fleet(melange(whole=True)), solve_fleet(melange(whole=False))
    assert (whole.value, whole.plan.counts.tolist()) == (pytest.approx(6.70), [3, 1])
    assert (split.value, split.plan.counts.tolist()) == (pytest.approx(4.68), [1, 1])
    assert whole.status == split.status == "OPTIMAL"


@settings(max_examples=40, deadline=None)
@given(fleet_problems(), st.integers(0, 2))
def test_prices_are_what_a_little_more_of_anything_is_worth(problem: FleetProblem, which: int) -> None:
    """One-sided: a price lies between the changes of the relaxation to either side."""
    try:
        prices = relaxation_prices(problem)
    except InfeasibleError:
        return
    assert prices.value == pytest.approx(relaxed_value(problem), rel=1e-6, abs=1e-9)
    step = 1e-4
    j = which % len(problem.classes)
    for field, index, price in (("limits", 0, -prices.limits[0]), ("demand_per_s", j, prices.demand[j])):
        slopes = []
        for sign in (-1, 1):
            changed = getattr(problem, field).copy()
            changed[index] += sign * step
            if changed[index] < 0:
                slopes.append(-np.inf)
                continue
            value = relaxed_value(dataclasses.replace(problem, **{field: changed}))
            slopes.append(sign * (value - prices.value) / step)
        assert slopes[0] - 1e-4 <= price <= slopes[1] + 1e-4


@settings(max_examples=30, deadline=None)
@given(fleet_problems())
def test_more_supply_and_less_traffic_never_cost_more(problem: FleetProblem) -> None:
    try:
        value = solve_fleet(problem).value
    except FleetInfeasibleError:
        return
    assert solve_fleet(dataclasses.replace(problem, limits=problem.limits + 1)).value <= value * (1 + 1e-6)
    assert solve_fleet(dataclasses.replace(problem, demand_per_s=0.7 * problem.demand_per_s)).value <= value * (1 + 1e-6)


def test_replicas_that_run_today_are_kept_if_change_costs_more_than_it_saves() -> None:
    problem = melange(whole=False)
    for change, counts in ((0.1, [1, 1]), (5.0, [0, 2])):
        present = dataclasses.replace(problem, present=np.array([0, 2]), change_cost=np.full(2, change))
        answer = solve_fleet(present)
        assert answer.plan.counts.tolist() == counts
        assert answer.value == pytest.approx(
            float(problem.cost @ answer.plan.counts + change * abs(answer.plan.counts - [0, 2]).sum())
        )


def test_prefill_and_decode_pools_are_matched() -> None:
    problem = FleetProblem(
        classes=("chat",), demand_per_s=np.array([10.0]), types=("p", "d", "m"), roles=("prefill", "decode", "mixed"),
        rate_per_s=np.array([[4.0], [2.0], [1.0]]), cost=np.array([1.0, 1.0, 1.2]), resources=("gpus",),
        uses=np.ones((3, 1)), limits=np.array([9.0]),
    )  # fmt: skip
    answer = solve_fleet(problem)
    assert answer.plan.counts.tolist() == [3, 5, 0]
    with pytest.raises(FleetInfeasibleError, match=r"Raise gpus from 7 to 8\."):
        solve_fleet(dataclasses.replace(problem, limits=np.array([7.0])))


def test_a_class_that_no_type_serves_is_named() -> None:
    problem = dataclasses.replace(melange(whole=False), rate_per_s=np.array([[2.0, 1, 5, 0], [20, 20, 40, 0]]))
    with pytest.raises(FleetInfeasibleError, match="No replica type can prefill 'in1-out1' within its targets"):
        solve_fleet(problem)


def test_broken_plans_are_told_apart() -> None:
    problem = melange(whole=True)
    split = solve_fleet(melange(whole=False)).plan
    assert any("is split" in rule for rule in problem.violations(split))
    assert any("do the work of" in rule for rule in problem.violations(FleetPlan(np.array([1, 0]), split.routed_per_s)))
    assert any("arrive" in rule for rule in problem.violations(FleetPlan(split.counts, 0.5 * split.routed_per_s)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cost": np.array([1.0])}, "cost has shape"),
        ({"cost": np.array([1.0, -1.0])}, "cost must be finite and not negative"),
        ({"utilisation": np.array([1.0, 1.5])}, "utilisation must lie in"),
        ({"present": np.array([1, 1])}, r"present \(or follows\) and change_cost belong together"),
    ],
)
def test_contradictions_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        dataclasses.replace(melange(whole=False), **change)
