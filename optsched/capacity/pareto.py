"""The front of money and energy of a fleet problem, by epsilon-constraints on the fleet program."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from optsched.capacity.problem import FleetPlan, FleetProblem
from optsched.capacity.solve import FleetInfeasibleError, solve_fleet

Array = np.ndarray
GAP = 1e-5
_TIE = 1e-4
TIME_LIMIT_S = 20.0


@dataclass(frozen=True, eq=False, slots=True)
class Measure:
    """What is to be small: per replica, and per request per second that a type serves of a class.

    Attributes
    ----------
    name
        With its unit.
    """

    name: str
    per_replica: Float64[Array, " A"]
    per_request: Float64[Array, "A J"]

    def of(self, plan: FleetPlan) -> float:
        """Return its value for a plan."""
        return float(self.per_replica @ plan.counts + (self.per_request * plan.routed_per_s).sum())


@dataclass(frozen=True, eq=False, slots=True)
class FrontPoint:
    """A fleet of which no other is better in both measures.

    Attributes
    ----------
    first, second
        Its values.
    second_bound
        Proven: no fleet whose first measure is at most `first` has a smaller second one.
    """

    plan: FleetPlan
    first: float
    second: float
    second_bound: float


def front(problem: FleetProblem, first: Measure, second: Measure, levels: int = 6) -> tuple[FrontPoint, ...]:
    """Return fleets from the least of the first measure to the least of the second.

    Parameters
    ----------
    problem
        What is to be served; its own objective is not used, nor are changes.
    first, second
        The measures; the first must not depend on routing: it becomes a limit on replicas.
    levels
        How many limits on the first measure are tried, evenly between its least and what the least of the second takes.

    Raises
    ------
    FleetInfeasibleError
        If nothing serves everything.
    """
    plain = replace(problem, present=None, follows=None, change_cost=None)
    cheapest = solve_fleet(_minimising(plain, first), gap=GAP, time_limit_s=TIME_LIMIT_S)
    leanest = solve_fleet(_minimising(plain, second), gap=GAP, time_limit_s=TIME_LIMIT_S)
    limits = np.linspace(first.of(cheapest.plan), max(first.of(cheapest.plan), first.of(leanest.plan)), levels)
    # A little of the first measure, so that of fleets equal in the second the one better in the first is found.
    weight = _TIE * max(second.of(leanest.plan), 1e-12) / max(float(limits[0]), 1e-12)
    both = Measure("both", second.per_replica + weight * first.per_replica, second.per_request)
    found: list[FrontPoint] = []
    for limit in np.unique(limits * (1 + 1e-9)):
        limited = replace(
            plain, resources=(*plain.resources, first.name), uses=np.column_stack([plain.uses, first.per_replica]),
            limits=np.append(plain.limits, limit),
        )  # fmt: skip
        try:
            answer = solve_fleet(_minimising(limited, both), gap=GAP, time_limit_s=TIME_LIMIT_S)
        except FleetInfeasibleError:  # by a rounding error, at the lowest limit
            answer = replace(cheapest, bound=0.0)
        value, bound = second.of(answer.plan), answer.bound - weight * float(limit)
        found.append(FrontPoint(answer.plan, first.of(answer.plan), value, min(bound, value)))
    keep = nondominated(np.array([(point.first, point.second) for point in found]))
    return tuple(found[index] for index in keep)


def _minimising(problem: FleetProblem, measure: Measure) -> FleetProblem:
    return replace(problem, cost=measure.per_replica, request_cost=measure.per_request)


def nondominated(values: Float64[Array, "N M"]) -> list[int]:
    """Return the rows that no other row is at least as small as in all columns, and of equal ones the first; ordered by value."""
    kept = []
    for index, row in enumerate(values):
        no_larger = np.all(values <= row * (1 + 1e-9), axis=1)
        equal = np.all(np.abs(values - row) <= 1e-9 * np.abs(row), axis=1)
        if not np.any(no_larger & ~equal) and not equal[:index].any():
            kept.append(index)
    return sorted(kept, key=lambda index: tuple(values[index]))
