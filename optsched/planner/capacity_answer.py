"""The answer of a capacity question: a fleet, what it does, how good it is proven to be, and what more of anything is worth."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64

from optsched.capacity.prices import Prices, relaxation_prices
from optsched.capacity.problem import FleetPlan, FleetProblem
from optsched.capacity.solve import FleetAnswer, solve_fleet
from optsched.capacity.survival import largest_share
from optsched.domain.plan import Certificate
from optsched.domain.scenario import FleetEntry, Objective, Scenario
from optsched.errors import InfeasibleError
from optsched.placement.solved import relative_gap
from optsched.planner.capacity_pools import Pool
from optsched.planner.capacity_problem import CapacityProblem, capacity_problem
from optsched.planner.capacity_search import GAP, Found, Iteration
from optsched.planner.plan import Planned, plan_draft

Array = np.ndarray
EVALUATOR = "columns-v1"
OBJECTIVES: dict[Objective, str] = {"energy": "mean power [W]", "gpus": "GPUs", "cost": "price [USD/h]"}
OVER_PERIODS: dict[Objective, str] = {"energy": "energy [Wh]", "gpus": "GPU hours", "cost": "price [USD]"}


@dataclass(frozen=True, eq=False, slots=True)
class PoolPlan:
    """The replicas of one service in one period.

    Attributes
    ----------
    pool
        Whom they serve.
    fleet
        Replicas of each type.
    planned
        The plan of the fleet, its workload and simulation (with the scenario's own seed).
    """

    pool: Pool
    fleet: tuple[FleetEntry, ...]
    planned: Planned


@dataclass(frozen=True, eq=False, slots=True)
class CapacityPlan:
    """The answer of a capacity question.

    Attributes
    ----------
    pools
        Of each service, in each period.
    cost_usd_per_hour, power_w
        Price, and sum of the power caps; on average over the periods if there are any.
    certificate
        Value and bound under the column model: the bound is what a fleet would cost that could be used fully.
    prices, one_more, slo_price
        Of the relaxation; per limit, what one more unit saves in whole fleets; what targets looser by 1 % save in the relaxation
        (None where that has no finite price).
    sustained
        Share of the traffic that the fleet could serve for ever. Below 1 the queues grow as long as the workload lasts; it keeps
        the targets since it ends, prices are those of that share, and nothing is proven.
    routed
        Replicas of each type and the traffic routed to them; see `sustained`.
    utilisation
        Of each type that is used, by its label.
    changes_usd, one_fleet
        With periods: what adding and removing replicas between them costs; and the one fleet that serves the busiest period and
        all others.
    seeds
        With how many seeds the fleet was judged at most; fewer than `optsched.planner.capacity_trials.SEEDS` if the given GPUs
        keep the targets with the first of them, but not with nearly all.
    iterations, problem
        What was tried, and the fleet problem with the types that take no part.
    """

    pools: tuple[PoolPlan, ...]
    cost_usd_per_hour: float
    power_w: float
    certificate: Certificate
    prices: Prices
    one_more: dict[str, float]
    slo_price: float | None
    sustained: float
    routed: FleetPlan
    utilisation: dict[str, float]
    seeds: int
    iterations: tuple[Iteration, ...]
    problem: CapacityProblem
    changes_usd: float = 0.0
    one_fleet: CapacityPlan | None = None

    @property
    def planned(self) -> Planned:
        """The plan of the first pool: the only one, unless there are several services or periods."""
        return self.pools[0].planned

    @property
    def fleet(self) -> tuple[FleetEntry, ...]:
        """Replicas of each type, of all pools one after the other."""
        return tuple(entry for pool in self.pools for entry in pool.fleet)

    @property
    def proven(self) -> bool:
        """Whether the certificate has a bound."""
        return self.certificate.bound > 0


def answer_of(scenario: Scenario, problem: CapacityProblem, found: Found) -> CapacityPlan:
    """Return the answer that a fleet makes: its plans, certificate and prices.

    Parameters
    ----------
    scenario, problem
        What is asked.
    found
        The fleet.
    """
    counts, full = found.counts, found.full
    share = max(1e-9, largest_share(problem.problem, counts))
    # What the fleet cannot sustain for ever is left out of use and prices; the bound is one only if all can be.
    served = replace(problem.problem, demand_per_s=problem.problem.demand_per_s * min(1.0, share * (1 - 1e-6)))
    used = _routed(served, counts)
    value = served.value(used)
    bound = 0.0 if full is None or share < 1 else min(full.bound, value)
    words = OBJECTIVES if problem.problem.follows is None else OVER_PERIODS
    gap = relative_gap(value, bound)
    shares = used.utilisation(served)
    return CapacityPlan(
        pools=_pool_plans(scenario, problem, found),
        cost_usd_per_hour=problem.usd_per_hour(counts),
        power_w=problem.power_w(counts),
        certificate=Certificate(
            evaluator=EVALUATOR, objective=words[problem.objective], value=value, bound=bound, gap=gap,
            status="FEASIBLE" if gap else "OPTIMAL", solver="highs",
        ),
        prices=relaxation_prices(served),
        one_more={} if full is None else _one_more(problem, full),
        slo_price=None if full is None else slo_price(scenario, [part.pool for part in problem.parts]),
        sustained=min(1.0, share),
        routed=used,
        utilisation={served.types[a]: float(shares[a]) for a in np.flatnonzero(counts)},
        seeds=found.seeds,
        iterations=found.iterations,
        problem=problem,
        changes_usd=problem.problem.fleet_cost(counts) - float(problem.problem.cost @ counts),
    )  # fmt: skip


def _routed(problem: FleetProblem, counts: Int64[Array, " A"]) -> FleetPlan:
    """Return the cheapest routing over a fleet that is given."""
    given = replace(
        problem, cost=np.zeros(len(counts)), resources=problem.types, uses=np.eye(len(counts)), limits=counts.astype(float),
        lost=None, present=None, follows=None, change_cost=None,
    )  # fmt: skip
    return replace(solve_fleet(given, gap=GAP).plan, counts=counts)


def _pool_plans(scenario: Scenario, problem: CapacityProblem, found: Found) -> tuple[PoolPlan, ...]:
    plans = []
    for index, (part, verdict) in enumerate(zip(problem.parts, found.verdicts, strict=True)):
        assert verdict.draft is not None
        fleet, pool = problem.fleet(index, found.counts), part.pool
        fixed = pool.scenario(scenario).replace(fleet=fleet)
        plans.append(PoolPlan(pool, fleet, plan_draft(fixed, verdict.draft, pool.workload)))
    return tuple(plans)


def _one_more(problem: CapacityProblem, full: FleetAnswer) -> dict[str, float]:
    """Return per limit by how much one more unit would lower the cost of the best fleet."""
    found = {}
    for k, name in enumerate(problem.problem.resources):
        limits = problem.problem.limits.copy()
        limits[k] += 1
        found[name] = full.value - solve_fleet(replace(problem.problem, limits=limits), gap=GAP, time_limit_s=30.0).value
    return found


def slo_price(scenario: Scenario, pools: list[Pool]) -> float | None:
    """Return by how much the relaxation's cost falls per per cent by which all targets are loosened (averaged over +-1 %).

    Returns
    -------
    float or None
        None if targets tighter or looser by 1 % cannot be kept at all.
    """
    values = []
    for tightness in (0.99, 1.01):
        try:
            values.append(relaxation_prices(capacity_problem(scenario, pools, tightness).problem).value)
        except InfeasibleError:
            return None
    return (values[0] - values[1]) / 2
