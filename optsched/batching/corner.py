"""What using up the blocks left loses at least: shortest paths over the blocks left, each deviation as often as one likes.

Notes
-----
At the relaxation's prices a plan loses what its deviations lose, plus the price of each block that it leaves unused. Let
a deviation be used any number of times: then the least loss at which r blocks can be used up depends on r alone. A set
of deviations that uses up r blocks exactly (an unused block being one more deviation, of one block) can be put into such an
order that none is added beyond r and none is removed below it, so that the blocks left stay between minus the largest and
plus the largest change: the least losses are the lengths of shortest paths over those few numbers. This is the corner
relaxation of the row; it knows what divisibility forbids, which the linear relaxation does not. A shortest path that uses no
deviation twice is a plan, and the best one.

References
----------
Gomory, "Some polyhedra related to combinatorial problems", Linear Algebra and its Applications 2(4), 1969; Eisenbrand and
Weismantel, "Proximity results and faster algorithms for integer programming using the Steinitz lemma", ACM TALG 16(1), 2020.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from optsched.batching.core_frame import Frame, change, on_offer
from optsched.batching.heap import heapify, pop
from optsched.batching.workspace import COPIES, SPAN, Workspace
from optsched.compiled import lean

Array = np.ndarray

STEP = 1e-4  # of the tolerance: among paths of the same loss, the one of the fewest deviations


class Edges(NamedTuple):
    """The cheapest deviation of every change of blocks, in `density` (loss) and `element` (blocks, in units), dearest first.

    Attributes
    ----------
    added, removed
        How many add blocks, and how many, behind them, remove some; negative where a change is too large to be listed.
    most_added, most_removed
        The largest changes.
    """

    added: int
    removed: int
    most_added: int
    most_removed: int


@lean
def _enter(space: Workspace, at: int, loss: float, deviation: int) -> None:
    """Enter a deviation among the cheapest of its change of blocks."""
    k = int(space.copies[at])
    if k == COPIES:
        if loss >= space.least[at, k - 1]:
            return
        k -= 1
    else:
        space.copies[at] = k + 1
    while k > 0 and space.least[at, k - 1] > loss:
        space.least[at, k], space.deviation[at, k] = space.least[at, k - 1], space.deviation[at, k - 1]
        k -= 1
    space.least[at, k], space.deviation[at, k] = loss, deviation


@lean
def _sort(loss: Float64[Array, " e"], member: Int64[Array, " e"], size: int) -> None:
    """Order entries by loss, dearest first."""
    heapify(loss, member, size)
    for last in range(size - 1, 0, -1):
        least = loss[0]
        first = pop(loss, member, last + 1)
        loss[last], member[last] = least, first


@lean
def list_edges(
    space: Workspace,
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    memory: int,
    frame: Frame,
    members: int,
    most: float,
) -> Edges:
    """List the deviations of the first requests in `member` that lose no more than `most`, by their change of blocks."""
    space.copies[:] = 0
    up, down = 0, 0
    for at in range(members):
        i = space.member[at]
        for option in range(3):
            if option == space.start[i] or not on_offer(space.gain, space.penalty, kv_blocks, hidden_blocks, i, option, memory):
                continue
            w, v, _ = change(space.gain, space.penalty, space.start, kv_blocks, hidden_blocks, i, option)
            loss = frame.price * w - v
            if loss > most:
                continue
            w //= frame.unit
            if abs(w) > SPAN:
                return Edges(-1, -1, 0, 0)
            if w != 0:
                _enter(space, SPAN + w, max(0.0, loss) + frame.tolerance * STEP, 4 * i + option)
                up, down = max(up, w), max(down, -w)
    added = 0
    for w in range(1, up + 1):
        if space.copies[SPAN + w] > 0:
            space.density[added], space.element[added] = space.least[SPAN + w, 0], w
            added += 1
    removed = 0
    for w in range(1, down + 1):
        if space.copies[SPAN - w] > 0:
            space.density[added + removed], space.element[added + removed] = space.least[SPAN - w, 0], w
            removed += 1
    _sort(space.density[:added], space.element[:added], added)
    _sort(space.density[added : added + removed], space.element[added : added + removed], removed)
    return Edges(added, removed, up, down)


@lean
def _lower(
    rest: Float64[Array, " w"], place: Int64[Array, " w"], queue: Int64[Array, " w"], size: int, node: int, loss: float
) -> int:
    """Lower a node's least loss, and its place in the queue; return the queue's size."""
    at = int(place[node])
    if at < 0:
        at, size = size, size + 1
    rest[node] = loss
    while at > 0:
        above = (at - 1) // 2
        other = queue[above]
        if rest[other] <= loss:
            break
        queue[at], place[other] = other, at
        at = above
    queue[at], place[node] = node, at
    return size


@lean
def _take(rest: Float64[Array, " w"], place: Int64[Array, " w"], queue: Int64[Array, " w"], size: int) -> int:
    """Remove the nearest node from the queue and return it."""
    first, last = int(queue[0]), queue[size - 1]
    loss, at, size = rest[last], 0, size - 1
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and rest[queue[child + 1]] < rest[queue[child]]:
            child += 1
        other = queue[child]
        if rest[other] >= loss:
            break
        queue[at], place[other] = other, at
        at = child
    if size > 0:
        queue[at], place[last] = last, at
    place[first] = -1
    return first


@lean
def begin(space: Workspace) -> int:
    """Forget all least losses but that of nothing left to use up; return the queue's size."""
    space.rest[:], space.place[:] = np.inf, -1
    return _lower(space.rest, space.place, space.queue, 0, SPAN, 0.0)


@lean
def settle(
    space: Workspace, edges: Edges, limits: tuple[int, int], unused: float, most: float, size: int, until: int, budget: int
) -> tuple[int, float]:
    """Settle the least losses at which the blocks left can be used up, in their order, as far as they are at most `most`.

    Parameters
    ----------
    limits
        Up to how many units overdrawn, and left; no fewer than the largest changes.
    unused
        Price of a unit left unused.
    size
        Of the queue: from `begin`, or from a call before.
    until
        Stop once this many units left are settled.
    budget
        Edges that may be followed.

    Returns
    -------
    tuple
        The queue's size, and what those not settled lose at least.
    """
    low, high = SPAN - limits[0], SPAN + limits[1]
    rest, density, element, added, removed = space.rest, space.density, space.element, edges.added, edges.removed
    place, queue = space.place, space.queue
    loss = 0.0
    while size > 0 and budget > 0:
        node = _take(rest, place, queue, size)
        size -= 1
        loss = rest[node]
        if SPAN <= node < high and loss + unused < rest[node + 1] and loss + unused <= most:
            size = _lower(rest, place, queue, size, node + 1, loss + unused)
        for e in range(added - 1, -1, -1):
            length = loss + density[e]
            if length > most:
                break
            budget -= 1
            before = node + element[e]
            if SPAN < before <= high and length < rest[before]:
                size = _lower(rest, place, queue, size, before, length)
        for e in range(added + removed - 1, added - 1, -1):
            length = loss + density[e]
            if length > most:
                break
            budget -= 1
            before = node - element[e]
            if low <= before < SPAN and length < rest[before]:
                size = _lower(rest, place, queue, size, before, length)
        if node == SPAN + until:
            break
    return size, (loss if size > 0 else np.inf)


@lean
def cap(space: Workspace, limits: tuple[int, int], settled: float) -> None:
    """Lower the least losses that have not been settled to what they are at least."""
    for node in range(SPAN - limits[0], SPAN + limits[1] + 1):
        space.rest[node] = min(space.rest[node], settled)
