"""The linear relaxation of the memory row in O(n): marginal gains, and their break by weighted selection, without sorting.

Notes
-----
Values become whole multiples of a power of two, the quantum, fine enough that rounding them changes a plan's value by
less than any solver's tolerance; sums are then exact, and equal plans are equal.

References
----------
Balas and Zemel, "An algorithm for large zero-one knapsack problems", Operations Research 28(5), 1980 (weighted selection);
Sinha and Zoltners, "The multiple-choice knapsack problem", Operations Research 27(3), 1979 (undominated options).
"""

from __future__ import annotations

from math import frexp, ldexp
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from optsched.batching.greedy import TAKE_HIDDEN, TAKE_KV, UPGRADE
from optsched.batching.workspace import Workspace
from optsched.compiled import inlined, lean

Array = np.ndarray

LARGEST_VALUE, LARGEST_SUM = 50, 60  # in bits, of the quantised values
SMALL = 24  # elements that are sorted rather than partitioned
INVALID = -1


class Break(NamedTuple):
    """Where filling the memory in order of density ends.

    Attributes
    ----------
    price
        Quanta per block there; 0 where everything fits.
    first, last
        Elements before `first` are denser, those before `last` as dense.
    room
        Blocks that the denser ones leave.
    """

    price: float
    first: int
    last: int
    room: float


@lean
def quantise(
    space: Workspace,
    pending_s: Float64[Array, " n"],
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    hidden_penalty_s: Float64[Array, " n"],
) -> float:
    """Fill `gain` and `penalty`; return quanta per second, 0 where nothing is worth anything, negative for invalid data."""
    largest, total, valid = 0.0, 0.0, True
    for i in range(len(pending_s)):
        p, u = pending_s[i], hidden_penalty_s[i]
        valid = valid and p >= 0.0 and u >= 0.0 and u < np.inf and kv_blocks[i] >= 0 and hidden_blocks[i] >= 0
        largest = max(largest, p)
        total += p
    if not valid or not total < np.inf:
        return float(INVALID)
    if largest <= 0.0:
        space.gain[: len(pending_s)] = 0
        space.penalty[: len(pending_s)] = 0
        return 0.0
    bits = min(LARGEST_VALUE - frexp(largest)[1], LARGEST_SUM - frexp(total)[1])
    scale = ldexp(1.0, min(bits, 1000))
    for i in range(len(pending_s)):
        p, u = pending_s[i], min(hidden_penalty_s[i], pending_s[i])
        space.gain[i] = max(np.int64(1), np.int64(np.rint(p * scale))) if p > 0.0 else np.int64(0)
        space.penalty[i] = min(np.int64(np.rint(u * scale)), space.gain[i])
    return float(scale)


@lean
def list_elements(
    space: Workspace, kv_blocks: Int64[Array, " n"], hidden_blocks: Int64[Array, " n"], memory: int
) -> tuple[int, float]:
    """List the marginal gains of the undominated options; return how many, and the blocks of all of them together."""
    e, total = 0, 0.0
    for i in range(len(kv_blocks)):
        p, u, m, s = space.gain[i], space.penalty[i], kv_blocks[i], hidden_blocks[i]
        if p == 0:
            continue
        hidden = s < m and s <= memory and p > u and (m > memory or np.float64(p - u) * m >= np.float64(p) * s)
        if hidden:
            space.density[e] = (p - u) / s if s > 0 else np.inf
            space.weight[e], space.element[e] = s, 4 * i + TAKE_HIDDEN
            total += s
            e += 1
        if m > memory or (hidden and u == 0):
            continue
        if hidden:
            space.density[e] = min(u / (m - s), space.density[e - 1])
            space.weight[e], space.element[e] = m - s, 4 * i + UPGRADE
        else:
            space.density[e] = p / m if m > 0 else np.inf
            space.weight[e], space.element[e] = m, 4 * i + TAKE_KV
        total += space.weight[e]
        e += 1
    return e, total


@inlined
def _swap(space: Workspace, i: int, j: int) -> None:
    density, weight, element = space.density[i], space.weight[i], space.element[i]
    space.density[i], space.weight[i], space.element[i] = space.density[j], space.weight[j], space.element[j]
    space.density[j], space.weight[j], space.element[j] = density, weight, element


@inlined
def _sort_few(space: Workspace, low: int, high: int) -> None:
    """Sort a handful of elements, densest first, by insertion."""
    for i in range(low + 1, high):
        density, weight, element, j = space.density[i], space.weight[i], space.element[i], i
        while j > low and density > space.density[j - 1]:
            space.density[j], space.weight[j], space.element[j] = space.density[j - 1], space.weight[j - 1], space.element[j - 1]
            j -= 1
        space.density[j], space.weight[j], space.element[j] = density, weight, element


@lean
def _next_random(state: np.uint64) -> np.uint64:
    """Return the next number of a xorshift sequence."""
    state ^= state << np.uint64(13)
    state ^= state >> np.uint64(7)
    return state ^ (state << np.uint64(17))


@lean
def find_break(space: Workspace, elements: int, room: float) -> Break:
    """Partition the elements around the density at which the memory is full.

    Parameters
    ----------
    elements
        How many there are; together they outgrow `room`.
    room
        Blocks to fill, or whatever else the weights are.
    """
    low, high, random = 0, elements, np.uint64(88172645463325252)
    while high - low > SMALL:
        span = np.uint64(high - low)
        random = _next_random(random)
        one = space.density[low + np.int64(random % span)]
        two = space.density[low + np.int64((random >> np.uint64(20)) % span)]
        three = space.density[low + np.int64((random >> np.uint64(40)) % span)]
        pivot = max(min(one, two), min(max(one, two), three))
        denser, at, end = low, low, high
        above, equal = 0.0, 0.0
        while at < end:
            density = space.density[at]
            if density > pivot:
                above += space.weight[at]
                _swap(space, at, denser)
                denser += 1
                at += 1
            elif density == pivot:
                equal += space.weight[at]
                at += 1
            else:
                end -= 1
                _swap(space, at, end)
        if above > room:
            high = denser
        elif above + equal > room:
            return Break(pivot, denser, end, room - above)
        else:
            low, room = end, room - above - equal
    _sort_few(space, low, high)
    while low < high:
        end, equal = low, 0.0
        while end < high and space.density[end] == space.density[low]:
            equal += space.weight[end]
            end += 1
        if equal > room:
            return Break(space.density[low], low, end, room)
        low, room = end, room - equal
    return Break(0.0, elements, elements, room)
