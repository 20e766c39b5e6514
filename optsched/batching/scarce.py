"""Where shortest paths use deviations more often than there are: decide those first, then close the gap of every state."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from optsched.batching.closing import close, with_rest
from optsched.batching.core import expand
from optsched.batching.core_frame import DONE, PAUSED, TIES_OPEN, Frame, Search, change, on_offer
from optsched.batching.heap import heapify
from optsched.batching.workspace import COPIES, SPAN, Workspace
from optsched.compiled import lean

Array = np.ndarray

FEW = 100  # requests: fewer that add blocks, or that free some, are decided first
PART_WORK = 50_000  # states


@lean
def _kind(
    space: Workspace,
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    memory: int,
    frame: Frame,
    i: int,
    most: float,
) -> tuple[bool, bool, bool]:
    """Tell whether a request can add blocks, can free some, and whether it is like too few others to stand for them."""
    adds, frees, scarce = False, False, False
    for option in range(3):
        if option == space.start[i] or not on_offer(space.gain, space.penalty, kv_blocks, hidden_blocks, i, option, memory):
            continue
        w, v, _ = change(space.gain, space.penalty, space.start, kv_blocks, hidden_blocks, i, option)
        if frame.price * w - v > most:
            continue
        adds, frees, at = adds or w > 0, frees or w < 0, SPAN + w // frame.unit
        alike = space.copies[at] == COPIES and space.least[at, COPIES - 1] <= space.least[at, 0] + frame.tolerance
        scarce = scarce or not alike
    return adds, frees, scarce


@lean
def _scarce_first(
    space: Workspace,
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    memory: int,
    frame: Frame,
    heap: int,
    most: float,
) -> int:
    """Put the requests first that the corner relaxation takes too often; return how many.

    Those are the only ones that add blocks, or that free some, where they are few; else those like no others.
    """
    adding, freeing = 0, 0
    for at in range(heap):
        adds, frees, _ = _kind(space, kv_blocks, hidden_blocks, memory, frame, space.member[at], most)
        adding, freeing = adding + int(adds), freeing + int(frees)
    few = min(adding, freeing) <= FEW
    first = 0
    for at in range(heap):
        adds, frees, scarce = _kind(space, kv_blocks, hidden_blocks, memory, frame, space.member[at], most)
        if (adds if adding <= freeing else frees) if few else scarce:
            space.loss[at], space.loss[first] = space.loss[first], space.loss[at]
            space.member[at], space.member[first] = space.member[first], space.member[at]
            first += 1
    return first


@lean
def close_by_parts(
    space: Workspace,
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    memory: int,
    frame: Frame,
    search: Search,
) -> tuple[Frame, Search, bool]:
    """Search the deviations that the corner relaxation takes too often, and close the gap of each state by the others.

    The search must not have begun.

    Returns
    -------
    tuple
        The frame and the search; whether it can go on: where not, all but the best plan is lost.
    """
    most = frame.price * frame.room - search.best_value + frame.tolerance
    total = search.heap
    first = _scarce_first(space, kv_blocks, hidden_blocks, memory, frame, total, most)
    if first in (0, total):
        return frame, search, True
    later = np.inf
    for at in range(first, total):
        later = min(later, space.loss[at])
    heapify(space.loss, space.member, first)
    code, side, states, nodes, _, work, value, tie, node, above = search
    part = Search(code, side, states, nodes, first, work, value, tie, node, above)
    within = with_rest(frame, frame.overdrawn, frame.left, later)
    search = expand(space, kv_blocks, hidden_blocks, memory, within, part, work + PART_WORK)
    if search.code != DONE or search.states == 0:
        return frame, search, search.code in (DONE, TIES_OPEN)
    for at in range(first, total):
        space.loss[at - first], space.member[at - first] = space.loss[at], space.member[at]
    _, side, states, nodes, _, work, value, tie, node, above = search
    search = Search(PAUSED, side, states, nodes, total - first, work, value, tie, node, above)
    frame, search = close(space, kv_blocks, hidden_blocks, memory, frame, search)
    return frame, search, True
