"""Where a conversation would be answered or end first by estimates, nothing simulated: of queues, or of crowds."""

from __future__ import annotations

import heapq

import numpy as np
from jaxtyping import Float64, Int64

from optsched.compiled import kernel
from optsched.placement.alone import Alone
from optsched.placement.problem import PlacementPlan, PlacementProblem

Array = np.ndarray
_ADDITIVE = 2  # the way of sharing out a replica's time that counts most in a crowd, see `Alone`

SLOWED = 0.1
"""Share by which each conversation already there lengthens a stay, about: between 0.02 and 0.2 little depends on it."""


@kernel
def _first_answer(
    arrival_s: float, c: int, pairs: Int64[Array, "Q 2"], kind: Int64[Array, " Q"], free_s: Float64[Array, " R"],
    busy_s: Float64[Array, " R"], prefill_s: Float64[Array, "K C"], ttfet_s: Float64[Array, "K C"],
    tail_s: Float64[Array, "K C"], energy_j: Float64[Array, "K C"], idle_w: float,
) -> int:  # fmt: skip
    """Return the pair that `Rule.order` puts first; it orders by energy where `idle_w` is not negative."""
    best, least, least_answer_s, latest_s = 0, np.inf, np.inf, busy_s.max()
    for q in range(len(kind)):
        k = kind[q]
        if not np.isfinite(ttfet_s[k, c]):
            continue
        since_s = max(max(arrival_s, free_s[pairs[q, 0]]) + prefill_s[k, c], busy_s[pairs[q, 1]])
        answer_s = since_s + (ttfet_s[k, c] - prefill_s[k, c])
        score = answer_s
        if idle_w >= 0:
            score = energy_j[k, c] + idle_w * max(0.0, since_s + tail_s[k, c] - latest_s)
        if score < least or (score == least and answer_s < least_answer_s):
            best, least, least_answer_s = q, score, answer_s
    return best


@kernel
def _first_end(
    arrival_s: float, c: int, pairs: Int64[Array, "Q 2"], kind: Int64[Array, " Q"], free_s: Float64[Array, " R"],
    count: Int64[Array, " R"], prefill_s: Float64[Array, "K C"], e2e_s: Float64[Array, "K C"],
) -> int:  # fmt: skip
    """Return the pair that `Crowd.order` puts first."""
    best, least_s = 0, np.inf
    for q in range(len(kind)):
        k = kind[q]
        if np.isfinite(e2e_s[k, c]):
            ready_s = max(arrival_s, free_s[pairs[q, 0]]) + prefill_s[k, c]
            end_s = ready_s + (e2e_s[k, c] - prefill_s[k, c]) * (1 + SLOWED * count[pairs[q, 1]])
            if end_s < least_s:
                best, least_s = q, end_s
    return best


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
        self._tail_s = np.ascontiguousarray(least.tail_work_s[:, _ADDITIVE])
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
            end_s = since_s + self._tail_s[self.kind, c]
        score = answer_s
        if self.problem.objective == "energy":
            added_s = np.maximum(0.0, end_s - self.busy_s.max())
            score = np.nan_to_num(self.least.energy_j[self.kind, c] + self.problem.idle_w * added_s, nan=np.inf)
        return np.asarray(np.lexsort((answer_s, score)))

    def first(self, c: int) -> int:
        """Return the first pair of `order`, in less time."""
        least, energy = self.least, self.problem.objective == "energy"
        return int(
            _first_answer(
                float(self.problem.workload.arrival_s[c]), c, self.pairs, self.kind, self.prefill_free_s, self.busy_s,
                least.prefill_s, least.ttfet_s, self._tail_s, least.energy_j, self.problem.idle_w if energy else -1.0,
            )
        )  # fmt: skip

    def take(self, c: int, pair: int) -> None:
        """Let a conversation join the queues of a pair."""
        arrival_s, kind = self.problem.workload.arrival_s[c], self.kind[pair]
        p, d = self.pairs[pair]
        ready_s = max(arrival_s, self.prefill_free_s[p]) + self.least.prefill_s[kind, c]
        self.prefill_free_s[p] = ready_s
        self.busy_s[d] = max(ready_s, self.busy_s[d]) + self._tail_s[kind, c]
        if self.prefills_beside[pair]:
            self.busy_s[p] = max(self.busy_s[p], arrival_s) + self.least.prefill_s[kind, c]


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
        self.ends: list[tuple[float, int]] = []
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
        self._leave(c)
        return np.asarray(np.argsort(self._times(c)[1], kind="stable"))

    def first(self, c: int) -> int:
        """Return the first pair of `order`, in less time."""
        self._leave(c)
        return int(
            _first_end(
                float(self.arrival_s[c]), c, self.pairs, self.kind, self.prefill_free_s, self.count,
                self.least.prefill_s, self.least.e2e_s,
            )
        )  # fmt: skip

    def _leave(self, c: int) -> None:
        """Forget those that have ended before a conversation arrives."""
        while self.ends and self.ends[0][0] <= self.arrival_s[c]:
            self.count[heapq.heappop(self.ends)[1]] -= 1

    def take(self, c: int, pair: int) -> None:
        """Let a conversation join the crowd of a pair."""
        kind, (p, d) = self.kind[pair], self.pairs[pair]
        prefill_s = self.least.prefill_s[kind, c]
        ready_s = max(self.arrival_s[c], self.prefill_free_s[p]) + prefill_s
        end_s = ready_s + (self.least.e2e_s[kind, c] - prefill_s) * (1 + SLOWED * self.count[d])
        self.prefill_free_s[p] = ready_s
        self.count[d] += 1
        heapq.heappush(self.ends, (float(end_s), int(d)))


def by_rule(problem: PlacementProblem, least: Alone, kind: type[Rule] | type[Crowd] = Rule) -> PlacementPlan:
    """Place by arrival where the estimate of a rule is best."""
    rule = kind(problem, least)
    chosen = np.zeros(problem.workload.num_conversations, dtype=np.int64)
    for c in range(len(chosen)):
        chosen[c] = rule.first(c)
        rule.take(c, int(chosen[c]))
    return PlacementPlan.of(rule.pairs[chosen, 0], rule.pairs[chosen, 1])
