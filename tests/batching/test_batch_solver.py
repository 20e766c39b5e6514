"""The engines' solver: families against HiGHS, ties, edge cases, threads, and reused buffers."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from batch_problems import best_by_enumeration, problems
from hypothesis import given, settings
from hypothesis import strategies as st

from optsched.batching import BatchPlan, BatchProblem, Status, solve
from optsched.batching.batch_solver import BatchSolver
from optsched.batching.generators import BatchRecipe, generate, read_recipes
from optsched.batching.solved import Composition
from optsched.batching.workspace import empty_buffer
from optsched.catalog import data_root
from optsched.errors import ProblemError, UnknownNameError

SOLVER = BatchSolver(1000)


def run(problem: BatchProblem, solver: BatchSolver = SOLVER, **limits: float) -> Composition:
    return solver.solve(
        problem.pending_s, problem.kv_blocks, problem.hidden_blocks, problem.hidden_penalty_s, problem.memory_blocks,
        tokens=problem.tokens, token_budget=problem.token_budget, max_sequences=problem.max_sequences, **limits,  # type: ignore[arg-type]
    )  # fmt: skip


def check_against_enumeration(problem: BatchProblem) -> None:
    found = run(problem)
    plan = BatchPlan(found.choice)
    assert found.status is Status.OPTIMAL
    assert plan.violations(problem) == []
    assert found.value == found.bound == pytest.approx(plan.value(problem), rel=1e-15)
    assert found.value == pytest.approx(best_by_enumeration(problem), rel=1e-9, abs=1e-12)


@settings(max_examples=200)
@given(problem=problems(max_requests=8, rows=None))
def test_small_problems_are_solved_as_by_enumeration(problem: BatchProblem) -> None:
    check_against_enumeration(problem)


@pytest.mark.slow
@settings(max_examples=2000)
@given(problem=problems(max_requests=8, rows=None))
def test_thousands_of_small_problems_are_solved_as_by_enumeration(problem: BatchProblem) -> None:
    check_against_enumeration(problem)


recipes = st.builds(
    BatchRecipe,
    family=st.sampled_from(["early", "overload", "bursty", "agentic"]),
    requests=st.integers(0, 300),
    memory_share=st.floats(0.02, 0.9),
    rho=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    attention=st.sampled_from(["mha", "gqa"]),
    rows=st.booleans(),
    seed=st.integers(0, 10**6),
)


def check_against_highs(recipe: BatchRecipe) -> None:
    problem = generate(recipe)
    exact, milp = solve(problem), solve(problem, method="milp")
    bound, fill, greedy = (solve(problem, method=method) for method in ("lp", "greedy-fill", "greedy"))  # type: ignore[arg-type]
    assert exact.plan is not None
    assert exact.value is not None
    assert fill.value is not None
    assert greedy.value is not None
    assert exact.plan.violations(problem) == []
    assert exact.status is Status.OPTIMAL
    assert exact.value == pytest.approx(milp.value, rel=1e-6)  # HiGHS accepts gaps of 1e-6 of violated integrality
    rounding = 1e-12 * (1 + exact.value)
    assert bound.bound >= exact.value - rounding
    assert exact.value >= fill.value - rounding
    assert fill.value >= greedy.value - rounding
    assert problem.has_rows or greedy.value >= exact.value / 2 - rounding


@settings(max_examples=40)
@given(recipe=recipes.filter(lambda recipe: recipe.requests <= 60))
def test_every_family_is_solved_as_by_highs(recipe: BatchRecipe) -> None:
    check_against_highs(recipe)


@pytest.mark.slow
@settings(max_examples=500)
@given(recipe=recipes)
def test_hundreds_of_requests_of_every_family_are_solved_as_by_highs(recipe: BatchRecipe) -> None:
    check_against_highs(recipe)


def test_packaged_recipes_reach_their_best_known_values() -> None:
    known = read_recipes(data_root() / "instances" / "batching" / "families" / "recipes.toml")
    assert len({recipe.name for recipe in known}) == len(known) == 112
    for recipe in known:
        assert recipe.bound_s >= recipe.value_s
        if recipe.requests <= 1000:
            found = run(generate(recipe))
            assert found.value == pytest.approx(recipe.value_s, rel=1e-11)
            assert found.value <= recipe.bound_s * (1 + 1e-12)


@settings(max_examples=200)
@given(problem=problems(max_requests=6))
def test_among_equal_plans_the_largest_contexts_are_left_out(problem: BatchProblem) -> None:
    eighths = BatchProblem(
        np.round(problem.pending_s * 8) / 8 % 4, problem.kv_blocks, problem.hidden_blocks,
        np.round(problem.hidden_penalty_s * 8) / 8 % 2, problem.memory_blocks,
    )  # fmt: skip
    plans = np.array(list(itertools.product(range(3), repeat=eighths.num_requests)), np.int64).reshape(
        3**eighths.num_requests, eighths.num_requests
    )
    hidden, kv = plans == 1, plans == 2
    fits = hidden @ eighths.hidden_blocks + kv @ eighths.kv_blocks <= eighths.memory_blocks
    value = hidden @ (eighths.pending_s - eighths.hidden_penalty_s) + kv @ eighths.pending_s
    contexts = (plans > 0) @ eighths.kv_blocks
    best = contexts[fits & (value == value[fits].max())].min()
    found = run(eighths)
    assert found.limit is None
    assert int((found.choice > 0) @ eighths.kv_blocks) == best


def test_with_equal_pending_times_the_smallest_contexts_stay() -> None:
    sizes = np.array([9, 2, 7, 4, 8, 3])
    problem = BatchProblem([0.04] * 6, sizes, sizes, [0.0] * 6, 16)
    assert run(problem).choice.tolist() == [0, 2, 2, 2, 0, 2]


@pytest.mark.parametrize("ties", ["free-largest", "any"])
def test_either_criterion_finds_the_optimum(ties: str) -> None:
    problem = generate(BatchRecipe(family="bursty", requests=200, memory_share=0.3, rho=1.0, attention="mha"))
    found = run(problem, BatchSolver(200, ties))  # type: ignore[arg-type]
    assert found.value == pytest.approx(run(problem).value, rel=1e-12)


def test_requests_larger_than_the_memory_are_left_out_or_hidden() -> None:
    problem = BatchProblem([5.0, 4.0, 9.0], [12, 6, 30], [6, 3, 15], [1.0, 1.0, 1.0], 10)
    assert run(problem).choice.tolist() == [1, 1, 0]  # 4 + 3 = 7 in 9 blocks; the second alone as KV is worth 4


def test_hidden_cache_that_costs_more_than_it_is_worth_is_never_taken() -> None:
    assert run(BatchProblem([1.0], [4], [2], [2.0], 3)).choice.tolist() == [0]


@pytest.mark.parametrize("hidden", [6, 9])
def test_hidden_cache_as_large_as_kv_cache_or_larger_is_never_taken(hidden: int) -> None:
    assert run(BatchProblem([1.0, 1.0], [6, 6], [hidden] * 2, [0.0, 0.0], 12)).choice.tolist() == [2, 2]


@given(recipe=recipes)
def test_a_reused_solver_answers_like_a_fresh_one(recipe: BatchRecipe) -> None:
    problem = generate(recipe)
    reused, fresh = run(problem), run(problem, BatchSolver(recipe.requests))
    assert reused[:4] == fresh[:4]
    np.testing.assert_array_equal(reused.choice, fresh.choice)


def test_threads_may_share_a_solver() -> None:
    problems_ = [
        generate(BatchRecipe(family="early", requests=400, memory_share=0.3, rho=1.0, attention="mha", seed=seed))
        for seed in range(8)
    ]
    expected = [run(problem, BatchSolver(400)).value for problem in problems_]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert [found.value for found in pool.map(run, problems_)] == expected


def test_the_choice_is_written_where_the_caller_wants_it() -> None:
    p, m, choice = np.array([1.0, 2.0]), np.array([3, 3]), np.full(2, 9, np.int8)
    found = SOLVER.solve(p, m, m, np.zeros(2), 3, choice=choice)
    assert found.choice is choice
    assert choice.tolist() == [0, 2]


def test_arrays_of_any_kind_are_read_alike_and_left_as_they_are() -> None:
    p, m, u = np.array([3.0, 2.0, 1.0]), np.array([4, 4, 3]), np.array([0.5, 0.1, 0.0])
    as_is = SOLVER.solve(p, m, m // 2, u, 6)
    frozen = [array.copy() for array in (p, m, m // 2, u)]
    for array in frozen:
        array.flags.writeable = False
    spread = [np.repeat(array, 2)[::2] for array in (p, m, m // 2, u)]
    lists = [p.tolist(), m.tolist(), (m // 2).tolist(), u.tolist()]
    small = [p.astype(np.float32), m.astype(np.int32), (m // 2).astype(np.uint8), u.astype(np.float32)]
    for arrays in (frozen, spread, lists, small):
        found = SOLVER.solve(*arrays, np.int32(6))  # type: ignore[arg-type]
        assert found.choice.tolist() == as_is.choice.tolist()
        assert found.value == pytest.approx(as_is.value, rel=1e-7)
    assert p.tolist() == [3.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pending_s": [1.0, np.nan]}, r"Request 1 has pending_s nan; it must be finite"),
        ({"hidden_penalty_s": [1.0, -1.0]}, r"Request 1 has hidden_penalty_s -1; it must not be negative"),
        ({"kv_blocks": [1, -1]}, r"Request 1 has kv_blocks -1; it must not be negative"),
        ({"memory_blocks": -1}, r"memory_blocks is -1; it must be a whole number"),
        ({"kv_blocks": [1]}, r"kv_blocks has 1 entries, pending_s 2"),
        ({"token_budget": 5}, r"token_budget is given without tokens"),
        ({"choice": np.zeros(3, np.int8)}, r"choice has 3 entries, pending_s 2"),
        ({"choice": np.zeros(2, np.int64)}, r"choice is an array of int64; it must be a contiguous, writable array of int8"),
        ({"choice": np.zeros(4, np.int8)[::2]}, r"choice is an array of int8; it must be a contiguous, writable array"),
        ({"pending_s": np.zeros(1001)}, r"The problem has 1001 requests; this solver has room for 1000"),
    ],
)
def test_contradictory_arrays_are_refused(change: dict[str, object], says: str) -> None:
    good: dict[str, object] = {
        "pending_s": [1.0, 2.0], "kv_blocks": [2, 2], "hidden_blocks": [1, 1], "hidden_penalty_s": [0.1, 0.1], "memory_blocks": 3,
    }  # fmt: skip
    with pytest.raises(ProblemError, match=says):
        SOLVER.solve(**{**good, **change})  # type: ignore[arg-type]


def test_a_solver_refuses_a_negative_capacity_and_unknown_ties() -> None:
    with pytest.raises(ProblemError, match=r"capacity is -1; it must not be negative"):
        BatchSolver(-1)
    with pytest.raises(UnknownNameError, match=r"Unknown ties 'largest'"):
        BatchSolver(1, "largest")  # type: ignore[arg-type]


@pytest.mark.parametrize("parameter", ["requests", "memory_share", "rho"])
def test_a_recipe_with_negative_parameters_is_refused(parameter: str) -> None:
    good = {"family": "early", "requests": 3, "memory_share": 0.5, "rho": 1.0, "attention": "mha"}
    with pytest.raises(ProblemError, match=r"none may be negative"):
        generate(BatchRecipe(**{**good, parameter: -1}))  # type: ignore[arg-type]


def test_growing_buffers_lose_nothing() -> None:
    rng = np.random.default_rng(1)
    kv = np.clip(rng.lognormal(2.5, 0.8, 1000), 1, 256).astype(np.int64)
    problem = BatchProblem(0.037 + rng.integers(0, 20, 1000) * 1e-6, kv, -(-3 * kv // 4), kv * 0.0012, kv.sum() // 2)
    small = BatchSolver(1000)
    small._buffer = empty_buffer(1000, 40, 300)
    small._buffer[3] = True
    assert run(problem, small).value == pytest.approx(run(problem).value, rel=1e-12)


def test_more_deviations_than_the_search_can_nest_are_no_proof() -> None:
    problem = generate(
        BatchRecipe(family="overload", requests=1000, memory_share=0.5, rho=0.0, attention="mha", rows=True, seed=2)
    )
    found = run(problem, work_limit=20_000)
    assert BatchPlan(found.choice).violations(problem) == []
    best = solve(problem, method="milp", time_limit_s=5.0)
    assert best.value is not None
    assert found.bound >= best.value * (1 - 1e-12)
    assert found.status is Status.FEASIBLE or found.value >= best.value * (1 - 1e-12)
