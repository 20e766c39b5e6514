"""Placement as a mixed-integer linear program: a relaxation of the evaluator, for small problems.

Sets
    C: conversations in order of arrival; P, D: replicas that prefill and decode; Q_c: pairs (p, d) that may hold c
Parameters
    r_c arrival; a_cp prefill alone; t_cq, e_cq TTFET and E2E alone; j_cq dynamic energy; w_cp, v_cd least replica time of the
    prefill and of the rest; g_cd least block-seconds; K_d pool; L_c latency limits; n_late conversations beyond the percentile
Variables
    x_cq (``pair_c_p_d``): c is prefilled on p and decoded on d (y_cp, z_cd: its sums); f_c (``prefilled_c``): end of prefill;
    T_c (``ttfet_c``); theta (``percentile``); H (``makespan``); m_c (``late_c``): c is beyond the percentile, or misses a target

============================  ==============================================  =================================
name in the solver            constraint                                      function
============================  ==============================================  =================================
``one_pair_c``                sum_q x_cq = 1                                  `place_each_conversation_once`
``prefill_alone_c``           f_c >= r_c + sum_p a_cp y_cp                    `prefill_after_the_arrival`
``fcfs_c_k_p``                f_k >= f_c + a_kp - M (2 - y_cp - y_kp), c < k  `prefill_first_come_first_served`
``tail_c``                    T_c >= f_c - r_c + sum_q (t_cq - a_cp) x_cq     `answer_after_transfer_and_tail`
``end_c``                     H >= f_c + sum_q (e_cq - a_cp) x_cq             `end_after_every_conversation`
``work_i_k_v``                H >= r_k + sum_(c >= k) w_ci y_ci + v_ci z_ci   `end_after_all_work_of_a_replica`
``pool_d_k``                  K_d (H - r_k) >= sum_(c >= k) g_cd z_cd         `end_after_all_holding_of_a_pool`
``beyond_c``, ``count``       T_c <= theta + M m_c, sum_c m_c <= n_late       `leave_out_the_slowest`
``limit_NAME_c``, ``sure_c``  latency_c <= L_c + M m_c, m_c = 1 where sure    `count_missed_targets`
``name_KIND_i_c``             twin i is used only after the twin before it    `use_twins_in_order`
``new_n``                     not all of an excluded placement's x_cq         `exclude`
============================  ==============================================  =================================

On replicas of role mixed a conversation that stays may be overtaken while it waits for its blocks; the order row is
relaxed there. The value of a solution is a lower bound on what the evaluator finds for any placement not excluded.
"""

from __future__ import annotations

import math
import warnings
from itertools import combinations, pairwise
from typing import Literal, NamedTuple

import numpy as np
import pulp

from optsched.domain.scenario import LatencyTarget
from optsched.errors import SolverUnavailableError
from optsched.placement.alone import VARIANTS, alone
from optsched.placement.bound import certain_misses, lower_bound
from optsched.placement.limits import target_limit
from optsched.placement.problem import PlacementPlan, PlacementProblem, percentile_rank
from optsched.placement.symmetry import interchangeable

SolverName = Literal["highs", "cbc"]
Pair = tuple[int, int]
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


