"""Which GPUs, and how many: the cheapest fleet whose simulation keeps the targets, and nothing in it to spare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from optsched.domain.scenario import Scenario
from optsched.planner.capacity_answer import CapacityPlan, answer_of
from optsched.planner.capacity_pools import over_the_day, pools_of
from optsched.planner.capacity_problem import capacity_problem
from optsched.planner.capacity_search import search_fleet
from optsched.planner.capacity_trials import Trials


def capacity(
    scenario: Scenario,
    *,
    base: Path | None = None,
    trace: Path | None = None,
    rate_per_s: float | None = None,
    seed: int | None = None,
    progress: Callable[[float, float], None] | None = None,
) -> CapacityPlan:
    """Find the cheapest fleet that keeps a scenario's targets.

    The fleet problem is solved at a limit of utilisation; the fleet found is simulated with several seeds; while a target is
    missed the limit is lowered. Then every replica is tried for whether the fleet could do without it. Each service has replicas
    of its own; the supply and the limits are shared. With periods, each has a fleet of its own, changes between them cost what
    the scenario's ``[current]`` says, and the last is followed by the first.

    Parameters
    ----------
    scenario
        What is asked; its ``[[fleet]]``, if any, names the only replica types to choose from.
    base, trace, seed
        As of `optsched.planner.plan.plan_scenario`.
    rate_per_s
        Conversations per second of all services together, instead of the scenario's rate or periods.
    progress
        Called with the fleets tried so far and a guess of their number.

    Raises
    ------
    FleetInfeasibleError
        If no fleet within the limits keeps the targets; it names the fewest limits to relax.
    SpecError
        If the scenario asks for what capacity cannot plan.
    """
    pools = pools_of(scenario, base, trace, rate_per_s, seed)
    if scenario.periods and rate_per_s is None:
        pools = over_the_day(pools, scenario.periods)
    problem = capacity_problem(scenario, pools)
    found = search_fleet(scenario, problem, Trials(scenario, problem), progress)
    answer = answer_of(scenario, problem, found)
    if not scenario.periods or rate_per_s is not None:
        return answer
    busiest = max(period.rate_per_s for period in scenario.periods)
    alone = scenario.replace(periods=(), current=None)
    return replace(answer, one_fleet=capacity(alone, base=base, trace=trace, rate_per_s=busiest, seed=seed))
