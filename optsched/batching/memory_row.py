"""The memory row alone, made ready to search: the relaxation rounded down, and reduced-cost fixing.

See `optsched.batching.threshold` for the relaxation and `optsched.batching.memory_solver` for the search.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from optsched.batching.core_frame import DONE, Frame, Search, change, on_offer
from optsched.batching.greedy import SKIP, TAKE_HIDDEN, TAKE_KV, UPGRADE
from optsched.batching.heap import heapify
from optsched.batching.threshold import Break, find_break, list_elements, quantise
from optsched.batching.workspace import Workspace
from optsched.batching.worth import plan_worth
from optsched.compiled import inlined, lean

Array = np.ndarray

ROUNDING = 1e-12  # relative to the relaxation's value
ROUNDING_QUANTA = 4.0
TIE_WORK, TIE_WORK_PER_REQUEST = 9_000, 2  # states; less than solving takes at its worst
NO_SCALE = -1.0
DIVISIONS = 8


class Setting(NamedTuple):
    """A search ready to run, and what turns quanta into seconds: `scale` quanta are one, `start_value` is the start's.

    A negative scale says that the data are invalid, 0 that nothing is worth anything.
    """

    frame: Frame
    search: Search
    scale: float
    start_value: int


@inlined
def _round_down(space: Workspace, num: int, broken: Break) -> tuple[int, float]:
    """Take the elements denser than the break, then of those as dense what fits; return the blocks left and a tie price.

    Of those as dense, upgrades go first (they select nobody), then whole KV caches, then hidden ones.
    """
    space.start[:num] = SKIP
    for e in range(broken.first):
        i, step = space.element[e] // 4, space.element[e] % 4
        if step != TAKE_HIDDEN:
            space.start[i] = TAKE_KV
        elif space.start[i] == SKIP:
            space.start[i] = TAKE_HIDDEN
    room, tie_price, full = int(broken.room), 0.0, False
    for step in (UPGRADE, TAKE_KV, TAKE_HIDDEN, UPGRADE):
        for e in range(broken.first, broken.last):
            i = space.element[e] // 4
            if space.element[e] % 4 != step or (space.start[i] != TAKE_HIDDEN if step == UPGRADE else space.start[i] != SKIP):
                continue
            if space.weight[e] <= room:
                room -= int(space.weight[e])
                space.start[i] = TAKE_HIDDEN if step == TAKE_HIDDEN else TAKE_KV
            elif not full:
                full, tie_price = True, 0.0 if step == UPGRADE else -1.0
    return room, tie_price


@lean
def _greatest_divisor(a: int, b: int) -> int:
    """Return the greatest common divisor, or 1 where that takes many steps: then it is hardly ever a large one."""
    a, b = abs(a), abs(b)
    for _ in range(DIVISIONS):
        if b == 0:
            return a
        a, b = b, a % b
    return 1


@inlined
def _find_losses(
    space: Workspace,
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    memory: int,
    room: int,
    price: float,
) -> tuple[int, int, int, int]:
    """Compute what each request's cheapest deviation loses; return the best single deviation that fits.

    Returns
    -------
    tuple
        Its request (-1: none), option, value and tie value.
    """
    gain, penalty, start, loss = space.gain, space.penalty, space.start, space.loss
    best, best_option, best_value, best_tie = -1, 0, 0, 0
    for i in range(len(kv_blocks)):
        p, u, m, s, chosen = gain[i], penalty[i], kv_blocks[i], hidden_blocks[i], start[i]
        hidden = s < m and s <= memory and p > u
        kv = p > 0 and m <= memory and not (hidden and u == 0)
        blocks, value, least = 0, 0, np.inf
        if chosen != SKIP:
            blocks, value = (s, p - u) if chosen == TAKE_HIDDEN else (m, p)
            least = value - price * blocks
        for option in (TAKE_HIDDEN, TAKE_KV):
            if option == chosen or not (hidden if option == TAKE_HIDDEN else kv):
                continue
            w, v = (s - blocks, p - u - value) if option == TAKE_HIDDEN else (m - blocks, p - value)
            least = min(least, price * w - v)
            if 0 <= w <= room and v >= best_value:
                t = -m if chosen == SKIP else 0
                if v > best_value or t > best_tie:
                    best, best_option, best_value, best_tie = i, option, v, t
        loss[i] = least
    return best, best_option, best_value, best_tie


@inlined
def _fix(
    space: Workspace,
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    memory: int,
    price: float,
    tie_price: float,
    gap: float,
    tolerance: float,
) -> tuple[int, int, int, float]:
    """Keep only requests that lose no more than the gap by deviating.

    Returns
    -------
    tuple
        Their number, the greatest divisors of their changes of blocks and of value, and the tie price, NaN where the
        start is not best among ties at it.
    """
    heap, blocks, divisor = 0, 0, 0
    for i in range(len(kv_blocks)):
        loss = space.loss[i]
        if loss > gap:
            continue
        jitter = tolerance * ((i * 2654435761 >> 7) & 1023) / 1024.0  # equal losses in no particular order
        space.loss[heap], space.member[heap] = loss - jitter, i
        heap += 1
        if blocks == 1 and divisor == 1 and loss > tolerance:
            continue
        for option in range(3):
            if option == space.start[i] or not on_offer(space.gain, space.penalty, kv_blocks, hidden_blocks, i, option, memory):
                continue
            w, v, c = change(space.gain, space.penalty, space.start, kv_blocks, hidden_blocks, i, option)
            lost = price * w - v
            if lost > gap:
                continue
            blocks, divisor = _greatest_divisor(blocks, w), _greatest_divisor(divisor, v)
            if lost <= tolerance and -c * kv_blocks[i] > tie_price * w:
                tie_price = np.nan
    return heap, max(blocks, 1), max(divisor, 1), tie_price


@inlined
def _ready(
    space: Workspace,
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    memory: int,
    frame: Frame,
    search: Search,
    scale: float,
    value: int,
) -> Setting:
    """Fix the requests whose option is settled, and make the others a heap."""
    room, price, tie_price, _, _, start_blocks, start_tie, ties, tie_work, _, _, _, _ = frame
    tolerance = ROUNDING_QUANTA + ROUNDING * (value + price * room)
    best_value, best_tie, best_node = search.best_value, search.best_tie, search.best_node
    i, option, added, added_tie = _find_losses(space, kv_blocks, hidden_blocks, memory, room, price)
    if i >= 0 and (added > best_value or (added == best_value and added_tie > best_tie)):
        best_value, best_tie, best_node = added, added_tie, 0
        space.parent[0], space.request[0], space.option[0] = -1, i, option
    most = price * room
    heap, blocks, divisor, tie_price = _fix(
        space, kv_blocks, hidden_blocks, memory, price, tie_price, most - best_value + tolerance, tolerance
    )
    space.blocks[0, 0], space.value[0, 0], space.tie[0, 0], space.node[0, 0] = 0, 0, 0, -1
    room -= room % blocks
    frame = Frame(room, price, tie_price, tolerance, divisor, start_blocks, start_tie, ties, tie_work, blocks, 0, -1, np.inf)
    return Setting(frame, Search(DONE, 0, 1, 1, heap, search.work, best_value, best_tie, best_node, most), scale, value)


@lean
def again(
    space: Workspace,
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    memory: int,
    setting: Setting,
    search: Search,
) -> Setting:
    """Begin a search again that has found a plan, which has been read off: fewer requests are left to deviate."""
    known = Search(DONE, 0, 0, 0, 0, search.work, search.best_value, search.best_tie, -2, 0.0)
    return _ready(space, kv_blocks, hidden_blocks, memory, setting.frame, known, setting.scale, setting.start_value)


@inlined
def set_up(
    space: Workspace,
    pending_s: Float64[Array, " n"],
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    hidden_penalty_s: Float64[Array, " n"],
    memory: int,
    ties: bool,
) -> Setting:
    """Solve the relaxation and round it down: the start, whose deviations are searched."""
    num = len(pending_s)
    scale = quantise(space, pending_s, kv_blocks, hidden_blocks, hidden_penalty_s)
    nothing = Search(DONE, 0, 0, 0, 0, 0, 0, 0, -1, 0.0)
    if scale <= 0.0 or memory < 0:
        space.start[:num] = SKIP
        return Setting(Frame(0, 0.0, 0.0, 0.0, 1, 0, 0, ties, 0, 1, 0, -1, np.inf), nothing, NO_SCALE if memory < 0 else scale, 0)
    elements, total = list_elements(space, kv_blocks, hidden_blocks, memory)
    broken = Break(0.0, elements, elements, memory - total)
    if total > memory:
        broken = find_break(space, elements, float(memory))
    room, tie_price = _round_down(space, num, broken)
    value, tie, _ = plan_worth(space, kv_blocks, space.start)
    tie_work = TIE_WORK + TIE_WORK_PER_REQUEST * num
    frame = Frame(room, broken.price, tie_price, 0.0, 1, memory - room, tie, ties, tie_work, 1, 0, -1, np.inf)
    setting = _ready(space, kv_blocks, hidden_blocks, memory, frame, nothing, scale, value)
    heapify(space.loss, space.member, setting.search.heap)
    return setting
