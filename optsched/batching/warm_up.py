"""Compile every kernel of the batching layer ahead of its first use."""

from __future__ import annotations

import numpy as np

from optsched.batching.exact import solve_memory_row
from optsched.batching.policies import POLICIES
from optsched.batching.policies.dispatch import decide
from optsched.batching.problem import BatchPlan, BatchProblem
from optsched.batching.solver import greedy_plan
from optsched.batching.state import Counts, Decision, Engine, Requests


def warm_up_solvers() -> None:
    """Compile the solvers, or load them from the cache, so that the next answer's runtime is that of solving."""
    problem = BatchProblem([3.0, 2.0, 2.0], [5, 4, 3], [3, 2, 2], [0.5, 0.1, 0.0], 6)
    solve_memory_row(problem, BatchPlan(np.zeros(3, np.int8)))
    greedy_plan(problem, fill=False)


def warm_up() -> None:
    """Compile the solvers and the policies, or load them from the cache."""
    warm_up_solvers()
    requests, decision = Requests.empty(1), Decision.empty(1)
    requests.new_tokens[0] = 1
    engine = Engine(0.0, 1, 1, 16, 0, 1, 1, 0.5, 0.0, 1.0, 1.0)
    for policy in POLICIES.values():
        decide(policy, requests, np.zeros(1, np.int64), Counts(0, 1, 0), engine, decision)
