"""Placement solvers: exact equals brute force, heuristics lie above, bounds below."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_cases import all_links, placements, problems, replica, slo, workload

from optsched.errors import PlanError, ProblemError, SolverUnavailableError
from optsched.placement import milp
from optsched.placement.bound import lower_bound
from optsched.placement.evaluate import EVALUATOR, objective_of
from optsched.placement.exact import exact
from optsched.placement.greedy import greedy
from optsched.placement.milp import PlacementFormulation
from optsched.placement.problem import PlacementPlan, PlacementProblem
from optsched.placement.solve import certificate, solve
from optsched.placement.symmetry import interchangeable


def brute_force(problem: PlacementProblem) -> float:
    return min(objective_of(problem, plan) for plan in placements(problem))


@settings(max_examples=40)
@given(problems(most=3))
def test_bound_below_optimum_equal_to_brute_force_below_greedy(problem) -> None:
    best = brute_force(problem)
    found, heuristic = solve(problem, time_limit_s=60), solve(problem, "greedy")
    assert found.plan.violations(problem) == []
    assert heuristic.plan.violations(problem) == []
    assert found.status == "OPTIMAL"
    assert found.value == pytest.approx(best, rel=1e-5)
    assert found.value == objective_of(problem, found.plan)
    assert lower_bound(problem).value <= found.bound <= best * (1 + 1e-9)
    assert heuristic.bound <= best <= heuristic.value


@settings(max_examples=15)
@given(problems(most=2), st.sampled_from(["highs", "cbc"]))
def test_relaxing_evaluating_and_excluding_alone_ends_at_the_optimum(problem, solver) -> None:
    found = exact(problem, solver=solver, walks=False)
    assert found.status == "OPTIMAL"
    assert found.limit == "none"
    assert found.value == pytest.approx(brute_force(problem), rel=1e-5)


@settings(max_examples=25)
@given(problems(most=3), st.sampled_from(["highs", "highs", "cbc"]))
def test_the_relaxation_lies_below_every_placement(problem, solver) -> None:
    answer = PlacementFormulation(problem).solve(solver, 30.0)
    assert answer.bound is not None
    assert answer.bound <= brute_force(problem)
    assert answer.plan is not None
    assert answer.plan.violations(problem) == []


def crowded(roles: list, count: int = 4, **changes) -> PlacementProblem:
    replicas = tuple(replica(i, role, kv_blocks=40) for i, role in enumerate(roles))
    turns = [[(60 + 30 * (c % 8), 6, 0.0), (8, 10 + 5 * (c % 8), 0.05)] for c in range(count)]
    starts = [0.03 * c for c in range(count)]
    return PlacementProblem(workload(turns, starts), replicas, all_links(replicas), 100.0, slo=slo(), **changes)


@pytest.mark.parametrize("objective", ["ttfet", "energy", "slo_misses", "cost"])
@pytest.mark.parametrize("solver", ["highs", "cbc"])
def test_one_prefiller_and_two_decoders_by_both_solvers(objective, solver) -> None:
    problem = crowded(["prefill", "decode", "decode"], objective=objective)
    found = exact(problem, solver=solver, walks=False)
    assert found.status == "OPTIMAL"
    assert found.value == pytest.approx(brute_force(problem), rel=1e-5)


@pytest.mark.parametrize("objective", ["ttfet", "energy", "slo_misses", "cost"])
def test_constraints_are_named_as_the_formulation_says(objective) -> None:
    problem = crowded(["prefill", "mixed", "mixed"], objective=objective)
    formulation = PlacementFormulation(problem)
    formulation.exclude(solve(problem, "greedy").plan)
    documented = {*re.findall(r"^``([a-z]+)", milp.__doc__ or "", re.MULTILINE), "count", "sure"}
    names = {constraint.name for constraint in formulation.program.constraints()}
    assert {name.split("_")[0] for name in names} <= documented
    assert all(re.fullmatch("[a-z0-9_]+", name) for name in names | {v.name for v in formulation.program.variables()})


@pytest.mark.parametrize("roles", [["mixed"] * 3, ["prefill", "mixed", "decode"], ["prefill", "prefill", "decode"]])
def test_placements_that_differ_by_names_of_twins_only_are_worth_the_same(roles) -> None:
    problem = crowded(roles, count=3)
    groups = interchangeable(problem)
    assert groups == [
        twins for twins in ([i for i, role in enumerate(roles) if role == own] for own in sorted(set(roles))) if len(twins) > 1
    ]
    for group in groups:
        swap = np.arange(len(roles))
        swap[group[:2]] = group[1], group[0]
        for plan in placements(problem):
            other = PlacementPlan(swap[plan.prefill], swap[plan.decode])
            assert objective_of(problem, other) == pytest.approx(objective_of(problem, plan), rel=1e-9)


def test_a_replica_more_never_hurts_latency() -> None:
    for roles in (["prefill", "decode"], ["mixed"]):
        for more in ("mixed", "decode", "prefill"):
            fewer, larger = crowded(roles, count=3), crowded([*roles, more], count=3)
            assert solve(larger).value <= solve(fewer).value * (1 + 1e-5)


def test_limits_are_reported_with_a_plan_and_a_bound() -> None:
    problem = crowded(["mixed"] * 3, count=6, objective="energy")
    stopped = exact(problem, walks=False, max_iterations=2)
    assert (stopped.status, stopped.limit) == ("FEASIBLE", "iterations")
    assert stopped.gap == pytest.approx((stopped.value - stopped.bound) / stopped.value)
    assert stopped.bound < stopped.value
    hurried = exact(problem, time_limit_s=1e-3)
    assert (hurried.status, hurried.limit) == ("FEASIBLE", "time")
    assert hurried.plan.violations(problem) == []


def test_greedy_repeats_itself_and_improves_on_its_rule() -> None:
    problem = crowded(["prefill", "mixed", "decode"], count=8)
    one, two = greedy(problem, seed=3), greedy(problem, seed=3)
    assert one.prefill.tolist() == two.prefill.tolist()
    assert one.decode.tolist() == two.decode.tolist()
    assert objective_of(problem, one) <= objective_of(problem, greedy(problem, work=0))


def test_greedy_places_many_conversations_by_its_rule() -> None:
    problem = crowded(["prefill", "decode", "mixed", "mixed"], count=30, objective="energy")
    plan = greedy(problem, work=100_000)
    assert plan.violations(problem) == []


def test_a_certificate_names_the_evaluator_and_claims_no_more_than_is_proven() -> None:
    problem = crowded(["prefill", "decode", "decode"])
    poor = PlacementPlan.of([0] * 4, [1] * 4)
    found = certificate(problem, poor)
    assert (found.evaluator, found.solver, found.status) == (EVALUATOR, "policy", "FEASIBLE")
    assert found.objective == "95th percentile of TTFET [s]"
    assert found.bound <= found.value == objective_of(problem, poor)
    assert found.gap == pytest.approx(1 - found.bound / found.value)
    best = solve(problem)
    better = certificate(problem, best.plan, best.value, best.solver)
    assert (better.status, better.gap) == ("OPTIMAL", 0.0)


def test_a_certificate_refuses_a_broken_placement_and_a_bound_above_the_value() -> None:
    problem = crowded(["prefill", "decode", "decode"])
    with pytest.raises(PlanError, match="a role forbids it, or no link joins them"):
        certificate(problem, PlacementPlan.of([1] * 4, [1] * 4))
    with pytest.raises(PlanError, match="lies below the bound 99 that was given"):
        certificate(problem, PlacementPlan.of([0] * 4, [1] * 4), 99.0)


def test_unknown_methods_and_limits_are_refused() -> None:
    problem = crowded(["mixed"], count=1)
    with pytest.raises(ProblemError, match="method 'best' is unknown; choose exact or greedy"):
        solve(problem, "best")  # type: ignore[arg-type]
    with pytest.raises(ProblemError, match="time_limit_s 0 must be positive"):
        solve(problem, time_limit_s=0)


def test_a_solver_that_is_not_installed_is_named(monkeypatch) -> None:
    monkeypatch.setattr(milp.pulp.HiGHS, "available", lambda _: False)
    with pytest.raises(SolverUnavailableError, match=r"Solver 'highs' is not installed; it comes with highspy. Install it"):
        PlacementFormulation(crowded(["mixed"], count=1)).solve("highs", 1.0)
