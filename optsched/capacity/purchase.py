"""What a fleet lacks, bought at the least cost: a linear program that is solved again and again from where it stopped.

Replicas N_a of each type are bought as fractions, at least those that there are, n_a; y_aj is the share of class j on type a::

    minimise sum_a c_a N_a   s.t.  sum_(a in P) y_aj >= 1,  sum_(a in D) y_aj >= 1,  sum_j b_aj y_aj <= N_a,  N_a >= n_a

P and D, types that prefill and that decode, and b_aj are those of `optsched.capacity.fleet`. HiGHS is called without PuLP: only
the bounds n_a change from one question to the next, and PuLP would hand over the whole program anew.
"""

from __future__ import annotations

import highspy
import numpy as np
from jaxtyping import Bool, Float64, Int64

from optsched.capacity.problem import FleetPlan, FleetProblem

Array = np.ndarray
EXACT = 1e-9
PRIMAL = 4
"""HiGHS' primal simplex method: here it takes two thirds of the dual one's time."""


class Purchase:
    """The program of one problem, whose classes may be split; limits, changes and failures have no part in it.

    Parameters
    ----------
    problem
        What is to be served, by what.

    Attributes
    ----------
    load
        Replicas of type a that all of class j would occupy; infinite where it cannot serve it.
    demanded
        The classes of which there are requests.
    """

    def __init__(self, problem: FleetProblem) -> None:
        self.problem = problem
        self.load = problem.loads()
        self.demanded: Bool[Array, " J"] = problem.demand_per_s > 0
        self._type, self._class = np.nonzero(np.isfinite(self.load) & self.demanded)
        self._first = len(self._type)
        self._solver = highspy.Highs()  # type: ignore[no-untyped-call]
        options: dict[str, bool | int | float | str] = {
            "output_flag": False,
            "threads": 1,
            "presolve": "off",
            "simplex_strategy": PRIMAL,
        }
        options |= {"primal_feasibility_tolerance": EXACT, "dual_feasibility_tolerance": EXACT}
        for name, value in options.items():
            self._solver.setOptionValue(name, value)
        self._solver.passModel(self._program())

    def _program(self) -> highspy.HighsLp:
        """Return the program column by column: first the shares, then the replicas."""
        problem, flows, types, classes = self.problem, self._first, len(self.problem.types), len(self.problem.classes)
        roles = np.array(problem.roles)[self._type]
        # Where all types are mixed, one row of a class does for both stages.
        without = ("none",) if np.all(roles == "mixed") else ("decode", "prefill")
        columns, rows, values = [np.arange(flows)], [self._type], [self.load[self._type, self._class]]
        for number, other in enumerate(without):
            able = np.flatnonzero(roles != other)
            columns.append(able)
            rows.append(types + number * classes + self._class[able])
            values.append(np.ones(len(able)))
        columns.append(flows + np.arange(types))
        rows.append(np.arange(types))
        values.append(np.full(types, -1.0))
        column = np.concatenate(columns)
        order = np.argsort(column, kind="stable")
        program, infinite = highspy.HighsLp(), highspy.kHighsInf
        program.num_col_, program.num_row_ = flows + types, types + len(without) * classes
        program.col_cost_ = np.concatenate([np.zeros(flows), problem.cost])
        program.col_lower_, program.col_upper_ = np.zeros(flows + types), np.full(flows + types, infinite)
        least = np.tile(self.demanded.astype(float), len(without))
        program.row_lower_ = np.concatenate([np.full(types, -infinite), least])
        program.row_upper_ = np.concatenate([np.zeros(types), np.full(len(least), infinite)])
        matrix = program.a_matrix_
        matrix.format_ = highspy.MatrixFormat.kColwise
        matrix.start_ = np.searchsorted(column[order], np.arange(flows + types + 1)).astype(np.int32)
        matrix.index_ = np.concatenate(rows)[order].astype(np.int32)
        matrix.value_ = np.concatenate(values)[order]
        return program

    def prices(self, counts: Float64[Array, " A"]) -> Float64[Array, " A"] | None:
        """Buy what so many replicas lack; return what one more of each type would have saved, None if nothing is enough."""
        types = len(self.problem.types)
        bought = np.arange(self._first, self._first + types, dtype=np.int32)
        self._solver.changeColsBounds(types, bought, counts, np.full(types, highspy.kHighsInf))
        self._solver.run()
        if self._solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        return np.asarray(np.maximum(0.0, -np.array(self._solver.getSolution().row_dual[:types])))

    def plan(self, counts: Int64[Array, " A"]) -> FleetPlan | None:
        """Return the routing over these replicas, about which `prices` was asked last; None if they do not serve everything."""
        values = np.array(self._solver.getSolution().col_value)
        if np.any(values[self._first :] - counts > EXACT * (1 + counts)):
            return None
        shares = np.zeros(self.load.shape)
        shares[self._type, self._class] = np.maximum(0.0, values[: self._first])
        return self.problem.routed(counts, shares)
