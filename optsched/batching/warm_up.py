"""Compile every kernel of the batching layer ahead of its first use."""

from __future__ import annotations

from optsched.batching.batch_solver import BatchSolver
from optsched.batching.bound import upper_bound
from optsched.batching.memory_solver import with_more_room
from optsched.batching.policies import POLICIES
from optsched.batching.policies.dispatch import compiled_policy
from optsched.batching.problem import BatchProblem
from optsched.batching.solver import greedy_plan
from optsched.batching.workspace import empty_buffer


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
    """Compile what only hard problems need: growing the buffers."""
    with_more_room(empty_buffer(1, 1, 1))


def warm_up() -> None:
    """Compile the solvers and the policies, or load them from the cache."""
    warm_up_solvers()
    for policy in POLICIES:
        compiled_policy(policy)
