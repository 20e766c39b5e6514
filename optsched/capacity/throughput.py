"""The most traffic that a supply serves: the fleet program with its objective and its demand changing places.

Counts N_a and shares y_aj as in `optsched.capacity.fleet`, and the factor s on all demands::

    maximise s   s.t.  sum_(a in P) y_aj >= s,  sum_(a in D) y_aj >= s,  sum_j b_aj y_aj <= N_a,  sum_a w_ak N_a <= L_k

Of fleets that serve equally much (to a millionth), one that leaves the least of the limits unused is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from optsched.capacity.problem import FleetProblem
from optsched.errors import InfeasibleError, NoPlanError

Array = np.ndarray


@dataclass(frozen=True, eq=False, slots=True)
class LargestTraffic:
    """A fleet that serves the most.

    Attributes
    ----------
    counts
        Replicas of each type.
    factor, bound
        How many times the problem's demand it serves, and how many times no fleet within the limits can serve more.
    """

    counts: Int64[Array, " A"]
    factor: float
    bound: float


def largest_traffic(problem: FleetProblem, *, time_limit_s: float = 30.0) -> LargestTraffic:
    """Return the fleet that serves the largest multiple of a problem's demand.

    Parameters
    ----------
    problem
        What is served, by what; costs, changes and failures are not used.
    time_limit_s
        When to stop without a proof.

    Raises
    ------
    InfeasibleError
        If some class cannot be served at all.
    NoPlanError
        If the time ran out before any fleet was found.
    """
    types, served = len(problem.types), np.argwhere((problem.rate_per_s > 0) & (problem.demand_per_s > 0))
    flows, size = len(served), types + len(served) + 1
    rows: list[tuple[int, int, float]] = []
    row = 0
    for stage in (problem.prefills, problem.decodes):
        for j in np.flatnonzero(problem.demand_per_s > 0).tolist():
            rows += [(row, types + f, 1.0) for f, (a, k) in enumerate(served.tolist()) if k == j and a in stage]
            rows.append((row, size - 1, -1.0))
            row += 1
    stages = row
    for f, (a, j) in enumerate(served.tolist()):
        rows.append((stages + a, types + f, -problem.load(a, j)))
    rows += [(stages + a, a, 1.0) for a in range(types)]
    first = stages + types
    rows += [(first + k, a, -float(problem.uses[a, k])) for a, k in np.argwhere(problem.uses > 0).tolist()]
    index, column, value = (np.array(each) for each in zip(*rows, strict=True))
    matrix = csr_array((value, (index, column)), shape=(first + len(problem.limits), size))
    low = np.concatenate([np.zeros(first), -problem.limits])
    used = (problem.uses[:, problem.limits > 0] / problem.limits[problem.limits > 0]).sum(axis=1)
    answer = milp(
        np.concatenate([-1e-6 * used, np.zeros(flows), [-1.0]]),
        integrality=np.concatenate([np.ones(types), np.zeros(flows + 1)]), bounds=Bounds(0, np.inf),
        constraints=LinearConstraint(matrix, low, np.inf), options={"time_limit": time_limit_s, "mip_rel_gap": 1e-6},
    )  # fmt: skip
    if answer.x is None and answer.status != 1:  # serving nothing is always possible, so the program is unbounded
        raise InfeasibleError("Nothing limits the fleet, so nothing limits its traffic; give [supply] a count, or limits.")
    if answer.x is None:
        raise NoPlanError("No fleet was found in the time allowed. Allow more.")
    counts = np.rint(answer.x[:types]).astype(np.int64)
    if answer.x[-1] <= 0:
        raise InfeasibleError(
            "The supply serves no traffic at all within its targets. Loosen them, or raise a count in [supply]."
        )
    return LargestTraffic(counts, float(answer.x[-1]), float(-answer.mip_dual_bound))
