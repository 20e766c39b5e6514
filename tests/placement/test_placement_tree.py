"""Trying every placement that a bound does not rule out ends where brute force ends."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from placement_cases import placements, problems

from optsched.domain.scenario import Role
from optsched.placement.bound import lower_bound
from optsched.placement.evaluate import objective_of
from optsched.placement.exact import exact
from optsched.placement.generators import FleetPart, PlacementRecipe, generate, read_recipes
from optsched.placement.partition.columns import independent
from optsched.placement.problem import PlacementProblem
from optsched.placement.solve import solve
from optsched.placement.tree.search import Walked, walk_all

SHARED = read_recipes(Path(__file__).resolve().parents[2] / "instances" / "placement" / "recipes.toml")


@settings(max_examples=40)
@given(problems(most=4))
def test_the_walk_finds_what_brute_force_finds(problem) -> None:
    best = min(objective_of(problem, plan) for plan in placements(problem))
    found = walk_all(problem, float("inf"), until_s=time.perf_counter() + 60)
    assert found.finished
    assert found.value == pytest.approx(best, rel=1e-9, abs=1e-12)
    assert found.plan.violations(problem) == []
    assert objective_of(problem, found.plan) == pytest.approx(found.value, rel=1e-9, abs=1e-12)


def fleet_of(parts: list[tuple[str, Role, int]], conversations: int, **changes: object) -> PlacementProblem:
    recipe = PlacementRecipe(
        name="tree", family="agents", conversations=conversations, rate_per_s=3.0, links=True, seed=1, slo_factor=1.25,
        fleet=tuple(FleetPart(tier=tier, role=role, count=count) for tier, role, count in parts), **changes,
    )  # type: ignore[arg-type]  # fmt: skip
    return generate(recipe, SHARED)


@pytest.mark.parametrize("objective", ["ttfet", "energy", "slo_misses"])
@pytest.mark.parametrize(
    ("parts", "conversations"),
    [
        ([("a40-300", "prefill", 2), ("a40-200", "decode", 2)], 8), ([("a40-300", "prefill", 3), ("a40-200", "decode", 1)], 9),
        ([("h100", "mixed", 1), ("a40-300", "mixed", 2)], 5),
    ],
)  # fmt: skip
def test_fleets_whose_replicas_depend_on_each_other_are_proven(parts, conversations, objective) -> None:
    problem = fleet_of(parts, conversations, objective=objective)
    found = exact(problem, time_limit_s=300)
    assert not independent(problem)
    assert (found.status, found.gap) == ("OPTIMAL", 0.0)
    assert found.plan.violations(problem) == []
    assert lower_bound(problem).value <= found.value <= solve(problem, "greedy", work=20_000).value * (1 + 1e-9)


def test_a_walk_that_is_stopped_claims_nothing() -> None:
    problem = fleet_of([("a40-300", "mixed", 4)], 12, objective="energy")
    stopped = walk_all(problem, float("inf"), until_s=time.perf_counter())
    assert (stopped.plan, stopped.finished) == (None, False)
    hurried = exact(problem, time_limit_s=3.0)
    assert (hurried.status, hurried.limit) == ("FEASIBLE", "time")
    assert hurried.bound < hurried.value


def test_nothing_better_than_the_optimum_is_found() -> None:
    problem = fleet_of([("a40-300", "prefill", 2), ("a40-200", "decode", 1)], 6)
    best = exact(problem)
    assert walk_all(problem, best.value, until_s=time.perf_counter() + 60) == Walked(None, best.value, finished=True)
