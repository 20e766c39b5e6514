"""What one more unit is worth: the duals of the relaxed fleet problem, solved with cvxpy."""

from __future__ import annotations

from dataclasses import dataclass

import cvxpy as cp
import numpy as np
from jaxtyping import Float64

from optsched.capacity.problem import FleetProblem
from optsched.errors import InfeasibleError, SolveError

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of the relaxation, in which counts may be fractions.

    Attributes
    ----------
    value
        Its least cost: a lower bound on every fleet.
    limits
        Per resource, by how much one more unit would lower that cost; 0 where the limit does not bind.
    demand
        Per class, by how much one more request per second would raise it.
    """

    value: float
    limits: Float64[Array, " K"]
    demand: Float64[Array, " J"]


def relaxation_prices(problem: FleetProblem) -> Prices:
    """Return the prices of a fleet problem's relaxation; failures and whole classes are left out of it.

    Raises
    ------
    InfeasibleError
        If even fractions of replicas cannot serve everything.
    SolveError
        If the solver gives up.
    """
    served = np.argwhere(problem.rate_per_s > 0)
    types, flows, classes = len(problem.types), len(served), len(problem.classes)
    counts, routed = cp.Variable(types, nonneg=True), cp.Variable(flows, nonneg=True)
    load, stages = np.zeros((types, flows)), np.zeros((2, classes, flows))
    cost = np.zeros(flows)
    for index, (a, j) in enumerate(served.tolist()):
        load[a, index] = 1 / (problem.rate_per_s[a, j] * problem.utilisation[a])
        stages[0, j, index] = problem.roles[a] != "decode"
        stages[1, j, index] = problem.roles[a] != "prefill"
        cost[index] = problem.request_cost[a, j]
    within = cp.Constant(problem.uses.T) @ counts <= problem.limits
    stage = [cp.Zero(matrix @ routed - problem.demand_per_s) for matrix in stages]
    rows = [cp.Constant(load) @ routed <= counts]
    objective = problem.cost @ counts + cost @ routed
    if problem.change_cost is not None:
        changed = cp.Variable(types, nonneg=True)
        objective = objective + problem.change_cost @ changed
        before = problem.present if problem.present is not None else cp.Constant(_carried(problem)) @ counts
        rows += [counts - before <= changed, before - counts <= changed]
    program = cp.Problem(cp.Minimize(objective), [within, *stage, *rows])
    program.solve(solver=cp.HIGHS)  # type: ignore[no-untyped-call]
    if program.status in ("infeasible", "infeasible_or_unbounded"):
        raise InfeasibleError("Even fractions of replicas cannot serve everything within the limits; no limit has a price.")
    if program.status != "optimal":
        raise SolveError(f"The prices' program ended as {program.status!r}.")
    # cvxpy adds the multiplier y of a row `left == right` to the objective as y (left - right).
    demand = -np.sum([np.asarray(row.dual_value, float) for row in stage], axis=0)
    return Prices(float(program.value), np.asarray(within.dual_value, float), demand)


def _carried(problem: FleetProblem) -> np.ndarray:
    """Return the matrix that makes the counts before of the counts."""
    types = len(problem.types)
    follows = np.arange(types) if problem.follows is None else np.where(problem.follows >= 0, problem.follows, np.arange(types))
    return np.eye(types)[follows]
