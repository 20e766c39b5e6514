"""Plans along shortest paths: sets of deviations of different requests that use up the blocks left."""

from __future__ import annotations

import numpy as np

from optsched.batching.corner import Edges
from optsched.batching.workspace import SPAN, Workspace
from optsched.compiled import lean

Array = np.ndarray

LONGEST_PATH = 64


@lean
def _unused_deviation(space: Workspace, at: int, first: int, last: int) -> int:
    """Return the cheapest deviation of a change of blocks whose request no node of the trail has changed; -1: none."""
    for k in range(space.copies[at]):
        i, free = space.deviation[at, k] // 4, True
        for node in range(first, last):
            free = free and space.request[node] != i
        if free:
            return k
    return -1


@lean
def pair(space: Workspace, edges: Edges, room: int, first: int) -> int:
    """Use up the blocks left by one or two deviations that lose least; write them into the trail from node `first` on.

    Returns
    -------
    int
        The node after the last; `first` where no two use up the blocks exactly.
    """
    least, at1, k1, at2, k2 = np.inf, 0, 0, 0, -1
    for e in range(edges.added + edges.removed):
        if space.density[e] >= least:
            continue
        at = SPAN + (space.element[e] if e < edges.added else -space.element[e])
        if at == SPAN + room:
            least, at1, k1, k2 = space.least[at, 0], at, 0, -1
            continue
        other = SPAN + SPAN + room - at
        if not 0 <= other <= 2 * SPAN:
            continue
        for k in range(space.copies[other]):
            loss = space.density[e] + space.least[other, k]
            if loss < least and space.deviation[other, k] // 4 != space.deviation[at, 0] // 4:
                least, at1, k1, at2, k2 = loss, at, 0, other, k
    if least == np.inf or first + 2 > len(space.parent):
        return first
    space.parent[first], space.request[first] = -1, space.deviation[at1, k1] // 4
    space.option[first] = space.deviation[at1, k1] % 4
    if k2 < 0:
        return first + 1
    space.parent[first + 1], space.request[first + 1] = first, space.deviation[at2, k2] // 4
    space.option[first + 1] = space.deviation[at2, k2] % 4
    return first + 2


@lean
def walk(space: Workspace, edges: Edges, room: int, unused: float, most: float, first: int, parent: int) -> int:
    """Use up the blocks left by deviations of different requests, along shortest paths; write them into the trail.

    Parameters
    ----------
    first, parent
        Node of the trail at which the path is to begin, and the node before it.

    Returns
    -------
    int
        The node after its last; -1 where the path leads nowhere.
    """
    last, left, lost = first, room, 0.0
    longest = min(LONGEST_PATH, len(space.parent) - first)
    while left != 0 and last - first < longest and lost <= most:
        low, high, sign = (0, edges.added, 1) if left > 0 else (edges.added, edges.added + edges.removed, -1)
        best, best_at, best_k = (left * unused if left > 0 else np.inf), 0, -1
        for e in range(low, high):
            w = sign * space.element[e]
            after = SPAN + left - w
            if not 0 <= after <= 2 * SPAN or space.density[e] + space.rest[after] >= best:
                continue
            k = _unused_deviation(space, SPAN + w, first, last)
            if k >= 0 and space.least[SPAN + w, k] + space.rest[after] < best:
                best, best_at, best_k = space.least[SPAN + w, k] + space.rest[after], SPAN + w, k
        if best_k < 0:
            break
        space.parent[last] = last - 1 if last > first else parent
        space.request[last] = space.deviation[best_at, best_k] // 4
        space.option[last] = space.deviation[best_at, best_k] % 4
        lost += space.least[best_at, best_k]
        left -= best_at - SPAN
        last += 1
    return last if left >= 0 else -1
