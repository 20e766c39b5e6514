"""Compile every kernel of the batching layer ahead of its first use."""

from __future__ import annotations

import numpy as np

from optsched.batching.batch_solver import BatchSolver
from optsched.batching.bound import upper_bound
from optsched.batching.core import expand
from optsched.batching.memory_row import worth
from optsched.batching.memory_solver import read_off, solve_memory_row
from optsched.batching.policies import POLICIES
from optsched.batching.policies.dispatch import compiled_policy
from optsched.batching.problem import BatchProblem
from optsched.batching.solver import greedy_plan
from optsched.batching.workspace import empty_workspace, with_more_states


def warm_up_solvers() -> None:
    """Compile the solvers, or load them from the cache, so that the next answer's runtime is that of solving."""
    rows = {"tokens": [3, 2, 2], "token_budget": 4, "max_sequences": 2}
    for data in ({}, rows):
        problem = BatchProblem([3.0, 2.0, 2.0], [5, 4, 3], [3, 2, 2], [0.5, 0.1, 0.0], 6, **data)  # type: ignore[arg-type]
        upper_bound(problem)
        greedy_plan(problem, fill=False)
        solver = BatchSolver(3)
        solver.solve(
            problem.pending_s,
            problem.kv_blocks,
            problem.hidden_blocks,
            problem.hidden_penalty_s,
            problem.memory_blocks,
            tokens=problem.tokens,
            token_budget=problem.token_budget,
            max_sequences=problem.max_sequences,
        )
    warm_up_limits()


def warm_up_limits() -> None:
    """Compile what only hard problems need: going on after a pause, and growing the buffers."""
    space, sizes = empty_workspace(1, 4, 4), np.ones(1, np.int64)
    choice = np.zeros(1, np.int8)
    setting, _ = solve_memory_row(space, np.ones(1), sizes, sizes, np.zeros(1), 1, True, 1, 1, choice)
    expand(with_more_states(space, 0, 1, 1), sizes, sizes, 1, setting.frame, setting.search, 1)
    read_off(space, setting.search, choice)
    worth(np.ones(1), np.zeros(1), choice)


def warm_up() -> None:
    """Compile the solvers and the policies, or load them from the cache."""
    warm_up_solvers()
    for policy in POLICIES:
        compiled_policy(policy)
