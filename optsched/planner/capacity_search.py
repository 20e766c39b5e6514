"""The search for a fleet whose simulation keeps the targets: tighten until it does, then leave out or swap what is not needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from optsched.capacity.solve import FleetAnswer, FleetInfeasibleError, solve_fleet
from optsched.domain.scenario import FleetEntry, Scenario
from optsched.errors import InfeasibleError
from optsched.planner.candidates import fleets
from optsched.planner.capacity_problem import CapacityProblem
from optsched.planner.capacity_swaps import cheaper_swaps
from optsched.planner.capacity_trials import FIRST, Trials, Verdict
from optsched.planner.capacity_types import label

Array = np.ndarray
UTILISATION = 0.95
TIGHTER = 0.94
MOST_ITERATIONS = 40
GAP = 1e-4
TIME_LIMIT_S = 60.0
MOST_SWAPS = 24
"""Fleets with cheaper replicas in the place of others that a search simulates."""
Origin = Literal["program", "whole supply", "one fewer", "swap"]


@dataclass(frozen=True, slots=True)
class Iteration:
    """A fleet that was tried.

    Attributes
    ----------
    origin
        Whether the fleet program asked for it, it is the whole supply, or it has one replica fewer, or cheaper ones in its
        place, than a fleet that keeps the targets.
    utilisation
        Share of a replica's full rate that the program was allowed (the least of all pools).
    fleet
        What was tried, of all pools.
    cost
        Its objective.
    met
        Whether every target was met with nearly every seed.
    worst
        The target missed most and by how much its share of violations exceeds what it allows (negative: room to spare).
    """

    origin: Origin
    utilisation: float | None
    fleet: tuple[FleetEntry, ...]
    cost: float
    met: bool
    worst: tuple[str, float]


@dataclass(frozen=True, eq=False, slots=True)
class Found:
    """A fleet that keeps the targets.

    Attributes
    ----------
    counts
        Replicas of each type.
    verdicts
        Of each pool.
    full
        The cheapest fleet if every replica could be used fully; None if none within the limits serves everything for ever.
    iterations
        What was tried.
    seeds
        With how many seeds it was judged at most.
    """

    counts: Int64[Array, " A"]
    verdicts: tuple[Verdict, ...]
    full: FleetAnswer | None
    iterations: tuple[Iteration, ...]
    seeds: int


def search_fleet(
    scenario: Scenario, problem: CapacityProblem, trials: Trials, progress: Callable[[float, float], None] | None = None
) -> Found:
    """Find the cheapest fleet that keeps its targets in simulation.

    Parameters
    ----------
    scenario
        What is asked.
    problem
        Its fleet problem.
    trials
        What simulates.
    progress
        Called with the fleets tried so far and a guess of their number.

    Raises
    ------
    FleetInfeasibleError
        If no fleet within the limits keeps the targets; it names the fewest limits to relax.
    """
    return _Search(scenario, problem, trials, progress).run()


class _Search:
    """One search, and what it tried."""

    def __init__(
        self, scenario: Scenario, problem: CapacityProblem, trials: Trials, progress: Callable[[float, float], None] | None
    ) -> None:
        self.scenario, self.problem, self.trials, self.progress = scenario, problem, trials, progress
        self.iterations: list[Iteration] = []
        self.swaps_left = MOST_SWAPS

    def run(self) -> Found:
        full: FleetAnswer | None = None
        try:
            full = solve_fleet(self.problem.problem, gap=GAP, time_limit_s=TIME_LIMIT_S)
            counts = self._tighten()
        except FleetInfeasibleError as error:
            counts = self._of_the_whole_supply(self._explained(error))
        counts = self._without_waste(counts)
        return Found(counts, tuple(self.trials.verdicts(counts)), full, tuple(self.iterations), self.trials.seeds)

    def _tighten(self) -> Int64[Array, " A"]:
        """Lower the limit of utilisation of each pool that misses a target, until none does."""
        shares = np.full(len(self.problem.parts), UTILISATION)
        for _ in range(MOST_ITERATIONS):
            counts = self._solve(shares)
            missed = self._try(counts, "program", float(shares.min()))
            if not missed.any():
                return counts
            shares[missed] *= TIGHTER
        raise InfeasibleError(
            f"No fleet kept the targets in {MOST_ITERATIONS} attempts; loosen them, or plan a fleet of your own."
        )

    def _solve(self, shares: Float64[Array, " P"]) -> Int64[Array, " A"]:
        limited = replace(self.problem.problem, utilisation=shares[self.problem.pool_of_type])
        return solve_fleet(limited, gap=GAP, time_limit_s=TIME_LIMIT_S).plan.counts

    def _try(
        self,
        counts: Int64[Array, " A"],
        origin: Origin,
        share: float | None = None,
        instead_of: Int64[Array, " A"] | None = None,
    ) -> Bool[Array, " P"]:
        """Simulate a fleet, note it, and return which pools miss a target."""
        verdicts = self.trials.verdicts(counts, instead_of)
        missed = np.array([verdict.draft is None for verdict in verdicts])
        worst = max((verdict.worst for verdict in verdicts), key=lambda each: each[1])
        entries = tuple(entry for index in range(len(self.problem.parts)) for entry in self.problem.fleet(index, counts))
        cost = self.problem.problem.fleet_cost(counts)
        self.iterations.append(Iteration(origin, share, entries, cost, not missed.any(), worst))
        if self.progress is not None:
            self.progress(len(self.iterations), max(10, len(self.iterations) + 1))
        return missed

    def _of_the_whole_supply(self, error: FleetInfeasibleError) -> Int64[Array, " A"]:
        """Return the cheapest fleet of all GPUs that keeps the targets: a workload that ends may need less than an endless one.

        Where the supply is fixed there is nothing to add: then the first seeds decide if not nearly all can be satisfied.

        Raises
        ------
        FleetInfeasibleError
            The error given, if there is none.
        """
        if self.problem.problem.lost is not None or len(self.problem.parts) > 1:
            raise error
        part = self.problem.parts[0]
        place = {label(entry): index for index, entry in enumerate(part.entries)}
        found = []
        for policy in ("collocated", "conserve"):
            for fleet in fleets(part.pool.scenario(self.scenario), part.pool.llm, policy):
                counts = np.zeros(len(place), np.int64)
                named = [label(entry.replace(count=1)) for entry in fleet]
                if all(name in place for name in named):
                    for name, entry in zip(named, fleet, strict=True):
                        counts[place[name]] += entry.count
                    found.append(counts)
        found.sort(key=self.problem.problem.fleet_cost)
        fixed = all(entry.count is not None for entry in self.scenario.supply.values())
        for trials in (self.trials, Trials(self.scenario, self.problem, FIRST)) if fixed else (self.trials,):
            self.trials = trials
            for counts in found[:MOST_ITERATIONS]:
                if not self._try(counts, "whole supply").any():
                    return counts
        raise error

    def _explained(self, error: FleetInfeasibleError) -> FleetInfeasibleError:
        """Return an error that tells a lack of capacity from targets that were missed in simulation."""
        if not self.iterations:
            return error
        name, excess = self.iterations[-1].worst
        missed = f"The largest fleet within the limits misses {name} {100 * excess:.3g} points more often than its target allows."
        return FleetInfeasibleError(f"{missed} {error}", error.relax)

    def _without_waste(self, counts: Int64[Array, " A"]) -> Int64[Array, " A"]:
        """Leave out replicas, or swap them, as long as the targets are kept; none if failures are insured against."""
        if self.problem.problem.lost is not None:
            return counts
        found: Int64[Array, " A"] | None = counts
        while found is not None:
            counts = self._without_spares(found)
            found = self._swapped(counts)
        return counts

    def _swapped(self, counts: Int64[Array, " A"]) -> Int64[Array, " A"] | None:
        """Return a cheaper fleet that keeps the targets, too, with one replica swapped; None if none is found."""
        for other in cheaper_swaps(self.problem, counts):
            if self.swaps_left == 0:
                return None
            self.swaps_left -= 1
            # Nothing is wasted where a swap is not made, so that one is made only beyond doubt.
            if not self._try(other, "swap", instead_of=counts).any():
                return other
        return None

    def _without_spares(self, counts: Int64[Array, " A"]) -> Int64[Array, " A"]:
        """Leave out replicas, the dearest first, as long as the targets are still kept."""
        problem = self.problem.problem
        order = np.argsort(-problem.cost, kind="stable").tolist()
        # Where changes cost, a replica may be worth leaving out only in all periods at once.
        removals = [[a] for a in order] + ([] if problem.follows is None else [_orbit(problem.follows, a) for a in order])
        again = True
        while again:
            again = False
            for removed in removals:
                fewer = counts.copy()
                fewer[removed] -= 1
                if fewer.min() < 0 or not all(self._complete(fewer, a) for a in removed):
                    continue
                if problem.fleet_cost(fewer) >= problem.fleet_cost(counts):
                    continue
                if not self._try(fewer, "one fewer").any():
                    counts, again = fewer, True
                    break
        return counts

    def _complete(self, counts: Int64[Array, " A"], a: int) -> bool:
        """Tell whether the pool of a type still both prefills and decodes."""
        roles = {entry.role for entry in self.problem.fleet(int(self.problem.pool_of_type[a]), counts)}
        return "mixed" in roles or {"prefill", "decode"} <= roles


def _orbit(follows: Int64[Array, " A"], a: int) -> list[int]:
    """Return a type in every period."""
    found = [a]
    while (before := int(follows[found[-1]])) not in (a, -1):
        found.append(before)
    return found
