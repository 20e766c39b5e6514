"""Where the search of the memory row stands, what it holds constant, and what a deviation from the start changes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int8, Int64

from optsched.batching.greedy import SKIP, TAKE_HIDDEN, TAKE_KV
from optsched.compiled import inlined, lean

Array = np.ndarray

DONE, PAUSED, FULL, TIES_OPEN = 0, 1, 2, 3
NEVER = np.iinfo(np.int64).max


class Search(NamedTuple):
    """Where the search stands; values are in quanta and relative to the start.

    Attributes
    ----------
    code
        `DONE`; `PAUSED` by the work limit; `FULL`: the workspace must grow; `TIES_OPEN`: the value is proven, the tie is not.
    side, states, nodes, heap
        Generation of states in use, their number, nodes of the trail, and requests that may still deviate.
    work
        States generated.
    best_value, best_tie, best_node
        The best plan; node -1 is the start, -2 a plan known before.
    most
        No plan still open is worth more.
    """

    code: int
    side: int
    states: int
    nodes: int
    heap: int
    work: int
    best_value: int
    best_tie: int
    best_node: int
    most: float


@lean
def stopped(search: Search, code: int) -> Search:
    """Return the search with another code."""
    _, side, states, nodes, heap, work, value, tie, node, most = search
    return Search(code, side, states, nodes, heap, work, value, tie, node, most)


@inlined
def improved(search: Search, value: int, tie: int, node: int) -> Search:
    """Return the search with another best plan."""
    code, side, states, nodes, heap, work, _, _, _, most = search
    return Search(code, side, states, nodes, heap, work, value, tie, node, most)


class Frame(NamedTuple):
    """Constants of a search.

    Attributes
    ----------
    room
        Blocks that the start leaves unused, less those that no deviation can use.
    price, tie_price
        Value per block, and tie value per block; `tie_price` is NaN where it proves nothing.
    tolerance
        Improvements up to it count as rounding.
    divisor
        All deviations change the value by multiples of it.
    start_blocks, start_tie
        Blocks and tie value of the start.
    ties
        Whether it matters which plan of the best value is found.
    tie_work
        States that may be generated once only the tie is open.
    unit
        All deviations change the blocks by multiples of it; `room` is one.
    overdrawn, left
        Up to how many units overdrawn or left the workspace's `rest` holds least losses; 0, -1: none (see
        `optsched.batching.corner`).
    later
        What deviations that have not been entered yet lose at least.
    """

    room: int
    price: float
    tie_price: float
    tolerance: float
    divisor: int
    start_blocks: int
    start_tie: int
    ties: bool
    tie_work: int
    unit: int
    overdrawn: int
    left: int
    later: float


@inlined
def change(
    gain: Int64[Array, " n"],
    penalty: Int64[Array, " n"],
    chosen: Int8[Array, " n"],
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    i: int,
    option: int,
) -> tuple[int, int, int]:
    """Return what an option adds to the choice at the start for request `i`: blocks, value, and selected requests."""
    start = chosen[i]
    blocks = hidden_blocks[i] if option == TAKE_HIDDEN else (kv_blocks[i] if option == TAKE_KV else 0)
    blocks -= hidden_blocks[i] if start == TAKE_HIDDEN else (kv_blocks[i] if start == TAKE_KV else 0)
    value = gain[i] * (np.int64(option != SKIP) - np.int64(start != SKIP))
    value -= penalty[i] * (np.int64(option == TAKE_HIDDEN) - np.int64(start == TAKE_HIDDEN))
    return blocks, value, int(option != SKIP) - int(start != SKIP)


@inlined
def on_offer(
    gain: Int64[Array, " n"],
    penalty: Int64[Array, " n"],
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    i: int,
    option: int,
    memory: int,
) -> bool:
    """Tell whether an option fits the memory by itself and no other has no more blocks and no less value."""
    p, u, m, s = gain[i], penalty[i], kv_blocks[i], hidden_blocks[i]
    hidden = s < m and s <= memory and p > u
    if option == TAKE_HIDDEN:
        return bool(hidden)
    if option == TAKE_KV:
        return bool(p > 0 and m <= memory and not (hidden and u == 0))
    return True
