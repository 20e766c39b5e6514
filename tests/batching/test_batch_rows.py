"""Several rows at once: near-ties, small amounts, rows without a price, and any work limit, against all plans and HiGHS."""

from __future__ import annotations

import numpy as np
import pytest
from batch_problems import best_by_enumeration
from hypothesis import given, settings
from hypothesis import strategies as st

from optsched.batching import BatchPlan, BatchProblem, Status, solve
from optsched.batching.batch_solver import BatchSolver
from optsched.batching.bound import upper_bound
from optsched.batching.generators import BatchRecipe, generate
from optsched.batching.rows_exchange import exchange
from optsched.batching.solved import Composition
from optsched.batching.threshold import quantise
from optsched.batching.vertices import Rows
from optsched.batching.workspace import empty_workspace

SOLVER = BatchSolver(1000)


def run(problem: BatchProblem, work_limit: int | None = None) -> Composition:
    return SOLVER.solve(
        problem.pending_s, problem.kv_blocks, problem.hidden_blocks, problem.hidden_penalty_s, problem.memory_blocks,
        tokens=problem.tokens, token_budget=problem.token_budget, max_sequences=problem.max_sequences, work_limit=work_limit,
    )  # fmt: skip


def draw_problem(seed: int, num: int) -> BatchProblem:
    """Draw requests of which many are worth a fixed amount per block, or nearly so, and rows that bind about as tightly."""
    rng = np.random.default_rng(seed)
    kv = rng.integers(0, rng.choice([4, 12, 60]), num)
    values = [rng.integers(0, 5, num) / 4, rng.exponential(1.0, num), 1e-6 * kv, 1e-3 * kv + rng.choice([0.0, 1e-9], num)]
    pending = np.where(rng.random(num) < 0.3, rng.exponential(0.5, num), values[rng.integers(4)])
    penalties = [np.zeros(num), 2.5e-7 * kv, pending / 4, rng.exponential(0.2, num), pending]
    hidden = [-(-kv // 2), 2 * kv, 3 * kv // 4, rng.integers(0, 14, num)][rng.integers(4)]
    tokens = [np.ones(num, np.int64), np.maximum(16 * kv - rng.integers(0, 16, num), 0), rng.integers(0, 9, num)][rng.integers(3)]
    share, rows = rng.uniform(0.05, 0.95), int(rng.integers(1, 4))
    with_tokens, with_sequences = bool(rows & 1), bool(rows & 2)
    return BatchProblem(
        pending, kv, hidden, penalties[rng.integers(5)], int(kv.sum() * share),
        tokens if with_tokens else None, int(tokens.sum() * share * rng.uniform(0.5, 1.3)) if with_tokens else None,
        int(num * share * rng.uniform(0.7, 1.4)) if with_sequences else None,
    )  # fmt: skip


def check(problem: BatchProblem, found: Composition, best: float) -> None:
    assert BatchPlan(found.choice).violations(problem) == []
    assert found.value <= best * (1 + 1e-12)
    assert found.bound >= best * (1 - 1e-12)
    if found.status is Status.OPTIMAL:
        assert found.value == pytest.approx(best, rel=1e-11, abs=1e-14)


@settings(max_examples=300)
@given(seed=st.integers(0, 2**32 - 1), num=st.integers(1, 7), work_limit=st.sampled_from([None, 0, 5, 20, 60, 200]))
def test_whatever_the_work_limit_claims_and_bounds_are_true(seed: int, num: int, work_limit: int | None) -> None:
    problem = draw_problem(seed, num)
    check(problem, run(problem, work_limit), best_by_enumeration(problem))


@pytest.mark.slow
@settings(max_examples=5000)
@given(seed=st.integers(0, 2**32 - 1), num=st.integers(1, 7), work_limit=st.sampled_from([None, 0, 5, 20, 60, 200]))
def test_thousands_of_claims_and_bounds_are_true(seed: int, num: int, work_limit: int | None) -> None:
    problem = draw_problem(seed, num)
    check(problem, run(problem, work_limit), best_by_enumeration(problem))


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), num=st.integers(8, 40), work_limit=st.sampled_from([None, 500, 5000]))
def test_dozens_of_requests_are_solved_as_by_highs(seed: int, num: int, work_limit: int | None) -> None:
    problem = draw_problem(seed, num)
    best = solve(problem, method="milp")
    assert best.value is not None
    found = run(problem, work_limit)
    assert BatchPlan(found.choice).violations(problem) == []
    assert found.bound >= best.value * (1 - 1e-9)
    if found.status is Status.OPTIMAL:
        assert found.value == pytest.approx(best.value, rel=1e-6)
        assert found.value >= best.value * (1 - 1e-9)


