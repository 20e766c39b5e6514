"""Exact fleet and placement of few conversations: the program over operating points, and what the evaluator says, in turn."""

from __future__ import annotations

import time
from dataclasses import dataclass

from optsched.domain.plan import Status
from optsched.placement.components import components
from optsched.placement.evaluate import evaluate
from optsched.placement.operating.milp import OperatingFormulation
from optsched.placement.operating.problem import FleetPlan, OpenProblem
from optsched.placement.solved import is_proven, relative_gap
from optsched.placement.solver.milp import SAFETY, SolverName


@dataclass(frozen=True, slots=True)
class SolvedFleet:
    """A fleet and a placement with their value, and a proven bound over all fleets and placements.

    Attributes
    ----------
    plan
        The best that was found, or None.
    status
        OPTIMAL: no fleet and placement are better. FEASIBLE: time or iterations ran out. NO_PLAN: before anything was found.
    value, bound
        Of the objective under the evaluator.
    iterations
        Programs that were solved.
    """

    plan: FleetPlan | None
    status: Status
    value: float
    bound: float
    iterations: int
    solver: str
    runtime_s: float

    @property
    def gap(self) -> float:
        """``(value - bound) / value``, 0 when proven optimal."""
        return relative_gap(self.value, self.bound)


def solve_open(
    problem: OpenProblem, *, time_limit_s: float = 60.0, solver: SolverName = "highs", max_iterations: int = 10_000,
    better_than: float = float("inf"),
) -> SolvedFleet:  # fmt: skip
    """Choose roles, caps and placement together, to proven optimality given time.

    Each iteration solves the program, evaluates its fleet and placement, excludes them, and adds what the evaluator says of
    every independent part. It stops when the program's bound reaches the best value (within the solver's tolerance).

    Parameters
    ----------
    problem
        What to solve: a handful of conversations on two to four GPUs.
    time_limit_s, max_iterations
        When to stop with what is there.
    solver
        ``highs`` or ``cbc``.
    better_than
        A value that is known already: once the bound reaches it, nothing better exists.

    Raises
    ------
    SolverUnavailableError
        If the solver is not installed.
    """
    start_s = time.perf_counter()
    formulation = OperatingFormulation(problem)
    best: FleetPlan | None = None
    value, bound, done, iteration = better_than, 0.0, False, 0
    while iteration < max_iterations and not done:
        left_s = start_s + time_limit_s - time.perf_counter()
        if left_s <= 0:
            break
        answer = formulation.solve(solver, max(0.1, left_s))
        iteration += 1
        if answer.bound is not None:
            bound = max(bound, min(answer.bound, value))
            done = answer.bound >= value - 2 * SAFETY * max(abs(value), formulation.scale)
        if done or answer.plan is None:
            break
        plan = formulation.extract_fleet()
        fleet = problem.fleet(plan.counts)
        found = evaluate(fleet, plan.placement).value(problem.objective)
        if found < value:
            best, value = plan, found
        everywhere = evaluate(problem.everything, answer.plan)
        formulation.learn(components(problem.everything, answer.plan, everywhere))
        formulation.exclude(answer.plan)
    done = done or is_proven(value, bound)
    status: Status = "NO_PLAN" if best is None else "OPTIMAL" if done else "FEASIBLE"
    return SolvedFleet(best, status, value, min(bound, value), iteration, f"operating-{solver}", time.perf_counter() - start_s)
