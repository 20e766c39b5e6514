"""Improve a placement of any size, or build one, by re-timing only what each change reaches (`retime`, `ruin`)."""

from __future__ import annotations

import time

import numpy as np
from jaxtyping import Int64

from optsched.placement.clockwork import clockwork, empty_schedule
from optsched.placement.limits import limits_of
from optsched.placement.problem import PlacementPlan, PlacementProblem
from optsched.placement.queues import NOBODY
from optsched.placement.retime import Case, Reach, Timed, retime
from optsched.placement.ruin import MOST, Bench, Choices, Spoiled, put_back, search
from optsched.placement.rule import Crowd, Rule
from optsched.placement.score import CODES, Aim, score
from optsched.placement.tables import tables_of

Array = np.ndarray
SLICE = 400_000
"""Turns that are timed between two looks at the clock: less than a second."""
SLACKS = (0.05, 0.03, 0.02, 0.01, 0.0)
"""Shares above the best that are accepted, from the first part of the search to the last."""
PAIRS = 16
"""Pairs up to which all are tried for a conversation that is taken out."""
FEW = 4
"""Pairs that are tried where there are more, the most promising of some random ones."""


def _range_for(conversation: int, count: int) -> Int64[Array, " C"]:
    start = np.zeros(conversation + 2, dtype=np.int64)
    start[-1] = count
    return start


class Neighbourhood:
    """A search over the placements of one problem.

    Parameters
    ----------
    problem
        What to place.
    seed
        Of all random choices.
    home, moved_cost
        A placement that is in force, and what each conversation that leaves it costs, in the objective's unit.
    """

    def __init__(
        self, problem: PlacementProblem, *, seed: int = 0, home: PlacementPlan | None = None, moved_cost: float = 0.0
    ) -> None:
        count = problem.workload.num_conversations
        self.problem, self.generator = problem, np.random.default_rng(seed)
        self.case, self.choices = case_of(problem), _choices(problem)
        nowhere = np.full(count, NOBODY)
        self.aim = Aim(
            CODES[problem.objective], problem.idle_w, problem.usd_per_hour / 3600, float(moved_cost),
            nowhere if home is None else home.prefill.astype(np.int64), nowhere if home is None else home.decode.astype(np.int64),
        )  # fmt: skip
        self.bench = _bench(problem, self.case)
        self.work = 0

    def build(
        self, rule: Rule | Crowd, pairs: int, *, until_s: float = float("inf"), work: float = float("inf")
    ) -> PlacementPlan | None:
        """Place by arrival, each conversation where those so far are best off; by the rule alone once the time is up.

        Parameters
        ----------
        rule
            Which pairs are the most promising; nobody has been placed by it yet.
        pairs
            How many pairs are tried for each, the best ones by the rule.
        until_s
            As for `improve`.
        work
            Turns to time again at most: where replicas feed each other, one try can reach all of them.

        Returns
        -------
        PlacementPlan or None
            None if the work did not suffice.
        """
        least, bench = rule.least, self.bench
        index = {pair: number for number, pair in enumerate(self.problem.pairs)}
        for c in range(self.problem.workload.num_conversations):
            order = rule.order(c)[: 1 if time.perf_counter() >= until_s else pairs]
            order = order[np.isfinite(least.ttfet_s[rule.kind[order], c])]
            tried = Choices(_range_for(c, len(order)), rule.pairs[order, 0], rule.pairs[order, 1])
            self.work += put_back(self.case, self.aim, tried, bench, c, pairs)
            rule.take(c, index[int(bench.known.prefill[c]), int(bench.known.decode[c])])
            if self.work > work:
                return None
        return PlacementPlan.of(bench.known.prefill, bench.known.decode)

    def start_from(self, plan: PlacementPlan) -> tuple[float, float]:
        """Take a placement as the current and the best one; return its objective (with the price of moves) and mean TTFET."""
        bench = self.bench
        for timed in (bench.kept, bench.known, bench.trial):
            timed.prefill[:], timed.decode[:], bench.reach.touched[:] = plan.prefill, plan.decode, True
            self.work += retime(self.case, bench.works, timed, bench.reach)
        bench.spoiled.conversation[:], bench.spoiled.replica[:] = False, False
        value, mean = score(self.aim, bench.kept, bench.buffer)
        bench.best[:] = value, mean
        bench.best_prefill[:], bench.best_decode[:] = plan.prefill, plan.decode
        return float(value), float(mean)

    def improve(self, work: int, *, until_s: float = float("inf")) -> PlacementPlan:
        """Search until so many turns were timed, or the time is up; return the best placement.

        Parameters
        ----------
        work
            Turns to time again.
        until_s
            When to stop at the latest, on the clock of `time.perf_counter`.
        """
        most = PAIRS if np.diff(self.choices.start).max() <= PAIRS else FEW
        for slack in SLACKS:
            left = work / len(SLACKS)
            while left > 0 and time.perf_counter() < until_s:
                self._shuffle()
                step = min(left, SLICE)
                done = search(self.case, self.aim, self.choices, self.bench, int(step) + 1, slack, most)
                self.work += done
                left -= done
            self.start_from(self.best)
        return self.best

    @property
    def best(self) -> PlacementPlan:
        """The best placement so far."""
        return PlacementPlan.of(self.bench.best_prefill, self.bench.best_decode)

    def _shuffle(self) -> None:
        self.bench.draws[:] = self.generator.random(len(self.bench.draws))
        self.bench.cursor[0] = 0


