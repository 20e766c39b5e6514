"""Solve a batch problem by any method; every answer carries its value, a proven bound and the gap between them."""

from __future__ import annotations

from math import fsum
from threading import local
from time import perf_counter
from typing import Literal, get_args

import numpy as np

from optsched.batching.batch_solver import BatchSolver
from optsched.batching.bound import upper_bound
from optsched.batching.greedy import NO_LIMIT, TAKE_HIDDEN, select
from optsched.batching.problem import BatchPlan, BatchProblem
from optsched.batching.solved import Solved, SolverName, Status, relative_gap
from optsched.errors import ProblemError, UnknownNameError

Method = Literal["exact", "greedy", "greedy-fill", "milp", "lp"]
Mode = Literal["right", "paper"]

LEAST_CAPACITY = 1024
WORK_LIMIT, ROWS_WORK_LIMIT = 50_000_000, 1_000_000  # sets of deviations; about a second, and 30 ms
_OF_THREAD = local()

ROUNDING = 1e-12  # value and bound closer than this, relatively, are the same number


def solve(
    problem: BatchProblem,
    method: Method = "exact",
    solver: SolverName = "highs",
    time_limit_s: float | None = None,
    mode: Mode = "right",
) -> Solved:
    """Choose which requests go into the batch, and in which kind of cache.

    Parameters
    ----------
    problem
        The candidates and limits.
    method
        ``exact``: proven optimum. ``greedy``: Apt-Serve's Algorithm 1, at least half the optimum with the memory row
        alone. ``greedy-fill``: goes on after the first misfit. ``milp``: by an integer programming solver. ``lp``: only
        the bound.
    solver
        Which solver ``milp`` uses, and ``exact`` where token or sequence rows leave the core unproven.
    time_limit_s
        When exact methods stop without a proof; ``exact`` stops after about a second of its own accord.
    mode
        Rule by which greedy methods offer hidden cache: ``right`` for any sizes, or the ``paper``'s, p >= 2 u.

    Returns
    -------
    Solved
        OPTIMAL if value and bound agree, FEASIBLE if a limit or a heuristic leaves a gap, NO_PLAN without a plan.

    Raises
    ------
    UnknownNameError
        If there is no such method, solver or mode.
    ProblemError
        If the time limit is not a positive number.
    SolverUnavailableError
        If the solver is not installed.

    Examples
    --------
    >>> problem = BatchProblem([3.0, 2.0], kv_blocks=[4, 4], hidden_blocks=[2, 2], hidden_penalty_s=[0.5, 0.1], memory_blocks=6)
    >>> answer = solve(problem)
    >>> answer.plan.choice.tolist(), answer.value
    ([2, 1], 4.9)
    """
    _check("method", method, get_args(Method))
    _check("solver", solver, get_args(SolverName))
    _check("mode", mode, get_args(Mode))
    if time_limit_s is not None and not 0 < time_limit_s < float("inf"):
        raise ProblemError(f"time_limit_s is {time_limit_s}; it must be a positive number of seconds, or None for no limit.")
    started = perf_counter()
    if method == "exact":
        found = _exact(problem, solver, time_limit_s)
    elif method == "milp":
        found = _milp(problem, solver, time_limit_s)
    elif method == "lp":
        found = None, upper_bound(problem), None, "lp"
    else:
        plan = greedy_plan(problem, fill=method == "greedy-fill", paper=mode == "paper")
        found = plan, upper_bound(problem), None, method
    return _solved(problem, *found, runtime_s=perf_counter() - started)


def greedy_plan(problem: BatchProblem, *, fill: bool, paper: bool = False) -> BatchPlan:
    """Return the greedy plan, with what is left filled up if `fill`."""
    choice = np.zeros(problem.num_requests, np.int8)
    select(
        problem.pending_s,
        problem.kv_blocks,
        problem.hidden_blocks,
        problem.hidden_penalty_s,
        problem.tokens_taken,
        problem.memory_blocks,
        NO_LIMIT if problem.token_budget is None else problem.token_budget,
        NO_LIMIT if problem.max_sequences is None else problem.max_sequences,
        paper,
        fill,
        choice,
    )
    return BatchPlan(choice)


Found = tuple[BatchPlan | None, float, str | None, str]  # plan, bound, limit, solver


def _exact(problem: BatchProblem, solver: SolverName, time_limit_s: float | None) -> Found:
    """Solve over the core; what further rows leave unproven there, an integer programming solver goes on with."""
    started = perf_counter()
    found = _own_solver(problem.num_requests).solve(
        problem.pending_s,
        problem.kv_blocks,
        problem.hidden_blocks,
        problem.hidden_penalty_s,
        problem.memory_blocks,
        tokens=problem.tokens,
        token_budget=problem.token_budget,
        max_sequences=problem.max_sequences,
        time_limit_s=time_limit_s,
        work_limit=ROWS_WORK_LIMIT if problem.has_rows else WORK_LIMIT,
    )
    plan = BatchPlan(found.choice)
    if found.status is Status.OPTIMAL:
        return plan, _value(problem, plan), found.limit, "core"
    plans, bound, limit, name = [plan, greedy_plan(problem, fill=True)], found.bound, found.limit, "core"
    if problem.has_rows and limit == "work":
        left = None if time_limit_s is None else max(1e-3, time_limit_s - (perf_counter() - started))
        other, above, limit, name = _milp(problem, solver, left)
        plans, bound, name = [*plans, *([other] if other else [])], min(bound, above), f"core, {name}"
    return max(plans, key=lambda one: _value(problem, one)), bound, limit, name


def _own_solver(requests: int) -> BatchSolver:
    """Return this thread's solver, with room for that many requests."""
    solver: BatchSolver | None = getattr(_OF_THREAD, "solver", None)
    if solver is None or solver.capacity < requests:
        solver = _OF_THREAD.solver = BatchSolver(max(LEAST_CAPACITY, 2 * requests))
    return solver


def _value(problem: BatchProblem, plan: BatchPlan) -> float:
    """Return a plan's value, the same number as `BatchPlan.value`: the sum is rounded once."""
    selected = np.flatnonzero(plan.choice)
    penalties = np.where(plan.choice[selected] == TAKE_HIDDEN, problem.hidden_penalty_s[selected], 0.0)
    return fsum((problem.pending_s[selected] - penalties).tolist())


def _milp(problem: BatchProblem, solver: SolverName, time_limit_s: float | None) -> Found:
    from optsched.batching.milp import solve_milp

    answer = solve_milp(problem, solver, time_limit_s)
    if answer.plan is not None and answer.proven:
        return answer.plan, answer.plan.value(problem), None, solver
    bound = upper_bound(problem)
    return answer.plan, bound if answer.bound is None else min(bound, answer.bound), "time", solver


def _solved(
    problem: BatchProblem, plan: BatchPlan | None, bound: float, limit: str | None, solver: str, *, runtime_s: float
) -> Solved:
    if plan is None:
        return Solved(None, Status.NO_PLAN, None, bound, None, limit, solver, runtime_s)
    value = _value(problem, plan)
    if abs(bound - value) <= ROUNDING * abs(value):
        bound = value
    status = Status.OPTIMAL if bound <= value else Status.FEASIBLE
    return Solved(plan, status, value, bound, relative_gap(value, bound), limit, solver, runtime_s)


def _check(kind: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise UnknownNameError(kind, name, known)
