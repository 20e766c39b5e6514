"""The answer of a capacity question: a fleet, what it does, how good it is proven to be, and what was tried."""

from __future__ import annotations

from dataclasses import dataclass

from optsched.capacity.prices import Prices
from optsched.domain.plan import Certificate
from optsched.domain.scenario import FleetEntry, Objective
from optsched.planner.capacity_problem import CapacityProblem
from optsched.planner.plan import Planned

EVALUATOR = "columns-v1"
OBJECTIVES: dict[Objective, str] = {"energy": "mean power [W]", "gpus": "GPUs", "cost": "price [USD/h]"}


@dataclass(frozen=True, slots=True)
class Iteration:
    """A fleet that was tried.

    Attributes
    ----------
    utilisation
        Share of a replica's full rate that was allowed; None for a fleet tried with one replica fewer.
    fleet
        What was tried.
    cost
        Its objective.
    met
        Whether every target was met with every seed.
    worst
        The target missed most and by how much its share of violations exceeds what it allows (negative: room to spare).
    """

    utilisation: float | None
    fleet: tuple[FleetEntry, ...]
    cost: float
    met: bool
    worst: tuple[str, float]


@dataclass(frozen=True, eq=False)
class CapacityPlan:
    """The answer of a capacity question.

    Attributes
    ----------
    planned
        The plan of the fleet, its workload and simulation (with the scenario's own seed).
    fleet
        Replicas of each type.
    cost_usd_per_hour, power_w
        Price, and sum of the power caps.
    certificate
        Value and bound under the column model: the bound is what a fleet would cost that could be used fully.
    prices, one_more, slo_price
        Of the relaxation; per limit, what one more unit saves in whole fleets; what targets looser by 1 % save in the relaxation.
    sustained
        Share of the traffic that the fleet could serve for ever. Below 1 the queues grow as long as the workload lasts; it keeps
        the targets since it ends, prices are those of that share, and nothing is proven.
    utilisation
        Of each type that is used, by its label.
    iterations, dropped
        What was tried, and replica types that take no part.
    """

    planned: Planned
    fleet: tuple[FleetEntry, ...]
    cost_usd_per_hour: float
    power_w: float
    certificate: Certificate
    prices: Prices
    one_more: dict[str, float]
    slo_price: float | None
    sustained: float
    utilisation: dict[str, float]
    iterations: tuple[Iteration, ...]
    problem: CapacityProblem
