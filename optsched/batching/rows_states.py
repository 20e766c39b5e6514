"""The states of a search with several rows: kept in order, and dominated ones found.

Notes
-----
A state is a set of deviations from the start, known by what it takes of the three rows and what it is worth. It is no use
if another takes no more of any row that counts and is worth no less. States are kept in the order of what they take of the
first row; of those already seen, a table holds the best value by what they take of the other two, in steps. Rounding takes
up where a state is written and down where one is looked up, so that nothing is dropped without reason.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int8, Int64

from optsched.batching.core_frame import NEVER
from optsched.batching.rows_core import NODE
from optsched.compiled import inlined, kernel, lean

Array = np.ndarray

CELLS = 32  # steps of the table, both ways


class Pool(NamedTuple):
    """Room for `s` states and `t` nodes of the trail.

    Attributes
    ----------
    state
        Two generations: what is taken of the first, second and third row, value, tie value, and node.
    parent, request, option
        The deviation that led to a node, and the node before it.
    best
        Best value of the states seen so far that take no more than so much of the second and third row.
    reach
        What each state can be worth at most.
    """

    state: Int64[Array, "2 s 6"]
    parent: Int64[Array, " t"]
    request: Int64[Array, " t"]
    option: Int8[Array, " t"]
    best: Int64[Array, "c c"]
    reach: Float64[Array, " s"]


@kernel
def empty_pool(states: int, nodes: int) -> Pool:
    """Return room for that many states and nodes."""
    return Pool(
        np.empty((2, states, 6), np.int64),
        np.empty(nodes, np.int64),
        np.empty(nodes, np.int64),
        np.empty(nodes, np.int8),
        np.empty((CELLS, CELLS), np.int64),
        np.empty(states),
    )


class Table(NamedTuple):
    """Steps of `Pool.best`: the least that is taken of the second and third row, the width of a step, and their number."""

    low: tuple[int, int]
    step: tuple[int, int]
    size: tuple[int, int]


@lean
def lay_out(best: Int64[Array, "c c"], spread: tuple[int, int, int, int], counts: tuple[bool, bool]) -> Table:
    """Clear the table for states between two limits each way."""
    low2, high2, low3, high3 = spread
    step2, step3 = (high2 - low2) // (CELLS - 1) + 1, (high3 - low3) // (CELLS - 1) + 1
    size2 = (high2 - low2 - 1) // step2 + 2 if counts[0] and high2 > low2 else 1
    size3 = (high3 - low3 - 1) // step3 + 2 if counts[1] and high3 > low3 else 1
    best[:size2, :size3] = -NEVER
    return Table((low2, low3), (step2, step3), (size2, size3))


@inlined
def dominated(best: Int64[Array, "c c"], table: Table, second: int, third: int, value: int) -> bool:
    """Tell whether a state seen before takes no more and is worth no less."""
    row = (second - table.low[0]) // table.step[0] if table.size[0] > 1 else 0
    column = (third - table.low[1]) // table.step[1] if table.size[1] > 1 else 0
    return bool(best[row, column] >= value)


@inlined
def enter(best: Int64[Array, "c c"], table: Table, second: int, third: int, value: int) -> None:
    """Write a state into the table, for all that take as much or more."""
    row = -((table.low[0] - second) // table.step[0]) if table.size[0] > 1 else 0
    column = -((table.low[1] - third) // table.step[1]) if table.size[1] > 1 else 0
    for r in range(row, table.size[0]):
        if best[r, column] >= value:
            break
        for c in range(column, table.size[1]):
            if best[r, c] >= value:
                break
            best[r, c] = value


@inlined
def draw(
    state: Int64[Array, "2 s 6"],
    change: Int64[Array, "n 2 5"],
    k: int,
    ways: tuple[int, int],
    side: int,
    slot: int,
    at: tuple[int, int, int],
    states: int,
) -> tuple[int, tuple[int, int, int]]:
    """Write the state that comes next by the first row into a slot of the next generation.

    Parameters
    ----------
    at
        Positions in three sorted lists: the states as they are, with the first way of deviating, and with the second.

    Returns
    -------
    tuple
        Which list it comes from, -1 where all are at their end, and the positions then.
    """
    kept, first, second = at
    now = state[side, kept, 0] if kept < states else NEVER
    one = state[side, first, 0] + change[k, ways[0], 0] if first < states else NEVER
    two = state[side, second, 0] + change[k, ways[1], 0] if second < states else NEVER
    if now <= one and now <= two:
        if now == NEVER:
            return -1, at
        for column in range(6):
            state[1 - side, slot, column] = state[side, kept, column]
        return 0, (kept + 1, first, second)
    source, here = (1, first) if one <= two else (2, second)
    for column in range(5):
        state[1 - side, slot, column] = state[side, here, column] + change[k, ways[source - 1], column]
    state[1 - side, slot, NODE] = state[side, here, NODE]
    return source, (kept, first + int(source == 1), second + int(source == 2))
