"""Fronts: none of their points is better than another, and none is missing."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optsched.capacity.pareto import Measure, front, nondominated
from optsched.capacity.problem import FleetProblem


def problem(rates: list[float], demand: float) -> FleetProblem:
    types = len(rates)
    return FleetProblem(
        classes=("chat",), demand_per_s=np.array([demand]), types=tuple(f"t{a}" for a in range(types)), roles=("mixed",) * types,
        rate_per_s=np.array(rates)[:, None], cost=np.ones(types), resources=(), uses=np.zeros((types, 0)), limits=np.zeros(0),
    )  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([1.0, 2.0, 4.0]), st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=3),
    st.sampled_from([1.0, 3.0, 5.0]),
)
def test_no_fleet_beats_a_point_of_the_front_in_both_measures(types: list[tuple[float, int, int]], demand: float) -> None:
    asked = problem([rate for rate, _, _ in types], demand)
    money = Measure("USD", np.array([float(usd) for _, usd, _ in types]), np.zeros((len(types), 1)))
    energy = Measure("W", np.array([float(watts) for _, _, watts in types]), np.zeros((len(types), 1)))
    points = front(asked, money, energy, levels=5)
    rate = np.array([rate for rate, _, _ in types])
    fleets = [np.array(counts) for counts in product(range(6), repeat=len(types)) if np.dot(counts, rate) >= demand]
    values = [(float(money.per_replica @ counts), float(energy.per_replica @ counts)) for counts in fleets]
    assert points[0].first == pytest.approx(min(usd for usd, _ in values))
    assert points[-1].second == pytest.approx(min(watts for _, watts in values))
    for point in points:
        assert not any(usd < point.first - 1e-6 and watts <= point.second + 1e-6 for usd, watts in values)
        cheap_enough = [watts for usd, watts in values if usd <= point.first + 1e-6]
        assert point.second == pytest.approx(min(cheap_enough))
        assert point.second_bound <= point.second


def test_of_equal_points_the_first_stays() -> None:
    assert nondominated(np.array([[2.0, 1.0], [1.0, 2.0], [1.0, 2.0], [2.0, 2.0]])) == [1, 0]
