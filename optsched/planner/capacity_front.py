"""Money, energy and latency against each other: fleets of which none is better in all three."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from optsched.capacity.pareto import Measure, front, nondominated
from optsched.capacity.problem import FleetPlan
from optsched.capacity.solve import FleetInfeasibleError
from optsched.domain.results import Metrics
from optsched.domain.scenario import FleetEntry, Scenario
from optsched.errors import InfeasibleError
from optsched.planner.capacity_answer import CapacityPlan
from optsched.planner.capacity_problem import CapacityProblem, capacity_problem
from optsched.planner.capacity_search import UTILISATION
from optsched.planner.capacity_trials import simulated_metrics
from optsched.planner.capacity_types import costs

TIGHTNESS = (1.0, 0.8, 0.6, 0.45)
"""Factors on the latency targets at which the front of money and energy is drawn."""


@dataclass(frozen=True, eq=False, slots=True)
class ParetoPoint:
    """A fleet of the front.

    Attributes
    ----------
    fleet
        Replicas of each type, of all pools one after the other.
    usd_per_hour, power_w
        Its price, and the mean power of its traffic under the columns: idle power and the energy of every request.
    p95_latency_s
        95th percentile of end-to-end latency under the columns, without queues.
    tightness
        Factor on the targets that its replica types were held to.
    chosen
        Whether it is the fleet of the capacity plan.
    simulated
        What simulation says of each pool; None where a conversation fits no replica.
    """

    fleet: tuple[FleetEntry, ...]
    usd_per_hour: float
    power_w: float
    p95_latency_s: float
    tightness: float
    chosen: bool
    simulated: tuple[Metrics | None, ...]


def pareto(
    scenario: Scenario, answer: CapacityPlan, *, tightness: Sequence[float] = TIGHTNESS, levels: int = 4,
    progress: Callable[[float, float], None] | None = None,
) -> tuple[ParetoPoint, ...]:  # fmt: skip
    """Return fleets for a capacity plan's traffic of which none is better in money, energy and latency at once.

    Latency is bounded by holding replica types to tighter targets, money by a limit on the fleet, and energy is minimised. The
    replicas' use is limited as it was in the program that led to the plan.

    Parameters
    ----------
    scenario, answer
        What was asked, and its answer.
    tightness
        Factors on the latency targets to try.
    levels
        Limits on the price to try for each.
    progress
        Called with the levels of latency tried so far and their number.
    """
    used = [each.utilisation for each in answer.iterations if each.utilisation is not None and each.met]
    share = used[-1] if used else UTILISATION
    pools = [part.pool for part in answer.problem.parts]
    found = [_point(answer.problem, answer.routed, 1.0, chosen=True)]
    for number, factor in enumerate(tightness):
        try:
            problem = capacity_problem(scenario, pools, factor)
            limited = replace(problem.problem, utilisation=np.full(len(problem.problem.types), share))
            money, energy = measures(problem)
            found += [_point(problem, each.plan, factor) for each in front(limited, money, energy, levels)]
        except (FleetInfeasibleError, InfeasibleError):  # nothing is as fast as that
            pass
        if progress is not None:
            progress(number + 1, len(tightness))
    found = list({point.fleets: point for point in reversed(found)}.values())[::-1]  # of a fleet at several levels, the loosest
    best = nondominated(np.array([(point.usd_per_hour, point.power_w, point.p95_latency_s) for point in found]))
    return tuple(_simulated(scenario, answer, found[index]) for index in best)


def measures(problem: CapacityProblem) -> tuple[Measure, Measure]:
    """Return price and mean power, on average over the periods."""
    hours = sum({part.pool.period: part.pool.hours for part in problem.parts}.values())
    found = []
    for objective, name in (("cost", "price [USD/h]"), ("energy", "mean power [W]")):
        per_replica, per_request = [], np.zeros(problem.problem.rate_per_s.shape)
        row = column = 0
        for part in problem.parts:
            replica, request = costs("cost" if objective == "cost" else "energy", part.columns)
            weight = part.pool.hours / hours
            per_replica.append(weight * replica)
            per_request[row : row + len(request), column : column + request.shape[1]] = weight * request
            row, column = row + len(request), column + request.shape[1]
        found.append(Measure(name, np.concatenate(per_replica), per_request))
    return found[0], found[1]


def _point(problem: CapacityProblem, plan: FleetPlan, tightness: float, chosen: bool = False) -> _Unsimulated:
    money, energy = measures(problem)
    fleets = tuple(problem.fleet(index, plan.counts) for index in range(len(problem.parts)))
    return _Unsimulated(fleets, money.of(plan), energy.of(plan), p95_latency_s(problem, plan), tightness, chosen)


@dataclass(frozen=True, slots=True)
class _Unsimulated:
    fleets: tuple[tuple[FleetEntry, ...], ...]
    usd_per_hour: float
    power_w: float
    p95_latency_s: float
    tightness: float
    chosen: bool


def _simulated(scenario: Scenario, answer: CapacityPlan, point: _Unsimulated) -> ParetoPoint:
    metrics = tuple(
        simulated_metrics(scenario, part.pool, fleet) for part, fleet in zip(answer.problem.parts, point.fleets, strict=True)
    )
    fleet = tuple(entry for entries in point.fleets for entry in entries)
    return ParetoPoint(fleet, point.usd_per_hour, point.power_w, point.p95_latency_s, point.tightness, point.chosen, metrics)


def p95_latency_s(problem: CapacityProblem, plan: FleetPlan) -> float:
    """Return the 95th percentile of the classes' end-to-end latencies, each on the replicas that serve it."""
    seconds: list[float] = []
    weights: list[float] = []
    roles = np.array(problem.problem.roles)
    row = column = 0
    for part in problem.parts:
        columns = part.columns
        size = (len(columns.replicas), len(part.classes))
        routed = plan.routed_per_s[row : row + size[0], column : column + size[1]]
        role = roles[row : row + size[0]]
        row, column = row + size[0], column + size[1]
        apart = routed * (role == "prefill")[:, None]
        first = (columns.first_token_s * apart).sum(axis=0) / np.maximum(apart.sum(axis=0), 1e-300)
        for a, j in np.argwhere((routed > 0) & (role != "prefill")[:, None]).tolist():
            each = part.classes[j]
            begun = columns.first_token_s[a, j] if role[a] == "mixed" else first[j]
            seconds.append(float(begun + each.gap_s + each.output_tokens * columns.token_s[a, j]))
            weights.append(float(routed[a, j]) * part.pool.hours)
    order = np.argsort(seconds)
    reached = np.cumsum(np.array(weights)[order]) / sum(weights)
    return float(np.array(seconds)[order][np.searchsorted(reached, 0.95)])
