"""Swaps of one replica for cheaper ones, seen from the columns."""

from __future__ import annotations

import numpy as np
import pytest

from optsched import catalog
from optsched.capacity.solve import solve_fleet
from optsched.capacity.survival import can_serve, traffic_prices
from optsched.planner.capacity_pools import pools_of
from optsched.planner.capacity_problem import CapacityProblem, capacity_problem
from optsched.planner.capacity_swaps import cheaper_swaps

CHAT = catalog.scenario("chat-l4").replace(
    fleet=(), supply={"l4": {"max": 6}, "l40s": {"max": 4}, "h100-sxm": {"max": 2}}, objective={"minimise": "cost"}
)


@pytest.fixture(scope="module")
def problem() -> CapacityProblem:
    return capacity_problem(CHAT, pools_of(CHAT, None, None, 1.0, None))


def dear_fleet(problem: CapacityProblem) -> np.ndarray:
    """Return two replicas of the dearest type that prefills and decodes."""
    counts = np.zeros(len(problem.problem.types), np.int64)
    mixed = [a for a, role in enumerate(problem.problem.roles) if role == "mixed"]
    counts[max(mixed, key=lambda a: problem.problem.cost[a])] = 2
    return counts


def test_a_swap_is_cheaper_within_the_limits_and_serves_everything(problem: CapacityProblem) -> None:
    counts = dear_fleet(problem)
    asked = problem.problem
    assert can_serve(asked, counts)
    swaps = list(cheaper_swaps(problem, counts))
    assert swaps
    share, price = traffic_prices(asked, counts)
    assert price @ counts == pytest.approx(share)
    for other in swaps:
        changed = other - counts
        assert changed.min() in (-1, -2)
        assert np.count_nonzero(changed) == 2
        assert asked.cost @ other < asked.cost @ counts
        assert np.all(other @ asked.uses <= asked.limits)
        assert can_serve(asked, other)
    capable = [float(price @ other) for other in swaps]
    assert capable == sorted(capable, reverse=True)


def test_the_cheapest_fleet_of_the_program_has_no_cheaper_swap(problem: CapacityProblem) -> None:
    assert list(cheaper_swaps(problem, solve_fleet(problem.problem).plan.counts)) == []
