"""Does a fleet keep its targets? Simulated with several seeds, under the policies that suit its roles."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.stats import t as student

from optsched.domain.accounting import measure_plan
from optsched.domain.plan import Plan
from optsched.domain.results import Metrics
from optsched.domain.scenario import FleetEntry, PolicySpec, Scenario, Slo
from optsched.errors import InfeasibleError
from optsched.placement.policies import ALL_MIXED
from optsched.planner.capacity_pools import Pool
from optsched.planner.capacity_problem import CapacityProblem
from optsched.planner.plan import drafts_of
from optsched.simulator.simulate import simulate

Array = np.ndarray
SEEDS = 20
"""Seeds that a fleet is simulated with at most: the scenario's and those that follow. One in twenty may miss a target."""
FIRST = 3
"""Seeds with which no target may be missed."""
SOME = 8
"""Seeds after which a fleet with room to spare needs no more."""


@dataclass(frozen=True, eq=False, slots=True)
class Verdict:
    """What simulation says of one pool's fleet.

    Attributes
    ----------
    draft
        The fleet under the policy with which it keeps every target; None if it misses one under each.
    worst
        The target missed most and by how much its share of violations exceeds what it allows (negative: room to spare).
    """

    draft: Plan | None
    worst: tuple[str, float]


class Trials:
    """The fleets of a capacity question that were simulated so far.

    Parameters
    ----------
    scenario
        What is asked.
    problem
        Its pools.
    seeds
        How many to try; one in twenty may miss a target.
    """

    def __init__(self, scenario: Scenario, problem: CapacityProblem, seeds: int = SEEDS) -> None:
        self._scenario, self._problem = scenario, problem
        self._seen: dict[tuple[int, tuple[int, ...]], Verdict] = {}
        self._pools = [[part.pool] for part in problem.parts]
        self.seeds = seeds

    def verdicts(self, counts: np.ndarray) -> list[Verdict]:
        """Return what simulation says of each pool's part of a fleet."""
        return [self.verdict(index, counts) for index in range(len(self._pools))]

    def verdict(self, index: int, counts: np.ndarray) -> Verdict:
        """Return what simulation says of one pool's part of a fleet."""
        key = (index, tuple(self._problem.counts_of(index, counts).tolist()))
        if key not in self._seen:
            self._seen[key] = self._simulated(index, self._problem.fleet(index, counts))
        return self._seen[key]

    def _drawn(self, index: int) -> Iterator[Pool]:
        """Yield a pool with the scenario's seed and those that follow, drawn when they are first needed."""
        pools = self._pools[index]
        for number in range(self.seeds if pools[0].is_drawn else 1):
            if number == len(pools):
                pools.append(pools[0].with_seed(number))
            yield pools[number]

    def _simulated(self, index: int, fleet: tuple[FleetEntry, ...]) -> Verdict:
        pool = self._problem.parts[index].pool
        fixed = pool.scenario(self._scenario).replace(fleet=fleet)
        least = ("nothing", 2.0)
        for policy in suitable_policies(fixed):
            draft = drafts_of(fixed.replace(policy=policy), pool.llm, pool.described, policy.placement)[0]
            kept, worst = judged(draft, self._drawn(index), self.seeds // 20)
            if kept:
                return Verdict(draft, worst)
            least = min(least, worst, key=lambda each: each[1])
        return Verdict(None, least)


def simulated_metrics(scenario: Scenario, pool: Pool, fleet: tuple[FleetEntry, ...]) -> Metrics | None:
    """Return what conversations experience on a fleet, under the policy that misses targets least; None if one fits nowhere."""
    best: tuple[float, Metrics] | None = None
    fixed = pool.scenario(scenario).replace(fleet=fleet)
    for policy in suitable_policies(fixed):
        draft = drafts_of(fixed.replace(policy=policy), pool.llm, pool.described, policy.placement)[0]
        try:
            log = simulate(draft, pool.workload, record_steps=False)
        except InfeasibleError:
            continue
        metrics = measure_plan(draft, log, pool.workload)
        missed = max(0.0, worst_target(pool.service.slo, metrics)[1])
        if best is None or missed < best[0]:
            best = missed, metrics
        if missed == 0:
            break
    return None if best is None else best[1]


def judged(draft: Plan, pools: Iterable[Pool], most_misses: int = 0) -> tuple[bool, tuple[str, float]]:
    """Tell whether a fleet keeps its targets with nearly all seeds, and the target that it misses most.

    It does not if it misses one with any of the first `FIRST` seeds, or with more than `most_misses`. It does if all seeds were
    tried; if the first `FIRST` are all alike, since nobody misses anything; and from `SOME` on as soon as the violations so far
    leave so much room that 99 of 100 further seeds can be expected to keep the targets (the prediction interval of a normal
    distribution).

    Parameters
    ----------
    draft
        The fleet, under one policy.
    pools
        The same pool with one seed after the other.
    most_misses
        With how many seeds a target may be missed.
    """
    found: list[tuple[str, float]] = []
    for pool in pools:
        found.append(_worst_of(draft, pool))
        missed = sum(excess > 0 for _, excess in found)
        if missed > (most_misses if len(found) > FIRST else 0):
            return False, max(found, key=lambda each: each[1])
        if len(found) >= FIRST and missed == 0 and _leaves_room(np.array([excess for _, excess in found])):
            break
    found.sort(key=lambda each: each[1])
    return True, found[-1 - sum(excess > 0 for _, excess in found)]


def _leaves_room(excess: Float64[Array, " n"]) -> bool:
    count = len(excess)
    if count < SOME:
        return bool(np.ptp(excess) == 0)
    beyond = float(student.ppf(0.99, count - 1)) * float(np.std(excess, ddof=1)) * math.sqrt(1 + 1 / count)
    return float(excess.mean()) + beyond <= 0


def _worst_of(draft: Plan, pool: Pool) -> tuple[str, float]:
    try:
        log = simulate(draft, pool.workload, record_steps=False, record_tokens=False)
    except InfeasibleError as error:
        return str(error), 1.0
    return worst_target(pool.service.slo, measure_plan(draft, log, pool.workload))


def worst_target(slo: Slo, metrics: Metrics) -> tuple[str, float]:
    """Return the target whose violations exceed what it allows most, and by how much."""
    found = ("nothing", -1.0)
    for name in Slo.model_fields:
        target = getattr(slo, name)
        if target is not None:
            excess = metrics.slo_violations[name] - (1 - target.percentile / 100) - 1e-12
            found = max(found, (name, excess), key=lambda each: each[1])
    return found


def suitable_policies(scenario: Scenario) -> list[PolicySpec]:
    """Return the policies to try on a fleet: the scenario's placement if it suits the roles, or those that do; then pacing."""
    own, mixed = scenario.policy, {entry.role for entry in scenario.fleet} == {"mixed"}
    if mixed == (own.placement in ALL_MIXED):
        tried = [own]
    elif mixed:
        balanced = own.replace(placement="collocated", placement_parameters={"oracle": 0, "admission": 0})
        tried = [balanced, balanced.replace(placement_parameters={"oracle": 0})]
    else:
        tried = [own.replace(placement="conserve", placement_parameters={})]
    if own.batching == "vllm-chunked":
        last = "adaptive" if mixed else "conserve"
        tried.append(own.replace(placement=last, placement_parameters={}, batching="paced", batching_parameters={}))
    return tried
