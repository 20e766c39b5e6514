"""Every solver against every other, against all plans, and against the referee."""

from __future__ import annotations

import itertools
from dataclasses import replace
from math import isclose

import numpy as np
import pytest
from batch_problems import best_by_enumeration, problems
from hypothesis import given, settings
from hypothesis import strategies as st

from optsched.batching import BatchPlan, BatchProblem, Solved, Status, solve
from optsched.batching.batch_solver import BatchSolver
from optsched.errors import ProblemError, SolverUnavailableError, UnknownNameError

METHODS = ("exact", "greedy", "greedy-fill", "milp")


def close(one: float | None, other: float | None, tolerance: float = 1e-9) -> bool:
    assert one is not None
    assert other is not None
    return isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)


def checked(problem: BatchProblem, method: str, **options: str) -> Solved:
    """Solve, and hold the answer against the referee and against itself."""
    answer = solve(problem, method=method, **options)  # type: ignore[arg-type]
    assert answer.plan is not None
    assert answer.plan.violations(problem) == []
    assert answer.value == answer.plan.value(problem)
    assert answer.bound >= answer.value
    assert (answer.status == Status.OPTIMAL) == (answer.bound == answer.value)
    assert answer.gap is None or answer.gap >= 0
    return answer


def large_problem(seed: int, num: int, memory_share: float, rows: bool = False) -> BatchProblem:
    """Draw Apt-Serve-like candidates: hidden half the size, penalties proportional to size."""
    rng = np.random.default_rng(seed)
    kv = rng.integers(1, 129, num)
    return BatchProblem(
        pending_s=rng.exponential(1.0, num),
        kv_blocks=kv,
        hidden_blocks=-(-kv // 2),
        hidden_penalty_s=kv * 10 ** rng.uniform(-4, -1.5),
        memory_blocks=int(kv.sum() * memory_share),
        tokens=rng.integers(1, 2048, num) if rows else None,
        token_budget=int(1024 * num * memory_share) if rows else None,
        max_sequences=num // 3 if rows else None,
    )


@given(problem=problems(max_requests=8, rows=None))
def test_the_exact_value_is_the_best_of_all_plans(problem: BatchProblem) -> None:
    answer = checked(problem, "exact")
    assert answer.status is Status.OPTIMAL
    assert close(answer.value, best_by_enumeration(problem))


@given(problem=problems(max_requests=12, rows=None))
def test_highs_finds_the_exact_value(problem: BatchProblem) -> None:
    answer = checked(problem, "milp", solver="highs")
    assert answer.status is Status.OPTIMAL
    assert close(answer.value, checked(problem, "exact").value)


@settings(max_examples=25)
@given(problem=problems(max_requests=8, rows=None))
def test_cbc_finds_the_exact_value(problem: BatchProblem) -> None:
    answer = checked(problem, "milp", solver="cbc")
    assert answer.status is Status.OPTIMAL
    assert close(answer.value, checked(problem, "exact").value)


@given(problem=problems(max_requests=30, rows=None))
def test_no_plan_is_worth_more_than_the_bound(problem: BatchProblem) -> None:
    bound = solve(problem, method="lp")
    assert bound.plan is None
    assert bound.status is Status.NO_PLAN
    for method in ("exact", "greedy", "greedy-fill"):
        value = checked(problem, method).value
        assert value is not None
        assert value <= bound.bound * (1 + 1e-12)


@given(problem=problems(max_requests=10))
def test_the_bound_is_the_value_of_the_linear_relaxation(problem: BatchProblem) -> None:
    from scipy.optimize import linprog

    num = problem.num_requests
    if num == 0:
        assert solve(problem, method="lp").bound == 0
        return
    fits = np.concatenate([problem.hidden_blocks, problem.kv_blocks]) <= problem.memory_blocks
    relaxed = linprog(
        -np.concatenate([problem.pending_s - problem.hidden_penalty_s, problem.pending_s]),
        A_ub=np.vstack([np.concatenate([problem.hidden_blocks, problem.kv_blocks]), np.tile(np.eye(num), 2)]),
        b_ub=np.concatenate([[problem.memory_blocks], np.ones(num)]),
        bounds=np.column_stack([np.zeros(2 * num), fits]),
    )
    assert close(solve(problem, method="lp").bound, -relaxed.fun, 1e-6)


@given(problem=problems(max_requests=12))
def test_greedy_reaches_half_the_optimum_with_the_memory_row_alone(problem: BatchProblem) -> None:
    greedy, exact = checked(problem, "greedy"), checked(problem, "exact")
    assert greedy.value is not None
    assert exact.value is not None
    assert exact.value / 2 - 1e-12 <= greedy.value <= exact.value * (1 + 1e-12)


@given(problem=problems(max_requests=20, rows=None))
def test_filling_up_never_loses(problem: BatchProblem) -> None:
    greedy, filled = checked(problem, "greedy").value, checked(problem, "greedy-fill").value
    assert greedy is not None
    assert filled is not None
    assert filled >= greedy - 1e-9


@given(problem=problems(max_requests=20, rows=None))
def test_the_published_rule_never_over_commits_either(problem: BatchProblem) -> None:
    for method in ("greedy", "greedy-fill"):
        checked(problem, method, mode="paper")


@given(problem=problems(max_requests=12))
def test_the_published_rule_is_the_right_one_where_hidden_is_half(problem: BatchProblem) -> None:
    kv = 2 * problem.hidden_blocks
    halved = BatchProblem(
        problem.pending_s, kv, problem.hidden_blocks, problem.hidden_penalty_s, max(problem.memory_blocks, *kv, 0)
    )
    right, paper = solve(halved, method="greedy"), solve(halved, method="greedy", mode="paper")
    assert close(right.value, paper.value)


@given(problem=problems(max_requests=10, rows=None), data=st.data())
def test_the_order_of_requests_changes_no_optimum(problem: BatchProblem, data: st.DataObject) -> None:
    order = np.array(data.draw(st.permutations(range(problem.num_requests))), np.int64)
    permuted = BatchProblem(
        problem.pending_s[order],
        problem.kv_blocks[order],
        problem.hidden_blocks[order],
        problem.hidden_penalty_s[order],
        problem.memory_blocks,
        None if problem.tokens is None else problem.tokens[order],
        problem.token_budget,
        problem.max_sequences,
    )
    assert close(checked(problem, "exact").value, checked(permuted, "exact").value)
    assert close(solve(problem, method="lp").bound, solve(permuted, method="lp").bound)


@given(problem=problems(max_requests=10, rows=None), more=st.integers(1, 9))
def test_more_memory_never_hurts(problem: BatchProblem, more: int) -> None:
    larger = BatchProblem(
        problem.pending_s, problem.kv_blocks, problem.hidden_blocks, problem.hidden_penalty_s,
        problem.memory_blocks + more, problem.tokens, problem.token_budget, problem.max_sequences,
    )  # fmt: skip
    little, much = checked(problem, "exact").value, checked(larger, "exact").value
    assert little is not None
    assert much is not None
    assert much >= little - 1e-9


@given(problem=problems(max_requests=10), factor=st.sampled_from([1e-6, 1e-3, 1e3]))
def test_rescaling_time_rescales_the_optimum(problem: BatchProblem, factor: float) -> None:
    rescaled = BatchProblem(
        problem.pending_s * factor, problem.kv_blocks, problem.hidden_blocks,
        problem.hidden_penalty_s * factor, problem.memory_blocks,
    )  # fmt: skip
    value, other = checked(problem, "exact").value, checked(rescaled, "exact").value
    assert value is not None
    assert close(value * factor, other)


@pytest.mark.parametrize(("seed", "share"), list(itertools.product(range(4), (0.1, 0.5))))
def test_hundreds_of_requests_are_solved_like_by_highs(seed: int, share: float) -> None:
    problem = large_problem(seed, 300, share)
    exact, milp = checked(problem, "exact"), checked(problem, "milp")
    assert exact.status is Status.OPTIMAL
    assert close(exact.value, milp.value)


@pytest.mark.parametrize("seed", range(6))
def test_three_binding_rows_are_solved_to_proven_optimality(seed: int) -> None:
    problem = large_problem(seed, 60, 0.3, rows=True)
    exact, milp = checked(problem, "exact"), checked(problem, "milp")
    assert exact.status is Status.OPTIMAL
    assert exact.solver.startswith("core")
    assert close(exact.value, milp.value)
    assert solve(problem, method="greedy-fill").value <= exact.value <= solve(problem, method="lp").bound  # type: ignore[operator]


@pytest.mark.parametrize("rows", [False, True])
def test_an_exhausted_work_limit_is_reported_and_its_bound_holds(rows: bool) -> None:
    problem = large_problem(0, 60, 0.3, rows=True) if rows else large_problem(0, 2000, 0.4)
    stopped = BatchSolver(2000).solve(
        problem.pending_s, problem.kv_blocks, problem.hidden_blocks, problem.hidden_penalty_s, problem.memory_blocks,
        tokens=problem.tokens, token_budget=problem.token_budget, max_sequences=problem.max_sequences, work_limit=2,
    )  # fmt: skip
    best = solve(problem).value
    assert best is not None
    assert stopped.status is Status.FEASIBLE
    assert stopped.limit == "work"
    assert BatchPlan(stopped.choice).violations(problem) == []
    assert stopped.value <= best <= stopped.bound


def hard_problem(num: int = 20_000) -> BatchProblem:
    """Decodes whose pending times differ by microseconds, with a hidden cache of three quarters: millions of states."""
    rng = np.random.default_rng(1)
    kv = np.clip(rng.lognormal(2.5, 0.8, num), 1, 256).astype(np.int64)
    pending = 0.037 + rng.integers(0, 20, num) * 1e-6
    return BatchProblem(pending, kv, -(-3 * kv // 4), kv * 0.0012, kv.sum() // 2)


def test_a_time_limit_is_reported() -> None:
    problem = hard_problem()
    answer = solve(problem, method="exact", time_limit_s=1e-3)
    assert answer.limit == "time"
    assert answer.status is Status.FEASIBLE
    assert answer.plan is not None
    assert answer.plan.violations(problem) == []
    assert answer.bound > answer.value  # type: ignore[operator]


def test_no_requests_and_no_memory_are_solved() -> None:
    for method in METHODS:
        assert checked(BatchProblem([], [], [], [], 5), method).value == 0
        assert checked(BatchProblem([1.0], [3], [2], [0.1], 0), method).value == 0


def test_equal_requests_do_not_slow_the_exact_solver_down() -> None:
    answer = solve(BatchProblem([1.0] * 500, [3] * 500, [2] * 500, [0.4] * 500, 701))
    assert answer.status is Status.OPTIMAL
    assert answer.value == pytest.approx(best_of_equal(500, 701))


def best_of_equal(num: int, memory: int) -> float:
    """Return the best mix of (3 blocks, 1.0) and (2 blocks, 0.6), at most `num` in all."""
    return max(
        kv + 0.6 * min(num - kv, (memory - 3 * kv) // 2) for kv in range(num + 1) if 3 * kv <= memory
    )  # fmt: skip


def test_an_unknown_method_names_its_neighbours() -> None:
    with pytest.raises(UnknownNameError, match="Unknown method 'greedi'; did you mean: greedy"):
        solve(BatchProblem([], [], [], [], 1), method="greedi")  # type: ignore[arg-type]


def test_a_time_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ProblemError, match=r"time_limit_s is 0; it must be a positive number of seconds"):
        solve(BatchProblem([], [], [], [], 1), time_limit_s=0)


def test_a_missing_solver_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import pulp

    monkeypatch.setattr(pulp.HiGHS, "available", lambda self: False)
    with pytest.raises(SolverUnavailableError, match="Solver 'highs' is not installed; it comes with highspy"):
        solve(BatchProblem([1.0], [1], [1], [0.0], 1), method="milp")


def test_answers_are_immutable() -> None:
    answer = solve(BatchProblem([1.0], [1], [1], [0.0], 1))
    assert replace(answer, seed=1).seed == 1
    with pytest.raises(AttributeError):
        answer.value = 2.0  # type: ignore[misc]


def test_nothing_pending_is_worth_nothing_under_every_row() -> None:
    problem = BatchProblem([0.0], [0], [0], [4.0], 0, max_sequences=0)
    assert [checked(problem, method).value for method in METHODS] == [0.0] * 4


def test_warming_up_leaves_no_kernel_to_compile() -> None:
    from optsched.batching.greedy import select
    from optsched.batching.memory_solver import go_on, solve_in
    from optsched.batching.rows import solve_rows
    from optsched.batching.warm_up import warm_up_solvers

    warm_up_solvers()
    kernels = (select, solve_in, go_on, solve_rows)
    before = [len(kernel.signatures) for kernel in kernels]  # type: ignore[attr-defined]
    solve(large_problem(0, 100, 0.3))
    solve(hard_problem(), time_limit_s=0.05)
    solve(large_problem(0, 20, 0.3, rows=True))
    assert min(before) > 0
    assert [len(kernel.signatures) for kernel in kernels] == before  # type: ignore[attr-defined]
