"""The cheapest fleet as a mixed-integer linear program: counts are whole, routing is continuous.

Sets
    A: replica types; P and D: those that prefill and that decode (mixed ones do both); J: classes, J_a: those that a serves;
    K: resources; F: types whose failure is insured against
Parameters
    b_aj replicas of type a that all of class j would occupy, at the limit of utilisation; c_a and e_aj cost per replica and of
    serving all of a class; w_ak units of k that a replica takes, L_k units that there are, n_a replicas today (or N of the
    same type in the period before), m_a cost of adding or removing one, l_a replicas lost in a failure
Variables
    N_a (``count_a``) integer; y_aj (``share_a_j``) share of class j, for types that serve several classes or serve at a cost; of
    the others y_aj stands for min(1, 1/b_aj) N_a; g_a (``changed_a``) replicas added or removed; z_aj (``only_a_j``) binary; for
    each f in F: R_f (``left_f``) integer, v_f (``gone_f``) binary

==============================  ===================================================  ==============================
name in the solver              constraint                                           function
==============================  ===================================================  ==============================
``prefilled_j``, ``decoded_j``  sum_(a in P) y_aj >= 1; the same over D              `serve_every_class`
``load_a``                      sum_j b_aj y_aj <= N_a                               `keep_within_utilisation`
``limit_k``                     sum_a w_ak N_a <= L_k                                `keep_within_limits`
``added_a``, ``removed_a``      g_a >= N_a - n_a, g_a >= n_a - N_a                   `count_changes`
``whole_a_j``                   y_aj = z_aj                                          `keep_classes_whole`
``left_f``, ``gone_f``          R_f <= N_f - l_f (1 - v_f), R_f <= M_f (1 - v_f)     `survive`
``after_f_i``                   sum_(a != f) u_ia N_a + u_if R_f >= 1                `survive`
==============================  ===================================================  ==============================

Counts N serve everything if and only if u N >= 1 for all prices u at which the whole demand costs at least 1 (duality of the
routing program). So where a failure leaves a fleet that cannot serve everything, its routing program's duals u_i are a cut, and
valid for the failure of every type (Benders' decomposition). Cuts are added only for fleets found so far; the last program's
bound is a bound on the whole. A stage that is served more than once over is trimmed afterwards: first mixed types to the whole
class, then the others to what these leave.

Objective: minimise sum_a c_a N_a + sum_aj e_aj y_aj + sum_a m_a g_a.

Identical replicas are counted, not named, so there is no symmetry to break. Shares instead of requests per second keep the
coefficients near 1: solvers' absolute tolerances would otherwise let a few requests of a small class go unserved.
"""

from __future__ import annotations

import math

import numpy as np
import pulp
from jaxtyping import Float64

from optsched.capacity.problem import FleetPlan, FleetProblem
from optsched.errors import SolverUnavailableError

Array = np.ndarray
Shares = dict[tuple[int, int], pulp.LpVariable]
Counts = dict[int, pulp.LpVariable]
PER_CLASS = {"prefilled": "prefills", "decoded": "decodes"}


