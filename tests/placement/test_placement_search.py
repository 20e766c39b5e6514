"""The search times only what a change reaches, agrees with the evaluator, repeats itself, and respects what is in force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_cases import all_links, placements, problems, replica, slo, workload

from optsched.errors import PlanError, ProblemError
from optsched.placement.alone import alone
from optsched.placement.evaluate import evaluate, objective_of, rank
from optsched.placement.greedy import MOST_PAIRS, greedy
from optsched.placement.neighbourhood import Neighbourhood
from optsched.placement.problem import GOALS, PlacementPlan, PlacementProblem
from optsched.placement.retime import assign, retime
from optsched.placement.rule import Crowd, Rule, by_rule
from optsched.placement.score import score, smallest
from optsched.placement.solve import solve


def draw_plan(problem: PlacementProblem, random) -> PlacementPlan:
    chosen = [random.choice(problem.options(c)) for c in range(problem.workload.num_conversations)]
    return PlacementPlan.of([p for p, _ in chosen], [d for _, d in chosen])


@settings(max_examples=60)
@given(problems(most=9), st.randoms())
def test_timing_what_a_change_reaches_gives_what_timing_everything_gives(problem, random) -> None:
    search = Neighbourhood(problem)
    search.start_from(draw_plan(problem, random))
    timed, reach = search.bench.trial, search.bench.reach
    for _ in range(6):
        for c in random.sample(range(len(timed.prefill)), random.randint(1, min(3, len(timed.prefill)))):
            assign(timed, reach, c, *random.choice(problem.options(c)))
        retime(search.case, search.bench.works, timed, reach)
        whole = evaluate(problem, PlacementPlan(timed.prefill, timed.decode))
        for goal in GOALS:
            aim = Neighbourhood(problem.with_objective(goal)).aim
            value, mean = score(aim, timed, search.bench.buffer)
            assert value == pytest.approx(whole.value(goal), rel=1e-9, abs=1e-9)
            assert mean == pytest.approx(whole.ttfet_s.mean(), rel=1e-9)
        assert timed.ttfet_s == pytest.approx(whole.ttfet_s, rel=1e-9)
        assert timed.missed.astype(bool).tolist() == whole.missed.tolist()


@settings(max_examples=30)
@given(problems(most=6), st.randoms(), st.integers(0, 5))
def test_the_search_keeps_its_books_and_never_ends_worse_than_it_starts(problem, random, seed) -> None:
    start = draw_plan(problem, random)
    search = Neighbourhood(problem, seed=seed)
    before = search.start_from(start)
    found = search.improve(3_000)
    assert found.violations(problem) == []
    assert rank(problem, found)[0] <= before[0] * (1 + 1e-9)
    assert tuple(search.bench.best) == pytest.approx(rank(problem, found), rel=1e-9)


@settings(max_examples=25)
@given(problems(most=6))
def test_list_scheduling_places_everyone_and_the_search_repeats_itself(problem) -> None:
    least = alone(problem)
    built = Neighbourhood(problem).build(Rule(problem, least), 3)
    assert built.violations(problem) == []
    one, two = greedy(problem, work=4_000, seed=3), greedy(problem, work=4_000, seed=3)
    assert (one.prefill.tolist(), one.decode.tolist()) == (two.prefill.tolist(), two.decode.tolist())
    assert rank(problem, one) <= min(rank(problem, by_rule(problem, least, kind)) for kind in (Rule, Crowd))


@settings(max_examples=40)
@given(problems(most=9), st.sampled_from(sorted(GOALS)), st.sampled_from([Rule, Crowd]), st.randoms())
def test_the_first_pair_of_a_rule_is_the_first_of_its_order(problem, goal, kind, random) -> None:
    asked = problem.with_objective(goal)
    least = alone(asked)
    ordered, quick = kind(asked, least), kind(asked, least)
    for c in range(asked.workload.num_conversations):
        order = ordered.order(c)
        assert quick.first(c) == order[0]
        chosen = asked.pairs.index(random.choice(asked.options(c)))
        ordered.take(c, chosen)
        quick.take(c, chosen)


def crowd(count: int, replicas: int = 4, **changes: object) -> PlacementProblem:
    """Return a crowd of untidy conversations on mixed replicas, two of them slower."""
    generator = np.random.default_rng(count)
    turns = [
        [(int(generator.integers(20, 150)), int(generator.integers(2, 30)), 0.03) for _ in range(generator.integers(1, 4))]
        for _ in range(count)
    ]
    fleet = tuple(replica(i, "mixed", kv_blocks=200) for i in range(replicas))
    arrivals = np.cumsum(generator.exponential(0.05, count)).tolist()
    return PlacementProblem(workload(turns, arrivals), fleet, all_links(fleet), 100.0, slo=slo(2.0), **changes)  # type: ignore[arg-type]


def test_a_warm_start_is_kept_if_nothing_better_is_found_and_improved_otherwise() -> None:
    problem = crowd(12)
    best = greedy(problem, work=200_000)
    assert rank(problem, greedy(problem, work=0, start=best)) == rank(problem, best)
    poor = PlacementPlan.of([0] * 12, [0] * 12)
    assert rank(problem, greedy(problem, work=2_000, start=poor)) < rank(problem, poor)


def test_the_dearer_a_move_the_fewer_conversations_move() -> None:
    problem = crowd(16, objective="energy")
    home = by_rule(problem.with_objective("ttfet"), alone(problem))

    def moved(cost: float) -> int:
        plan = greedy(problem, work=150_000, start=home, moved_cost=cost)
        return int(((plan.prefill != home.prefill) | (plan.decode != home.decode)).sum())

    free, some, none = moved(0.0), moved(2.0), moved(1e9)
    assert free >= some >= none == 0
    assert free > 0


def test_a_move_is_made_only_where_it_gains_more_than_it_costs() -> None:
    problem = crowd(8, objective="energy")
    home = PlacementPlan.of([0] * 8, [0] * 8)
    for cost in (0.5, 5.0, 20.0):
        plan = greedy(problem, work=60_000, start=home, moved_cost=cost)
        moved = int(((plan.prefill != home.prefill) | (plan.decode != home.decode)).sum())
        assert objective_of(problem, plan) + cost * moved <= objective_of(problem, home) * (1 + 1e-9)


def test_what_cannot_be_a_start_or_a_cost_is_refused() -> None:
    problem = crowd(3)
    good = PlacementPlan.of([0] * 3, [0] * 3)
    with pytest.raises(ProblemError, match=r"moved_cost 1 needs method 'greedy', a positive cost, and a placement to move from"):
        solve(problem, "greedy", moved_cost=1.0)
    with pytest.raises(ProblemError, match="moved_cost -1 needs"):
        solve(problem, "greedy", moved_cost=-1.0, start=good)
    with pytest.raises(PlanError, match="The start breaks its problem: it names a replica outside"):
        solve(problem, "greedy", start=PlacementPlan.of([9] * 3, [0] * 3))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.data())
def test_selection_finds_what_sorting_finds(values, data) -> None:
    rank_of = data.draw(st.integers(0, len(values) - 1))
    buffer = np.array([*values, -5], dtype=float)  # what lies beyond the count is not looked at
    assert smallest(buffer, len(values), rank_of) == sorted(values)[rank_of]


def test_a_search_over_every_placement_of_a_small_problem_finds_the_best() -> None:
    problem = crowd(3, replicas=2)
    best = min(objective_of(problem, plan) for plan in placements(problem))
    assert objective_of(problem, greedy(problem, work=30_000)) == pytest.approx(best, rel=1e-12)


def test_many_mixed_replicas_that_feed_each_other_are_placed_no_worse_than_if_they_did_not() -> None:
    problem = crowd(40, replicas=17)
    assert len(problem.pairs) > MOST_PAIRS
    plan, least = greedy(problem, work=20_000), alone(problem)
    alone_each = greedy(replace(problem, links=()), work=20_000)
    rivals = [alone_each, *(by_rule(problem, least, kind) for kind in (Rule, Crowd))]
    assert rank(problem, plan) == min(rank(problem, other) for other in rivals)
    assert plan.violations(problem) == []


def test_where_each_try_would_time_everything_again_and_again_the_best_rule_is_the_answer() -> None:
    fleet = (replica(0, "prefill", kv_blocks=200), replica(1, "decode", kv_blocks=200), replica(2, "decode", kv_blocks=200))
    problem = replace(crowd(40), replicas=fleet, links=all_links(fleet))
    least, work = alone(problem), problem.workload.num_turns
    rules = [by_rule(problem, least, kind) for kind in (Rule, Crowd)]
    assert rank(problem, greedy(problem, work=work)) == min(rank(problem, plan) for plan in rules)
    assert rank(problem, greedy(problem, work=5_000 * work)) < min(rank(problem, plan) for plan in rules)
