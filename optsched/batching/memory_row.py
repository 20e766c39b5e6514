"""The memory row alone, solved to proven optimality by one compiled call: relaxation, reduced-cost fixing, core.

See `optsched.batching.threshold` for the relaxation and `optsched.batching.core` for the search.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int8, Int64

from optsched.batching.core import DONE, PAUSED, Frame, Search, change, expand, on_offer
from optsched.batching.duals import Rows, best_prices, choose
from optsched.batching.greedy import SKIP, TAKE_HIDDEN, TAKE_KV, UPGRADE
from optsched.batching.heap import heapify
from optsched.batching.threshold import Break, find_break, list_elements, quantise
from optsched.batching.workspace import Workspace
from optsched.compiled import kernel

Array = np.ndarray

ROUNDING = 1e-12  # relative to the relaxation's value
ROUNDING_QUANTA = 4.0
TIE_WORK, TIE_WORK_PER_REQUEST = 20_000, 2  # states; less than solving takes at its worst
FIRST_WORK = 10_000  # states before the relaxation is tightened
NO_SCALE = -1.0


class Setting(NamedTuple):
    """A search ready to run, and what turns quanta into seconds: `scale` quanta are one, `start_value` is the start's.

    A negative scale says that the data are invalid, 0 that nothing is worth anything.
    """

    frame: Frame
    search: Search
    scale: float
    start_value: int


@kernel
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


@kernel
def plan_worth(space: Workspace, kv_blocks: Int64[Array, " n"], choice: Int8[Array, " n"]) -> tuple[int, int, int]:
    """Return value, tie value and number of selected requests of a plan."""
    value, tie, count = 0, 0, 0
    for i in range(len(kv_blocks)):
        if choice[i] != SKIP:
            value += space.gain[i] - (space.penalty[i] if choice[i] == TAKE_HIDDEN else 0)
            tie -= kv_blocks[i]
            count += 1
    return value, tie, count


@kernel
def _greatest_divisor(a: int, b: int) -> int:
    a, b = abs(a), abs(b)
    while b > 0:
        a, b = b, a % b
    return a


@kernel
def _find_losses(
    space: Workspace,
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    memory: int,
    room: int,
    prices: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Compute what each request's cheapest deviation loses; return the best single deviation that fits.

    Returns
    -------
    tuple
        Its request (-1: none), option, value and tie value.
    """
    gain, penalty, start, loss, (price, seat_price) = space.gain, space.penalty, space.start, space.loss, prices
    best, best_option, best_value, best_tie = -1, 0, 0, 0
    for i in range(len(kv_blocks)):
        p, u, m, s, chosen = gain[i], penalty[i], kv_blocks[i], hidden_blocks[i], start[i]
        hidden = s < m and s <= memory and p > u
        kv = p > 0 and m <= memory and not (hidden and u == 0)
        blocks, value, seat, least = 0, 0, seat_price, np.inf
        if chosen != SKIP:
            blocks, value = (s, p - u) if chosen == TAKE_HIDDEN else (m, p)
            least, seat = value - price * blocks - seat_price, 0.0
        for option in (TAKE_HIDDEN, TAKE_KV):
            if option == chosen or not (hidden if option == TAKE_HIDDEN else kv):
                continue
            w, v = (s - blocks, p - u - value) if option == TAKE_HIDDEN else (m - blocks, p - value)
            least = min(least, price * w + seat - v)
            if 0 <= w <= room and v >= best_value:
                t = -m if chosen == SKIP else 0
                if v > best_value or t > best_tie:
                    best, best_option, best_value, best_tie = i, option, v, t
        loss[i] = least
    return best, best_option, best_value, best_tie


