"""What the shipped instances say of themselves, and the referee on plans of hundreds and thousands of conversations."""

from __future__ import annotations

from pathlib import Path

import pytest

from optsched.placement.evaluate import objective_of
from optsched.placement.generators import generate, read_recipes
from optsched.placement.greedy import greedy
from optsched.placement.problem import PlacementPlan
from optsched.placement.solve import solve
from optsched.placement.windows import proven_bound

SHARED = read_recipes(Path(__file__).resolve().parents[2] / "instances" / "placement" / "recipes.toml")
LARGE = [recipe for recipe in SHARED.recipes if recipe.conversations > 14]


def named(name: str):  # type: ignore[no-untyped-def]
    return next(recipe for recipe in SHARED.recipes if recipe.name == name)


@pytest.mark.parametrize("name", ["agents-255-1p3d-ttfet", "agents-255-4-mixed-links-ttfet", "tools-255-h100-3-a40-energy"])
def test_the_referee_accepts_plans_of_255_conversations(name: str) -> None:
    recipe = named(name)
    problem = generate(recipe, SHARED)
    plan = greedy(problem, work=40_000)
    assert plan.violations(problem) == []
    assert objective_of(problem, plan) >= recipe.bound
    swapped = PlacementPlan(plan.prefill, plan.decode[::-1].copy())
    assert (swapped.violations(problem) == []) == ("links" in name or "1p3d" in name)


@pytest.mark.parametrize("name", [recipe.name for recipe in LARGE if recipe.conversations <= 1000])
def test_the_bound_beside_a_recipe_is_proven_again_and_below_its_value(name: str) -> None:
    recipe = named(name)
    problem = generate(recipe, SHARED)
    assert recipe.bound <= proven_bound(problem, recipe.value) * (1 + 1e-6)
    assert recipe.bound <= recipe.value
    assert (recipe.status == "OPTIMAL") == (recipe.bound == recipe.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", [recipe.name for recipe in SHARED.recipes])
def test_the_search_reaches_the_value_beside_a_recipe_and_the_referee_accepts_its_plan(name: str) -> None:
    recipe = named(name)
    problem = generate(recipe, SHARED)
    found = solve(problem, "greedy", time_limit_s=1_200)
    assert found.plan.violations(problem) == []
    assert recipe.bound * (1 - 1e-6) <= found.value <= recipe.value * 1.02 + (recipe.objective == "slo_misses")
    assert recipe.bound <= found.bound * (1 + 1e-6) or recipe.status == "OPTIMAL"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [recipe.name for recipe in SHARED.recipes if recipe.status == "OPTIMAL" and recipe.conversations <= 14]
)
def test_a_recipe_that_claims_its_optimum_is_proven_again(name: str) -> None:
    recipe = named(name)
    found = solve(generate(recipe, SHARED), time_limit_s=600)
    assert (found.status, found.value) == ("OPTIMAL", pytest.approx(recipe.value, rel=1e-6))
