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
    each f in F: y_aj^f (``after_f_a_j``), R_f (``left_f``) integer, v_f (``gone_f``) binary

==============================  ===================================================  ==============================
name in the solver              constraint                                           function
==============================  ===================================================  ==============================
``prefilled_j``, ``decoded_j``  sum_(a in P) y_aj >= 1; the same over D              `serve_every_class`
``load_a``                      sum_j b_aj y_aj <= N_a                               `keep_within_utilisation`
``limit_k``                     sum_a w_ak N_a <= L_k                                `keep_within_limits`
``added_a``, ``removed_a``      g_a >= N_a - n_a, g_a >= n_a - N_a                   `count_changes`
``whole_a_j``                   y_aj = z_aj                                          `keep_classes_whole`
``left_f``, ``gone_f``          R_f <= N_f - l_f (1 - v_f), R_f <= M_f (1 - v_f)     `survive`
==============================  ===================================================  ==============================

After the failure f the first two rows hold again for y^f, with R_f replicas of type f. Rows of F are added only for failures
that the fleet found so far does not survive; the last program's bound is a bound on the whole. A stage that is served more than
once over is trimmed afterwards: first mixed types to the whole class, then the others to what these leave.

Objective: minimise sum_a c_a N_a + sum_aj e_aj y_aj + sum_a m_a g_a.

Identical replicas are counted, not named, so there is no symmetry to break. Shares instead of requests per second keep the
coefficients near 1: solvers' absolute tolerances would otherwise let a few requests of a small class go unserved.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import pulp

from optsched.capacity.problem import FleetPlan, FleetProblem
from optsched.errors import SolverUnavailableError

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
        self.share = self._shares("share", self.classes)
        self.serve_every_class("", self.share, self.count, self.classes)
        self.keep_within_utilisation("", self.share, self.count)
        self.keep_within_limits()
        self.changed: dict[int, pulp.LpVariable] = {}
        self.count_changes()
        self.keep_classes_whole()
        self.minimise_cost()

    def _shares(self, name: str, classes: Collection[int]) -> Shares:
        flowing = [(a, j) for a in self.types if a not in self.direct for j in self.served[a] if j in classes]
        return {(a, j): self.program.add_variable(f"{name}_{a}_{j}", lowBound=0, upBound=1) for a, j in flowing}

    def _direct_share(self, a: int) -> float:
        """Return the share of its one class that a replica serves; where counts are whole, it is never worth more than 1."""
        share = 1 / self.problem.load(a, self.served[a][0])
        return share if self.category == pulp.LpContinuous else min(1.0, share)

    def _touched(self, failed: int) -> set[int]:
        """Return the classes that a type serves, or that share a type with one of these, and so on."""
        found = set(self.served[failed])
        while True:
            more = {j for a in self.types if found.intersection(self.served[a]) for j in self.served[a]}
            if more <= found:
                return found
            found |= more

    def serve_every_class(self, prefix: str, shares: Shares, counts: Counts, classes: Collection[int]) -> None:
        """Require that all requests of each class are prefilled, and decoded."""
        for stage, attribute in PER_CLASS.items():
            able = getattr(self.problem, attribute)
            for j in classes:
                if self.problem.demand_per_s[j] == 0:
                    continue
                terms = [(shares[a, j], 1.0) for a in able if (a, j) in shares]
                terms += [(counts[a], self._direct_share(a)) for a in able if a in self.direct and self.served[a] == [j]]
                self.program += pulp.LpAffineExpression(terms) >= 1, f"{prefix}{stage}_{j}"

    def keep_within_utilisation(self, prefix: str, shares: Shares, counts: Counts) -> None:
        """Require that each type's replicas can do their work: ``sum_j b_aj y_aj <= N_a``."""
        for a in self.types:
            work = [(shares[a, j], self.problem.load(a, j)) for j in self.served[a] if (a, j) in shares]
            if work:
                self.program += pulp.LpAffineExpression(work) <= counts[a], f"{prefix}load_{a}"

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

    def survive(self, failed: int) -> None:
        """Require that everything is still served when one failure took its replicas of a type away."""
        if self.problem.lost is None:
            return
        lost, most = int(self.problem.lost[failed]), int(self.ceiling[failed])
        left = self.program.add_variable(f"left_{failed}", lowBound=0, upBound=most, cat=self.category)
        gone = self.program.add_variable(f"gone_{failed}", cat=pulp.LpBinary)
        self.program += left <= self.count[failed] - lost + lost * gone, f"left_{failed}"
        self.program += left <= most - most * gone, f"gone_{failed}"
        # What the failure does not touch is served as before.
        touched = self._touched(failed)
        shares, counts = self._shares(f"after_{failed}", touched), {**self.count, failed: left}
        self.serve_every_class(f"after_{failed}_", shares, counts, touched)
        self.keep_within_utilisation(f"after_{failed}_", shares, counts)

    def extract_plan(self) -> FleetPlan:
        """Return the fleet of the solution; counts are rounded, and shares beyond the whole class are trimmed."""
        counts = np.array([round(self.count[a].value() or 0.0) for a in self.types], np.int64)
        shares = np.zeros((len(self.types), len(self.classes)))
        for (a, j), share in self.share.items():
            shares[a, j] = max(0.0, share.value() or 0.0)
        for a in self.direct:
            shares[a, self.served[a][0]] = min(1.0, counts[a] / self.problem.load(a, self.served[a][0]))
        roles = np.array(self.problem.roles)
        shares[roles == "mixed"] /= np.maximum(1.0, shares[roles == "mixed"].sum(axis=0))
        left = 1 - shares[roles == "mixed"].sum(axis=0)
        for role in ("prefill", "decode"):
            total = shares[roles == role].sum(axis=0)
            shares[roles == role] *= np.divide(left, total, out=np.zeros_like(total), where=total > 0)
        return FleetPlan(counts, shares * self.problem.demand_per_s)


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
