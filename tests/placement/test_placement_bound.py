"""Lower bounds: below every placement, and as sharp as can be where the answer is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_cases import all_links, law, placements, problems, replica, workload

from optsched.placement.bound import lower_bound
from optsched.placement.evaluate import evaluate, objective_of
from optsched.placement.greedy import greedy
from optsched.placement.jobs import least_finish_s, least_late
from optsched.placement.problem import GOALS, PlacementPlan, PlacementProblem
from optsched.placement.windows import windows_bound


@settings(max_examples=100)
@given(problems(most=3))
def test_no_component_of_the_bound_exceeds_the_value_of_any_placement(problem) -> None:
    bounds = {goal: lower_bound(problem.with_objective(goal)) for goal in GOALS}
    free = lower_bound(problem.with_free_roles())
    for plan in placements(problem):
        found = evaluate(problem, plan)
        for goal, bound in bounds.items():
            for name, value in bound.components.items():
                assert value <= found.value(goal), (goal, name)
        assert free.value <= found.value(problem.objective)


@settings(max_examples=60)
@given(problems(most=14, objectives=("ttfet",)), st.randoms())
def test_the_bound_stays_below_crowded_placements_too(problem, random) -> None:
    options = [[q for q in problem.pairs if problem.fits(*q)[c]] for c in range(problem.workload.num_conversations)]
    chosen = [random.choice(option) for option in options]
    plan = PlacementPlan.of([p for p, _ in chosen], [d for _, d in chosen])
    found = evaluate(problem, plan)
    for goal in GOALS:
        bound = lower_bound(problem.with_objective(goal))
        assert bound.value == max(bound.components.values()) == bound.components[bound.which]
        for name, value in bound.components.items():
            assert value <= found.value(goal), (goal, name)


def test_the_bound_of_a_crowd_on_one_prefiller_counts_the_queue() -> None:
    replicas = (replica(0, "prefill"), replica(1, "decode", kv_blocks=900))
    problem = PlacementProblem(workload([[(150, 1, 0.0)]] * 20, [0.0] * 20), replicas, all_links(replicas), 100.0)
    bound = lower_bound(problem)
    assert bound.which == "first come, first served prefill"
    value = evaluate(problem, PlacementPlan.of([0] * 20, [1] * 20)).value("ttfet")
    assert bound.value == pytest.approx(value, rel=1e-9)


def test_the_bound_of_a_small_pool_counts_the_waiting_for_blocks() -> None:
    replicas = (replica(0, "prefill"), replica(1, "decode", kv_blocks=12))
    turns = [[(60, 60, 0.0), (5, 60, 0.0)]] * 30
    problem = PlacementProblem(workload(turns, [0.0] * 30), replicas, all_links(replicas), 100.0)
    bound = lower_bound(problem)
    assert bound.components["KV area"] > 10 * bound.components["standalone latency"]
    value = evaluate(problem, PlacementPlan.of([0] * 30, [1] * 30)).value("ttfet")
    assert 0.5 * value < bound.value <= value


job = st.tuples(st.sampled_from([0.0, 1.0, 2.5]), st.floats(0.5, 8.0), st.floats(0.1, 3.0), st.floats(0.0, 3.0))


@given(st.lists(job, min_size=1, max_size=6, unique_by=lambda job: job[1]), st.integers(1, 2), st.integers(0, 2))
def test_least_late_never_claims_more_than_the_best_subset_of_its_own_rows(jobs, speed, unfinished) -> None:
    release, due, work, later = (np.array(column) for column in zip(*jobs, strict=True))

    def feasible(kept: tuple[int, ...]) -> bool:
        for start, end in itertools.product(set(release.tolist()), set(due.tolist())):
            inside = [k for k in kept if release[k] >= start and due[k] <= end]
            everyone = [later[k] for k in range(len(jobs)) if release[k] >= start and due[k] <= end]
            credit = sum(sorted(everyone, reverse=True)[:unfinished])
            if inside and sum(work[inside] + later[inside]) - credit > speed * (end - start) + 1e-6:
                return False
        return True

    subsets = (kept for size in range(len(jobs) + 1) for kept in itertools.combinations(range(len(jobs)), len(jobs) - size))
    best = next(len(jobs) - len(kept) for kept in subsets if feasible(kept))
    assert least_late(release, due, work, speed, later=later, unfinished=unfinished) <= best


def test_moore_hodgson_by_hand() -> None:
    due, work = np.array([2.0, 3.0, 3.5]), np.array([1.5, 2.0, 1.0])
    assert least_late(np.zeros(3), due, work, 1.0) == 1
    assert least_late(np.zeros(3), due, work, 2.0) == 0
    assert least_late(np.zeros(0), np.zeros(0), np.zeros(0), 1.0) == 0
    assert least_finish_s(np.array([0.0, 5.0]), np.array([1.0, 2.0]), 1.0) == 7.0


def test_a_target_that_nothing_can_meet_is_missed_by_all() -> None:
    from placement_cases import slo

    replicas = (replica(0, "mixed"),)
    problem = PlacementProblem(workload([[(50, 5, 0.0)]] * 3, [0.0] * 3), replicas, (), 100.0, "slo_misses", slo=slo(factor=0.5))
    assert lower_bound(problem).value == 3.0


@settings(max_examples=15)
@given(problems(most=3))
def test_no_linear_program_over_kinds_exceeds_the_value_of_any_placement(problem) -> None:
    bounds = {goal: windows_bound(problem.with_objective(goal)) for goal in GOALS}
    for plan in placements(problem):
        found = evaluate(problem, plan)
        for goal, bound in bounds.items():
            assert bound.value == max(bound.components.values())
            assert bound.value <= found.value(goal), (goal, bound.which)


@settings(max_examples=8)
@given(problems(most=14), st.randoms())
def test_linear_programs_stay_below_crowded_placements_too(problem, random) -> None:
    chosen = [random.choice(problem.options(c)) for c in range(problem.workload.num_conversations)]
    found = evaluate(problem, PlacementPlan.of([p for p, _ in chosen], [d for _, d in chosen]))
    for goal in GOALS:
        value = found.value(goal)
        assert windows_bound(problem.with_objective(goal), value).value <= value, goal


def test_a_fleet_of_a_fast_and_slow_replicas_is_not_bounded_as_if_all_were_fast() -> None:
    fleet = (replica(0, "mixed", kv_blocks=900), *(replica(i, "mixed", step_law=law(8.0), kv_blocks=900) for i in (1, 2, 3)))
    problem = PlacementProblem(workload([[(200, 4, 0.0)]] * 16, [0.01 * c for c in range(16)]), fleet, (), 100.0, "ttfet")
    value = objective_of(problem, greedy(problem, work=50_000))
    elementary, bound = lower_bound(problem).value, windows_bound(problem, value).value
    assert 1.3 * elementary < bound <= value
