"""The core of a problem with several rows: the requests that may deviate from the relaxation, and what bounds them.

Notes
-----
At the relaxation's prices pi every request has a best option, together the start. A plan is worth the Lagrangian value less
what its deviations lose and less the price of what it leaves unused, so a deviation that loses more than the gap between
that value and the best plan is in no better plan (reduced-cost fixing). Requests are looked at in the order in which moving
the prices would make them deviate. That gives a second bound: once some requests are settled, row r's price may rise by

    up_r = min over the others' deviations that release row r of loss / released

(and fall by down_r likewise) without any of them wanting to deviate. A set of deviations that over-commits row r by e
therefore loses up_r e more at least, and one that leaves it unused likewise.

Where all deviations left change the value by multiples of some g, up to a rounding of e in all, so does any set of them.
Requests that missed their target are worth a fixed small amount per block: without this, plans that differ by less than
one such amount would have to be told apart one by one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int64

from optsched.batching.core_frame import change
from optsched.batching.greedy import SKIP, TAKE_HIDDEN, TAKE_KV
from optsched.batching.heap import heapify, pop
from optsched.batching.vertices import Rows, allowed
from optsched.batching.workspace import Workspace
from optsched.compiled import kernel, lean

Array = np.ndarray

VALUE, TIE, NODE = 3, 4, 5  # columns of a change, after the three rows, and of a state
NO_UNIT = np.inf
NOISE, LEAST_UNIT, UNIT_PER_GAP = 4096.0, 65536.0, 1e-3
LEAST_MOVE = 1.0  # quanta: no deviation moves the priced rows by nothing


class Core(NamedTuple):
    """Requests that may deviate, in the order in which they are looked at.

    Attributes
    ----------
    request, num
        Who, and in how many ways.
    option, loss, change
        Per way: the option, what it loses; what it takes of the first, second and third row in the order of the search, and
        what it adds to the value and to the tie value.
    least
        What the cheapest deviation from here on loses.
    up, down
        How far each row's price may move without any request from here on wanting to deviate.
    rounding
        By how much the values from here on differ from multiples of the unit, in all; infinite where there is no unit.
    mended
        Requests whose deviation is part of the plan that repairs the start.
    """

    request: Int64[Array, " n"]
    num: Int64[Array, " n"]
    option: Int8[Array, "n 2"]
    loss: Float64[Array, "n 2"]
    change: Int64[Array, "n 2 5"]
    least: Float64[Array, " n+1"]
    up: Float64[Array, "n+1 3"]
    down: Float64[Array, "n+1 3"]
    rounding: Float64[Array, " n+1"]
    mended: Bool[Array, " n"]


@kernel
def empty_core(requests: int) -> Core:
    """Return room for the core of a problem with that many requests."""
    n = requests
    return Core(
        np.empty(n, np.int64),
        np.empty(n, np.int64),
        np.empty((n, 2), np.int8),
        np.empty((n, 2)),
        np.empty((n, 2, 5), np.int64),
        np.empty(n + 1),
        np.empty((n + 1, 3)),
        np.empty((n + 1, 3)),
        np.empty(n + 1),
        np.empty(n, np.bool_),
    )


@lean
def _deviation(
    space: Workspace, rows: Rows, prices: tuple[float, float, float], i: int, option: int
) -> tuple[float, float, int, int, int]:
    """Return what a deviation loses, how much it moves the priced rows, and its blocks, value and sequences."""
    w, v, c = change(space.gain, space.penalty, space.start, rows.kv_blocks, rows.hidden_blocks, i, option)
    seat = prices[1] * rows.tokens[i] + prices[2]
    return max(0.0, prices[0] * w + seat * c - v), prices[0] * abs(w) + seat * abs(c) + LEAST_MOVE, w, v, c


@lean
def _deviates(space: Workspace, rows: Rows, i: int, blocks_count: bool) -> tuple[bool, bool, bool]:
    """Tell which options other than the start's a request may take: skip, hidden, KV.

    Where blocks do not count, hidden cache is no use to a request that may take KV cache.
    """
    limits, start = (rows.memory, rows.token_budget, rows.max_sequences), space.start[i]
    hidden, kv = allowed(space.gain[i], space.penalty[i], rows.kv_blocks[i], rows.hidden_blocks[i], rows.tokens[i], limits)
    return start != SKIP, hidden and start != TAKE_HIDDEN and (blocks_count or not kv), kv and start != TAKE_KV


@lean
def _gather(
    space: Workspace, rows: Rows, prices: tuple[float, float, float], gap: float, tolerance: float, blocks_count: bool
) -> int:
    """Make a heap of the requests that lose no more than the gap, by the move of prices at which they deviate."""
    heap = 0
    for i in range(len(rows.kv_blocks)):
        may, first = _deviates(space, rows, i, blocks_count), np.inf
        for option in range(3):
            if not may[option]:
                continue
            lost, size, _, _, _ = _deviation(space, rows, prices, i, option)
            if lost <= gap:
                first = min(first, (lost + tolerance * ((4 * i + option) * 2654435761 >> 7 & 1023) / 1024.0) / size)
        if first < np.inf:
            space.loss[heap], space.member[heap] = first, i
            heap += 1
    heapify(space.loss, space.member, heap)
    return heap


@lean
def _bound_from_behind(core: Core, num: int, prices: tuple[float, float, float]) -> None:
    """Find what the deviations from each position on lose at least, and how far they let the prices move."""
    core.least[num] = np.inf
    for row in range(3):
        core.up[num, row], core.down[num, row] = np.inf, prices[row]
    for k in range(num - 1, -1, -1):
        core.least[k] = core.least[k + 1]
        for row in range(3):
            core.up[k, row], core.down[k, row] = core.up[k + 1, row], core.down[k + 1, row]
        for way in range(core.num[k]):
            lost = core.loss[k, way]
            core.least[k] = min(core.least[k], lost)
            for row in range(3):
                takes = core.change[k, way, row]
                if takes < 0:
                    core.up[k, row] = min(core.up[k, row], lost / -takes)
                elif takes > 0:
                    core.down[k, row] = min(core.down[k, row], lost / takes)


@lean
def _common_unit(a: float, b: float) -> float:
    """Return the greatest common divisor of two values that are rounded."""
    while b > NOISE:
        a, b = b, abs(a - np.rint(a / b) * b)
    return a


@lean
def _find_unit(core: Core, num: int, gap: float) -> float:
    """Find the unit of the longest tail of deviations that has one, and by how much they differ from multiples of it.

    It is their greatest common divisor but for rounding, then fitted to them by least squares.
    """
    unit, first, least = 0.0, num, max(LEAST_UNIT, UNIT_PER_GAP * gap)
    while first > 0:
        finer = unit
        for way in range(core.num[first - 1]):
            finer = _common_unit(finer, abs(float(core.change[first - 1, way, VALUE])))
        if 0.0 < finer < least:
            break
        unit, first = finer, first - 1
    core.rounding[: num + 1] = NO_UNIT
    core.rounding[num] = 0.0
    if unit <= 0.0:
        return 1.0
    products, squares = 0.0, 0.0
    for k in range(first, num):
        for way in range(core.num[k]):
            multiple = np.rint(core.change[k, way, VALUE] / unit)
            products, squares = products + multiple * core.change[k, way, VALUE], squares + multiple * multiple
    unit = products / squares
    for k in range(num - 1, first - 1, -1):
        off = 0.0
        for way in range(core.num[k]):
            off = max(off, abs(core.change[k, way, VALUE] - np.rint(core.change[k, way, VALUE] / unit) * unit))
        core.rounding[k] = core.rounding[k + 1] + off + 1.0
    return float(unit)


@lean
def list_core(
    space: Workspace,
    rows: Rows,
    core: Core,
    prices: tuple[float, float, float],
    order: tuple[int, int, int],
    gap: float,
    tolerance: float,
    blocks_count: bool,
) -> tuple[int, float]:
    """List the requests that may deviate in a plan within `gap` of the Lagrangian value.

    Parameters
    ----------
    order
        Which row goes into the first, second and third column of a change.
    tolerance
        Losses up to it are alike: such requests come in no particular order.
    blocks_count
        Whether it matters how many blocks a plan takes.

    Returns
    -------
    tuple
        Their number, and the unit of their values.
    """
    num = _gather(space, rows, prices, gap, tolerance, blocks_count)
    for k in range(num):
        i = pop(space.loss, space.member, num - k)
        way, core.request[k], may = 0, i, _deviates(space, rows, i, blocks_count)
        for option in range(3):
            if not may[option]:
                continue
            lost, _, w, v, c = _deviation(space, rows, prices, i, option)
            if lost > gap:
                continue
            takes = (w, c * rows.tokens[i], c)
            core.option[k, way], core.loss[k, way] = option, lost
            for column in range(3):
                core.change[k, way, column] = takes[order[column]]
            core.change[k, way, VALUE], core.change[k, way, TIE] = v, -c * rows.kv_blocks[i]
            way += 1
        core.num[k], core.mended[k] = way, False
    _bound_from_behind(core, num, (prices[order[0]], prices[order[1]], prices[order[2]]))
    return num, _find_unit(core, num, gap)
