"""Does a fleet keep its targets? Simulated with several seeds, under the policies that suit its roles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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

SEEDS = 3
"""Seeds that a fleet is simulated with: the scenario's and those that follow."""


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
        How many to try.
    """

    def __init__(self, scenario: Scenario, problem: CapacityProblem, seeds: int = SEEDS) -> None:
        self._scenario, self._problem = scenario, problem
        self._seen: dict[tuple[int, tuple[int, ...]], Verdict] = {}
        self._pools: dict[int, list[Pool]] = {}
        for index, part in enumerate(problem.parts):
            number = seeds if part.pool.is_drawn else 1
            self._pools[index] = [part.pool, *(part.pool.with_seed(seed) for seed in range(1, number))]

    def verdicts(self, counts: np.ndarray) -> list[Verdict]:
        """Return what simulation says of each pool's part of a fleet."""
        return [self.verdict(index, counts) for index in range(len(self._pools))]

    def verdict(self, index: int, counts: np.ndarray) -> Verdict:
        """Return what simulation says of one pool's part of a fleet."""
        key = (index, tuple(self._problem.counts_of(index, counts).tolist()))
        if key not in self._seen:
            self._seen[key] = self._simulated(self._pools[index], self._problem.fleet(index, counts))
        return self._seen[key]

    def _simulated(self, pools: list[Pool], fleet: tuple[FleetEntry, ...]) -> Verdict:
        fixed = pools[0].scenario(self._scenario).replace(fleet=fleet)
        least = ("nothing", 2.0)
        for policy in suitable_policies(fixed):
            draft = drafts_of(fixed.replace(policy=policy), pools[0].llm, pools[0].described, policy.placement)[0]
            worst = worst_of_all(draft, pools)
            if worst[1] <= 0:
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


def worst_of_all(draft: Plan, pools: list[Pool]) -> tuple[str, float]:
    """Return the target that a fleet misses most, over the pools up to the first with which it misses any."""
    worst = ("nothing", -1.0)
    for pool in pools:
        try:
            log = simulate(draft, pool.workload, record_steps=False, record_tokens=False)
        except InfeasibleError as error:
            return str(error), 1.0
        metrics = measure_plan(draft, log, pool.workload)
        worst = max(worst, worst_target(pool.service.slo, metrics), key=lambda each: each[1])
        if worst[1] > 0:
            break
    return worst


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
