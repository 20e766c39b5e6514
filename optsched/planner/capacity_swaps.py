"""Cheaper fleets next to one that keeps its targets: a replica, or all of a pool, gives way to others that cost less together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from jaxtyping import Int64

from optsched.capacity.problem import TOLERANCE
from optsched.capacity.survival import largest_share, traffic_prices
from optsched.planner.capacity_problem import CapacityProblem

Array = np.ndarray


def cheaper_swaps(problem: CapacityProblem, counts: Int64[Array, " A"]) -> Iterator[Int64[Array, " A"]]:
    """Yield fleets in which as many replicas of one type as cost less take the place of one replica, or of a whole pool's.

    The most capable come first. Left out are those beyond a limit, and those that serve less than all traffic (or than the fleet
    itself, if that does not serve all of it for ever) even if they are used fully.

    Parameters
    ----------
    problem
        What is asked.
    counts
        A fleet.

    Notes
    -----
    The fleet's routing program gives prices u at which no fleet N serves more than u N times the traffic; they sort the swaps
    before any is asked of a program of its own.
    """
    asked = problem.problem
    share, price = traffic_prices(asked, counts)
    least, now, found = min(1.0, share) * (1 - TOLERANCE), asked.fleet_cost(counts), []
    for removed in _given_up(problem, counts):
        pool, cost = problem.pool_of_type[np.argmax(removed > 0)], float(asked.cost @ removed)
        for b in np.flatnonzero((problem.pool_of_type == pool) & (asked.cost < cost)).tolist():
            other = counts - removed
            other[b] += _most(problem, other, b, cost)
            if np.any(other > counts) and price @ other >= least and asked.fleet_cost(other) < now * (1 - TOLERANCE):
                found.append(other)
    found.sort(key=lambda other: (-float(price @ other), asked.fleet_cost(other)))
    scaled = replace(asked, demand_per_s=asked.demand_per_s * least)
    yield from (other for other in found if largest_share(scaled, other) >= 1 - TOLERANCE)


def _given_up(problem: CapacityProblem, counts: Int64[Array, " A"]) -> Iterator[Int64[Array, " A"]]:
    """Yield what gives way: one replica of each type, and all of each pool with several."""
    for a in np.flatnonzero(counts).tolist():
        yield np.eye(len(counts), dtype=np.int64)[a]
    for pool in range(len(problem.parts)):
        mine = np.where(problem.pool_of_type == pool, counts, 0)
        if mine.sum() > 1:
            yield mine


def _most(problem: CapacityProblem, counts: Int64[Array, " A"], b: int, cost: float) -> int:
    """Return how many replicas of a type cost less than so much and fit into the limits beside a fleet."""
    asked, useful = problem.problem, int(problem.problem.ceiling()[b])
    afforded = int(np.ceil(cost / float(asked.cost[b]) - TOLERANCE)) - 1 if asked.cost[b] > 0 else useful
    taken = asked.uses[b] > 0
    left = (asked.limits - counts @ asked.uses)[taken] / asked.uses[b][taken]
    return max(0, min(useful, afforded, *(int(each) for each in np.floor(left + TOLERANCE).tolist())))
