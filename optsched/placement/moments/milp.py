"""Who is placed where and when things happen at the earliest: the rows of the placement program that every objective shares.

Names and formulas are in the table of `optsched.placement.milp`, which adds the objectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
import pulp

from optsched.placement.alone import alone
from optsched.placement.problem import PlacementPlan, PlacementProblem
from optsched.placement.symmetry import interchangeable

Pair = tuple[int, int]


class Moments:
    """The rows that every objective shares.

    Parameters
    ----------
    problem
        What to solve.
    groups
        Replicas that may be swapped, each list in the order in which they are used; None: all that are `interchangeable`.
    """

    def __init__(self, problem: PlacementProblem, groups: Sequence[Sequence[int]] | None = None) -> None:
        self.problem, self.least = problem, alone(problem)
        self.groups = interchangeable(problem) if groups is None else groups
        self.arrival = problem.workload.arrival_s.tolist()
        self.conversations = range(len(self.arrival))
        self.pairs: list[list[Pair]] = [problem.options(c) for c in self.conversations]
        self.replicas = range(len(problem.replicas))
        longest = [max(self._of(self.least.prefill_s, c, q) for q in self.pairs[c]) for c in self.conversations]
        self.horizon = self.arrival[-1] + sum(longest)
        self.program = pulp.LpProblem("placement", pulp.LpMinimize)
        self._declare()
        self.place_each_conversation_once()
        self.prefill_after_the_arrival()
        self.prefill_first_come_first_served()
        self.answer_after_transfer_and_tail()
        self.use_twins_in_order()

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
        for group in self.groups:
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

    def extract_plan(self) -> PlacementPlan:
        """Read the placement off the variables."""
        chosen = [max((self._taken(c, q), q) for q in self.pairs[c])[1] for c in self.conversations]
        return PlacementPlan.of([p for p, _ in chosen], [d for _, d in chosen])

    def _taken(self, c: int, pair: Pair) -> float:
        return float(self.pair[c, pair[0], pair[1]].varValue or 0.0)