def test_requests_that_take_no_token_still_choose_their_cache() -> None:
    # Tokens alone have a price; the third request takes none, and whether KV or hidden cache is left to it decides.
    problem = BatchProblem(
        [1.0, 1.1, 0.5], [3, 5, 4], [3, 5, 2], [0.0, 0.0, 0.1], 7, tokens=[2, 3, 0], token_budget=3, max_sequences=3
    )
    check(problem, run(problem), best_by_enumeration(problem))


@pytest.mark.parametrize("family", ["early", "overload", "bursty", "agentic"])
def test_a_thousand_requests_with_three_rows_are_proven(family: str) -> None:
    for share in (0.05, 0.2):
        problem = generate(
            BatchRecipe(family=family, requests=1000, memory_share=share, rho=0.5, attention="mha", rows=True, seed=7)  # type: ignore[arg-type]
        )
        found, best = run(problem), solve(problem, method="milp", time_limit_s=10.0)
        assert BatchPlan(found.choice).violations(problem) == []
        assert found.status is Status.OPTIMAL
        assert best.value is not None
        assert best.value * (1 - 1e-9) <= found.value <= best.bound * (1 + 1e-9)


def test_requests_worth_a_fixed_amount_per_block_are_proven_by_their_unit() -> None:
    problem = generate(
        BatchRecipe(family="overload", requests=1000, memory_share=0.8, rho=0.0, attention="gqa", rows=True, seed=2)
    )
    found = run(problem)
    assert found.status is Status.OPTIMAL
    assert upper_bound(problem) - found.value > 1e-7  # the relaxation alone does not prove it
    assert upper_bound(problem) - found.value < 1e-6  # but there is no room for one more unit


def test_the_relaxation_is_solved_where_many_requests_are_alike() -> None:
    from scipy.optimize import linprog
    from scipy.sparse import csr_array, eye_array, hstack, vstack

    problem = generate(BatchRecipe(family="early", requests=3000, memory_share=0.2, rho=0.5, attention="mha", rows=True, seed=1))
    assert problem.tokens is not None
    num, whose = problem.num_requests, [problem.hidden_blocks, problem.kv_blocks]
    rows = np.array([np.concatenate(whose), np.tile(problem.tokens, 2), np.ones(2 * num)], float)
    one = hstack([eye_array(num), eye_array(num)])
    relaxed = linprog(
        -np.concatenate([problem.pending_s - problem.hidden_penalty_s, problem.pending_s]),
        A_ub=vstack([csr_array(rows), one]),
        b_ub=np.concatenate([[problem.memory_blocks, problem.token_budget, problem.max_sequences], np.ones(num)]),
        bounds=(0, 1),
    )
    assert upper_bound(problem) == pytest.approx(-relaxed.fun, rel=1e-7)


@given(seed=st.integers(0, 2**32 - 1), num=st.integers(1, 12), axis=st.integers(0, 2))
def test_exchanges_keep_all_rows_and_only_improve(seed: int, num: int, axis: int) -> None:
    problem = draw_problem(seed, num)
    plan = solve(problem, method="greedy").plan
    assert plan is not None
    better = BatchPlan(exchanged(problem, plan, axis))
    assert better.violations(problem) == []
    assert better.value(problem) >= plan.value(problem) * (1 - 1e-12)


def test_where_the_seats_are_taken_someone_goes_for_someone_larger() -> None:
    problem = BatchProblem([1.0, 2.0, 4.0], [1, 2, 4], [1, 2, 4], [0.0] * 3, 6, max_sequences=2)
    assert exchanged(problem, BatchPlan(np.array([2, 2, 0], np.int8)), 0).tolist() == [0, 2, 2]


def test_hundreds_alike_that_nearly_fill_memory_and_seats_are_proven() -> None:
    recipe = BatchRecipe(family="overload", requests=1000, memory_share=0.8, rho=0.0, attention="gqa", rows=True, seed=8)
    assert run(generate(recipe)).status is Status.OPTIMAL


def exchanged(problem: BatchProblem, plan: BatchPlan, axis: int) -> np.ndarray:
    space, choice = empty_workspace(problem.num_requests, 1, 1), plan.choice.copy()
    limits = [problem.memory_blocks, problem.token_budget, problem.max_sequences]
    rows = Rows(
        problem.kv_blocks.copy(), problem.hidden_blocks.copy(), problem.tokens_taken.copy(),
        *(10**9 if limit is None else limit for limit in limits),
    )  # fmt: skip
    penalties = problem.hidden_penalty_s.copy()
    if quantise(space, problem.pending_s.copy(), rows.kv_blocks, rows.hidden_blocks, penalties) > 0:
        exchange(space, rows, axis, 4.0, choice)
    return choice
