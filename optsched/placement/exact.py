"""Exact placement of few conversations: partition program, walk through all placements, or relaxation and evaluation in turn."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from optsched.domain.plan import Status
from optsched.placement.bound import lower_bound
from optsched.placement.components import components
from optsched.placement.evaluate import evaluate, objective_of
from optsched.placement.greedy import greedy
from optsched.placement.milp import PlacementFormulation
from optsched.placement.partition.columns import MOST_CONVERSATIONS, independent
from optsched.placement.partition.milp import PartitionFormulation
from optsched.placement.problem import PlacementPlan, PlacementProblem
from optsched.placement.solved import Limit, Solved, is_proven
from optsched.placement.solver.milp import SAFETY, SolverName
from optsched.placement.symmetry import interchangeable
from optsched.placement.tree.search import walk_all

WALKED_AT_ONCE = 500_000
"""Placements that are walked through before any program is solved: half a minute at most."""
ITERATIONS_FIRST = 10
"""Relaxations that are solved before more placements than that are walked through."""


@dataclass
class Search:
    """The best placement so far, the bound, the clock, and what closed the gap if not the solver."""

    problem: PlacementProblem
    plan: PlacementPlan
    value: float
    bound: float
    until_s: float
    limit: Limit = "none"
    closed: bool = False
    by: str = ""

    def consider(self, plan: PlacementPlan) -> None:
        """Keep a placement if it is better."""
        value = objective_of(self.problem, plan)
        if value < self.value:
            self.plan, self.value = plan, value

    def out_of_time(self) -> bool:
        """Tell whether the time is up, and remember it."""
        if time.perf_counter() >= self.until_s:
            self.limit = "time"
        return self.limit == "time"

    @property
    def proven(self) -> bool:
        """Whether no placement can be better, but by a solver's tolerance."""
        return self.closed or is_proven(self.value, self.bound)


def exact(
    problem: PlacementProblem,
    *,
    time_limit_s: float = 60.0,
    solver: SolverName = "highs",
    seed: int = 0,
    max_iterations: int = 10_000,
    walks: bool = True,
    partitions: bool = True,
) -> Solved:
    """Solve a small placement problem to proven optimality.

    Each iteration solves the mixed-integer relaxation, evaluates its placement, excludes it, and adds what the evaluator
    says of each of its independent parts. It stops when the relaxation's bound reaches the best value (within the solver's
    tolerance), or when every placement is excluded.

    Parameters
    ----------
    time_limit_s
        When to stop with what is there.
    solver
        ``highs`` or ``cbc``.
    seed
        Of the heuristic that starts the search.
    max_iterations
        Relaxations to solve at most.
    walks
        Walk through all placements that a bound does not rule out: at once where there are at most `WALKED_AT_ONCE` but for the
        names of alike replicas, otherwise after `ITERATIONS_FIRST`, for half of the time that is left.
    partitions
        Where replicas are independent and conversations few, solve the partition program instead of all that.

    Raises
    ------
    SolverUnavailableError
        If the solver is not installed.
    """
    start_s = time.perf_counter()
    plan = greedy(problem, time_limit_s=time_limit_s / 4, seed=seed)
    bound = lower_bound(problem).value
    search = Search(problem, plan, objective_of(problem, plan), bound, start_s + time_limit_s)
    if partitions and problem.workload.num_conversations <= MOST_CONVERSATIONS and independent(problem):
        _partition(search, solver)
    else:
        _search(search, solver, max_iterations, walks)
    runtime_s = time.perf_counter() - start_s
    status: Status = "OPTIMAL" if search.proven else "FEASIBLE"
    limit: Limit = "none" if search.proven else search.limit
    bound = min(search.bound, search.value)
    return Solved(search.plan, status, search.value, bound, limit, f"exact-{search.by or solver}", runtime_s, seed)


def _partition(search: Search, solver: SolverName) -> None:
    """Solve the partition program, whose placements all have the evaluator's own values."""
    if search.proven:
        return
    answer = PartitionFormulation(search.problem, better_than=search.value).solve(
        solver, max(0.1, search.until_s - time.perf_counter())
    )
    if answer.plan is not None:
        search.consider(answer.plan)
    if answer.bound is None:
        search.limit = "time"
        return
    search.bound = max(search.bound, min(answer.bound, search.value))
    search.closed = answer.bound >= search.value - 2 * SAFETY * abs(search.value)


def _search(search: Search, solver: SolverName, max_iterations: int, walks: bool) -> None:
    """Relax, evaluate and exclude; walk through all placements."""
    if walks and placements_at_most(search.problem) <= WALKED_AT_ONCE:
        _walk(search, 1.0)
    if search.proven or search.out_of_time():
        return
    formulation = PlacementFormulation(search.problem)
    if walks:
        _iterate(search, formulation, solver, min(ITERATIONS_FIRST, max_iterations))
        if search.proven or search.limit == "time":
            return
        _walk(search, 0.5)
    _iterate(search, formulation, solver, max_iterations - (ITERATIONS_FIRST if walks else 0))


def placements_at_most(problem: PlacementProblem) -> float:
    """Return about how many placements there are, but for the names of alike replicas."""
    many = math.prod(len(problem.options(c)) for c in range(problem.workload.num_conversations))
    return many / math.prod(math.factorial(len(group)) for group in interchangeable(problem))


def _walk(search: Search, share: float) -> None:
    """Walk through all placements for a share of the time that is left."""
    if search.proven:
        return
    now_s = time.perf_counter()
    found = walk_all(search.problem, search.value, until_s=now_s + share * (search.until_s - now_s))
    if found.plan is not None:
        search.consider(found.plan)
    if found.finished:
        search.bound, search.by = search.value, "walk"
    else:
        search.limit = "time" if share == 1.0 else search.limit


def _iterate(search: Search, formulation: PlacementFormulation, solver: SolverName, iterations: int) -> None:
    if search.proven:
        return
    search.limit = "none"
    for _ in range(iterations):
        if search.out_of_time():
            return
        answer = formulation.solve(solver, max(0.1, search.until_s - time.perf_counter()))
        if answer.bound is None:
            search.limit = "time"
        else:
            search.bound = max(search.bound, min(answer.bound, search.value))
            search.closed = answer.bound >= search.value - 2 * SAFETY * max(abs(search.value), formulation.scale)
        if search.proven or answer.plan is None:
            break
        search.consider(answer.plan)
        formulation.learn(components(search.problem, answer.plan, evaluate(search.problem, answer.plan)))
        formulation.exclude(answer.plan)
    else:
        search.limit = "iterations"
