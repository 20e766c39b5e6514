"""The highest rate that a supply sustains within its targets, and the fleet that sustains it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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
        Simulated, to 1 %; 0 if it keeps them at no rate.
    """

    fleet: tuple[FleetEntry, ...]
    policy: PolicySpec
    rate_per_s: float


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
        All fleets that were simulated.
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
    of them sustains more.

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


def sustained_rate(scenario: Scenario, pool: Pool, fleet: tuple[FleetEntry, ...], guess_per_s: float) -> Sustained:
    """Return the highest rate at which a fleet keeps every target in simulation, under the policies that suit it.

    Parameters
    ----------
    scenario, pool
        What is asked, and whose conversations are simulated, at other rates.
    fleet
        What serves them.
    guess_per_s
        Where to begin.
    """
    best = Sustained(fleet, scenario.policy, 0.0)
    fixed = pool.scenario(scenario).replace(fleet=fleet)
    for policy in suitable_policies(fixed):
        draft = _draft(fixed.replace(policy=policy), pool)
        if best.rate_per_s and not _kept(draft, pool, best.rate_per_s * (1 + TOLERANCE)):
            continue
        start = best.rate_per_s * (1 + TOLERANCE) if best.rate_per_s else guess_per_s
        factor = highest_factor(lambda each, draft=draft, start=start: _kept(draft, pool, each * start), 1.1, TOLERANCE)  # type: ignore[misc]
        if factor * start > best.rate_per_s:
            best = Sustained(fleet, policy, factor * start)
    return best


def _kept(draft: Plan, pool: Pool, rate_per_s: float) -> bool:
    return judged(draft, [pool.at_rate(rate_per_s)])[0]


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
        """Return the rate that a fleet sustains."""
        key = tuple(counts.tolist())
        if key not in self.tried:
            given = replace(
                self.problem.problem, resources=self.problem.problem.types, uses=np.eye(len(counts)), limits=counts.astype(float)
            )
            guess = largest_traffic(given).factor * self.pool.rate_per_s
            self.tried[key] = sustained_rate(self.scenario, self.pool, self.problem.fleet(0, counts), 0.9 * guess)
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
        """Yield fleets in which GPUs of one used type go to another, as many as both divide, and no limit is broken.

        Only those that the columns, fully used, could let sustain more than the best.
        """
        problem, used = self.problem.problem, np.flatnonzero(counts).tolist()
        gpus = [num_gpus(replica) for replica in self.problem.replicas]
        for a in used:
            for b in used:
                step = np.lcm(gpus[a], gpus[b])
                other = counts.copy()
                other[a] -= step // gpus[a]
                other[b] += step // gpus[b]
                if a == b or other.min() < 0 or np.any(other @ problem.uses > problem.limits):
                    continue
                given = replace(problem, resources=problem.types, uses=np.eye(len(other)), limits=other.astype(float))
                try:
                    most = largest_traffic(given).factor * self.pool.rate_per_s
                except InfeasibleError:
                    continue
                if most > self.best.rate_per_s:
                    yield other
