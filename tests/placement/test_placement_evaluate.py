"""The placement evaluator: its rules, its invariances, and what it refuses."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_schedule import Naive
from placement_cases import all_links, law, placements, problems, replica, slo, workload

from optsched.domain.standalone import standalone_latency
from optsched.errors import PlanError, ProblemError
from optsched.placement.evaluate import evaluate
from optsched.placement.problem import PlacementPlan, PlacementProblem, percentile_95
from optsched.placement.referee import schedule_violations


@st.composite
def placed(draw: st.DrawFn, most: int = 6) -> tuple[PlacementProblem, PlacementPlan]:
    problem = draw(problems(most=most))
    options = [[q for q in problem.pairs if problem.fits(*q)[c]] for c in range(problem.workload.num_conversations)]
    chosen = [draw(st.sampled_from(option)) for option in options]
    return problem, PlacementPlan.of([p for p, _ in chosen], [d for _, d in chosen])


@settings(max_examples=200)
@given(placed())
def test_the_compiled_loop_does_what_a_step_by_step_reading_of_the_rules_does(case) -> None:
    problem, plan = case
    found, naive = evaluate(problem, plan), Naive(problem, plan)
    naive.run()
    np.testing.assert_allclose(found.schedule.first_token_s, naive.first_token_s, rtol=0, atol=1e-7)
    np.testing.assert_allclose(found.schedule.end_s, naive.end_s, rtol=0, atol=1e-7)
    work, first = problem.workload, problem.workload.first_turn[:-1]
    ready = np.concatenate([[0.0], found.schedule.end_s[:-1]]) + work.gap_s
    ready[first] = work.arrival_s
    np.testing.assert_allclose(found.schedule.turn_arrival_s, ready, rtol=0, atol=1e-7)
    np.testing.assert_allclose(found.dynamic_j, [engine.energy_j for engine in naive.engines], rtol=1e-9, atol=1e-9)


@settings(max_examples=50)
@given(placed())
def test_the_referee_accepts_whatever_the_evaluator_accepts_and_every_token_is_served(case) -> None:
    problem, plan = case
    assert plan.violations(problem) == []
    found = evaluate(problem, plan)
    work = problem.workload
    computed = int(work.new_tokens.sum()) + work.num_turns - work.num_conversations
    assert found.schedule.tokens.sum() == computed + int((work.output_tokens - 1).sum())
    assert np.isfinite(found.schedule.end_s).all()
    assert found.energy_j == pytest.approx(found.dynamic_j.sum() + found.transfer_j + problem.idle_w * found.makespan_s)
    assert (found.kv_block_s <= problem.kv_blocks * found.makespan_s * (1 + 1e-9)).all()


@given(placed())
def test_evaluating_twice_gives_the_same_figures(case) -> None:
    problem, plan = case
    one, two = evaluate(problem, plan), evaluate(problem, plan)
    assert np.array_equal(one.schedule.end_s, two.schedule.end_s)
    assert one.value(problem.objective) == two.value(problem.objective)


@given(placed(), st.randoms())
def test_renaming_replicas_changes_nothing(case, random) -> None:
    problem, plan = case
    order = list(range(len(problem.replicas)))
    random.shuffle(order)
    moved = PlacementProblem(
        problem.workload, tuple(problem.replicas[i] for i in order), problem.links, problem.kv_bytes_per_token,
        problem.objective, problem.block_tokens, problem.max_batched_tokens, problem.slo,
    )  # fmt: skip
    where = np.argsort(order)
    renamed = PlacementPlan(where[plan.prefill], where[plan.decode])
    assert np.array_equal(evaluate(problem, plan).schedule.end_s, evaluate(moved, renamed).schedule.end_s)


@given(placed())
def test_time_in_other_units_scales_the_latencies(case) -> None:
    problem, plan = case
    work = problem.workload
    twice = workload(
        [[(int(work.new_tokens[t]), int(work.output_tokens[t]), 2 * float(work.gap_s[t])) for t in turns] for turns in work],
        (2 * work.arrival_s).tolist(),
    )
    times = ("overhead_s", "floor_s", "pair_s", "prefill_context_s", "kv_s", "sequence_s")
    slow = tuple(
        r.replace(
            coefficients=r.coefficients.replace(
                gemm_s=tuple(2 * s for s in r.coefficients.gemm_s), **{name: 2 * getattr(r.coefficients, name) for name in times}
            )
        )
        for r in problem.replicas
    )
    links = all_links(slow, latency_s=2 * 0.0053719, bytes_per_s=5e5)
    other = PlacementProblem(twice, slow, links, problem.kv_bytes_per_token, "ttfet", 16, problem.max_batched_tokens)
    np.testing.assert_allclose(evaluate(other, plan).ttfet_s, 2 * evaluate(problem, plan).ttfet_s, rtol=1e-7)


@given(problems(most=1))
def test_a_conversation_alone_takes_its_standalone_latency(problem) -> None:
    for plan in placements(problem):
        if plan.prefill[0] == plan.decode[0]:
            index = int(plan.prefill[0])
            alone = standalone_latency(problem.workload, problem.replicas[index].coefficients, problem.chunks[index])
            found = evaluate(problem, plan)
            assert found.ttfet_s[0] - alone.ttfet_s[0] == pytest.approx(0, abs=1e-9)
            assert found.schedule.end_s[-1] - problem.workload.arrival_s[0] == pytest.approx(alone.e2e_s[0], rel=1e-9)


def two_stage(**changes) -> PlacementProblem:
    replicas = (replica(0, "prefill"), replica(1, "decode"))
    turns = [[(60, 5, 0.0), (10, 4, 0.1)], [(60, 5, 0.0), (10, 4, 0.1)]]
    return PlacementProblem(workload(turns, [0.0, 0.0]), replicas, all_links(replicas), 100.0, **changes)


def test_a_prefiller_serves_first_come_first_served_and_the_cache_moves_once_by_hand() -> None:
    schedule = evaluate(two_stage(), PlacementPlan.of([0, 0], [1, 1])).schedule
    prefill_s = law().prefill_s(60, 0, 2048)
    assert schedule.prefill_end_s.tolist() == pytest.approx([prefill_s, 2 * prefill_s])
    assert schedule.moved_s.tolist() == pytest.approx([prefill_s + 0.0053719 + 0.006, 2 * prefill_s + 0.0053719 + 0.006])


def test_a_full_pool_makes_the_next_conversation_wait_for_the_end_of_the_first() -> None:
    replicas = (replica(0, "prefill"), replica(1, "decode", kv_blocks=5))
    problem = PlacementProblem(two_stage().workload, replicas, all_links(replicas), 100.0)
    schedule = evaluate(problem, PlacementPlan.of([0, 0], [1, 1])).schedule
    assert schedule.admitted_s[1] == schedule.released_s[0]


def test_prefill_on_a_mixed_replica_delays_those_that_decode_there() -> None:
    replicas = (replica(0, "mixed"), replica(1, "mixed"))
    turns = [[(40, 60, 0.0)], [(200, 2, 0.0)]]
    problem = PlacementProblem(workload(turns, [0.0, 0.1]), replicas, all_links(replicas), 100.0)
    together = evaluate(problem, PlacementPlan.of([0, 0], [0, 0])).schedule.end_s[0]
    apart = evaluate(problem, PlacementPlan.of([0, 1], [0, 1])).schedule.end_s[0]
    assert together > apart


def test_a_conversation_that_ends_with_its_first_token_does_not_move() -> None:
    replicas = (replica(0, "prefill"), replica(1, "decode"))
    problem = PlacementProblem(workload([[(60, 1, 0.0)]], [0.5]), replicas, all_links(replicas), 100.0)
    found = evaluate(problem, PlacementPlan.of([0], [1]))
    assert np.isnan(found.schedule.moved_s[0])
    assert found.transfer_j == 0
    assert found.makespan_s == pytest.approx(0.5 + law().prefill_s(60, 0, 2048))


def test_the_percentile_is_an_order_statistic() -> None:
    assert percentile_95(np.arange(1.0, 21.0)) == 19.0
    assert percentile_95(np.arange(1.0, 20.0)) == 19.0
    assert percentile_95(np.array([3.0])) == 3.0


def test_the_referee_notices_a_schedule_that_breaks_the_rules() -> None:
    problem, plan = two_stage(), PlacementPlan.of([0, 0], [1, 1])
    found = evaluate(problem, plan)
    found.schedule.prefill_start_s[1] = 0.0
    found.schedule.moved_s[0] = 0.0
    found.schedule.end_s[3] = 0.0
    text = " ".join(schedule_violations(problem, plan, found))
    for sentence in (
        "does not prefill first come, first served", "before its cache can have moved there",
        "turn 3 of conversation 1 is decoded in less time",
    ):  # fmt: skip
        assert sentence in text
    found.schedule.prefill_start_s[1] = -1.0
    assert any("before it arrives" in sentence for sentence in schedule_violations(problem, plan, found))


def test_the_referee_notices_a_pool_that_holds_too_much() -> None:
    replicas = (replica(0, "prefill"), replica(1, "decode", kv_blocks=5))
    problem = PlacementProblem(two_stage().workload, replicas, all_links(replicas), 100.0)
    plan = PlacementPlan.of([0, 0], [1, 1])
    found = evaluate(problem, plan)
    found.schedule.admitted_s[1] = found.schedule.admitted_s[0]
    assert "replica 'r1' holds 10 blocks at once; its pool has 5" in schedule_violations(problem, plan, found)


@pytest.mark.parametrize(
    ("prefill", "decode", "message"),
    [
        ([0], [1], "places 1 and 1 conversations, the problem has 2"),
        ([0, 9], [1, 1], "replica outside|on replica 9"),
        ([0, 1], [1, 1], "may not go from 'r1' to 'r1'|role is decode"),
        ([0, 0], [1, 0], "may not go from 'r0' to 'r0'|role is prefill"),
    ],
)
def test_placements_that_break_a_rule_are_refused(prefill, decode, message) -> None:
    plan = PlacementPlan.of(prefill, decode)
    with pytest.raises(PlanError, match=message):
        evaluate(two_stage(), plan)
    assert any(re.search(message, sentence) for sentence in plan.violations(two_stage()))


def test_a_pair_without_a_link_and_a_pool_too_small_are_refused() -> None:
    replicas = (replica(0, "prefill"), replica(1, "decode", kv_blocks=2), replica(2, "decode"))
    problem = PlacementProblem(two_stage().workload, replicas, all_links(replicas)[:1] + all_links(replicas)[1:2], 100.0)
    small = PlacementPlan.of([0, 0], [1, 1])
    with pytest.raises(PlanError, match="does not fit the pool"):
        evaluate(problem, small)
    assert "conversation 0 needs 5 blocks on 'r1', which has 2" in small.violations(problem)
    unlinked = PlacementProblem(
        two_stage().workload, (*replicas[:1], replica(1, "mixed"), replicas[2]), all_links(replicas)[:1], 100.0
    )
    assert "conversation 0 moves from 'r0' to 'r2', but no link joins them" in PlacementPlan.of([0, 1], [2, 1]).violations(
        unlinked
    )


def test_missed_targets_need_targets() -> None:
    with pytest.raises(PlanError, match="slo_misses needs latency targets"):
        evaluate(two_stage(), PlacementPlan.of([0, 0], [1, 1])).value("slo_misses")


def test_problems_that_contradict_themselves_are_refused() -> None:
    good = two_stage(slo=slo())
    fields = {name: getattr(good, name) for name in good.__dataclass_fields__}
    cases: list[tuple[dict[str, object], str]] = [
        ({"objective": "speed"}, "objective 'speed' is unknown; choose one of energy, ttfet, slo_misses, cost"),
        ({"block_tokens": 0}, "must be at least 1"),
        ({"replicas": (), "links": ()}, "needs at least one replica"),
        ({"objective": "slo_misses", "slo": None}, "'slo_misses' needs latency targets; give slo"),
        ({"replicas": (replica(0, "mixed"), replica(0, "mixed"))}, "replica ids must differ"),
        ({"replicas": (replica(0, "mixed"), replica(1, "mixed").replace(llm="other"))}, "one problem per llm"),
        ({"replicas": (replica(0, "mixed"),)}, "a link names replica 'r1', which does not exist"),
        ({"links": ()}, "conversation 0 .79 tokens at its end. fits on no pair"),
    ]
    for changes, message in cases:
        with pytest.raises(ProblemError, match=message):
            PlacementProblem(**{**fields, **changes})


def test_roles_can_be_freed_and_the_quickest_link_is_taken() -> None:
    problem = two_stage()
    assert {r.role for r in problem.with_free_roles().replicas} == {"mixed"}
    slow = all_links(problem.replicas, latency_s=9.0)
    assert all(
        link.latency_s == 0.0053719
        for links in itertools.permutations([*slow, *problem.links])
        for link in PlacementProblem(problem.workload, problem.replicas, links, 100.0).link_of.values()
    )
