"""The most that a supply serves, against enumeration."""

from __future__ import annotations

import dataclasses
from itertools import product

import numpy as np
import pytest
from capacity_problems import fleet_problems, melange
from hypothesis import given, settings

from optsched.capacity.problem import FleetProblem
from optsched.capacity.survival import can_serve
from optsched.capacity.throughput import largest_traffic
from optsched.errors import InfeasibleError


def at(problem: FleetProblem, factor: float) -> FleetProblem:
    return dataclasses.replace(problem, demand_per_s=factor * problem.demand_per_s)


@settings(max_examples=25, deadline=None)
@given(fleet_problems())
def test_no_fleet_of_the_supply_serves_more(problem: FleetProblem) -> None:
    if not problem.demand_per_s.any():
        return
    ranges = [range(int(problem.limits[0] // problem.uses[a, 0]) + 1) for a in range(len(problem.types))]
    every = [np.array(counts) for counts in product(*ranges) if np.array(counts) @ problem.uses <= problem.limits]
    fleets = [counts for counts in every if np.all(counts @ problem.uses + problem.uses[:, 0] > problem.limits)]
    try:
        found = largest_traffic(problem)
    except InfeasibleError:
        assert not any(can_serve(at(problem, 1e-3), counts) for counts in fleets)
        return
    assert np.all(found.counts @ problem.uses <= problem.limits)
    assert can_serve(at(problem, 0.999 * found.factor), found.counts)
    assert not any(can_serve(at(problem, 1.001 * found.bound), counts) for counts in fleets)
    assert found.factor <= found.bound * (1 + 1e-6)


def test_without_limits_there_is_no_most() -> None:
    with pytest.raises(InfeasibleError, match="Nothing limits the fleet"):
        largest_traffic(melange(whole=False))


def test_what_nobody_serves_is_refused() -> None:
    problem = melange(whole=False)
    none = dataclasses.replace(problem, resources=("gpus",), uses=np.ones((2, 1)), limits=np.zeros(1))
    with pytest.raises(InfeasibleError, match="serves no traffic at all"):
        largest_traffic(none)