class PlacementFormulation:
    """The program of one placement problem.

    Parameters
    ----------
    problem
        What to solve.
    """

    def __init__(self, problem: PlacementProblem) -> None:
        self.problem, self.least = problem, alone(problem)
        self.arrival = problem.workload.arrival_s.tolist()
        self.conversations = range(len(self.arrival))
        self.pairs: list[list[Pair]] = [problem.options(c) for c in self.conversations]
        self.replicas = range(len(problem.replicas))
        longest = [max(self._of(self.least.prefill_s, c, q) for q in self.pairs[c]) for c in self.conversations]
        self.horizon = self.arrival[-1] + sum(longest)
        # a solver's tolerances are absolute: an objective far below 1 would drown in them
        self.scale = (lower_bound(problem).value or 1.0) if problem.objective != "slo_misses" else 1.0
        self.program = pulp.LpProblem("placement", pulp.LpMinimize)
        self._declare()
        self.place_each_conversation_once()
        self.prefill_after_the_arrival()
        self.prefill_first_come_first_served()
        self.answer_after_transfer_and_tail()
        self.use_twins_in_order()
        self.excluded = 0
        {"ttfet": self.minimise_percentile, "slo_misses": self.minimise_misses}.get(
            problem.objective, self.minimise_energy_or_cost
        )()

    def _declare(self) -> None:
        add = self.program.add_variable
        self.pair = {(c, p, d): add(f"pair_{c}_{p}_{d}", cat=pulp.LpBinary) for c in self.conversations for p, d in self.pairs[c]}
        self.prefilled = {c: add(f"prefilled_{c}", lowBound=0) for c in self.conversations}
        self.ttfet = {c: add(f"ttfet_{c}", lowBound=0) for c in self.conversations}

    def _of(self, table: np.ndarray, c: int, pair: Pair) -> float:
        return float(table[self.least.kind_of_pair[pair]][..., c])

    def _sum(self, c: int, weights: dict[Pair, float]) -> pulp.LpAffineExpression:
        return pulp.LpAffineExpression([(self.pair[c, p, d], weight) for (p, d), weight in weights.items()])

    def _prefills(self, c: int, replica: int) -> pulp.LpAffineExpression:
        return self._sum(c, {q: 1.0 for q in self.pairs[c] if q[0] == replica})

    def _decodes(self, c: int, replica: int) -> pulp.LpAffineExpression:
        return self._sum(c, {q: 1.0 for q in self.pairs[c] if q[1] == replica})

    def place_each_conversation_once(self) -> None:
        """Require sum_q x_cq = 1."""
        for c in self.conversations:
            self.program += self._sum(c, dict.fromkeys(self.pairs[c], 1.0)) == 1, f"one_pair_{c}"

    def prefill_after_the_arrival(self) -> None:
        """Require f_c >= r_c + sum_p a_cp y_cp."""
        for c in self.conversations:
            alone_s = self._sum(c, {q: self._of(self.least.prefill_s, c, q) for q in self.pairs[c]})
            self.program += self.prefilled[c] >= self.arrival[c] + alone_s, f"prefill_alone_{c}"

    def prefill_first_come_first_served(self) -> None:
        """Require f_k >= f_c + a_kp where both are prefilled on p, unless c stays there and k does not."""
        for c, k in combinations(self.conversations, 2):
            for p in sorted({q[0] for q in self.pairs[c]} & {q[0] for q in self.pairs[k]}):
                service = next(self._of(self.least.prefill_s, k, q) for q in self.pairs[k] if q[0] == p)
                slack = self.horizon + service
                together = 2 - self._prefills(c, p) - self._prefills(k, p)
                order = self.prefilled[k] - self.prefilled[c] - service
                stay_c, stay_k = (
                    self._sum(c, {(p, p): 1.0} if (p, p) in self.pairs[c] else {}),
                    self._sum(k, {(p, p): 1.0} if (p, p) in self.pairs[k] else {}),
                )
                self.program += order >= -slack * (together + stay_c), f"fcfs_{c}_{k}_{p}"
                if (p, p) in self.pairs[c] and (p, p) in self.pairs[k]:
                    self.program += order >= -slack * (2 - stay_c - stay_k), f"fcfs_stay_{c}_{k}_{p}"

    def answer_after_transfer_and_tail(self) -> None:
        """Require T_c >= f_c - r_c + sum_q (t_cq - a_cp) x_cq."""
        for c in self.conversations:
            tail = self._sum(c, {q: self._after_prefill(self.least.ttfet_s, c, q) for q in self.pairs[c]})
            self.program += self.ttfet[c] >= self.prefilled[c] - self.arrival[c] + tail, f"tail_{c}"

    def _after_prefill(self, table: np.ndarray, c: int, pair: Pair) -> float:
        return max(0.0, self._of(table, c, pair) - self._of(self.least.prefill_s, c, pair))

    def use_twins_in_order(self) -> None:
        """Allow a replica only to conversations after (or with) the first that uses the interchangeable one before it."""
        for group in interchangeable(self.problem):
            for earlier, later in pairwise(group):
                used = pulp.LpAffineExpression()
                for c in self.conversations:
                    self.program += self._prefills(c, later) <= used, f"name_prefill_{later}_{c}"
                    self.program += (
                        self._decodes(c, later)
                        <= used
                        + self._prefills(c, earlier)
                        + self._sum(c, {(later, later): 1.0} if (later, later) in self.pairs[c] else {}),
                        f"name_decode_{later}_{c}",
                    )
                    used = used + self._prefills(c, earlier) + self._decodes(c, earlier)

    def _late(self) -> dict[int, pulp.LpVariable]:
        return {c: self.program.add_variable(f"late_{c}", cat=pulp.LpBinary) for c in self.conversations}

    def _latest_s(self, table: np.ndarray, c: int) -> float:
        return float(self.horizon + max(self._of(table, c, q) for q in self.pairs[c]))

    def minimise_percentile(self) -> None:
        """Minimise theta."""
        self.percentile = self.program.add_variable("percentile", lowBound=0)
        self.leave_out_the_slowest(self._late())
        self.program += self.percentile * (1.0 / self.scale)

    def leave_out_the_slowest(self, late: dict[int, pulp.LpVariable]) -> None:
        """Require T_c <= theta + M m_c and sum_c m_c <= n_late."""
        for c in self.conversations:
            most = self._latest_s(self.least.ttfet_s, c)
            self.program += self.ttfet[c] <= self.percentile + most * late[c], f"beyond_{c}"
        count = len(self.conversations) - percentile_rank(len(self.conversations))
        self.program += pulp.lpSum(late.values()) <= count, "count"

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
            self.program += self.makespan * (self.problem.usd_per_hour / 3600 / self.scale)
            return
        dynamic = pulp.lpSum(
            self._sum(c, {q: self._of(self.least.energy_j, c, q) / self.scale for q in self.pairs[c]}) for c in self.conversations
        )
        self.program += dynamic + self.makespan * (self.problem.idle_w / self.scale)

    def end_after_every_conversation(self) -> None:
        """Require H >= f_c + sum_q (e_cq - a_cp) x_cq."""
        for c in self.conversations:
            rest = self._sum(c, {q: self._after_prefill(self.least.e2e_s, c, q) for q in self.pairs[c]})
            self.program += self.makespan >= self.prefilled[c] + rest, f"end_{c}"

    def end_after_all_work_of_a_replica(self) -> None:
        """Require H >= r_k + sum_(c >= k) w_ci y_ci + v_ci z_ci for each way of sharing out a step's time."""
        for i in self.replicas:
            for v in range(VARIANTS):
                first, tail = self.least.prefill_work_s[:, v], self.least.tail_work_s[:, v]
                work = [
                    self._sum(
                        c,
                        {
                            q: (self._of(first, c, q) if q[0] == i else 0.0) + (self._of(tail, c, q) if q[1] == i else 0.0)
                            for q in self.pairs[c]
                            if i in q
                        },
                    )
                    for c in self.conversations
                ]
                for k in self.conversations:
                    self.program += self.makespan >= self.arrival[k] + pulp.lpSum(work[k:]), f"work_{i}_{k}_{v}"

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

    def extract_plan(self) -> PlacementPlan:
        """Read the placement off the variables."""
        chosen = [max((self._taken(c, q), q) for q in self.pairs[c])[1] for c in self.conversations]
        return PlacementPlan.of([p for p, _ in chosen], [d for _, d in chosen])

    def _taken(self, c: int, pair: Pair) -> float:
        return float(self.pair[c, pair[0], pair[1]].varValue or 0.0)

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
