"""Token and sequence rows beside the memory: Lagrangian bound, then branch and bound over the core, deepening by loss.

Notes
-----
At the relaxation's prices every request has a best option; a plan is worth the Lagrangian value Z less what its deviations
lose less the price of what it leaves unused. So the best plan is the one that loses least in all, and sets of
deviations that lose more than delta need not be looked at until all that lose less are known. Delta grows until the
best plan's loss is within it: then it is proven. Stopped before, Z - delta is the bound. A branch is cut where the few deviations
that delta still affords cannot bring a row back into its limit, or cannot use what is left of the rows that have a price.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int8, Int64

from optsched.batching.core import change
from optsched.batching.duals import Rows, allowed, best_prices, choose
from optsched.batching.greedy import TAKE_HIDDEN, TAKE_KV
from optsched.batching.heap import heapify, pop
from optsched.batching.memory_row import ROUNDING, ROUNDING_QUANTA, plan_worth, worth
from optsched.batching.threshold import quantise
from optsched.batching.workspace import Workspace
from optsched.compiled import kernel

Array = np.ndarray

MOST_DEVIATIONS, DEEPEST = 4096, 48
FIRST_DEVIATIONS, MORE_DEVIATIONS, REPAIRING = 12, 1.3, 128
END = np.inf


class Deviations(NamedTuple):
    """Options other than the start's, the cheapest first: what each loses, and what it changes.

    Attributes
    ----------
    loss
        Lagrangian value lost.
    change
        Blocks, tokens, sequences, value, and tie value (see `optsched.batching.core`).
    request, option
        Whose, and which.
    path, best
        Deviations of the branch being searched, and of the best plan.
    """

    loss: Float64[Array, " d"]
    change: Int64[Array, "d 5"]
    request: Int64[Array, " d"]
    option: Int8[Array, " d"]
    path: Int64[Array, " depth"]
    left: Int64[Array, "depth 5"]
    lost: Float64[Array, " depth"]
    best: Int64[Array, " depth"]


@kernel
def empty_deviations() -> Deviations:
    """Return room for the deviations of one search."""
    return Deviations(
        np.empty(MOST_DEVIATIONS + 2),
        np.empty((MOST_DEVIATIONS + 2, 5), np.int64),
        np.empty(MOST_DEVIATIONS + 2, np.int64),
        np.empty(MOST_DEVIATIONS + 2, np.int8),
        np.empty(DEEPEST + 2, np.int64),
        np.empty((DEEPEST + 2, 5), np.int64),
        np.empty(DEEPEST + 2),
        np.empty(DEEPEST + 2, np.int64),
    )


class Found(NamedTuple):
    """The best loss so far, its value and tie value relative to the start, how many deviations; and the work done."""

    value: int
    tie: int
    size: int
    work: int
    finished: bool


@kernel
def _losses(space: Workspace, rows: Rows, prices: tuple[float, float, float]) -> int:
    """Make a heap of all deviations by what they lose; entries are ``4 * request + option``. Return its size."""
    heap, limits = 0, (rows.memory, rows.token_budget, rows.max_sequences)
    for i in range(len(rows.kv_blocks)):
        token = rows.tokens[i]
        hidden, kv = allowed(space.gain[i], space.penalty[i], rows.kv_blocks[i], rows.hidden_blocks[i], token, limits)
        for option in range(3):
            if option == space.start[i] or (option > 0 and not (hidden if option == TAKE_HIDDEN else kv)):
                continue
            w, v, c = change(space.gain, space.penalty, space.start, rows.kv_blocks, rows.hidden_blocks, i, option)
            space.density[heap] = prices[0] * w + (prices[1] * token + prices[2]) * c - v
            space.element[heap] = 4 * i + option
            heap += 1
    heapify(space.density, space.element, heap)
    return heap


@kernel
def _next_deviation(space: Workspace, rows: Rows, deviations: Deviations, heap: int, at: int) -> None:
    """Move the cheapest deviation of the heap to position `at`."""
    deviations.loss[at] = max(0.0, space.density[0])
    i, option = divmod(pop(space.density, space.element, heap), 4)
    w, v, c = change(space.gain, space.penalty, space.start, rows.kv_blocks, rows.hidden_blocks, i, option)
    deviations.request[at], deviations.option[at] = i, option
    deviations.change[at, 0], deviations.change[at, 1], deviations.change[at, 2] = w, c * rows.tokens[i], c
    deviations.change[at, 3], deviations.change[at, 4] = v, -c * rows.kv_blocks[i]


@kernel
def _reaches(
    prices: tuple[float, float, float], left: Int64[Array, " 5"], spread: Int64[Array, "2 3"], more: float, afford: float
) -> bool:
    """Tell whether `more` deviations can mend what a branch over-commits, and use what it must not leave unused."""
    for row in range(3):
        if left[row] + more * spread[0, row] < 0:
            return False
        afford -= prices[row] * max(0.0, left[row] - more * spread[1, row])
    return afford >= 0.0


@kernel
def _search(
    deviations: Deviations,
    num: int,
    spread: Int64[Array, "2 3"],
    prices: tuple[float, float, float],
    most: float,
    delta: float,
    found: Found,
    work_limit: int,
) -> Found:
    """Look at all sets of the first `num` deviations that lose at most delta; `most` is Z relative to the start."""
    loss, changes, path, left, lost = deviations.loss, deviations.change, deviations.path, deviations.left, deviations.lost
    value, tie, size, work = found.value, found.tie, found.size, found.work
    depth, path[0], whole = 0, -1, True
    k = 0
    while True:
        afford = min(delta, most - value) - lost[depth]
        if k >= num or loss[k] > afford or depth >= DEEPEST:
            whole = whole and (k >= num or loss[k] > afford)  # cut for depth alone, a branch proves nothing
            if depth == 0:
                return Found(value, tie, size, work, whole)
            k = path[depth] + 1  # back: the branch without this deviation
            depth -= 1
            continue
        work += 1
        if work > work_limit:
            return Found(value, tie, size, work, False)
        here, there = left[depth], left[depth + 1]
        for field in range(3):
            there[field] = here[field] - changes[k, field]
        there[3], there[4] = here[3] + changes[k, 3], here[4] + changes[k, 4]
        clash = False
        for d in range(1, depth + 1):
            clash = clash or deviations.request[path[d]] == deviations.request[k]
        if clash:
            k += 1
            continue
        fits = there[0] >= 0 and there[1] >= 0 and there[2] >= 0
        if fits and (there[3] > value or (there[3] == value and there[4] > tie)):
            value, tie, size = there[3], there[4], depth + 1
            deviations.best[:depth] = path[1 : depth + 1]
            deviations.best[depth] = k
        afford -= loss[k]
        dearer = max(loss[min(k + 1, num - 1)], 1e-300)
        if (
            k + 1 < num
            and dearer <= afford
            and _reaches(prices, there, spread, np.floor(min(afford / dearer, 1e9) + 1e-9), afford)
        ):
            depth += 1
            path[depth], lost[depth] = k, lost[depth - 1] + loss[k]
        k += 1


@kernel
def _set_left(deviations: Deviations, left: tuple[float, float, float]) -> None:
    """Begin at the start: nothing changed yet."""
    for row in range(3):
        deviations.left[0, row] = np.int64(left[row])
    deviations.left[0, 3], deviations.left[0, 4], deviations.lost[0] = 0, 0, 0.0


@kernel
def _repair(deviations: Deviations, num: int) -> tuple[int, int, int]:
    """Make the start keep its limits, cheapest deviations first, then fill up; return value, tie value and deviations (-1: no).

    `left[0]` holds what the start leaves.
    """
    changes, best, left = deviations.change, deviations.best, deviations.left[0]
    size, value, tie = 0, 0, 0
    for filling in (False, True):
        for k in range(num):
            short = left[0] < 0 or left[1] < 0 or left[2] < 0
            if size >= DEEPEST or short == filling:
                break
            helps, fits = False, True
            for row in range(3):
                helps = helps or (left[row] < 0 and changes[k, row] < 0)
                fits = fits and (changes[k, row] <= max(0, left[row]))
            for d in range(size):
                fits = fits and deviations.request[best[d]] != deviations.request[k]
            if not fits or not (changes[k, 3] > 0 if filling else helps):
                continue
            best[size], size = k, size + 1
            for row in range(3):
                left[row] -= changes[k, row]
            value, tie = value + changes[k, 3], tie + changes[k, 4]
    return value, tie, size if left[0] >= 0 and left[1] >= 0 and left[2] >= 0 else -1


@kernel
def _spread(deviations: Deviations, num: int, spread: Int64[Array, "2 3"]) -> None:
    """Find how much one deviation can at most release and take of each row."""
    spread[:] = 0
    for k in range(num):
        for row in range(3):
            spread[0, row] = max(spread[0, row], -deviations.change[k, row])
            spread[1, row] = max(spread[1, row], deviations.change[k, row])


@kernel
def _fill_ties(
    space: Workspace, rows: Rows, prices: tuple[float, float, float], left: tuple[float, float, float], tolerance: float
) -> tuple[float, float, float]:
    """Make deviations that lose nothing part of the start while the rows have room; return what is left then."""
    gain, penalty, start = space.gain, space.penalty, space.start
    limits, (blocks, tokens, seats) = (rows.memory, rows.token_budget, rows.max_sequences), left
    for i in range(len(rows.kv_blocks)):
        token = rows.tokens[i]
        hidden, kv = allowed(gain[i], penalty[i], rows.kv_blocks[i], rows.hidden_blocks[i], token, limits)
        for option in (TAKE_HIDDEN, TAKE_KV):
            if option == start[i] or not (hidden if option == TAKE_HIDDEN else kv):
                continue
            w, v, c = change(gain, penalty, start, rows.kv_blocks, rows.hidden_blocks, i, option)
            lost = prices[0] * w + (prices[1] * token + prices[2]) * c - v
            if lost <= tolerance and 0 <= w <= blocks and c * token <= tokens and 0 <= c <= seats:
                start[i] = option
                blocks, tokens, seats = blocks - w, tokens - c * token, seats - c
    return blocks, tokens, seats


@kernel
def solve_rows(
    space: Workspace,
    deviations: Deviations,
    pending_s: Float64[Array, " n"],
    hidden_penalty_s: Float64[Array, " n"],
    rows: Rows,
    work_limit: int,
    choice: Int8[Array, " n"],
) -> tuple[bool, float, float]:
    """Solve a problem with all its rows.

    Parameters
    ----------
    work_limit
        Sets of deviations that may be looked at.
    choice
        A plan that keeps all rows; replaced by the best one found.

    Returns
    -------
    tuple
        Whether the plan is proven optimal, its value, and the bound in seconds.
    """
    scale = quantise(space, pending_s, rows.kv_blocks, rows.hidden_blocks, hidden_penalty_s)
    if scale <= 0.0:
        return True, 0.0, 0.0
    prices = best_prices(space, rows)
    left = choose(space, rows, prices)
    start, _, _ = plan_worth(space, rows.kv_blocks, space.start)
    most = prices[0] * left[0] + prices[1] * left[1] + prices[2] * left[2]
    tolerance = ROUNDING_QUANTA + ROUNDING * (start + most)
    left = _fill_ties(space, rows, prices, left, tolerance)
    start, start_tie, _ = plan_worth(space, rows.kv_blocks, space.start)
    known, known_tie, _ = plan_worth(space, rows.kv_blocks, choice)
    most = prices[0] * left[0] + prices[1] * left[1] + prices[2] * left[2]
    heap, num, delta, aim = _losses(space, rows, prices), 0, 0.0, FIRST_DEVIATIONS
    while heap > 0 and num < REPAIRING:
        _next_deviation(space, rows, deviations, heap, num)
        heap, num = heap - 1, num + 1
    spread = np.empty((2, 3), np.int64)
    found = Found(known - start, known_tie - start_tie, -1, 0, True)
    _set_left(deviations, left)
    gained, gained_tie, size = _repair(deviations, num)
    if size >= 0 and gained > found.value:
        found = Found(gained, gained_tie, size, 0, True)
    while found.finished and most - found.value > delta + tolerance:
        while heap > 0 and num < min(aim, MOST_DEVIATIONS):
            _next_deviation(space, rows, deviations, heap, num)
            heap, num = heap - 1, num + 1
        active = min(aim, num)
        further = deviations.loss[active] if active < num else (max(0.0, space.density[0]) if heap > 0 else END)
        aim = int(aim * MORE_DEVIATIONS) + 1
        _spread(deviations, active, spread)
        _set_left(deviations, left)
        found = _search(deviations, active, spread, prices, most, further, found, work_limit)
        if found.finished:
            delta = further
        if active >= MOST_DEVIATIONS:
            break
    if found.size >= 0:
        choice[:] = space.start[: len(choice)]
        for d in range(found.size):
            choice[deviations.request[deviations.best[d]]] = deviations.option[deviations.best[d]]
    value = worth(pending_s, hidden_penalty_s, choice)
    if most - found.value <= delta + tolerance:
        return True, value, value
    return False, value, max(value, (start + most - delta + tolerance) / scale)
