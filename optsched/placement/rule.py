"""Where a conversation would be answered or end first by estimates, nothing simulated: of queues, or of crowds."""

from __future__ import annotations

import heapq

import numpy as np
from jaxtyping import Float64, Int64

from optsched.placement.alone import Alone
from optsched.placement.problem import PlacementPlan, PlacementProblem

Array = np.ndarray
_ADDITIVE = 2  # the way of sharing out a replica's time that counts most in a crowd, see `Alone`

SLOWED = 0.1
"""Share by which each conversation already there lengthens a stay, about: between 0.02 and 0.2 little depends on it."""


class Rule:
    """Queues of estimated work, one per replica, that conversations join in order of arrival.

    Parameters
    ----------
    problem, least
        The problem, and its times alone.
    """

    def __init__(self, problem: PlacementProblem, least: Alone) -> None:
        self.problem, self.least = problem, least
        self.pairs = np.array(problem.pairs)
        self.kind = np.array([least.kind_of_pair[pair] for pair in problem.pairs])
        self.prefill_free_s, self.busy_s = np.zeros(len(problem.replicas)), np.zeros(len(problem.replicas))
        self.prefills_beside = np.array([problem.replicas[p].role == "mixed" and p != d for p, d in problem.pairs])

    def _times(self, c: int) -> tuple[Float64[Array, " Q"], Float64[Array, " Q"]]:
        """Return when each pair would have prefilled a conversation, and when its decoder would turn to it."""
        arrival_s = self.problem.workload.arrival_s[c]
        ready_s = np.maximum(arrival_s, self.prefill_free_s[self.pairs[:, 0]]) + self.least.prefill_s[self.kind, c]
        return ready_s, np.maximum(ready_s, self.busy_s[self.pairs[:, 1]])

    def order(self, c: int) -> Int64[Array, " Q"]:
        """Return the pairs in order of the estimated TTFET (for energy: of the added energy); infinite ones last."""
        _, since_s = self._times(c)
        prefill_s, ttfet_s = self.least.prefill_s[self.kind, c], self.least.ttfet_s[self.kind, c]
        with np.errstate(invalid="ignore"):  # pairs that cannot hold it are infinite
            answer_s = np.nan_to_num(since_s + (ttfet_s - prefill_s), nan=np.inf)
            end_s = since_s + self.least.tail_work_s[self.kind, _ADDITIVE, c]
        score = answer_s
        if self.problem.objective == "energy":
            added_s = np.maximum(0.0, end_s - self.busy_s.max())
            score = np.nan_to_num(self.least.energy_j[self.kind, c] + self.problem.idle_w * added_s, nan=np.inf)
        return np.asarray(np.lexsort((answer_s, score)))

    def take(self, c: int, pair: int) -> None:
        """Let a conversation join the queues of a pair."""
        ready_s, since_s = self._times(c)
        p, d = self.pairs[pair]
        self.prefill_free_s[p] = ready_s[pair]
        self.busy_s[d] = since_s[pair] + self.least.tail_work_s[self.kind[pair], _ADDITIVE, c]
        if self.prefills_beside[pair]:
            arrival_s = self.problem.workload.arrival_s[c]
            self.busy_s[p] = max(self.busy_s[p], arrival_s) + self.least.prefill_s[self.kind[pair], c]


class Crowd:
    """Conversations per replica until their estimated ends: the more there are, the longer each will take.

    Parameters
    ----------
    problem, least
        The problem, and its times alone.
    """

    def __init__(self, problem: PlacementProblem, least: Alone) -> None:
        self.arrival_s, self.least = problem.workload.arrival_s, least
        self.pairs = np.array(problem.pairs)
        self.kind = np.array([least.kind_of_pair[pair] for pair in problem.pairs])
        self.prefill_free_s = np.zeros(len(problem.replicas))
        self.ends: list[list[float]] = [[] for _ in problem.replicas]
        self.count = np.zeros(len(problem.replicas), dtype=np.int64)

    def _times(self, c: int) -> tuple[Float64[Array, " Q"], Float64[Array, " Q"]]:
        """Return when each pair would have prefilled a conversation, and when it would end; infinite where it does not fit."""
        prefill_s, end_s = self.least.prefill_s[self.kind, c], self.least.e2e_s[self.kind, c]
        ready_s = np.maximum(self.arrival_s[c], self.prefill_free_s[self.pairs[:, 0]]) + prefill_s
        with np.errstate(invalid="ignore"):  # infinite minus infinite
            rest_s = np.nan_to_num(end_s - prefill_s, nan=np.inf)
        return ready_s, ready_s + rest_s * (1 + SLOWED * self.count[self.pairs[:, 1]])

    def order(self, c: int) -> Int64[Array, " Q"]:
        """Return the pairs in order of the estimated end; infinite ones last."""
        for replica, ends in enumerate(self.ends):
            while ends and ends[0] <= self.arrival_s[c]:
                heapq.heappop(ends)
            self.count[replica] = len(ends)
        return np.asarray(np.argsort(self._times(c)[1], kind="stable"))

    def take(self, c: int, pair: int) -> None:
        """Let a conversation join the crowd of a pair."""
        ready_s, end_s = self._times(c)
        p, d = self.pairs[pair]
        self.prefill_free_s[p] = ready_s[pair]
        heapq.heappush(self.ends[d], float(end_s[pair]))


def by_rule(problem: PlacementProblem, least: Alone, kind: type[Rule] | type[Crowd] = Rule) -> PlacementPlan:
    """Place by arrival where the estimate of a rule is best."""
    rule = kind(problem, least)
    chosen = np.zeros(problem.workload.num_conversations, dtype=np.int64)
    for c in range(len(chosen)):
        chosen[c] = rule.order(c)[0]
        rule.take(c, int(chosen[c]))
    return PlacementPlan.of(rule.pairs[chosen, 0], rule.pairs[chosen, 1])
