"""Entry point: solve a placement problem, or certify a placement however it was found."""

from __future__ import annotations

import time
from typing import Literal

from optsched.errors import PlanError, ProblemError
from optsched.placement.evaluate import objective_of, static_violations
from optsched.placement.problem import PlacementPlan, PlacementProblem
from optsched.placement.solved import Limit, Solved, certificate, is_proven

__all__ = ["Solved", "certificate", "solve"]


def solve(
    problem: PlacementProblem,
    method: Literal["exact", "greedy"] = "exact",
    *,
    time_limit_s: float = 60.0,
    solver: Literal["highs", "cbc"] = "highs",
    seed: int = 0,
    work: int | None = None,
    start: PlacementPlan | None = None,
    moved_cost: float = 0.0,
) -> Solved:
    """Solve a placement problem.

    Parameters
    ----------
    problem
        What to solve.
    method
        ``exact`` proves the optimum of small problems, given time; ``greedy`` answers any size with a bound.
    time_limit_s
        When to stop with the best placement so far.
    solver
        ``highs`` or ``cbc``, for ``exact``.
    seed
        Of the search.
    work, start, moved_cost
        For ``greedy``: its effort, a placement that is in force, and what each conversation that leaves it costs. The value
        that is reported is the objective's, without that cost.

    Raises
    ------
    ProblemError
        If the method is unknown, the time limit is not positive, or the cost of a move is negative or without a start.
    SolverUnavailableError
        If the solver is not installed.
    PlanError
        If `start` breaks a rule that needs no schedule.
    """
    if method not in ("exact", "greedy"):
        raise ProblemError(f"method {method!r} is unknown; choose exact or greedy")
    if not time_limit_s > 0:
        raise ProblemError(f"time_limit_s {time_limit_s:g} must be positive; give it some seconds")
    if moved_cost and (start is None or not moved_cost > 0 or method == "exact"):
        raise ProblemError(
            f"moved_cost {moved_cost:g} needs method 'greedy', a positive cost, and a placement to move from; give start"
        )
    if start is not None and (broken := static_violations(problem, start)):
        raise PlanError(broken, "start")
    if method == "exact":
        from optsched.placement.exact import exact  # pulp is slow to import

        return exact(problem, time_limit_s=time_limit_s, solver=solver, seed=seed)
    from optsched.placement.greedy import greedy
    from optsched.placement.windows import proven_bound  # scipy is slow to import

    start_s = time.perf_counter()
    plan = greedy(problem, time_limit_s=time_limit_s, seed=seed, work=work, start=start, moved_cost=moved_cost)
    value = objective_of(problem, plan)
    bound = min(proven_bound(problem, value), value)
    proven = is_proven(value, bound)
    runtime_s = time.perf_counter() - start_s
    hit: Limit = "time" if runtime_s >= time_limit_s and not proven else "none"
    return Solved(plan, "OPTIMAL" if proven else "FEASIBLE", value, bound, hit, "greedy", runtime_s, seed)