def case_of(problem: PlacementProblem) -> Case:
    """Return the problem's tables for compiled code."""
    laws, turns, pools = tables_of(problem)
    move_j = np.zeros((len(problem.replicas), len(problem.replicas)))
    for ends, link in problem.link_of.items():
        move_j[ends] = link.joules_per_byte * problem.kv_bytes_per_token
    return Case(laws, turns, pools, limits_of(problem), move_j)


def empty_timed(problem: PlacementProblem, case: Case) -> Timed:
    """Return a placement of nobody."""
    count = problem.workload.num_conversations
    schedule = empty_schedule(count, problem.workload.num_turns, len(problem.replicas))
    return Timed(
        np.full(count, NOBODY), np.full(count, NOBODY), schedule, np.zeros(count), np.zeros(count),
        np.zeros(count, np.int64), np.zeros(count),
    )  # fmt: skip


def empty_reach(conversations: int, replicas: int) -> Reach:
    """Return buffers for what a change reaches."""
    return Reach(np.zeros(replicas, bool), np.zeros(replicas, np.int64), np.zeros(conversations, np.int64), np.zeros(2, np.int64))


def _bench(problem: PlacementProblem, case: Case) -> Bench:
    count, replicas = problem.workload.num_conversations, len(problem.replicas)
    spoiled = Spoiled(np.zeros(count, bool), np.zeros(replicas, bool), np.zeros(count, np.int64), np.zeros(replicas, np.int64))
    return Bench(
        clockwork(case.turns, case.pools, count, replicas), empty_reach(count, replicas), spoiled, np.zeros(count),
        empty_timed(problem, case), empty_timed(problem, case), empty_timed(problem, case),
        np.full(count, NOBODY), np.full(count, NOBODY), np.full(2, np.inf), np.zeros(MOST, np.int64),
        np.zeros(1 << 16), np.zeros(1, np.int64),
    )  # fmt: skip


def _choices(problem: PlacementProblem) -> Choices:
    pairs = np.array(problem.pairs, dtype=np.int64).reshape(-1, 2)
    fits = np.stack([problem.fits(p, d) for p, d in problem.pairs], axis=1)
    conversation, pair = np.nonzero(fits)
    start = np.searchsorted(conversation, np.arange(len(fits) + 1))
    return Choices(start.astype(np.int64), pairs[pair, 0].copy(), pairs[pair, 1].copy())
