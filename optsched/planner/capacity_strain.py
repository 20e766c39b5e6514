"""One simulation of a fleet: which target it misses most, and how tight each could be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

from optsched.domain.accounting import alone_of
from optsched.domain.plan import Plan
from optsched.domain.results import Latencies, StandaloneLatency
from optsched.domain.scenario import LatencyTarget, Slo
from optsched.domain.workload import Workload
from optsched.errors import InfeasibleError
from optsched.planner.capacity_pools import Pool
from optsched.simulator.simulate import simulate

WIDEST = 16.0
"""Strains are looked for between this and its inverse."""
PRECISION = 0.005


@dataclass(frozen=True, slots=True)
class Trial:
    """What one simulation says.

    Attributes
    ----------
    worst
        The target missed most and by how much its share of violations exceeds what it allows (negative: room to spare).
    strains
        Of each target, the factor by which it could be multiplied and just be kept: below 1 where it is kept.
    """

    worst: tuple[str, float]
    strains: dict[str, float]


def tried(draft: Plan, pool: Pool) -> Trial:
    """Simulate a pool's conversations on a fleet."""
    slo, workload = pool.service.slo, pool.workload
    given = {name: target for name in Slo.model_fields if (target := getattr(slo, name)) is not None}
    try:
        log = simulate(draft, workload, record_steps=False, record_tokens=False)
    except InfeasibleError as error:
        return Trial((str(error), 1.0), dict.fromkeys(given, WIDEST))
    alone = alone_of(draft, workload)
    latency = Latencies.of(log, workload, alone, "true")
    missed = {name: float(miss.mean()) for name, miss in latency.misses(slo, alone, workload).items()}
    return Trial(
        worst_target(slo, missed), {name: _strain(name, target, latency, alone, workload) for name, target in given.items()}
    )


def worst_target(slo: Slo, violations: Mapping[str, float]) -> tuple[str, float]:
    """Return the target whose share of violations exceeds what it allows most, and by how much."""
    found = ("nothing", -1.0)
    for name, share in violations.items():
        found = max(found, (name, share - _allowed(getattr(slo, name))), key=lambda each: each[1])
    return found


def _allowed(target: LatencyTarget) -> float:
    return 1 - target.percentile / 100 + 1e-12


def _strain(name: str, target: LatencyTarget, latency: Latencies, alone: StandaloneLatency, workload: Workload) -> float:
    """Return the least factor at which a target is kept, by bisection."""
    low, high = 1 / WIDEST, WIDEST
    while high > low * (1 + PRECISION):
        middle = sqrt(low * high)
        scaled = Slo.model_validate({name: _scaled(target, middle)})
        kept = latency.misses(scaled, alone, workload)[name].mean() <= _allowed(target)
        low, high = (low, middle) if kept else (middle, high)
    return high


def _scaled(target: LatencyTarget, factor: float) -> LatencyTarget:
    if target.seconds is not None:
        return target.replace(seconds=factor * target.seconds)
    assert target.standalone_factor is not None
    return target.replace(standalone_factor=factor * target.standalone_factor)
