"""Proven optima of batch problems: an expanding core for the memory row, HiGHS where further rows bind."""

from __future__ import annotations

from time import perf_counter
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from optsched.batching.bound import Prices, lagrangian_bound, memory_price, offers
from optsched.batching.core import Core, Limits, Search, States, Trail, expand
from optsched.batching.problem import BatchPlan, BatchProblem

Array = np.ndarray

WORK_LIMIT = 100_000_000  # states; about a second
WORK_BETWEEN_CLOCK_READINGS = 2_000_000
ROUNDING = 1e-13  # relative to the Lagrangian value


class MemoryOptimum(NamedTuple):
    """A plan for the memory row, no plan's value exceeds `bound`, and what stopped the search."""

    plan: BatchPlan
    bound: float
    limit: str | None


class _Options(NamedTuple):
    """Per request and option (skip, hidden, KV): blocks, value, and value less the price of its blocks."""

    blocks: Int64[Array, "n 3"]
    value: Float64[Array, "n 3"]
    reduced: Float64[Array, "n 3"]


def _options(problem: BatchProblem, price: float) -> _Options:
    """Tabulate the options; those not on offer have reduced value -inf."""
    zero, offered = np.zeros(problem.num_requests, np.int64), offers(problem)
    blocks = np.stack([zero, problem.hidden_blocks, problem.kv_blocks], axis=1)
    value = np.stack([zero, problem.pending_s - problem.hidden_penalty_s, problem.pending_s], axis=1)
    on_offer = np.stack([np.ones_like(offered.kv), offered.hidden, offered.kv], axis=1)
    return _Options(blocks, value, np.where(on_offer, value - price * blocks, -np.inf))


def _core(options: _Options, best: Int64[Array, " n"], gap: float) -> tuple[Core, Int64[Array, " k"]]:
    """Collect the requests that have an option losing less than the gap; also return who they are."""
    rows = np.arange(len(best))
    loss = options.reduced[rows, best][:, None] - options.reduced
    loss[rows, best] = np.inf
    order = np.argsort(loss, axis=1, kind="stable")[:, :2]
    two = np.take_along_axis(loss, order, axis=1)
    members = np.flatnonzero(two[:, 0] < gap)
    members = members[np.argsort(two[members, 0], kind="stable")]
    option, two = order[members].astype(np.int8), two[members]
    option[two >= gap] = -1
    blocks = np.take_along_axis(options.blocks, order, axis=1)[members] - options.blocks[members, best[members]][:, None]
    value = np.take_along_axis(options.value, order, axis=1)[members] - options.value[members, best[members]][:, None]

    def remaining(change: Int64[Array, "k 2"]) -> Int64[Array, " k1"]:
        most = np.where(option >= 0, np.maximum(change, 0), 0).max(axis=1, initial=0)
        return np.concatenate([np.cumsum(most[::-1])[::-1], [0]])

    return Core(option, blocks, value, two, remaining(blocks), remaining(-blocks)), members


def _traced(search: Search, trail: Trail, members: Int64[Array, " k"], best: Int64[Array, " n"], known: BatchPlan) -> BatchPlan:
    """Turn the best node into a plan."""
    if search.best_node == -2:
        return known
    choice, node = best.astype(np.int8), int(search.best_node)
    while node >= 0:
        choice[members[trail.request[node]]] = trail.option[node]
        node = int(trail.parent[node])
    return BatchPlan(choice)


def solve_memory_row(
    problem: BatchProblem, known: BatchPlan, time_limit_s: float | None = None, work_limit: int = WORK_LIMIT
) -> MemoryOptimum:
    """Solve a problem to proven optimality, its optional rows left out.

    Parameters
    ----------
    known
        A plan that fits the memory; the better, the faster.
    time_limit_s, work_limit
        When to stop without a proof: seconds, and states generated.

    Returns
    -------
    MemoryOptimum
        Without a limit hit, `bound` is the plan's value; optimal up to a relative rounding of 1e-13.
    """
    started = perf_counter()
    price = memory_price(problem)
    options = _options(problem, price)
    best = options.reduced.argmax(axis=1)
    rows = np.arange(problem.num_requests)
    start_value = float(options.value[rows, best].sum())
    room = int(problem.memory_blocks - options.blocks[rows, best].sum())
    tolerance = ROUNDING * max(start_value, price * problem.memory_blocks)
    limits = Limits(room, price, price * room, tolerance)
    search = Search(0, 0, 0, known.value(problem) - start_value, -2)
    if room >= 0 and search.best_value < 0:
        search = search._replace(best_value=0.0, best_node=-1)
    core, members = _core(options, best, limits.headroom - search.best_value - tolerance)
    states = States(np.zeros(1, np.int64), np.zeros(1), np.full(1, -1, np.int32))
    trail = Trail(np.empty(1024, np.int32), np.empty(1024, np.int32), np.empty(1024, np.int8))
    limit = None
    while search.next_request < len(members) and len(states.blocks) > 0 and limit is None:
        pause = min(work_limit, search.work + WORK_BETWEEN_CLOCK_READINGS)
        states, trail, search = expand(core, states, trail, search, limits, pause)
        search = Search(*search)
        if search.work >= work_limit:
            limit = "work"
        elif time_limit_s is not None and perf_counter() - started >= time_limit_s:
            limit = "time"
    plan = _traced(search, trail, members, best, known)
    value = plan.value(problem)
    if limit is None or search.next_request >= len(members) or len(states.blocks) == 0:
        return MemoryOptimum(plan, value, None)
    open_value = limits.headroom + float((states.value - price * states.blocks).max()) + tolerance
    bound = min(start_value + open_value, lagrangian_bound(problem, Prices(price, 0.0, 0.0)))
    return MemoryOptimum(plan, max(value, bound), limit)
