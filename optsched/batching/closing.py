"""Close the gap that the linear relaxation leaves, by the corner relaxation: a better plan, a bound, often the proof."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from optsched.batching.core_frame import DONE, PAUSED, Frame, Search, change, on_offer, stopped
from optsched.batching.corner import Edges, begin, cap, list_edges, settle
from optsched.batching.corner_paths import pair, walk
from optsched.batching.greedy import SKIP
from optsched.batching.workspace import SPAN, Workspace
from optsched.compiled import lean

Array = np.ndarray

NOWHERE = SPAN + 1
SETTLING, SETTLING_TIES = 20_000_000, 50_000  # edges; some 40 ms, and 0.1 ms


@lean
def with_rest(frame: Frame, overdrawn: int, left: int, later: float) -> Frame:
    """Return the frame with other limits of `rest`, and other losses of what comes later."""
    room, price, tie_price, tolerance, divisor, start_blocks, start_tie, ties, tie_work, unit, _, _, _ = frame
    return Frame(
        room, price, tie_price, tolerance, divisor, start_blocks, start_tie, ties, tie_work, unit,
        overdrawn, left, later,
    )  # fmt: skip


@lean
def _keep_better(
    space: Workspace,
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    frame: Frame,
    search: Search,
    state: int,
    last: int,
) -> Search:
    """Make the path from a state over the trail's end up to node `last` the best plan, if it is."""
    side = search.side
    if last == search.nodes:
        return search
    blocks, value, tie = space.blocks[side, state], space.value[side, state], space.tie[side, state]
    for node in range(search.nodes, last):
        i = space.request[node]
        w, v, c = change(space.gain, space.penalty, space.start, kv_blocks, hidden_blocks, i, int(space.option[node]))
        blocks, value, tie = blocks + w, value + v, tie - c * kv_blocks[i]
    if blocks > frame.room or value < search.best_value or (value == search.best_value and tie <= search.best_tie):
        return search
    code, side, states, _, heap, work, _, _, _, most = search
    return Search(code, side, states, last, heap, work, value, tie, last - 1, most)


@lean
def _nearest_state(space: Workspace, frame: Frame, search: Search) -> tuple[int, float]:
    """Return the state that may lead to the best plan by the least losses, and the value of that plan."""
    best, reach, side = -1, -np.inf, search.side
    for state in range(search.states):
        blocks = space.blocks[side, state]
        units = (frame.room - blocks) // frame.unit
        at_most = space.value[side, state] + frame.price * (frame.room - blocks)
        if -frame.overdrawn <= units <= frame.left:
            at_most -= space.rest[SPAN + units]
        if at_most > reach:
            best, reach = state, at_most
    return best, reach


@lean
def _limits(space: Workspace, frame: Frame, search: Search, edges: Edges) -> tuple[int, int]:
    """Return up to how many units overdrawn and left least losses are needed: a deviation from any state, or the state."""
    overdrawn, left = edges.most_added, 0
    for state in range(search.states):
        units = (frame.room - space.blocks[search.side, state]) // frame.unit
        overdrawn, left = max(overdrawn, -units), max(left, units)
    return min(overdrawn, SPAN), min(left + edges.most_removed, SPAN)


@lean
def _ties_settled(
    space: Workspace,
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    memory: int,
    frame: Frame,
    search: Search,
    most: float,
) -> bool:
    """Tell whether no plan that loses at most `most` has a better tie value than the best plan found.

    Only leaving out requests makes a tie value better: what that frees must be used up by the other deviations.
    """
    if search.best_tie < 0 or search.states != 1:
        return False
    gain, penalty, start = space.gain, space.penalty, space.start
    usable = most / frame.price if frame.price > 0.0 else np.inf
    for leaving_out in (False, True):
        for at in range(search.heap):
            i, largest = space.member[at], 0
            for option in range(3):
                if option == start[i] or not on_offer(gain, penalty, kv_blocks, hidden_blocks, i, option, memory):
                    continue
                w, v, _ = change(gain, penalty, start, kv_blocks, hidden_blocks, i, option)
                loss = frame.price * w - v
                if loss > most:
                    continue
                largest = max(largest, w)
                if leaving_out and option == SKIP:
                    units = (frame.room - w) // frame.unit
                    known = loss + space.rest[SPAN + units] if units <= frame.left else loss
                    if frame.room - w <= usable and known <= most:
                        return False
            if not leaving_out:
                usable += largest
    return True


@lean
def _bounded(
    space: Workspace,
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    frame: Frame,
    search: Search,
    edges: Edges,
    unused: float,
) -> Search:
    """Bound a search by the least losses, and follow them from the state that promises most."""
    state, reach = _nearest_state(space, frame, search)
    if reach >= search.best_value - frame.tolerance:
        left = (frame.room - space.blocks[search.side, state]) // frame.unit
        most = frame.price * frame.room - search.best_value + frame.tolerance
        last = walk(space, edges, left, unused, most, search.nodes, int(space.node[search.side, state]))
        if last > search.nodes:
            search = _keep_better(space, kv_blocks, hidden_blocks, frame, search, state, last)
    _, side, states, nodes, heap, work, value, tie, node, above = search
    return Search(PAUSED, side, states, nodes, heap, work, value, tie, node, min(above, max(float(value), reach)))


@lean
def close(
    space: Workspace,
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    memory: int,
    frame: Frame,
    search: Search,
) -> tuple[Frame, Search]:
    """Bound a search by the corner relaxation of what it has left to decide, and look for the plan that attains the bound.

    The requests left need not be a heap.

    Returns
    -------
    tuple
        The frame, with least losses to prune by; the search, `DONE` where nothing is left to prove.
    """
    whole, frame, search = frame.price * frame.room, with_rest(frame, 0, -1, np.inf), stopped(search, PAUSED)
    most = whole - search.best_value + frame.tolerance
    edges = list_edges(space, kv_blocks, hidden_blocks, memory, frame, search.heap, most)
    room, unused = frame.room // frame.unit, frame.price * frame.unit
    if edges.added < 0 or room + edges.most_removed > SPAN:
        return frame, search
    limits, until = _limits(space, frame, search, edges), NOWHERE
    if search.states == 1 and space.blocks[search.side, 0] == 0:
        until, last = room, pair(space, edges, room, search.nodes)
        search = _keep_better(space, kv_blocks, hidden_blocks, frame, search, 0, last)
        most = whole - search.best_value + frame.tolerance
    if most <= 2.0 * frame.tolerance and (
        not frame.ties or _ties_settled(space, kv_blocks, hidden_blocks, memory, frame, search, most)
    ):
        return frame, stopped(search, DONE)
    size, settled = settle(space, edges, limits, unused, most, begin(space), until, SETTLING)
    if size > 0 and (until == NOWHERE or space.rest[SPAN + room] > settled):  # the budget is spent
        cap(space, limits, settled)
        size = 0
    frame = with_rest(frame, limits[0], limits[1], np.inf)
    search = _bounded(space, kv_blocks, hidden_blocks, frame, search, edges, unused)
    most = whole - search.best_value + frame.tolerance
    proven = search.most <= search.best_value + frame.tolerance
    if proven and not frame.ties:
        return frame, stopped(search, DONE)
    if size > 0:
        _, settled = settle(space, edges, limits, unused, most, size, NOWHERE, SETTLING_TIES if proven else SETTLING)
        cap(space, limits, settled)
    if proven and _ties_settled(space, kv_blocks, hidden_blocks, memory, frame, search, most):
        return frame, stopped(search, DONE)
    return frame, search