class FleetFormulation:
    """The program of one fleet problem.

    Parameters
    ----------
    problem
        What to solve.
    relaxed
        Let counts be fractions.
    """

    def __init__(self, problem: FleetProblem, relaxed: bool = False) -> None:
        self.problem = problem
        self.types, self.classes = range(len(problem.types)), range(len(problem.classes))
        self.ceiling = problem.ceiling()
        self.program = pulp.LpProblem("fleet", pulp.LpMinimize)
        self.category = pulp.LpContinuous if relaxed else pulp.LpInteger
        add = self.program.add_variable
        self.count = {a: add(f"count_{a}", lowBound=0, upBound=int(self.ceiling[a]), cat=self.category) for a in self.types}
        self.served = [[j for j in self.classes if problem.serves(a, j) and problem.demand_per_s[j] > 0] for a in self.types]
        self.direct = {
            a for a in self.types if len(self.served[a]) == 1 and not problem.whole and not problem.request_cost[a].any()
        }
        self.share = self._shares("share")
        self.serve_every_class()
        self.keep_within_utilisation()
        self.keep_within_limits()
        self.changed: Counts = {}
        self.left: Counts = {}
        self.priced = 0
        self.count_changes()
        self.keep_classes_whole()
        self.minimise_cost()

    def _shares(self, name: str) -> Shares:
        flowing = [(a, j) for a in self.types if a not in self.direct for j in self.served[a]]
        return {(a, j): self.program.add_variable(f"{name}_{a}_{j}", lowBound=0, upBound=1) for a, j in flowing}

    def _direct_share(self, a: int) -> float:
        """Return the share of its one class that a replica serves; where counts are whole, it is never worth more than 1."""
        share = 1 / self.problem.load(a, self.served[a][0])
        return share if self.category == pulp.LpContinuous else min(1.0, share)

    def serve_every_class(self) -> None:
        """Require that all requests of each class are prefilled, and decoded."""
        for stage, attribute in PER_CLASS.items():
            able = getattr(self.problem, attribute)
            for j in self.classes:
                if self.problem.demand_per_s[j] == 0:
                    continue
                terms = [(self.share[a, j], 1.0) for a in able if (a, j) in self.share]
                terms += [(self.count[a], self._direct_share(a)) for a in able if a in self.direct and self.served[a] == [j]]
                self.program += pulp.LpAffineExpression(terms) >= 1, f"{stage}_{j}"

    def keep_within_utilisation(self) -> None:
        """Require that each type's replicas can do their work: ``sum_j b_aj y_aj <= N_a``."""
        for a in self.types:
            work = [(self.share[a, j], self.problem.load(a, j)) for j in self.served[a] if (a, j) in self.share]
            if work:
                self.program += pulp.LpAffineExpression(work) <= self.count[a], f"load_{a}"

    def keep_within_limits(self) -> None:
        """Require that the fleet takes no more of a resource than there is."""
        for k, limit in enumerate(self.problem.limits.tolist()):
            used = pulp.LpAffineExpression([(self.count[a], float(self.problem.uses[a, k])) for a in self.types])
            self.program += used <= limit, f"limit_{k}"

    def count_changes(self) -> None:
        """Count the replicas added to or removed from those that run today, or in the period before."""
        present, follows = self.problem.present, self.problem.follows
        for a in self.types:
            if present is not None:
                now: int | pulp.LpVariable = int(present[a])
            elif follows is not None and follows[a] >= 0:
                now = self.count[int(follows[a])]
            else:
                continue
            self.changed[a] = self.program.add_variable(f"changed_{a}", lowBound=0)
            self.program += self.changed[a] >= self.count[a] - now, f"added_{a}"
            self.program += self.changed[a] >= now - self.count[a], f"removed_{a}"

    def keep_classes_whole(self) -> None:
        """Require, if asked, that a class is served by one type of each stage."""
        if not self.problem.whole:
            return
        for (a, j), share in self.share.items():
            only = self.program.add_variable(f"only_{a}_{j}", cat=pulp.LpBinary)
            self.program += share == only, f"whole_{a}_{j}"

    def minimise_cost(self) -> None:
        """Minimise what replicas, requests and changes cost."""
        terms = [(self.count[a], float(self.problem.cost[a])) for a in self.types]
        demand = self.problem.demand_per_s
        terms += [(share, float(self.problem.request_cost[a, j] * demand[j])) for (a, j), share in self.share.items()]
        if self.problem.change_cost is not None:
            terms += [(changed, float(self.problem.change_cost[a])) for a, changed in self.changed.items()]
        self.program.setObjective(pulp.LpAffineExpression(terms))

    def survive(self, price: Float64[Array, " A"]) -> None:
        """Require that what any failure leaves is worth the whole demand: ``sum_a u_a N_a - u_f (N_f - R_f) >= 1``.

        Parameters
        ----------
        price
            u_a, of a replica, at which no fleet that serves everything is worth less than 1
            (`optsched.capacity.survival.shortage_prices`).
        """
        if not self.left:
            self._count_what_is_left()
        worth = [(a, float(price[a])) for a in self.types if price[a] > 0]
        for failed, left in self.left.items():
            if price[failed] > 0:
                terms = [(left if a == failed else self.count[a], each) for a, each in worth]
                self.program += pulp.LpAffineExpression(terms) >= 1, f"after_{failed}_{self.priced}"
        self.priced += 1

    def _count_what_is_left(self) -> None:
        """Count the replicas of each type after its failure: ``R_f <= max(0, N_f - l_f)``."""
        for a in self.types:
            lost, most = 0 if self.problem.lost is None else int(self.problem.lost[a]), int(self.ceiling[a])
            if lost and most:
                self.left[a] = self.program.add_variable(f"left_{a}", lowBound=0, upBound=most, cat=self.category)
                gone = self.program.add_variable(f"gone_{a}", cat=pulp.LpBinary)
                self.program += self.left[a] <= self.count[a] - lost + lost * gone, f"left_{a}"
                self.program += self.left[a] <= most - most * gone, f"gone_{a}"

    def extract_plan(self) -> FleetPlan:
        """Return the fleet of the solution; counts are rounded, and shares beyond the whole class are trimmed."""
        counts = np.array([round(self.count[a].value() or 0.0) for a in self.types], np.int64)
        shares = np.zeros((len(self.types), len(self.classes)))
        for (a, j), share in self.share.items():
            shares[a, j] = max(0.0, share.value() or 0.0)
        for a in self.direct:
            shares[a, self.served[a][0]] = min(1.0, counts[a] / self.problem.load(a, self.served[a][0]))
        return self.problem.routed(counts, shares)


def make_solver(time_limit_s: float | None, gap: float) -> pulp.LpSolver:
    """Return HiGHS, to be stopped at a relative gap or after a time.

    Raises
    ------
    SolverUnavailableError
        If it is not installed.
    """
    # Restarts presolve the program anew after fixing some counts; with as few rows as these, that costs more than it saves.
    options = {"mip_feasibility_tolerance": 1e-9, "mip_allow_restart": False}
    solver = pulp.HiGHS(msg=False, timeLimit=time_limit_s, gapRel=gap, gapAbs=0.0, threads=1, **options)
    if not solver.available():
        raise SolverUnavailableError("Solver 'highs' is not installed; it comes with highspy. Install it.")
    return solver


def dual_bound(program: pulp.LpProblem) -> float:
    """Return the bound that HiGHS proved for a program that it stopped or finished; minus infinity if none."""
    bound = float(program.solverModel.getInfo().mip_dual_bound)
    return bound if math.isfinite(bound) else -math.inf
