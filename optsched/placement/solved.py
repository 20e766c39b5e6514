"""The answer of a placement solver, and the certificate that a plan file carries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from optsched.domain.plan import Certificate, Status
from optsched.errors import PlanError
from optsched.placement.bound import lower_bound
from optsched.placement.evaluate import EVALUATOR, evaluate
from optsched.placement.problem import GOALS, PlacementPlan, PlacementProblem

Limit = Literal["none", "time", "iterations"]
PROVEN = 1e-9
"""A value within this share of its bound is proven optimal."""


@dataclass(frozen=True, slots=True)
class Solved:
    """A placement with its value, a proven bound, and why the solver stopped.

    Attributes
    ----------
    plan
        The placement; None if none was found.
    status
        OPTIMAL: no placement is better. FEASIBLE: a limit was hit, or the method proves no more.
    value, bound
        Of the problem's objective under the evaluator.
    limit
        What stopped the solver early.
    """

    plan: PlacementPlan
    status: Status
    value: float
    bound: float
    limit: Limit
    solver: str
    runtime_s: float
    seed: int = 0

    @property
    def gap(self) -> float:
        """``(value - bound) / value``, 0 when proven optimal."""
        return relative_gap(self.value, self.bound)


def relative_gap(value: float, bound: float) -> float:
    """Return ``(value - bound) / value``; 0 where the value is 0 or proven."""
    return 0.0 if is_proven(value, bound) or value <= 0 else (value - bound) / value


def is_proven(value: float, bound: float) -> bool:
    """Tell whether a value meets its bound."""
    return value <= bound * (1 + PROVEN)


def certificate(
    problem: PlacementProblem, plan: PlacementPlan, bound: float | None = None, solver: str = "policy"
) -> Certificate:
    """Certify a placement, however it was found.

    Parameters
    ----------
    problem, plan
        The problem and the placement.
    bound
        A proven bound if one better than the elementary ones is known.
    solver
        What found the placement.

    Raises
    ------
    PlanError
        If the placement breaks the problem.
    """
    value = evaluate(problem, plan).value(problem.objective)
    proven = max(lower_bound(problem).value, float("-inf") if bound is None else bound)
    # A latency is a difference of moments, which are as exact as doubles of that size.
    exact = 8 * float(np.spacing(problem.workload.arrival_s.max())) if problem.objective == "ttfet" else 0.0
    if proven > value * (1 + PROVEN) + 1e-12 + exact:
        raise PlanError([f"its value {value:g} lies below the bound {proven:g} that was given; one of them is wrong"])
    proven = min(proven, value)
    return Certificate(
        evaluator=EVALUATOR,
        objective=GOALS[problem.objective],
        value=value,
        bound=proven,
        gap=relative_gap(value, proven),
        status="OPTIMAL" if is_proven(value, proven) else "FEASIBLE",
        solver=solver,
    )
