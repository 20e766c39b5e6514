"""Exact fleet and placement of few conversations: a walk through all, or program and evaluator in turn."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from optsched.domain.plan import Status
from optsched.placement.components import components
from optsched.placement.evaluate import evaluate
from optsched.placement.operating.milp import OperatingFormulation
from optsched.placement.operating.problem import FleetPlan, OpenProblem
from optsched.placement.solved import is_proven, relative_gap
from optsched.placement.solver.milp import SAFETY, SolverName
from optsched.placement.tree.search import Upkeep, walk_all


@dataclass(frozen=True, slots=True)
class SolvedFleet:
    """A fleet and a placement with their value, and a proven bound over all fleets and placements.

    Attributes
    ----------
    plan
        The best that was found, or None.
    status
        OPTIMAL: no fleet and placement are better. FEASIBLE: time or iterations ran out. NO_PLAN: nothing (better than what
        was known) was found.
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


@dataclass
class _Search:
    """The best fleet and placement so far, the bound, and the clock."""

    problem: OpenProblem
    value: float
    until_s: float
    best: FleetPlan | None = None
    bound: float = 0.0
    closed: bool = False
    iterations: int = 0

    def left_s(self) -> float:
        return self.until_s - time.perf_counter()

    def consider(self, plan: FleetPlan) -> None:
        """Keep a fleet and its placement if they are better."""
        found = evaluate(self.problem.fleet(plan.counts), plan.placement).value(self.problem.objective)
        if found < self.value:
            self.best, self.value = plan, found


def solve_open(
    problem: OpenProblem, *, time_limit_s: float = 60.0, solver: SolverName = "highs", max_iterations: int = 10_000,
    walks: bool = True, better_than: float = float("inf"),
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
    walks
        Spend up to half of the time on a walk through all fleets and placements that a bound does not rule out.
    better_than
        A value that is known already: once the bound reaches it, nothing better exists.

    Raises
    ------
    SolverUnavailableError
        If the solver is not installed.
    """
    start_s = time.perf_counter()
    search = _Search(problem, better_than, start_s + time_limit_s)
    by = "walk" if walks and _walk(search, start_s + time_limit_s / 2) else solver
    if not search.closed:
        _iterate(search, solver, max_iterations)
    done = search.closed or is_proven(search.value, search.bound)
    status: Status = "NO_PLAN" if search.best is None else "OPTIMAL" if done else "FEASIBLE"
    bound, runtime_s = min(search.bound, search.value), time.perf_counter() - start_s
    return SolvedFleet(search.best, status, search.value, bound, search.iterations, f"operating-{by}", runtime_s)


def _walk(search: _Search, until_s: float) -> bool:
    """Walk through fleets and placements; return whether that was all of them."""
    found = walk_all(search.problem.everything, search.value, until_s=until_s, upkeep=_upkeep(search.problem))
    if found.plan is not None:
        search.consider(search.problem.fleet_plan(found.plan))
    search.closed = found.finished
    search.bound = search.value if found.finished else search.bound
    return found.finished


def _upkeep(problem: OpenProblem) -> Upkeep:
    """Return what each replica takes beyond the least that its gpu takes anyway, where none may rest."""
    gpus = list(problem.supply)
    kind = np.array([gpus.index(replica.gpu) for replica in problem.everything.replicas])
    rates = [
        r.coefficients.idle_w if problem.objective == "energy" else r.usd_per_hour / 3600 for r in problem.everything.replicas
    ]
    rate, supply = np.array(rates), np.array([problem.supply[gpu] for gpu in gpus])
    anyway = np.array([0.0 if problem.may_rest else rate[kind == k].min() for k in range(len(gpus))])
    return Upkeep(kind, supply, rate - anyway[kind], float(anyway @ supply), tuple(tuple(group) for group in problem.copies()))


def _iterate(search: _Search, solver: SolverName, most: int) -> None:
    formulation, everything = OperatingFormulation(search.problem), search.problem.everything
    while search.iterations < most and search.left_s() > 0:
        answer = formulation.solve(solver, max(0.1, search.left_s()))
        search.iterations += 1
        if answer.bound is not None:
            search.bound = max(search.bound, min(answer.bound, search.value))
            search.closed = answer.bound >= search.value - 2 * SAFETY * max(abs(search.value), formulation.scale)
        if search.closed or answer.plan is None:
            return
        search.consider(formulation.extract_fleet())
        formulation.learn(components(everything, answer.plan, evaluate(everything, answer.plan)))
        formulation.exclude(answer.plan)
