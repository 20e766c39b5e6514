"""Placement as a mixed-integer linear program: a relaxation of the evaluator, for small problems.

Sets
    C: conversations in order of arrival; P, D: replicas that prefill and decode; Q_c: pairs (p, d) that may hold c
Parameters
    r_c arrival; a_cp prefill alone; t_cq, e_cq TTFET and E2E alone; j_cq dynamic energy; w_cp, v_cd least replica time of the
    prefill and of the rest; g_cd least block-seconds; K_d pool; L_c latency limits; n_late conversations beyond the percentile
Variables
    x_cq (``pair_c_p_d``): c is prefilled on p and decoded on d (y_cp, z_cd: its sums); f_c (``prefilled_c``): end of prefill;
    T_c (``ttfet_c``); theta (``percentile``); H (``makespan``); m_c (``late_c``): c is beyond the percentile, or misses a target;
    D (``dynamic``): dynamic energy; e_i (``extra_i``): of it, what is known beyond the least of each conversation

============================  ==============================================  =================================
name in the solver            constraint                                      function
============================  ==============================================  =================================
``one_pair_c``                sum_q x_cq = 1                                  `place_each_conversation_once`
``prefill_alone_c``           f_c >= r_c + sum_p a_cp y_cp                    `prefill_after_the_arrival`
``fcfs_c_k_p``                f_k >= f_c + a_kp - M (2 - y_cp - y_kp), c < k  `prefill_first_come_first_served`
``tail_c``                    T_c >= f_c - r_c + sum_q (t_cq - a_cp) x_cq     `answer_after_transfer_and_tail`
``end_c``                     H >= f_c + sum_q (e_cq - a_cp) x_cq             `end_after_every_conversation`
``early_i_k_l_v``             theta >= r_k - r_l + work of k to l before      `answer_after_all_work_of_a_replica`
                              their last answers, less that of late ones
``work_i_k_v``                H >= r_k + sum_(c >= k) w_ci y_ci + v_ci z_ci   `end_after_all_work_of_a_replica`
``pool_d_k``                  K_d (H - r_k) >= sum_(c >= k) g_cd z_cd         `end_after_all_holding_of_a_pool`
``dynamic_least``             D >= sum j_cq x_cq + j_lone                     `spend_energy_on_all_work`
``dynamic_known``             D >= sum j_cq x_cq + sum_i e_i                  `spend_energy_on_all_work`
``beyond_c``, ``count``       T_c <= theta + M m_c, sum_c m_c <= n_late       `leave_out_the_slowest`
``limit_NAME_c``, ``sure_c``  latency_c <= L_c + M m_c, m_c = 1 where sure    `count_missed_targets`
``name_KIND_i_c``             twin i is used only after the twin before it    `use_twins_in_order`
``new_n``                     not all of an excluded placement's x_cq         `exclude`
``learned_FIGURE_n``          what the evaluator says of a part of it, there  `learn`
============================  ==============================================  =================================

On replicas of role mixed a conversation that stays may be overtaken while it waits for its blocks; the order row is
relaxed there. The value of a solution is a lower bound on what the evaluator finds for any placement not excluded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pulp

from optsched.domain.scenario import LatencyTarget
from optsched.placement.alone import VARIANTS
from optsched.placement.bound import certain_misses, lone_steps_j, lower_bound
from optsched.placement.components import Component
from optsched.placement.limits import target_limit
from optsched.placement.moments.milp import Moments, Pair
from optsched.placement.problem import PlacementPlan, PlacementProblem, percentile_rank
from optsched.placement.solver.milp import SAFETY, MilpAnswer, SolverName, solver_of

SHRINK_LEARNED = 1e-9
"""Share by which the evaluator's figures give way in rows."""


