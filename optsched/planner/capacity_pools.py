"""Whom a capacity plan serves: every service in every period is a pool of conversations with replicas of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from optsched import catalog
from optsched.domain.llm import Llm
from optsched.domain.plan import PlanWorkload
from optsched.domain.scenario import Limits, Period, Scenario, Service
from optsched.domain.workload import Workload
from optsched.errors import SpecError
from optsched.traces.loading import describe_workload, load_workload


@dataclass(frozen=True, eq=False, slots=True)
class Pool:
    """The conversations of one service in one period.

    Attributes
    ----------
    name
        Of the service, and of the period if there are several; empty where there is only one pool.
    service, llm
        What serves them.
    described, workload
        The conversations.
    rate_per_s
        How many arrive per second.
    period, hours
        Index of the period, and how long it lasts; 0 and 1 where there are no periods: costs are then per hour.
    """

    name: str
    service: Service
    llm: Llm
    described: PlanWorkload
    workload: Workload
    rate_per_s: float
    period: int = 0
    hours: float = 1.0

    def scenario(self, asked: Scenario) -> Scenario:
        """Return the scenario of this pool alone, without limits on the whole fleet."""
        return asked.only(self.service).replace(limits=Limits(), current=None, periods=())

    def with_seed(self, number: int) -> Pool:
        """Return the pool with other conversations: those of its seed plus a number."""
        seed = self.described.seed + number
        described = self.described.replace(seed=seed, arrivals=self.described.arrivals.replace(seed=seed))
        return replace(self, described=described, workload=load_workload(described))

    @property
    def is_drawn(self) -> bool:
        """Whether another seed makes a difference."""
        return self.described.recipe is not None or self.described.arrivals.process in ("poisson", "gamma")

    def at_rate(self, rate_per_s: float) -> Pool:
        """Return the pool with the same conversations at another rate."""
        described = self.described.replace(arrivals=self.described.arrivals.replace(rate_per_s=rate_per_s))
        return replace(self, described=described, workload=load_workload(described), rate_per_s=rate_per_s)


def pools_of(
    scenario: Scenario, base: Path | None, trace: Path | None, rate_per_s: float | None, seed: int | None
) -> tuple[Pool, ...]:
    """Return a scenario's services, at its arrival rates.

    Parameters
    ----------
    scenario
        What is asked.
    base, trace, seed
        As of `optsched.traces.loading.describe_workload`.
    rate_per_s
        Conversations per second of all services together, in their proportions.

    Raises
    ------
    SpecError
        If arrivals depend on the fleet, have no rate, or several services are to take one trace.
    """
    services = scenario.all_services
    if trace is not None and len(services) > 1:
        raise SpecError(f"{len(services)} services cannot share one trace; name each one's in [[service]]", field="--trace")
    if len(services) > 1 and scenario.current is not None and any(entry.service is None for entry in scenario.current.fleet):
        raise SpecError("which service a replica serves today is not said; give each entry its service", field="current.fleet")
    pools = [_pool(service, base, trace, rate_per_s if len(services) == 1 else None, seed) for service in services]
    if len(pools) > 1:
        pools = [replace(pool, name=pool.service.name) for pool in pools]
    if rate_per_s is not None and len(services) > 1:
        factor = rate_per_s / sum(pool.rate_per_s for pool in pools)
        pools = [pool.at_rate(factor * pool.rate_per_s) for pool in pools]
    return tuple(pools)


def over_the_day(pools: Sequence[Pool], periods: Sequence[Period]) -> tuple[Pool, ...]:
    """Return every service in every period; a period's rate is that of all services together, in their proportions."""
    total = sum(pool.rate_per_s for pool in pools)
    found = []
    for index, period in enumerate(periods):
        for pool in pools:
            shared = pool.at_rate(period.rate_per_s * pool.rate_per_s / total)
            name = f"{pool.name}, {period.name}" if pool.name else period.name
            found.append(replace(shared, name=name, period=index, hours=period.hours))
    return tuple(found)


def _pool(service: Service, base: Path | None, trace: Path | None, rate_per_s: float | None, seed: int | None) -> Pool:
    described = describe_workload(service.workload, base, trace=trace, rate_per_s=rate_per_s, seed=seed)
    workload = load_workload(described)
    if workload.concurrency is not None:
        raise SpecError(
            "'closed': capacity plans for arrivals that do not depend on the fleet", field="workload.arrivals.process"
        )
    rate = described.arrivals.rate_per_s or _rate_of(workload)
    return Pool("", service, catalog.llm(service.llm), described, workload, rate)


def _rate_of(workload: Workload) -> float:
    span_s = float(workload.arrival_s.max(initial=0.0) - workload.arrival_s.min(initial=0.0))
    if span_s <= 0:
        raise SpecError(
            "the conversations arrive all at once; give a rate with --rate or workload.arrivals", field="workload.arrivals"
        )
    return (workload.num_conversations - 1) / span_s


def whole_rate(pools: Sequence[Pool]) -> float:
    """Return the conversations per second of all pools of the first period."""
    return float(np.sum([pool.rate_per_s for pool in pools if pool.period == 0]))
