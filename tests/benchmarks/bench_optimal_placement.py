"""Placement: rule, search and proof on the family of instances, with processor time; and what knowing lengths is worth.

``make bench`` runs the search on the small ones; ``python tests/benchmarks/bench_optimal_placement.py`` measures all of it and prints the
tables of docs/benchmarks.md, ``--lengths`` the value of information, ``--open GPUS`` a plan whose roles and caps are open,
``--only NAME`` one instance, ``--json FILE`` the values.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import process_time

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from optsched import catalog
from optsched.domain.scenario import Objective, Scenario
from optsched.placement.alone import alone
from optsched.placement.bound import lower_bound
from optsched.placement.evaluate import objective_of
from optsched.placement.generators import PlacementRecipe, generate, read_recipes
from optsched.placement.partition.columns import MOST_CONVERSATIONS
from optsched.placement.problem import PlacementPlan, PlacementProblem
from optsched.placement.rule import by_rule
from optsched.placement.solve import solve
from optsched.placement.solved import Solved, relative_gap
from optsched.planner.certify import problem_of
from optsched.planner.plan import Planned, plan_scenario

FILE = Path(__file__).resolve().parents[2] / "instances" / "placement" / "recipes.toml"
SHARED = read_recipes(FILE)
SMALL = [recipe for recipe in SHARED.recipes if recipe.conversations <= MOST_CONVERSATIONS]


def answers(
    recipes: list[PlacementRecipe],
) -> Iterator[tuple[PlacementRecipe, PlacementProblem, float, Solved, float, Solved | None]]:
    """Yield each recipe with its problem, the rule's value, the search and its processor time, and the proof if there is one."""
    for recipe in recipes:
        problem = generate(recipe, SHARED)
        rule = objective_of(problem, by_rule(problem, alone(problem)))
        started = process_time()
        found = solve(problem, "greedy", time_limit_s=600)
        spent_s = process_time() - started
        small = recipe.conversations <= MOST_CONVERSATIONS
        assert found.plan is not None
        if broken := found.plan.violations(problem):
            raise SystemExit(f"{recipe.name}: {broken[0]}")
        yield recipe, problem, rule, found, spent_s, solve(problem, time_limit_s=300) if small else None


def report(recipes: list[PlacementRecipe], out: Path | None) -> None:
    known: dict[str, tuple[float, float, str]] = {}
    gaps = []
    print("| instance | rule | search | CPU s | elementary bound | gap | optimum | search above it |")
    print("|---|---|---|---|---|---|---|---|")
    for recipe, problem, rule, found, spent_s, proof in answers(recipes):
        bound = lower_bound(problem).value
        best = found if proof is None else proof
        above = (
            ""
            if proof is None or proof.status != "OPTIMAL"
            else f"{found.value / proof.value - 1 if proof.value else found.value:.2%}"
        )
        if above and proof is not None:
            gaps.append(found.value / proof.value - 1 if proof.value else found.value)
        known[recipe.name] = (best.value, best.value if best.status == "OPTIMAL" else best.bound, best.status)
        optimum = "" if proof is None or proof.status != "OPTIMAL" else f"{proof.value:.5g}"
        print(
            f"| {recipe.name} | {rule:.5g} | {found.value:.5g} | {spent_s:.2f} | {bound:.5g} | {relative_gap(found.value, bound):.1%} "
            f"| {optimum} | {above} |",
            flush=True,
        )
    if gaps:
        print(f"\nproven {len(gaps)}; search above the optimum: mean {np.mean(gaps):.3%}, most {max(gaps):.2%}")
    if out is not None:
        out.write_text(json.dumps(known, indent=1))


def lengths(seeds: int) -> None:
    """Place by lengths as they are, as every conversation's mean (first prompts known), and mistaken; time all of them as they are."""
    print("| family | objective | clairvoyant | observable | mispredicted by 1.5 | mispredicted by 3 |")
    print("|---|---|---|---|---|---|")
    fleet = next(recipe.fleet for recipe in SHARED.recipes if recipe.name.startswith("agents-12-4-mixed"))
    for family, rate in (("agents", 1.25), ("tools", 1.5), ("chat", 6.0), ("bursts", 1.25)):
        for objective in ("ttfet", "energy"):
            ratios = []
            for seed in range(seeds):
                recipe = PlacementRecipe(
                    name="lengths", family=family, conversations=60, rate_per_s=rate, fleet=fleet, objective=objective, seed=500 + seed,
                )  # type: ignore[arg-type]  # fmt: skip
                problem = generate(recipe, SHARED)
                found = [objective_of(problem, solve(wrong, "greedy").plan) for wrong in believed(problem, seed)]
                ratios.append(np.array(found) / found[0])
            mean, spread = np.mean(ratios, axis=0), np.std(ratios, axis=0, ddof=1) / np.sqrt(seeds)
            cells = " | ".join(f"{mean[k]:.3f} ± {1.96 * spread[k]:.3f}" for k in (3, 1, 2))
            print(f"| {family} | {objective} | 1 | {cells} |", flush=True)


