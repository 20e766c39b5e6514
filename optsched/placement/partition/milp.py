"""Placement as a partition into sets of conversations, each timed by the evaluator: exact where replicas are independent.

Sets
    C: conversations; K: kinds of replicas, n_k of each; S_k: sets of conversations that a replica of kind k holds
Parameters
    T_ckS: TTFET of c in set S on kind k; h_kS: its last token; j_kS: its dynamic energy; m_kS: its missed targets; n_late
Variables
    x_kS (``set_k_S``) in {0, 1}: a replica of kind k gets exactly S; theta (``percentile``); H (``makespan``);
    l_c (``late_c``) in {0, 1}: c is beyond the percentile

===============  ==================================================  =========================
name             constraint                                          function
===============  ==================================================  =========================
``cover_c``      sum_(k, S with c) x_kS = 1                          `cover_each_conversation`
``kind_k``       sum_S x_kS <= n_k                                   `use_each_replica_once`
``ttfet_c``      sum_(k, S with c) T_ckS x_kS <= theta + M l_c       `answer_by_the_percentile`
``count``        sum_c l_c <= n_late                                 `answer_by_the_percentile`
``end_c``        sum_(k, S with c) h_kS x_kS <= H                    `end_by_the_makespan`
``limit_NAME``   an objective stays within a limit                   `keep_within`
===============  ==================================================  =========================

Replicas of a kind need no names, so that there is no symmetry among them. Sets whose own figures exclude a value below the
best known one are left out.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pulp
from jaxtyping import Bool, Float64

from optsched.placement.partition.columns import Columns, ColumnTable, column_table
from optsched.placement.problem import Goal, PlacementPlan, PlacementProblem, percentile_rank
from optsched.placement.queues import NOBODY
from optsched.placement.solver.milp import SAFETY, MilpAnswer, SolverName, solver_of

Array = np.ndarray


class PartitionFormulation:
    """The partition program of a problem whose replicas are independent.

    Parameters
    ----------
    problem
        What to solve; it must be `independent`.
    better_than
        A value that is known: only placements that are no worse are looked for.
    limits
        Other objectives that must stay within a limit, for Pareto fronts.
    table
        The timed sets, if they are there already.
    """

    def __init__(
        self, problem: PlacementProblem, *, better_than: float = float("inf"), limits: Mapping[Goal, float] | None = None,
        table: ColumnTable | None = None,
    ) -> None:  # fmt: skip
        self.problem, self.limits = problem, dict(limits or {})
        self.table = column_table(problem) if table is None else table
        self.conversations = range(problem.workload.num_conversations)
        self.scale = better_than if 0 < better_than < float("inf") and problem.objective != "slo_misses" else 1.0
        self.program = pulp.LpProblem("partition", pulp.LpMinimize)
        self.sets = {
            (k, int(mask)): self.program.add_variable(f"set_{k}_{mask}", cat=pulp.LpBinary)
            for k, columns in enumerate(self.table.columns)
            for mask in np.flatnonzero(self._useful(columns, better_than))
        }
        self.cover_each_conversation()
        self.use_each_replica_once()
        goals = {problem.objective, *self.limits}
        if "ttfet" in goals:
            self.answer_by_the_percentile()
        if goals & {"energy", "cost"}:
            self.end_by_the_makespan()
        for goal, limit in self.limits.items():
            self.keep_within(goal, limit)
        self.program += self._of(problem.objective) * (1.0 / self.scale)

    def _useful(self, columns: Columns, better_than: float) -> Bool[Array, " S"]:
        """Tell which sets can be part of a placement within the limits that is no worse than what is known."""
        limits = {**self.limits, self.problem.objective: min(better_than, self.limits.get(self.problem.objective, np.inf))}
        useful = columns.fits.copy()
        for goal, limit in limits.items():
            useful &= self._least(columns, goal) <= limit * (1 + 1e-9) + 1e-12
        return useful

    def _least(self, columns: Columns, goal: Goal) -> Float64[Array, " S"]:
        """Return what an objective is at least if a set is chosen."""
        problem = self.problem
        if goal == "ttfet":
            late = len(self.conversations) - percentile_rank(len(self.conversations))
            return np.asarray(np.sort(columns.ttfet_s, axis=1)[:, -1 - late])
        if goal == "slo_misses":
            return columns.missed.astype(float)
        if goal == "cost":
            return np.asarray(columns.end_s * (problem.usd_per_hour / 3600))
        return np.asarray(columns.dynamic_j + self.table.fixed_j + columns.end_s * problem.idle_w)

    def _sum(self, weights: Mapping[tuple[int, int], float]) -> pulp.LpAffineExpression:
        return pulp.LpAffineExpression([(self.sets[key], weight) for key, weight in weights.items()])

    def _holding(self, c: int) -> list[tuple[int, int]]:
        return [(k, mask) for k, mask in self.sets if mask >> c & 1]

    def _of(self, goal: Goal) -> pulp.LpAffineExpression:
        problem, columns = self.problem, self.table.columns
        if goal == "ttfet":
            return 1.0 * self.percentile
        if goal == "slo_misses":
            return self._sum({(k, mask): float(columns[k].missed[mask]) for k, mask in self.sets})
        if goal == "cost":
            return self.makespan * (problem.usd_per_hour / 3600)
        dynamic = self._sum({(k, mask): float(columns[k].dynamic_j[mask]) for k, mask in self.sets})
        return dynamic + self.table.fixed_j + self.makespan * problem.idle_w

    def cover_each_conversation(self) -> None:
        """Require sum_(k, S with c) x_kS = 1."""
        for c in self.conversations:
            self.program += self._sum(dict.fromkeys(self._holding(c), 1.0)) == 1, f"cover_{c}"

    def use_each_replica_once(self) -> None:
        """Require sum_S x_kS <= n_k."""
        for k, columns in enumerate(self.table.columns):
            used = self._sum({key: 1.0 for key in self.sets if key[0] == k})
            self.program += used <= len(columns.replicas), f"kind_{k}"

    def answer_by_the_percentile(self) -> None:
        """Require sum_(k, S with c) T_ckS x_kS <= theta + M l_c and sum_c l_c <= n_late."""
        self.percentile = self.program.add_variable("percentile", lowBound=0)
        most = max(float(columns.ttfet_s.max()) for columns in self.table.columns)
        num_late = len(self.conversations) - percentile_rank(len(self.conversations))
        late = {c: self.program.add_variable(f"late_{c}", cat=pulp.LpBinary) for c in self.conversations} if num_late else {}
        for c in self.conversations:
            answer = self._sum({(k, mask): float(self.table.columns[k].ttfet_s[mask, c]) for k, mask in self._holding(c)})
            self.program += answer <= self.percentile + (most * late[c] if late else 0.0), f"ttfet_{c}"
        if late:
            self.program += pulp.lpSum(late.values()) <= num_late, "count"

    def end_by_the_makespan(self) -> None:
        """Require sum_(k, S with c) h_kS x_kS <= H."""
        self.makespan = self.program.add_variable("makespan", lowBound=0)
        for c in self.conversations:
            end = self._sum({(k, mask): float(self.table.columns[k].end_s[mask]) for k, mask in self._holding(c)})
            self.program += end <= self.makespan, f"end_{c}"

    def keep_within(self, goal: Goal, limit: float) -> None:
        """Require that an objective stays within a limit."""
        self.program += self._of(goal) * (1 / max(limit, SAFETY)) <= max(limit, 0.0) / max(limit, SAFETY), f"limit_{goal}"

    def extract_plan(self) -> PlacementPlan:
        """Read the placement off the variables."""
        prefill, decode = [NOBODY] * len(self.conversations), [NOBODY] * len(self.conversations)
        free = [list(columns.replicas) for columns in self.table.columns]
        for (k, mask), variable in self.sets.items():
            if (variable.varValue or 0.0) > 0.5:
                replica, source = free[k].pop(0), self.table.columns[k].prefill
                for c in self.conversations:
                    if mask >> c & 1:
                        prefill[c], decode[c] = (replica if source == NOBODY else source), replica
        return PlacementPlan.of(prefill, decode)

    def solve(self, solver: SolverName, time_limit_s: float) -> MilpAnswer:
        """Solve the program; the bound is infinite if no placement is as good as what is known.

        Raises
        ------
        SolverUnavailableError
            If that solver is not installed.
        """
        if not all(any(mask >> c & 1 for _, mask in self.sets) for c in self.conversations):
            return MilpAnswer(None, float("inf"))
        self.program.solve(solver_of(solver, time_limit_s))
        if self.program.sol_status == pulp.LpSolutionOptimal:
            value = float(pulp.value(self.program.objective)) * self.scale
            safe = float(np.ceil(value - 1e-4)) if self.problem.objective == "slo_misses" else value - SAFETY * abs(value)
            return MilpAnswer(self.extract_plan(), safe)
        if self.program.status == pulp.LpStatusInfeasible:
            return MilpAnswer(None, float("inf"))
        found = self.program.sol_status == pulp.LpSolutionIntegerFeasible
        return MilpAnswer(self.extract_plan() if found else None, None)
