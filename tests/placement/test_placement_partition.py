"""The partition program: exact where replicas are independent, the same as every other way to the optimum."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_cases import placements, problems

from optsched import files
from optsched.errors import InfeasibleError, ProblemError, SpecError, UnknownNameError
from optsched.placement.bound import lower_bound
from optsched.placement.evaluate import evaluate, objective_of
from optsched.placement.exact import exact
from optsched.placement.generators import FleetPart, PlacementRecipes, generate, read_recipes
from optsched.placement.partition.columns import column_table, independent
from optsched.placement.partition.milp import PartitionFormulation
from optsched.placement.partition.pareto import lexicographic, pareto
from optsched.placement.problem import GOALS, PlacementPlan, PlacementProblem
from optsched.placement.solve import solve

FILE = Path(__file__).resolve().parents[2] / "instances" / "placement" / "recipes.toml"
SHARED = read_recipes(FILE)
SMALL = [recipe for recipe in SHARED.recipes if recipe.conversations <= 12]
INDEPENDENT = problems(most=4).filter(independent)


@settings(max_examples=25)
@given(INDEPENDENT, st.sampled_from(["highs", "highs", "cbc"]))
def test_the_partition_program_finds_what_brute_force_finds(problem, solver) -> None:
    best = min(objective_of(problem, plan) for plan in placements(problem))
    answer = PartitionFormulation(problem).solve(solver, 30.0)
    assert answer.plan is not None
    assert answer.plan.violations(problem) == []
    assert objective_of(problem, answer.plan) == pytest.approx(best, rel=1e-5)
    assert answer.bound <= best * (1 + 1e-9)
    found, other = exact(problem, solver=solver), exact(problem, solver=solver, partitions=False)
    assert (found.status, other.status) == ("OPTIMAL", "OPTIMAL")
    assert found.value == pytest.approx(best, rel=1e-5)
    assert other.value == pytest.approx(best, rel=1e-5)


@settings(max_examples=25)
@given(INDEPENDENT, st.randoms())
def test_the_columns_of_a_placement_add_up_to_its_evaluation(problem, random) -> None:
    chosen = [random.choice(problem.options(c)) for c in range(problem.workload.num_conversations)]
    plan = PlacementPlan.of([p for p, _ in chosen], [d for _, d in chosen])
    table, whole = column_table(problem), evaluate(problem, plan)
    dynamic_j, ttfet_s, missed, end_s = table.fixed_j, np.zeros(len(chosen)), 0, 0.0
    for columns in table.columns:
        for d in columns.replicas:
            mask = sum(1 << c for c, (_, decode) in enumerate(chosen) if decode == d)
            dynamic_j, ttfet_s = dynamic_j + columns.dynamic_j[mask], ttfet_s + columns.ttfet_s[mask]
            missed, end_s = missed + columns.missed[mask], max(end_s, columns.end_s[mask])
    assert ttfet_s == pytest.approx(whole.ttfet_s, rel=1e-9)
    assert end_s == pytest.approx(whole.makespan_s, rel=1e-9)
    assert missed == whole.missed.sum()
    assert dynamic_j + problem.idle_w * end_s == pytest.approx(whole.energy_j, rel=1e-9)


@settings(max_examples=15)
@given(INDEPENDENT, st.sampled_from(["energy", "cost", "slo_misses"]), st.floats(0, 1))
def test_a_limit_on_another_objective_is_kept_and_costs_no_more_than_it_must(problem, goal, share) -> None:
    problem = problem.with_objective("ttfet")
    found = [evaluate(problem, plan) for plan in placements(problem)]
    limits = sorted(one.value(goal) for one in found)
    limit = limits[int(share * (len(limits) - 1))]
    best = min(one.value("ttfet") for one in found if one.value(goal) <= limit * (1 + 1e-9))
    answer = PartitionFormulation(problem, limits={goal: limit * (1 + 1e-7) + 1e-7}).solve("highs", 30.0)
    assert answer.plan is not None
    assert evaluate(problem, answer.plan).value(goal) <= limit * (1 + 1e-5) + 1e-5
    assert answer.bound <= best * (1 + 1e-9)


def test_nothing_is_as_good_as_less_than_the_optimum() -> None:
    problem = generate(SMALL[2].replace(conversations=5), SHARED)
    best = solve(problem)
    answer = PartitionFormulation(problem, better_than=best.value * 0.99).solve("highs", 30.0)
    assert (answer.plan, answer.bound) == (None, float("inf"))


@pytest.mark.parametrize("name", ["agents-12-h100-3-a40-ttfet", "tools-12-1p3d-energy", "agents-12-4-mixed-slo-misses"])
def test_twelve_conversations_on_four_replicas_are_proven(name: str) -> None:
    recipe = next(recipe for recipe in SMALL if recipe.name == name)
    found = solve(generate(recipe, SHARED))
    assert found.status == "OPTIMAL"
    assert found.value == pytest.approx(recipe.value, rel=1e-6)


def test_the_search_is_within_two_percent_of_the_proven_optimum_on_average() -> None:
    above = []
    for recipe in SMALL:
        assert (recipe.status, recipe.value) == ("OPTIMAL", recipe.bound)
        problem = generate(recipe, SHARED)
        found = solve(problem, "greedy", work=25_000)
        assert found.plan.violations(problem) == []
        assert lower_bound(problem).value <= recipe.bound * (1 + 1e-6) <= found.value * (1 + 2e-6)
        above.append(found.value / recipe.value - 1 if recipe.value else found.value)
    assert len(above) >= 24
    assert np.mean(above) <= 0.02


def test_what_is_known_of_an_instance_lies_the_right_way_round() -> None:
    assert {recipe.name for recipe in SHARED.recipes if recipe.conversations >= 10_000}
    for recipe in SHARED.recipes:
        assert recipe.value is not None
        assert recipe.bound is not None
        assert recipe.bound <= recipe.value
        if recipe.conversations <= 1000:
            problem = generate(recipe, SHARED)
            assert lower_bound(problem).value <= recipe.value
            assert set(problem.workload.first_turn[:-1]) <= set(range(problem.workload.num_turns))


@pytest.mark.parametrize("family", ["agents", "tools", "chat", "bursts"])
def test_a_recipe_gives_the_same_problem_again_and_another_seed_another(family) -> None:
    recipe = SMALL[0].replace(family=family, conversations=30)
    one, two, other = (generate(recipe.replace(seed=seed), SHARED) for seed in (1, 1, 2))
    assert one.workload.output_tokens.tolist() == two.workload.output_tokens.tolist()
    assert one.workload.arrival_s.tolist() == two.workload.arrival_s.tolist()
    assert one.workload.output_tokens.sum() != other.workload.output_tokens.sum()
    assert (np.diff(one.workload.arrival_s) >= 0).all()


def test_links_between_mixed_replicas_make_them_depend_on_each_other() -> None:
    recipe = SMALL[0].replace(conversations=3)
    assert independent(generate(recipe, SHARED))
    assert not independent(generate(recipe.replace(links=True), SHARED))
    assert len(generate(recipe.replace(links=True), SHARED).pairs) == 16


def test_a_fleet_of_an_unknown_tier_and_a_wrong_file_are_refused(tmp_path) -> None:
    part = FleetPart(tier="a41-300", role="mixed", count=1)
    with pytest.raises(UnknownNameError, match="a41-300"):
        generate(SMALL[0].replace(fleet=(part,)), SHARED)
    path = tmp_path / "recipes.toml"
    path.write_text(FILE.read_text().replace('family = "agents"', 'family = "agent"', 1))
    with pytest.raises(SpecError, match=r"recipes.toml: recipes.0.family: 'agent'"):
        read_recipes(path)
    assert files.validate(PlacementRecipes, SHARED.model_dump()) == SHARED


def test_goals_are_all_covered_by_the_small_instances() -> None:
    assert {recipe.objective for recipe in SMALL} == set(GOALS) - {"cost"}
    assert all(isinstance(generate(recipe, SHARED), PlacementProblem) for recipe in SMALL[:2])


@settings(max_examples=10)
@given(problems(most=3).filter(independent), st.permutations(["ttfet", "energy", "slo_misses"]))
def test_one_objective_after_the_other_finds_what_sorting_all_placements_finds(problem, goals) -> None:
    found = lexicographic(problem, goals)
    best = [evaluate(problem, plan) for plan in placements(problem)]
    for goal, value in zip(goals, found.values, strict=True):
        least = min(one.value(goal) for one in best)
        assert value <= least * (1 + 1e-4) + 1e-6
        best = [one for one in best if one.value(goal) <= value * (1 + 1e-9) + 1e-12]
    assert found.plan.violations(problem) == []


def test_a_front_leads_from_one_best_to_the_other_and_no_point_is_better_by_both() -> None:
    recipe = next(recipe for recipe in SMALL if recipe.name == "bursts-12-2-2-caps-energy")
    problem = generate(recipe.replace(conversations=7), SHARED)
    front = pareto(problem, "ttfet", "energy", points=4)
    assert len(front) >= 2
    fastest, least = solve(problem.with_objective("ttfet")), solve(problem)
    assert front[0].values[0] == pytest.approx(fastest.value, rel=1e-5)
    assert front[-1].values[1] == pytest.approx(least.value, rel=1e-5)
    for before, after in itertools.pairwise(front):
        assert before.values[0] < after.values[0]
        assert before.values[1] > after.values[1]
    assert all(point.plan.violations(problem) == [] for point in front)


def test_fronts_are_refused_where_there_is_no_partition_program() -> None:
    problem = generate(SMALL[0].replace(conversations=3, links=True), SHARED)
    with pytest.raises(ProblemError, match="3 conversations on these replicas have no partition program: it needs at most 14"):
        pareto(problem, "ttfet", "energy")
    with pytest.raises(ProblemError, match="no objective was given; name at least one"):
        lexicographic(generate(SMALL[0].replace(conversations=2), SHARED), ())
    with pytest.raises(InfeasibleError, match=r"'ttfet' was not proven within 0.0001 s; raise time_limit_s"):
        lexicographic(generate(SMALL[2].replace(conversations=10), SHARED), ("ttfet",), time_limit_s=1e-4)