def open_fleet(gpus: int, conversations: int, objective: Objective) -> Planned:
    """Plan the packaged agents on so many A40, roles and caps open, at the packaged scenario's rate per GPU."""
    given = catalog.scenario("swe-agent-a40")
    assert given.workload is not None
    assert given.workload.arrivals.rate_per_s is not None
    rate_per_s = given.workload.arrivals.rate_per_s * gpus / given.supply["a40"].limit
    asked: Scenario = given.replace(
        workload=given.workload.replace(conversations=conversations),
        supply={"a40": given.supply["a40"].replace(count=gpus)},
        objective=given.objective.replace(minimise=(objective,)),
    )
    return plan_scenario(asked, rate_per_s=rate_per_s, policy="optimised")


def report_open(gpus: int, conversations: int) -> None:
    """Print what open fleets come to, with the referee's word on each plan; the first plan only compiles."""
    open_fleet(4, 40, "energy")
    print("| objective | fleets tried | chosen | value | simulated | bound | gap | CPU s |\n|---|---|---|---|---|---|---|---|")
    objectives: tuple[Objective, ...] = ("ttfet", "energy")
    for objective in objectives:
        started = process_time()
        planned = open_fleet(gpus, conversations, objective)
        spent_s, proof = process_time() - started, planned.plan.certificate
        index = {replica.id: number for number, replica in enumerate(planned.plan.replicas)}
        chosen = [(index[one.prefill], index[one.decode]) for one in planned.plan.placement.assignments]
        placement = PlacementPlan.of([p for p, _ in chosen], [d for _, d in chosen])
        if broken := placement.violations(problem_of(planned.plan, planned.workload, objective)):
            raise SystemExit(f"{objective}: {broken[0]}")
        fleet = Counter(f"{replica.role} {replica.power_cap_w:g} W" for replica in planned.plan.replicas)
        kinds = ", ".join(f"{count} {name}" for name, count in fleet.items())
        print(
            f"| {objective} | {planned.considered} | {kinds} | {proof.value:.5g} | {planned.simulated:.5g} | {proof.bound:.5g} "
            f"| {proof.gap:.1%} | {spent_s:.1f} |",
            flush=True,
        )


def believed(problem: PlacementProblem, seed: int) -> Iterator[PlacementProblem]:
    """Yield the problem as it is, then with output lengths and appended tokens mistaken, then with means in their place."""
    generator, workload = np.random.default_rng(seed), problem.workload
    yield problem
    conversation = np.repeat(np.arange(workload.num_conversations), np.diff(workload.first_turn))
    for factor in (1.5, 3.0):
        error = generator.lognormal(0, np.log(factor), workload.num_conversations)[conversation]
        output = np.maximum(1, workload.output_tokens * error).astype(np.int64)
        yield replace(problem, workload=replace(workload, output_tokens=output))
    first = np.zeros(workload.num_turns, bool)
    first[workload.first_turn[:-1]] = True
    yield replace(
        problem,
        workload=replace(
            workload,
            output_tokens=np.full(workload.num_turns, int(workload.output_tokens.mean())),
            new_tokens=np.where(first, workload.new_tokens, max(1, int(workload.new_tokens[~first].mean())) if (~first).any() else 1),
        ),
    )  # fmt: skip


@pytest.mark.parametrize("recipe", SMALL[:6], ids=lambda recipe: recipe.name)
def test_searching_small_instances(benchmark: BenchmarkFixture, recipe: PlacementRecipe) -> None:
    problem = generate(recipe, SHARED)
    found = benchmark.pedantic(lambda: solve(problem, "greedy"), rounds=3)
    assert found.plan.violations(problem) == []


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--lengths", type=int, default=0, metavar="SEEDS")
    parser.add_argument("--open", type=int, default=0, metavar="GPUS")
    parser.add_argument("--conversations", type=int, default=10_000, help="of --open")
    arguments = parser.parse_args()
    if arguments.open:
        report_open(arguments.open, arguments.conversations)
    elif arguments.lengths:
        lengths(arguments.lengths)
    else:
        report([recipe for recipe in SHARED.recipes if arguments.only in recipe.name], arguments.json)