@kernel
def _fix(
    space: Workspace,
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    memory: int,
    prices: tuple[float, float],
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
            lost = prices[0] * w + prices[1] * c - v
            if lost > gap:
                continue
            blocks, divisor = _greatest_divisor(blocks, w), _greatest_divisor(divisor, v)
            if lost <= tolerance and -c * kv_blocks[i] > tie_price * w:
                tie_price = np.nan
    return heap, max(blocks, 1), max(divisor, 1), tie_price


@kernel
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
    room, price, seats, seat_price, tie_price, _, _, start_blocks, start_tie, ties, tie_work = frame
    prices = (price, seat_price)
    tolerance = ROUNDING_QUANTA + ROUNDING * (value + price * room + seat_price * seats)
    best_value, best_tie, best_node = search.best_value, search.best_tie, search.best_node
    i, option, added, added_tie = _find_losses(space, kv_blocks, hidden_blocks, memory, room, prices)
    if i >= 0 and (added > best_value or (added == best_value and added_tie > best_tie)):
        best_value, best_tie, best_node = added, added_tie, 0
        space.parent[0], space.request[0], space.option[0] = -1, i, option
    most = price * room + seat_price * seats
    heap, blocks, divisor, tie_price = _fix(
        space, kv_blocks, hidden_blocks, memory, prices, tie_price, most - best_value + tolerance, tolerance
    )
    heapify(space.loss, space.member, heap)
    space.blocks[0, 0], space.value[0, 0], space.tie[0, 0], space.selected[0, 0], space.node[0, 0] = 0, 0, 0, 0, -1
    room -= room % blocks
    frame = Frame(room, price, seats, seat_price, tie_price, tolerance, divisor, start_blocks, start_tie, ties, tie_work)
    return Setting(frame, Search(DONE, 0, 1, 1, heap, search.work, best_value, best_tie, best_node, most), scale, value)


@kernel
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
        return Setting(Frame(0, 0.0, 0, 0.0, 0.0, 0.0, 1, 0, 0, ties, 0), nothing, NO_SCALE if memory < 0 else scale, 0)
    elements, total = list_elements(space, kv_blocks, hidden_blocks, memory)
    broken = Break(0.0, elements, elements, memory - total)
    if total > memory:
        broken = find_break(space, elements, float(memory))
    room, tie_price = _round_down(space, num, broken)
    value, tie, _ = plan_worth(space, kv_blocks, space.start)
    tie_work = TIE_WORK + TIE_WORK_PER_REQUEST * num
    frame = Frame(room, broken.price, 0, 0.0, tie_price, 0.0, 1, memory - room, tie, ties, tie_work)
    return _ready(space, kv_blocks, hidden_blocks, memory, frame, nothing, scale, value)


@kernel
def _most_requests(space: Workspace, kv_blocks: Int64[Array, " n"], hidden_blocks: Int64[Array, " n"], memory: int) -> int:
    """Return how many requests fit the memory at most, each with its smaller cache."""
    e, total = 0, 0.0
    for i in range(len(kv_blocks)):
        size = min(kv_blocks[i], hidden_blocks[i]) if space.gain[i] > space.penalty[i] else kv_blocks[i]
        if space.gain[i] == 0 or size > memory:
            continue
        space.density[e], space.weight[e], space.element[e] = -size, size, i
        total += size
        e += 1
    if total <= memory:
        return e
    broken = find_break(space, e, float(memory))
    return int(broken.first + broken.room // -broken.price)


@kernel
def _fill_ties(
    space: Workspace,
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    memory: int,
    prices: tuple[float, float],
    left: tuple[float, float],
    tolerance: float,
) -> tuple[int, int]:
    """Make deviations that lose nothing part of the start while blocks and seats are left; return what is left then."""
    room, seats = int(left[0]), int(left[1])
    gain, penalty, start = space.gain, space.penalty, space.start
    for i in range(len(kv_blocks)):
        for option in (TAKE_HIDDEN, TAKE_KV):
            if option == start[i] or not on_offer(gain, penalty, kv_blocks, hidden_blocks, i, option, memory):
                continue
            w, v, c = change(gain, penalty, start, kv_blocks, hidden_blocks, i, option)
            if 0 <= w <= room and 0 <= c <= seats and prices[0] * w + prices[1] * c - v <= tolerance:
                start[i], room, seats = option, room - w, seats - c
    return room, seats


@kernel
def tighten(
    space: Workspace,
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    memory: int,
    setting: Setting,
    choice: Int8[Array, " n"],
) -> Setting:
    """Begin again from the plan found, with a tighter relaxation: no more requests than can fit at all.

    Where pending times are alike, the memory alone lets the relaxation serve a fraction of one more request; that price
    per seat takes it back (Martello and Toth, "Upper bounds and algorithms for hard 0-1 knapsack problems", Operations
    Research 45(5), 1997).
    """
    most = _most_requests(space, kv_blocks, hidden_blocks, memory)
    num, frame = len(kv_blocks), setting.frame
    tokens = space.no_tokens[:num]
    price, _, seat_price = best_prices(space, Rows(kv_blocks, hidden_blocks, tokens, memory, 0, most))
    left = choose(space, Rows(kv_blocks, hidden_blocks, tokens, memory, 0, most), (price, 0.0, seat_price))
    known, known_tie, _ = plan_worth(space, kv_blocks, choice)
    room, seats = _fill_ties(space, kv_blocks, hidden_blocks, memory, (price, seat_price), (left[0], left[2]), frame.tolerance)
    value, tie, _ = plan_worth(space, kv_blocks, space.start)
    work = setting.search.work
    frame = Frame(room, price, seats, seat_price, np.nan, 0.0, 1, memory - room, tie, frame.ties, frame.tie_work + work)
    best = Search(DONE, 0, 0, 0, 0, work, known - value, known_tie - tie, -2, 0.0)
    if room >= 0 and value > known:
        best = Search(DONE, 0, 0, 0, 0, work, 0, 0, -1, 0.0)
    return _ready(space, kv_blocks, hidden_blocks, memory, frame, best, setting.scale, value)


@kernel
def read_off(space: Workspace, search: Search, choice: Int8[Array, " n"]) -> None:
    """Write the best plan into `choice`, unless it is there already."""
    if search.best_node > -2:
        choice[:] = space.start[: len(choice)]
    node = search.best_node
    while node >= 0:
        choice[space.request[node]] = space.option[node]
        node = space.parent[node]


@kernel
def worth(pending_s: Float64[Array, " n"], hidden_penalty_s: Float64[Array, " n"], choice: Int8[Array, " n"]) -> float:
    """Return a plan's value in seconds, summed with compensation (Neumaier)."""
    total, lost = 0.0, 0.0
    for i in range(len(choice)):
        if choice[i] == SKIP:
            continue
        term = pending_s[i] - (hidden_penalty_s[i] if choice[i] == TAKE_HIDDEN else 0.0)
        added = total + term
        lost += (total - added) + term if abs(total) >= abs(term) else (term - added) + total
        total = added
    return total + lost


@kernel
def solve_memory_row(
    space: Workspace,
    pending_s: Float64[Array, " n"],
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    hidden_penalty_s: Float64[Array, " n"],
    memory: int,
    ties: bool,
    work_limit: int,
    choice: Int8[Array, " n"],
) -> tuple[Setting, float]:
    """Solve, or go as far as the workspace and the work limit allow.

    Parameters
    ----------
    ties
        Choose among plans of the same value; see `optsched.batching.core`.
    work_limit
        States that may be generated.
    choice
        Filled with the best plan found.

    Returns
    -------
    tuple
        The setting with the search as it stands, and the plan's value in seconds.
    """
    setting = set_up(space, pending_s, kv_blocks, hidden_blocks, hidden_penalty_s, memory, ties)
    if setting.scale <= 0.0:
        choice[:] = SKIP
        return setting, 0.0
    search = expand(space, kv_blocks, hidden_blocks, memory, setting.frame, setting.search, min(work_limit, FIRST_WORK))
    read_off(space, search, choice)
    if search.code == PAUSED and search.work < work_limit:
        setting = Setting(setting.frame, search, setting.scale, setting.start_value)
        setting = tighten(space, kv_blocks, hidden_blocks, memory, setting, choice)
        search = expand(space, kv_blocks, hidden_blocks, memory, setting.frame, setting.search, work_limit)
        read_off(space, search, choice)
    setting = Setting(setting.frame, search, setting.scale, setting.start_value)
    return setting, worth(pending_s, hidden_penalty_s, choice)
