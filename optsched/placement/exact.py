"""Exact placement of few conversations: relaxation, evaluation and exclusion in turn, or every placement where they are few."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

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
from optsched.placement.symmetry import canonical_placements


@dataclass
class Search:
    """The best placement so far, the bound, and the clock."""

    problem: PlacementProblem
    plan: PlacementPlan
    value: float
    bound: float
    until_s: float
    limit: Limit = "none"
    closed: bool = False

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
    enumerate_below: int = 20_000,
    iterations_first: int = 10,
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
    enumerate_below, iterations_first
        After so many iterations without a proof, if there are fewer placements (but for the names of alike replicas)
        than this, evaluate all of them instead.
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
        _search(search, solver, max_iterations, enumerate_below, iterations_first)
    runtime_s = time.perf_counter() - start_s
    status: Status = "OPTIMAL" if search.proven else "FEASIBLE"
    limit: Limit = "none" if search.proven else search.limit
    bound = min(search.bound, search.value)
    return Solved(search.plan, status, search.value, bound, limit, f"exact-{solver}", runtime_s, seed)


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


def _search(search: Search, solver: SolverName, max_iterations: int, enumerate_below: int, iterations_first: int) -> None:
    """Relax, evaluate and exclude; evaluate all placements where they are few."""
    _iterate(search, solver, min(iterations_first, max_iterations) if enumerate_below else max_iterations)
    if search.limit == "iterations" and enumerate_below:
        _finish(search, solver, max_iterations - iterations_first, enumerate_below)


def _finish(search: Search, solver: SolverName, iterations: int, enumerate_below: int) -> None:
    """Evaluate all placements if they are few, otherwise go on with the relaxation."""
    found = list(islice(_placements(search), enumerate_below + 1))
    if search.out_of_time():
        return
    if len(found) <= enumerate_below:
        _enumerate(search, found)
    elif iterations > 0:
        _iterate(search, solver, iterations)


def _placements(search: Search) -> Iterator[list[tuple[int, int]]]:
    for choice in canonical_placements(search.problem):
        if search.out_of_time():
            return
        yield choice


def _iterate(search: Search, solver: SolverName, iterations: int) -> None:
    if search.proven:
        return
    search.limit = "none"
    formulation = PlacementFormulation(search.problem)
    for _ in range(iterations):
        if search.out_of_time():
            return
        answer = formulation.solve(solver, max(0.1, search.until_s - time.perf_counter()))
        if answer.bound is not None:
            search.bound = max(search.bound, min(answer.bound, search.value))
            search.closed = answer.bound >= search.value - 2 * SAFETY * max(abs(search.value), formulation.scale)
        if search.proven or answer.plan is None:
            break
        search.consider(answer.plan)
        formulation.learn(components(search.problem, answer.plan, evaluate(search.problem, answer.plan)))
        formulation.exclude(answer.plan)
    else:
        search.limit = "iterations"


def _enumerate(search: Search, placements: list[list[tuple[int, int]]]) -> None:
    search.limit = "none"
    for choice in placements:
        if search.out_of_time():
            return
        search.consider(PlacementPlan.of([p for p, _ in choice], [d for _, d in choice]))
    search.bound = search.value
