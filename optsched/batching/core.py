"""Dynamic programming over an expanding core: the exact kernel of the memory row.

Notes
-----
At the price nu of a block, every request has a best option; choosing all of them gives the Lagrangian value Z. Any plan is
worth Z less the losses of its deviations less nu per unused block. Requests are let deviate one after another, the
cheapest deviation first. A state is a set of deviations, known by its blocks and value; dominated states go, and so do
those that cannot beat the best plan found. Once the next deviation costs at least the remaining gap, nothing else can.

References
----------
Pisinger, "A minimal algorithm for the multiple-choice knapsack problem", EJOR 83(2), 1995.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int8, Int32, Int64

from optsched.compiled import kernel

Array = np.ndarray


class Core(NamedTuple):
    """Requests that may deviate from their best option, the cheapest deviation first.

    Attributes
    ----------
    option
        Up to two other options per request; -1: none.
    blocks, value, loss
        What choosing it changes: blocks, value, and Lagrangian value lost.
    grow, shrink
        Blocks that this and all later requests can add or release at most.
    """

    option: Int8[Array, "k 2"]
    blocks: Int64[Array, "k 2"]
    value: Float64[Array, "k 2"]
    loss: Float64[Array, "k 2"]
    grow: Int64[Array, " k1"]
    shrink: Int64[Array, " k1"]


class States(NamedTuple):
    """Undominated sets of deviations, by ascending blocks: blocks, value relative to the start, and last deviation."""

    blocks: Int64[Array, " states"]
    value: Float64[Array, " states"]
    node: Int32[Array, " states"]


class Trail(NamedTuple):
    """Deviations so that states can be traced back: the previous one, the request in the core, the option."""

    parent: Int32[Array, " nodes"]
    request: Int32[Array, " nodes"]
    option: Int8[Array, " nodes"]


class Search(NamedTuple):
    """Where the search stands.

    Attributes
    ----------
    next_request, num_nodes, work
        The next request of the core, nodes used of the trail, states generated.
    best_value, best_node
        The best plan: value relative to the start; node -1 is the start itself, -2 the plan known beforehand.
    """

    next_request: int
    num_nodes: int
    work: int
    best_value: float
    best_node: int


class Limits(NamedTuple):
    """Constants of one search.

    Attributes
    ----------
    room
        Blocks left free by everyone's best option; negative where that over-commits.
    price, headroom
        nu, and Z less the value of everyone's best option.
    tolerance
        Improvements below it count as rounding.
    """

    room: int
    price: float
    headroom: float
    tolerance: float


@kernel
def _grown(trail: Trail, needed: int) -> Trail:
    """Return a trail with room for `needed` nodes."""
    size = len(trail.parent)
    if needed <= size:
        return trail
    larger = max(needed, 2 * size)
    parent, request, option = np.empty(larger, np.int32), np.empty(larger, np.int32), np.empty(larger, np.int8)
    parent[:size], request[:size], option[:size] = trail.parent, trail.request, trail.option
    return Trail(parent, request, option)


@kernel
def _merge(
    core: Core, k: int, usable: tuple[bool, bool], states: States, trail: Trail, search: Search, limits: Limits
) -> tuple[States, Trail, int]:
    """Let request `k` keep or change its option in every state; keep the undominated states that may still win."""
    n = len(states.blocks)
    ways = 1 + int(usable[0]) + int(usable[1])
    trail = _grown(trail, search.num_nodes + ways * n)
    blocks, value, node = np.empty(ways * n, np.int64), np.empty(ways * n), np.empty(ways * n, np.int32)
    at = np.zeros(3, np.int64)
    at[1] = 0 if usable[0] else n
    at[2] = 0 if usable[1] else n
    kept, nodes, highest = 0, search.num_nodes, -np.inf
    while True:
        way, w, v = -1, np.int64(0), 0.0
        for a in range(3):
            if at[a] == n:
                continue
            wa = states.blocks[at[a]] + (core.blocks[k, a - 1] if a > 0 else 0)
            va = states.value[at[a]] + (core.value[k, a - 1] if a > 0 else 0.0)
            if way < 0 or wa < w or (wa == w and va > v):
                way, w, v = a, wa, va
        if way < 0:
            break
        source = at[way]
        at[way] += 1
        if v <= highest or w - core.shrink[k + 1] > limits.room:
            continue
        unused = max(0, limits.room - w - core.grow[k + 1])
        reachable = limits.headroom + v - limits.price * (w + unused)
        if reachable <= search.best_value + limits.tolerance:
            continue
        highest = v
        blocks[kept], value[kept], node[kept] = w, v, states.node[source]
        if way > 0:
            trail.parent[nodes], trail.request[nodes] = states.node[source], k
            trail.option[nodes] = core.option[k, way - 1]
            node[kept] = nodes
            nodes += 1
        kept += 1
    return States(blocks[:kept].copy(), value[:kept].copy(), node[:kept].copy()), trail, nodes


@kernel
def expand(
    core: Core, states: States, trail: Trail, search: Search, limits: Limits, work_limit: int
) -> tuple[States, Trail, Search]:
    """Go on with the search until it is finished or has generated `work_limit` states in all.

    Returns
    -------
    tuple
        States, trail and search; finished where no state is left or `Search.next_request` is the core's length.
    """
    num = len(core.option)
    k, nodes, work, best_value, best_node = search
    while k < num and len(states.blocks) > 0 and work < work_limit:
        gap = limits.headroom - best_value - limits.tolerance
        if core.loss[k, 0] >= gap:
            k = num
            break
        usable = (core.option[k, 0] >= 0, core.option[k, 1] >= 0 and core.loss[k, 1] < gap)
        now = Search(k, nodes, work, best_value, best_node)
        work += len(states.blocks) * (1 + int(usable[0]) + int(usable[1]))
        states, trail, nodes = _merge(core, k, usable, states, trail, now, limits)
        for j in range(len(states.blocks)):
            if states.blocks[j] <= limits.room and states.value[j] > best_value:
                best_value, best_node = states.value[j], int(states.node[j])
        k += 1
    return states, trail, Search(k, nodes, work, best_value, best_node)