class PlacementFormulation(Moments):
    """The program of one placement problem.

    Parameters
    ----------
    problem
        What to solve.
    groups
        As for `Moments`.
    """

    def __init__(self, problem: PlacementProblem, groups: Sequence[Sequence[int]] | None = None) -> None:
        super().__init__(problem, groups)
        # a solver's tolerances are absolute: an objective far below 1 would drown in them
        self.scale = (lower_bound(problem).value or 1.0) if problem.objective != "slo_misses" else 1.0
        self.excluded, self.learned = 0, 0
        {"ttfet": self.minimise_percentile, "slo_misses": self.minimise_misses}.get(
            problem.objective, self.minimise_energy_or_cost
        )()

    def _late(self) -> dict[int, pulp.LpVariable]:
        self.late = {c: self.program.add_variable(f"late_{c}", cat=pulp.LpBinary) for c in self.conversations}
        return self.late

    def _latest_s(self, table: np.ndarray, c: int) -> float:
        return float(self.horizon + max(self._of(table, c, q) for q in self.pairs[c]))

    def minimise_percentile(self) -> None:
        """Minimise theta."""
        self.percentile = self.program.add_variable("percentile", lowBound=0)
        self.leave_out_the_slowest(self._late())
        self.answer_after_all_work_of_a_replica()
        self.program += self.percentile * (1.0 / self.scale)

    def leave_out_the_slowest(self, late: dict[int, pulp.LpVariable]) -> None:
        """Require T_c <= theta + M m_c and sum_c m_c <= n_late."""
        for c in self.conversations:
            most = self._latest_s(self.least.ttfet_s, c)
            self.program += self.ttfet[c] <= self.percentile + most * late[c], f"beyond_{c}"
        count = len(self.conversations) - percentile_rank(len(self.conversations))
        self.program += pulp.lpSum(late.values()) <= count, "count"

    def answer_after_all_work_of_a_replica(self) -> None:
        """Require theta >= r_k - r_l + sum_(k <= c <= l) w_ci y_ci + u_ci z_ci - W_ci m_c: work before the last turn's answer."""
        for i in self.replicas:
            for v in range(VARIANTS):
                work = self._work_on(i, self.least.prefill_work_s[:, v], self.least.early_work_s[:, v])
                terms = [self._sum(c, work[c]) - max(work[c].values(), default=0.0) * self.late[c] for c in self.conversations]
                for k in self.conversations:
                    for last in range(k + 1, len(terms)):
                        since = self.arrival[k] - self.arrival[last] + pulp.lpSum(terms[k : last + 1])
                        self.program += self.percentile >= since, f"early_{i}_{k}_{last}_{v}"

    def _work_on(self, i: int, first: np.ndarray, tail: np.ndarray) -> list[dict[Pair, float]]:
        """Return for each conversation what it takes of a replica's time on each pair that uses it."""
        return [
            {
                q: (self._of(first, c, q) if q[0] == i else 0.0) + (self._of(tail, c, q) if q[1] == i else 0.0)
                for q in self.pairs[c]
                if i in q
            }
            for c in self.conversations
        ]

    def minimise_misses(self) -> None:
        """Minimise sum_c m_c."""
        late = self._late()
        self.count_missed_targets(late)
        self.program += pulp.lpSum(late.values())

    def count_missed_targets(self, late: dict[int, pulp.LpVariable]) -> None:
        """Require m_c = 1 where a target is missed alone, and latency_c <= L_c + M m_c for TTFET, E2E and the first TTFT."""
        certain = certain_misses(self.problem, self.least)
        slo, reference = self.problem.slo, self.problem.standalone
        first = self.problem.workload.first_turn[:-1]
        for c in np.flatnonzero(certain).tolist():
            self.program += late[c] == 1, f"sure_{c}"
        if slo is None or reference is None:
            return
        for c in self.conversations:
            e2e = self._sum(c, {q: self._after_prefill(self.least.e2e_s, c, q) for q in self.pairs[c]})
            since = self.prefilled[c] - self.arrival[c]
            most = self._latest_s(self.least.e2e_s, c)
            self._limit(f"ttfet_{c}", slo.ttfet, reference.ttfet_s[c], self.ttfet[c], most * late[c])
            self._limit(f"e2e_{c}", slo.e2e, reference.e2e_s[c], since + e2e, most * late[c])
            self._limit(f"ttft_{c}", slo.ttft, reference.ttft_s[first[c]], since, most * late[c])

    def _limit(
        self,
        name: str,
        target: LatencyTarget | None,
        reference: float,
        latency: pulp.LpAffineExpression,
        miss: pulp.LpAffineExpression,
    ) -> None:
        if target is not None:
            limit = float(target_limit(target, np.array([reference]))[0])
            if math.isfinite(limit):
                self.program += latency <= limit * (1 + SAFETY) + SAFETY + miss, f"limit_{name}"

    def minimise_energy_or_cost(self) -> None:
        """Minimise dynamic energy plus idle power over the makespan, or the price of the makespan."""
        self.makespan = self.program.add_variable("makespan", lowBound=0)
        self.end_after_every_conversation()
        self.end_after_all_work_of_a_replica()
        self.end_after_all_holding_of_a_pool()
        if self.problem.objective == "cost":
            self.program += self.standing([r.usd_per_hour / 3600 for r in self.problem.replicas]) * (1 / self.scale)
            return
        self.spend_energy_on_all_work()
        idle = self.standing([r.coefficients.idle_w for r in self.problem.replicas])
        self.program += 1.0 * self.dynamic + idle * (1 / self.scale)

    def standing(self, per_s: list[float]) -> pulp.LpAffineExpression:
        """Return what the replicas take over the makespan whatever they do, each so much per second."""
        return self.makespan * sum(per_s)

    def spend_energy_on_all_work(self) -> None:
        """Require D >= sum j_cq x_cq + j_lone and D >= sum j_cq x_cq + sum_i e_i."""
        add = self.program.add_variable
        self.dynamic, self.extra = add("dynamic", lowBound=0), [add(f"extra_{i}", lowBound=0) for i in self.replicas]
        work = pulp.lpSum(
            self._sum(c, {q: self._of(self.least.energy_j, c, q) / self.scale for q in self.pairs[c]}) for c in self.conversations
        )
        self.program += self.dynamic >= work + lone_steps_j(self.problem) / self.scale, "dynamic_least"
        self.program += self.dynamic >= work + pulp.lpSum(self.extra), "dynamic_known"

    def end_after_every_conversation(self) -> None:
        """Require H >= f_c + sum_q (e_cq - a_cp) x_cq."""
        for c in self.conversations:
            rest = self._sum(c, {q: self._after_prefill(self.least.e2e_s, c, q) for q in self.pairs[c]})
            self.program += self.makespan >= self.prefilled[c] + rest, f"end_{c}"

    def end_after_all_work_of_a_replica(self) -> None:
        """Require H >= r_k + sum_(c >= k) w_ci y_ci + v_ci z_ci for each way of sharing out a step's time."""
        for i in self.replicas:
            for v in range(VARIANTS):
                work = self._work_on(i, self.least.prefill_work_s[:, v], self.least.tail_work_s[:, v])
                terms = [self._sum(c, work[c]) for c in self.conversations]
                for k in self.conversations:
                    self.program += self.makespan >= self.arrival[k] + pulp.lpSum(terms[k:]), f"work_{i}_{k}_{v}"

    def end_after_all_holding_of_a_pool(self) -> None:
        """Require K_d (H - r_k) >= sum_(c >= k) g_cd z_cd."""
        held = self.least.hold_s + self.least.last_hold_s
        for d in sorted({d for _, d in self.problem.pairs}):
            share = [float(self.problem.blocks[c]) / float(self.problem.kv_blocks[d]) for c in self.conversations]
            area = [
                self._sum(c, {q: share[c] * self._of(held, c, q) for q in self.pairs[c] if q[1] == d}) for c in self.conversations
            ]
            for k in self.conversations:
                self.program += self.makespan >= self.arrival[k] + pulp.lpSum(area[k:]), f"pool_{d}_{k}"

    def exclude(self, plan: PlacementPlan) -> None:
        """Require that at least one conversation goes elsewhere than in a placement."""
        same = [self.pair[c, int(plan.prefill[c]), int(plan.decode[c])] for c in self.conversations]
        self.program += pulp.lpSum(same) <= len(same) - 1, f"new_{self.excluded}"
        self.excluded += 1

    def learn(self, parts: Sequence[Component]) -> None:
        """Require what the evaluator says of each part of a placement wherever that part appears again, under any names."""
        for part in parts:
            for pairs in part.renamed(self.groups):
                if all((c, *q) in self.pair for c, q in pairs.items()):
                    self._learn(part, pairs)

    def _learn(self, part: Component, pairs: dict[int, Pair]) -> None:
        used = {replica for pair in pairs.values() for replica in pair}
        same = pulp.LpAffineExpression(constant=1.0)
        for c in self.conversations:
            kept = pairs.get(c)
            different = {q: 1.0 for q in self.pairs[c] if q != kept and (kept is not None or used & set(q))}
            same = same - self._sum(c, different)
        goal, give_way = self.problem.objective, (1 - SHRINK_LEARNED) / self.scale
        if goal == "ttfet":
            self.program += self.percentile * (1 / self.scale) >= part.answer_s * give_way * same, f"learned_ttfet_{self.learned}"
        elif goal == "slo_misses":
            misses = pulp.lpSum(self.late[c] for c in pairs)
            self.program += misses >= part.missed * same, f"learned_misses_{self.learned}"
        else:
            self.program += self.makespan * (1 / self.scale) >= part.end_s * give_way * same, f"learned_end_{self.learned}"
        if goal == "energy":
            least = sum(self._of(self.least.energy_j, c, q) for c, q in pairs.items())
            more = max(0.0, part.dynamic_j * (1 - SHRINK_LEARNED) - least) / self.scale
            self.program += self.extra[min(used)] >= more * same, f"learned_energy_{self.learned}"
        self.learned += 1

    def solve(self, solver: SolverName, time_limit_s: float) -> MilpAnswer:
        """Solve the program as it stands.

        Raises
        ------
        SolverUnavailableError
            If that solver is not installed.
        """
        self.program.solve(solver_of(solver, time_limit_s))
        if self.program.sol_status == pulp.LpSolutionOptimal:
            value = float(pulp.value(self.program.objective)) * self.scale
            return MilpAnswer(self.extract_plan(), self._safe(value))
        if self.program.status == pulp.LpStatusInfeasible:
            return MilpAnswer(None, math.inf)
        found = self.program.sol_status == pulp.LpSolutionIntegerFeasible
        return MilpAnswer(self.extract_plan() if found else None, None)

    def _safe(self, value: float) -> float:
        if self.problem.objective == "slo_misses":
            return float(math.ceil(value - 1e-4))
        return value - SAFETY * max(abs(value), self.scale)
