"""Dynamic programming over an expanding core: the exact kernel of the memory row.

Notes
-----
At the price nu of a block, the relaxation rounded down is a plan. Any plan is worth its value, plus nu per block that it
leaves unused, less what its deviations lose. Requests are let deviate one after another, the cheapest deviation first. A
state is a set of deviations, known by its blocks, its value and its tie value; dominated states go, and so do those
that cannot beat the best plan found even if the next deviation loses no more than the cheapest one left.

Among plans of the same value the one that leaves out the largest contexts is chosen: the tie value of a plan is minus the
KV blocks of the selected requests, whichever cache they get.

References
----------
Pisinger, "A minimal algorithm for the multiple-choice knapsack problem", EJOR 83(2), 1995.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int8, Int64

from optsched.batching.core_frame import DONE, FULL, NEVER, PAUSED, TIES_OPEN, Frame, Search, change, improved, on_offer, stopped
from optsched.batching.heap import pop
from optsched.batching.workspace import SPAN, Workspace
from optsched.compiled import inlined, lean

Array = np.ndarray


@inlined
def _least_loss(rest: Float64[Array, " w"], frame: Frame, blocks: int, next_loss: float) -> float:
    """Return what a state of that many blocks loses at least by further deviations and by what these leave unused."""
    units = frame.room - blocks
    if frame.unit > 1:
        units //= frame.unit
    if -frame.overdrawn <= units <= frame.left:
        return max(next_loss, float(rest[SPAN + units]))
    return next_loss


@inlined
def _hopeless(frame: Frame, search: Search, state: tuple[int, int, int], next_loss: float, least_loss: float) -> bool:
    """Tell whether no further deviation from a state makes a better plan than the best, ties included."""
    w, v, t = state
    reach = v + frame.price * (frame.room - w) - least_loss
    value = np.floor((reach + frame.tolerance) / frame.divisor) * frame.divisor
    if value < search.best_value or reach < search.best_value - frame.tolerance:
        return True
    if value > search.best_value and reach > search.best_value + frame.tolerance:
        return False
    if not frame.ties:
        return True
    # The value can at most be equalled. Equal plans have at least this many blocks, and no fewer KV blocks than blocks:
    if frame.price > 0.0:
        blocks = frame.start_blocks + w + (search.best_value - v + next_loss - frame.tolerance) / frame.price
        if blocks - 1e-6 > -(frame.start_tie + search.best_tie) - 1:
            return True
    # Where only deviations that lose nothing can equal it, the tie values have a relaxation of their own.
    tight = reach <= search.best_value + frame.tolerance and least_loss <= frame.tolerance
    return tight and t + frame.tie_price * (frame.room - w) <= search.best_tie


class _States(NamedTuple):
    """The buffers of the workspace that merging needs."""

    blocks: Int64[Array, "2 s"]
    value: Int64[Array, "2 s"]
    tie: Int64[Array, "2 s"]
    node: Int64[Array, "2 s"]
    parent: Int64[Array, " t"]
    request: Int64[Array, " t"]
    option: Int8[Array, " t"]
    rest: Float64[Array, " w"]


@lean
def _merge(
    space: _States,
    i: int,
    deviations: tuple[tuple[int, int, int, int], tuple[int, int, int, int]],
    frame: Frame,
    search: Search,
    next_loss: float,
) -> Search:
    """Let request `i` keep or change its option in every state; keep the undominated states that may still win."""
    n, old, new, rest = search.states, search.side, 1 - search.side, space.rest
    (option1, w1, v1, t1), (option2, w2, v2, t2) = deviations
    at0, at1, at2 = 0, n if option1 < 0 else 0, n if option2 < 0 else 0
    kept, nodes, most = 0, search.nodes, -np.inf
    top_value, top_tie = np.int64(-NEVER), np.int64(0)
    while True:
        b0 = space.blocks[old, at0] if at0 < n else NEVER
        b1 = space.blocks[old, at1] + w1 if at1 < n else NEVER
        b2 = space.blocks[old, at2] + w2 if at2 < n else NEVER
        w = min(b0, b1, b2)
        if w == NEVER:
            break
        way, source = -1, 0
        if b0 == w:
            way, source, at0 = -1, at0, at0 + 1
            v, t = space.value[old, source], space.tie[old, source]
        elif b1 == w:
            way, source, at1 = option1, at1, at1 + 1
            v, t = space.value[old, source] + v1, space.tie[old, source] + t1
        else:
            way, source, at2 = option2, at2, at2 + 1
            v, t = space.value[old, source] + v2, space.tie[old, source] + t2
        if v < top_value or (v == top_value and t <= top_tie):
            continue
        better = w <= frame.room and (v > search.best_value or (v == search.best_value and t > search.best_tie))
        least_loss = _least_loss(rest, frame, w, next_loss)
        if not better and _hopeless(frame, search, (w, v, t), next_loss, least_loss):
            continue
        node = space.node[old, source]
        if way >= 0:
            space.parent[nodes], space.request[nodes], space.option[nodes] = node, i, way
            node, nodes = nodes, nodes + 1
        if better:
            search = improved(search, v, t, node)
            if _hopeless(frame, search, (w, v, t), next_loss, least_loss):
                continue
        top_value, top_tie = v, t
        if kept > 0 and space.blocks[new, kept - 1] == w:  # as many blocks, more value
            kept -= 1
        space.blocks[new, kept], space.value[new, kept], space.tie[new, kept] = w, v, t
        space.node[new, kept] = node
        most = max(most, v + frame.price * (frame.room - w) - least_loss)
        kept += 1
    best_value, best_tie, best_node = search.best_value, search.best_tie, search.best_node
    most = min(search.most, max(most, float(best_value)))
    return Search(search.code, new, kept, nodes, search.heap, search.work, best_value, best_tie, best_node, most)


@lean
def expand(
    space: Workspace,
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    memory: int,
    frame: Frame,
    search: Search,
    work_limit: int,
) -> Search:
    """Go on with the search until it is finished, the workspace is full, or `work_limit` states have been generated."""
    capacity, length = space.blocks.shape[1], len(space.parent)
    states = _States(
        space.blocks, space.value, space.tie, space.node, space.parent, space.request, space.option, space.rest
    )  # fmt: skip
    while search.heap > 0 and search.states > 0:
        gap = frame.price * frame.room - search.best_value + frame.tolerance
        if space.loss[0] > gap:
            break
        if search.work >= work_limit:
            return stopped(search, PAUSED)
        if search.most <= search.best_value + frame.tolerance and search.work >= frame.tie_work:
            return stopped(search, TIES_OPEN)
        if 3 * search.states > capacity or search.nodes + 2 * search.states > length:
            return stopped(search, FULL)
        i = pop(space.loss, space.member, search.heap)
        heap = search.heap - 1
        first, second = (-1, 0, 0, 0), (-1, 0, 0, 0)
        for option in range(3):
            if option == space.start[i] or not on_offer(space.gain, space.penalty, kv_blocks, hidden_blocks, i, option, memory):
                continue
            w, v, c = change(space.gain, space.penalty, space.start, kv_blocks, hidden_blocks, i, option)
            if frame.price * w - v > gap:
                continue
            if first[0] < 0:
                first = (option, w, v, -c * kv_blocks[i])
            else:
                second = (option, w, v, -c * kv_blocks[i])
        ways = 1 + int(first[0] >= 0) + int(second[0] >= 0)
        code, side, num, nodes, _, work, best_value, best_tie, best_node, most = search
        search = Search(code, side, num, nodes, heap, work + ways * num, best_value, best_tie, best_node, most)
        next_loss = min(space.loss[0], frame.later) if heap > 0 else frame.later
        search = _merge(states, i, (first, second), frame, search, next_loss)
    return stopped(search, DONE)
