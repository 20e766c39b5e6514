"""Roles and caps as decisions: one program finds what enumerating every fleet finds."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_cases import TURN, law, placements, replica, slo, workload

from optsched.domain.plan import PlanLink
from optsched.errors import ProblemError
from optsched.placement.components import components
from optsched.placement.evaluate import evaluate, objective_of
from optsched.placement.exact import exact
from optsched.placement.operating.exact import solve_open
from optsched.placement.operating.problem import OpenProblem
from optsched.placement.problem import GOALS, Goal, PlacementPlan

CAPS = {"slow": law(1.6, idle_w=25.0), "fast": law()}


def open_problem(turns, arrivals, supply: int = 2, *, blocks: int = 60, joined: bool = True, **changes: object) -> OpenProblem:  # type: ignore[no-untyped-def]
    """Return a problem on alike GPUs that may each take any role at two caps; `joined`: mixed ones move caches too."""
    points = tuple(
        replica(i, role, step_law=step_law, kv_blocks=blocks).replace(id=f"{role}-{cap}")
        for i, (role, (cap, step_law)) in enumerate(itertools.product(("prefill", "decode", "mixed"), CAPS.items()))
    )
    links = tuple(
        PlanLink(source=a.id, target=b.id, latency_s=0.0053719, bytes_per_s=1e6, joules_per_byte=1e-6)
        for a in points
        for b in points
        if a.role != "decode" and b.role != "prefill" and (joined or (a.role, b.role) == ("prefill", "decode"))
    )
    return OpenProblem(workload(turns, arrivals), points, {"a40": supply}, links, 100.0, slo=slo(), **changes)  # type: ignore[arg-type]


@st.composite
def open_problems(draw: st.DrawFn, most: int) -> OpenProblem:
    count = draw(st.integers(1, most))
    turns = [draw(st.lists(TURN, min_size=1, max_size=2)) for _ in range(count)]
    arrivals = np.cumsum([draw(st.sampled_from([0.0, 0.01, 0.08])) for _ in range(count)]).tolist()
    return open_problem(
        turns, arrivals, blocks=draw(st.sampled_from([31, 60])), joined=draw(st.booleans()), may_rest=draw(st.booleans()),
        objective=draw(st.sampled_from(tuple(GOALS))), max_batched_tokens=draw(st.sampled_from([64, 200])),
    )  # fmt: skip


def by_enumeration(problem: OpenProblem) -> float:
    """Return the best value over every placement on every fleet."""
    best = float("inf")
    for counts in problem.fleets():
        try:
            fleet = problem.fleet(counts)
        except ProblemError:
            continue
        best = min(best, *(objective_of(fleet, plan) for plan in placements(fleet)))
    return best


@pytest.mark.parametrize(("by", "most"), [("walk", 3), ("highs", 3), ("cbc", 2)])
@settings(max_examples=5)
@given(st.data())
def test_program_and_walk_find_what_enumerating_fleets_and_placements_finds(by, most, data) -> None:
    problem = data.draw(open_problems(most))
    found = solve_open(problem, solver="highs" if by == "walk" else by, walks=by == "walk", time_limit_s=600.0)
    assert (found.status, found.solver) == ("OPTIMAL", f"operating-{by}")
    assert found.value == pytest.approx(by_enumeration(problem), rel=1e-5)
    assert found.bound <= found.value
    fleet = problem.fleet(found.plan.counts)
    assert found.plan.placement.violations(fleet) == []
    assert objective_of(fleet, found.plan.placement) == found.value
    assert found.plan.counts in list(problem.fleets())


CROWD = [[(60 + 30 * (c % 3), 6, 0.0), (8, 10 + 5 * c, 0.05)] for c in range(3)]


@pytest.mark.parametrize("objective", ["ttfet", "energy"])
def test_the_program_is_as_good_as_the_exact_method_on_the_best_fleet(objective: Goal) -> None:
    problem = open_problem(CROWD, [0.0, 0.03, 0.06], objective=objective, joined=False)
    found = solve_open(problem, walks=False)
    assert found.status == "OPTIMAL"
    assert found.value == pytest.approx(
        min(exact(problem.fleet(counts)).value for counts in problem.fleets() if holds(problem, counts))
    )


def holds(problem: OpenProblem, counts: dict[int, int]) -> bool:
    try:
        problem.fleet(counts)
    except ProblemError:
        return False
    return True


def test_replicas_that_may_rest_save_their_idle_power_and_never_cost_more() -> None:
    awake, resting = (
        solve_open(open_problem(CROWD, [0.0, 0.03, 0.06], objective="energy", may_rest=rest)) for rest in (False, True)
    )
    assert sum(awake.plan.counts.values()) == 2
    assert resting.value <= awake.value * (1 + 1e-5)
    alone = solve_open(open_problem([[(50, 4, 0.0)]], [0.0], objective="energy", may_rest=True))
    assert sum(alone.plan.counts.values()) == 1


def test_a_known_value_that_nothing_beats_is_proven_without_a_plan() -> None:
    problem = open_problem(CROWD[:2], [0.0, 0.03])
    best = solve_open(problem)
    again = solve_open(problem, better_than=best.value * 0.99)
    assert (again.plan, again.status) == (None, "NO_PLAN")
    assert again.bound == pytest.approx(best.value * 0.99)
    assert solve_open(problem, walks=False, max_iterations=1).iterations == 1


def test_parts_of_a_placement_are_learned_under_every_name_of_twins() -> None:
    problem = open_problem(CROWD, [0.0, 0.03, 0.06])
    fleet = problem.everything
    stay = next(r for r, replica in enumerate(fleet.replicas) if replica.role == "mixed")
    plan = PlacementPlan.of([stay, stay, stay + 1], [stay, stay, stay + 1])
    found = evaluate(fleet, plan)
    first, second = components(fleet, plan, found)
    assert (sorted(first.pairs), sorted(second.pairs)) == ([0, 1], [2])
    assert first.dynamic_j + second.dynamic_j == pytest.approx(found.energy_j - fleet.idle_w * found.makespan_s)
    assert max(first.answer_s, second.answer_s) == found.value("ttfet")
    names = [set(pairs.values()) for pairs in first.renamed(problem.copies())]
    assert names == [{(stay, stay)}, {(stay + 1, stay + 1)}]


def test_a_supply_that_does_not_match_the_points_is_refused() -> None:
    problem = open_problem(CROWD, [0.0, 0.03, 0.06])
    with pytest.raises(ProblemError, match="gpu 'a40' has 0 replicas and 6 operating points; both must be at least 1"):
        replace(problem, supply={"a40": 0})
    with pytest.raises(ProblemError, match="gpu 'h100' has 2 replicas and 0 operating points"):
        replace(problem, supply={"a40": 2, "h100": 2})


def test_each_fleet_is_counted_once() -> None:
    problem = open_problem(CROWD, [0.0, 0.03, 0.06])
    fleets = [tuple(sorted(counts.items())) for counts in problem.fleets()]
    assert len(set(fleets)) == len(fleets) == 21  # multisets of two out of six points
    assert len(list(replace(problem, may_rest=True).fleets())) == 27
