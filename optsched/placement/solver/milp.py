"""The solvers of placement programs, and what a program said."""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple

import pulp

from optsched.errors import SolverUnavailableError
from optsched.placement.problem import PlacementPlan

SolverName = Literal["highs", "cbc"]
SAFETY = 1e-6
"""Share by which a solver's figure gives way to its tolerances."""


class MilpAnswer(NamedTuple):
    """What the program said.

    Attributes
    ----------
    plan
        A placement, or None.
    bound
        Lower bound on every placement that is not excluded; infinite if there is none left; None if nothing is proven.
    """

    plan: PlacementPlan | None
    bound: float | None


def solver_of(name: SolverName, time_limit_s: float) -> pulp.LpSolver:
    """Return a solver that proves optimality to gap 0, within the time."""
    if name == "highs":
        solver = pulp.HiGHS(msg=False, timeLimit=time_limit_s, gapRel=0.0, threads=1, mip_feasibility_tolerance=1e-9)
    else:
        with warnings.catch_warnings():  # PuLP announces that version 4 will not bundle CBC; this project pins < 4
            warnings.simplefilter("ignore", DeprecationWarning)
            solver = pulp.PULP_CBC_CMD(msg=False, timeLimit=time_limit_s, gapRel=0.0, threads=1)
    if not solver.available():
        package = "highspy" if name == "highs" else "pulp with its bundled CBC"
        raise SolverUnavailableError(f"Solver {name!r} is not installed; it comes with {package}. Install it, or choose another.")
    return solver
