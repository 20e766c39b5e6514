"""Does a fleet survive a failure? Asked of the linear program of what is left."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64
from scipy.optimize import linprog

from optsched.capacity.problem import TOLERANCE, FleetPlan, FleetProblem

Array = np.ndarray


def fatal_failures(problem: FleetProblem, plan: FleetPlan) -> list[int]:
    """Return the types whose failure leaves a fleet that cannot serve everything; empty if no failure is asked to be survived."""
    if problem.lost is None:
        return []
    exposed = np.flatnonzero((plan.counts > 0) & (problem.lost > 0)).tolist()
    return [a for a in exposed if not can_serve(problem, _without(problem, plan, a))]


def can_serve(problem: FleetProblem, counts: np.ndarray) -> bool:
    """Tell whether so many replicas of each type can serve all classes, however they are routed."""
    return largest_share(problem, counts) >= 1 - TOLERANCE


def largest_share(problem: FleetProblem, counts: np.ndarray) -> float:
    """Return the largest share, at most 1, of every class's demand that so many replicas can serve at once."""
    return _routing(problem, counts)[0]


def shortage_prices(problem: FleetProblem, counts: np.ndarray) -> Float64[Array, " A"] | None:
    """Return prices at which so many replicas are worth less than 1, and all that serve everything more; None if they do."""
    share, price = _routing(problem, counts)
    return None if share >= 1 - TOLERANCE else price


def traffic_prices(problem: FleetProblem, counts: np.ndarray) -> tuple[float, Float64[Array, " A"]]:
    """Return how many times the demand so many replicas serve, and prices u at which no counts N serve more than u N times."""
    return _routing(problem, counts, np.inf)


def _routing(problem: FleetProblem, counts: np.ndarray, most: float = 1.0) -> tuple[float, Float64[Array, " A"]]:
    """Maximise the share t of all demands that is served; return it, and what one more replica of each type adds to it.

    If t is less than the most allowed, these duals u, of the rows ``sum_j x_aj / rate_aj <= N_a``, satisfy t = u N, and
    t' <= u N' for any other counts.
    """
    types, classes = len(problem.types), len(problem.classes)
    served = np.argwhere(problem.rate_per_s > 0)
    if len(served) == 0:
        return (0.0 if problem.demand_per_s.any() else 1.0), np.zeros(types)
    load, stages = np.zeros((types, len(served))), np.zeros((2 * classes, len(served)))
    for index, (a, j) in enumerate(served.tolist()):
        load[a, index] = 1 / (problem.rate_per_s[a, j] * problem.utilisation[a])
        stages[j, index] = -1.0 if problem.roles[a] != "decode" else 0.0
        stages[classes + j, index] = -1.0 if problem.roles[a] != "prefill" else 0.0
    # Serving more than that of a stage is allowed: what is too much can be
    # taken from the flows of the other types.
    demand = np.concatenate([problem.demand_per_s, problem.demand_per_s])
    rows = np.block([[load, np.zeros((types, 1))], [stages, demand[:, None]]])
    limits = np.concatenate([counts.astype(float), np.zeros(2 * classes)])
    answer = linprog(
        np.append(np.zeros(len(served)), -1.0), A_ub=rows, b_ub=limits, bounds=[(0, None)] * len(served) + [(0, most)]
    )
    if answer.status != 0:
        return 0.0, np.zeros(types)
    price = -np.asarray(answer.ineqlin.marginals[:types], float)
    return float(-answer.fun), np.where(price > 1e-12 * max(1e-300, float(price.max())), price, 0.0)


def failures_not_survived(problem: FleetProblem, plan: FleetPlan) -> dict[int, Float64[Array, " A"]]:
    """Return the types whose failure leaves a fleet that cannot serve everything, each with the prices that show it."""
    found = {}
    for a in fatal_failures(problem, plan):
        price = shortage_prices(problem, _without(problem, plan, a))
        if price is not None:
            found[a] = price
    return found


def _without(problem: FleetProblem, plan: FleetPlan, failed: int) -> np.ndarray:
    assert problem.lost is not None
    counts = plan.counts.copy()
    counts[failed] = max(0, counts[failed] - problem.lost[failed])
    return counts
