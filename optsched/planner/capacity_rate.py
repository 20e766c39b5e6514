"""The highest rate that a supply sustains within its targets, and the fleet that sustains it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from optsched.capacity.problem import FleetProblem
from optsched.capacity.throughput import largest_traffic
from optsched.domain.plan import Plan
from optsched.domain.scenario import FleetEntry, PolicySpec, Scenario
from optsched.errors import InfeasibleError, SpecError
from optsched.planner.capacity_pools import Pool, pools_of
from optsched.planner.capacity_problem import CapacityProblem, capacity_problem
from optsched.planner.capacity_trials import judged, suitable_policies
from optsched.planner.capacity_types import num_gpus
from optsched.planner.plan import Planned, drafts_of, plan_draft
from optsched.planner.robustness import highest_factor

Array = np.ndarray
TOLERANCE = 0.01
WIDER = 1.1
"""Factor above a guess at which the rate is looked for."""


@dataclass(frozen=True, eq=False, slots=True)
class Sustained:
    """A fleet and the highest rate at which it keeps every target.

    Attributes
    ----------
    fleet
        Replicas of each type.
    policy
        Under which it keeps them.
    rate_per_s
        Simulated, to 1 %; 0 if it keeps them at no rate, or at none that was asked for.
    less_than_per_s
        The only rate that was asked for, which it does not keep; None if its rate was looked for.
    """

    fleet: tuple[FleetEntry, ...]
    policy: PolicySpec
    rate_per_s: float
    less_than_per_s: float | None = None


@dataclass(frozen=True, eq=False, slots=True)
class RateAnswer:
    """The fleet that sustains the highest rate.

    Attributes
    ----------
    best
        The fleet, and its simulated rate.
    columns_per_s, bound_per_s
        The highest rate of any fleet under the columns, without queues, and what it is proven not to exceed under them.
    gpus
        Of the fleet, all together.
    tokens_per_s_per_gpu
        Output tokens at the simulated rate.
    planned
        The plan of the fleet at that rate.
    tried
        All fleets that were simulated; most only at a rate that they do not keep.
    """

    best: Sustained
    columns_per_s: float
    bound_per_s: float
    gpus: int
    tokens_per_s_per_gpu: float
    planned: Planned
    tried: tuple[Sustained, ...]


def largest_rate(
    scenario: Scenario, *, base: Path | None = None, trace: Path | None = None, seed: int | None = None,
    progress: Callable[[float, float], None] | None = None,
) -> RateAnswer:  # fmt: skip
    """Find the fleet of a supply that sustains the highest rate within the targets.

    The program of the largest traffic is solved for all replica types, for mixed ones and for separate roles. Each fleet found
    is simulated at rates around the program's; then the best one's neighbours, in which a few GPUs change roles, as long as one
    of them sustains more. A fleet that misses a target at a rate 1 % above the best so far is simulated at no other.

    Parameters
    ----------
    scenario
        What is asked; the rate of its workload is not used.
    base, trace, seed
        As of `optsched.planner.plan.plan_scenario`.
    progress
        Called with the fleets simulated so far and a guess of their number.

    Raises
    ------
    InfeasibleError
        If the supply serves nothing within the targets.
    SpecError
        If the scenario has several services.
    """
    pools = pools_of(scenario, base, trace, None, seed)
    if len(pools) > 1:
        raise SpecError(f"{len(pools)} services have no one highest rate; ask for one of them", field="service")
    pool = pools[0]
    problem = capacity_problem(scenario.replace(current=None, periods=()), pools)
    largest = largest_traffic(problem.problem)
    search = _Search(scenario, problem, pool, progress)
    for counts in _candidates(problem.problem):
        search.try_fleet(counts)
    search.climb()
    best = search.best
    if best.rate_per_s == 0:
        raise InfeasibleError("No fleet of the supply keeps the targets at any rate. Loosen them.")
    at = pool.at_rate(best.rate_per_s)
    fixed = at.scenario(scenario).replace(fleet=best.fleet, policy=best.policy)
    planned = plan_draft(fixed, _draft(fixed, at), at.workload)
    gpus = sum(num_gpus(replica) for replica in planned.plan.replicas)
    tokens = float(at.workload.output_tokens.sum()) / at.workload.num_conversations
    return RateAnswer(
        best, largest.factor * pool.rate_per_s, largest.bound * pool.rate_per_s, gpus, best.rate_per_s * tokens / gpus, planned,
        tuple(search.tried.values()),
    )  # fmt: skip


def sustained_rate(
    scenario: Scenario, pool: Pool, fleet: tuple[FleetEntry, ...], guess_per_s: float, above_per_s: float = 0.0
) -> Sustained:
    """Return the highest rate at which a fleet keeps every target in simulation, under the policies that suit it.

    Parameters
    ----------
    scenario, pool
        What is asked, and whose conversations are simulated, at other rates.
    fleet
        What serves them.
    guess_per_s
        Where to begin.
    above_per_s
        A rate that must be kept before any other is tried; 0: none.
    """
    best = Sustained(fleet, scenario.policy, 0.0, above_per_s or None)
    fixed = pool.scenario(scenario).replace(fleet=fleet)
    for policy in suitable_policies(fixed):
        kept = _Kept(_draft(fixed.replace(policy=policy), pool), pool)
        if beat := max(best.rate_per_s * (1 + TOLERANCE), above_per_s):
            if not kept.at(beat):
                continue
            high = guess_per_s * WIDER if guess_per_s > beat else beat * WIDER
            rate = highest_factor(lambda each, kept=kept, beat=beat: kept.at(each * beat), high / beat, TOLERANCE, 1.0) * beat  # type: ignore[misc]
        else:
            rate = highest_factor(lambda each, kept=kept: kept.at(each * guess_per_s), WIDER, TOLERANCE) * guess_per_s  # type: ignore[misc]
        if rate > best.rate_per_s:
            best = Sustained(fleet, policy, rate)
    return best


class _Kept:
    """Whether a fleet under one policy keeps every target at a rate; each rate is simulated once."""

    def __init__(self, draft: Plan, pool: Pool) -> None:
        self.draft, self.pool = draft, pool
        self.seen: dict[float, bool] = {}

    def at(self, rate_per_s: float) -> bool:
        if rate_per_s not in self.seen:
            self.seen[rate_per_s] = judged(self.draft, [self.pool.at_rate(rate_per_s)])[0]
        return self.seen[rate_per_s]


def _draft(fixed: Scenario, pool: Pool) -> Plan:
    return drafts_of(fixed, pool.llm, pool.described, fixed.policy.placement)[0]


def _candidates(problem: FleetProblem) -> Iterator[Int64[Array, " A"]]:
    """Yield the best fleet of all types, of mixed ones, and of separate roles."""
    roles = np.array(problem.roles)
    for allowed in (np.ones(len(roles), bool), roles == "mixed", roles != "mixed"):
        try:
            rates = np.where(allowed[:, None], problem.rate_per_s, 0.0)
            yield largest_traffic(replace(problem, rate_per_s=rates)).counts
        except InfeasibleError:
            continue


class _Search:
    """Fleets simulated so far."""

    def __init__(
        self, scenario: Scenario, problem: CapacityProblem, pool: Pool, progress: Callable[[float, float], None] | None
    ) -> None:
        self.scenario, self.problem, self.pool, self.progress = scenario, problem, pool, progress
        self.tried: dict[tuple[int, ...], Sustained] = {}

    @property
    def best(self) -> Sustained:
        return max(self.tried.values(), key=lambda each: each.rate_per_s)

    def try_fleet(self, counts: Int64[Array, " A"]) -> float:
        """Return the rate that a fleet sustains; one that does not keep a higher one than the best so far is not measured."""
        key = tuple(counts.tolist())
        if key not in self.tried:
            given = replace(
                self.problem.problem, resources=self.problem.problem.types, uses=np.eye(len(counts)), limits=counts.astype(float)
            )
            guess = largest_traffic(given).factor * self.pool.rate_per_s
            beat = self.best.rate_per_s * (1 + TOLERANCE) if self.tried else 0.0
            self.tried[key] = sustained_rate(self.scenario, self.pool, self.problem.fleet(0, counts), 0.9 * guess, beat)
            if self.progress is not None:
                self.progress(len(self.tried), max(6, len(self.tried) + 1))
        return self.tried[key].rate_per_s

    def climb(self) -> None:
        """Go to a neighbour that sustains more, as long as there is one."""
        better = True
        while better:
            rate, key = self.best.rate_per_s, max(self.tried, key=lambda each: self.tried[each].rate_per_s)
            better = any(self.try_fleet(other) > rate for other in self._neighbours(np.array(key)))

    def _neighbours(self, counts: Int64[Array, " A"]) -> Iterator[Int64[Array, " A"]]:
        """Yield fleets in which GPUs change types, that break no limit and that the columns, fully used, let sustain more."""
        problem = self.problem.problem
        for other in (*self._merged(counts), *self._moved(counts)):
            if other.min() < 0 or np.any(other @ problem.uses > problem.limits):
                continue
            given = replace(problem, resources=problem.types, uses=np.eye(len(other)), limits=other.astype(float))
            try:
                most = largest_traffic(given).factor * self.pool.rate_per_s
            except InfeasibleError:
                continue
            if most > self.best.rate_per_s:
                yield other

    def _merged(self, counts: Int64[Array, " A"]) -> Iterator[Int64[Array, " A"]]:
        """Yield fleets in which all GPUs of two used types go to a third used one."""
        used, gpus = np.flatnonzero(counts).tolist(), self._gpus
        for first, second, to in permutations(used, 3):
            freed = int(counts[first] * gpus[first] + counts[second] * gpus[second])
            if first < second and freed % gpus[to] == 0:
                other = counts.copy()
                other[[first, second]] = 0
                other[to] += freed // gpus[to]
                yield other

    def _moved(self, counts: Int64[Array, " A"]) -> Iterator[Int64[Array, " A"]]:
        """Yield fleets in which GPUs of one used type go to another, as many as both divide."""
        gpus = self._gpus
        for a, b in permutations(np.flatnonzero(counts).tolist(), 2):
            step = np.lcm(gpus[a], gpus[b])
            other = counts.copy()
            other[a] -= step // gpus[a]
            other[b] += step // gpus[b]
            yield other

    @property
    def _gpus(self) -> list[int]:
        return [num_gpus(replica) for replica in self.problem.replicas]
