"""Token and sequence rows beside the memory: Lagrangian relaxation, reduced-cost fixing, and a search of what is left.

See `optsched.batching.duals` for the relaxation, `optsched.batching.rows_core` for what is left of it and for the bounds, and
`optsched.batching.rows_search` for the search.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int8, Int64

from optsched.batching.greedy import NO_LIMIT, SKIP
from optsched.batching.rows_core import Core, empty_core, list_core
from optsched.batching.rows_exchange import exchange
from optsched.batching.rows_frame import KNOWN, Frame, Search
from optsched.batching.rows_relaxed import Relaxed, relax
from optsched.batching.rows_search import search_core
from optsched.batching.rows_states import Pool, empty_pool
from optsched.batching.threshold import quantise
from optsched.batching.vertices import Rows
from optsched.batching.workspace import Workspace
from optsched.batching.worth import plan_worth, worth
from optsched.compiled import kernel, lean

Array = np.ndarray

STATES, NODES = 1 << 14, 1 << 19
ROWS_WORK_LIMIT = 60_000  # states; a few milliseconds
MEMORY_FIRST = 10_000  # states for the memory row alone, before the others are looked at
SHARES = (0.35, 0.5, 1.0)  # of the work still allowed: for all states, for few, for all beside the plan that those found
MOST_SEARCHES, NARROWEST, WORK_PER_STATE = 6, 16, 10


class RowsSpace(NamedTuple):
    """Buffers of the search with several rows."""

    core: Core
    pool: Pool


@kernel
def empty_rows_space(requests: int, nodes: int) -> RowsSpace:
    """Return room for that many requests, and nodes of the trail beside theirs."""
    return RowsSpace(empty_core(requests), empty_pool(STATES, nodes + requests))


@lean
def _read_off(space: Workspace, pool: Pool, node: int, choice: Int8[Array, " n"]) -> None:
    """Write the best plan into `choice`, unless it is there already."""
    if node != KNOWN:
        for i in range(len(choice)):
            choice[i] = space.start[i]
    while node >= 0:
        choice[pool.request[node]] = pool.option[node]
        node = pool.parent[node]


@lean
def _search(
    space: Workspace,
    buffers: RowsSpace,
    rows: Rows,
    relaxed: Relaxed,
    counts: tuple[bool, bool],
    known: tuple[int, int],
    narrow: bool,
    work_limit: int,
) -> Search:
    """List the core that is left beside a known plan, and search it."""
    prices, order, left, _, _, most, tolerance = relaxed
    gap, blocks_count = most - known[0] + tolerance, order[0] == 0 or counts[0]
    num, unit = list_core(space, rows, buffers.core, prices, order, gap, tolerance, blocks_count)
    paid, slack = (prices[order[0]], prices[order[1]], prices[order[2]]), int(tolerance / max(1, num))
    width = buffers.pool.state.shape[1] // 3
    if narrow:
        width = min(width, max(NARROWEST, work_limit // (WORK_PER_STATE * max(1, num))))
    frame = Frame(num, paid, left, counts, unit, most, tolerance, slack, width, narrow)
    return search_core(buffers.pool, buffers.core, frame, known[0], known[1], work_limit)


@lean
def _search_until_proven(
    space: Workspace,
    buffers: RowsSpace,
    rows: Rows,
    relaxed: Relaxed,
    known: tuple[int, int],
    work_limit: int,
    choice: Int8[Array, " n"],
) -> tuple[int, float]:
    """Search with all states, then with few if that does not end, and again with all beside the better plan found so.

    Where a search does not end, its plan is improved by exchanges.

    A row that turns out to matter counts from then on.

    Returns
    -------
    tuple
        Value of the best plan and a bound, above the start.
    """
    order, stage, work, bound = relaxed.order, 0, 0, relaxed.most
    counts = (relaxed.prices[order[1]] > 0.0, relaxed.prices[order[2]] > 0.0)
    for _ in range(MOST_SEARCHES):
        allowed = int((work_limit - work) * SHARES[stage])
        found = _search(space, buffers, rows, relaxed, counts, known, stage == 1, allowed)
        _read_off(space, buffers.pool, found.best_node, choice)
        known, work = (found.best_value, found.best_tie), work + found.work
        bound = max(float(known[0]), min(bound, max(float(found.passed_over), found.cut, found.reach)))
        if bound > known[0] + relaxed.tolerance and stage < 2:
            exchange(space, rows, order[0], relaxed.tolerance, choice)
            value, tie, _ = plan_worth(space, rows.kv_blocks, choice)
            known = (value - relaxed.start, tie - relaxed.start_tie)
        if bound <= known[0] + relaxed.tolerance or work >= work_limit:
            break
        if found.passed_over > known[0]:
            counts = (counts[0] or found.broken == 1, counts[1] or found.broken == 2)
        elif stage < 2:
            stage += 1
        else:
            break
    return known[0], bound


@lean
def breaks(choice: Int8[Array, " n"], tokens: Int64[Array, " n"], token_budget: int, max_sequences: int) -> bool:
    """Tell whether a plan needs more tokens or sequences than there are."""
    taken, count = 0, 0
    for i in range(len(choice)):
        if choice[i] != SKIP:
            taken, count = taken + tokens[i], count + 1
    return count > max_sequences or (token_budget != NO_LIMIT and taken > token_budget)


@lean
def solve_rows(
    space: Workspace,
    buffers: RowsSpace,
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
        States that may be generated.
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
    relaxed = relax(space, rows)
    known, known_tie, _ = plan_worth(space, rows.kv_blocks, choice)
    start = (known - relaxed.start, known_tie - relaxed.start_tie)
    value, bound = _search_until_proven(space, buffers, rows, relaxed, start, work_limit, choice)
    total = worth(pending_s, hidden_penalty_s, choice)
    if bound <= value + relaxed.tolerance:
        return True, total, total
    return False, total, max(total, (relaxed.start + bound + 2.0 * relaxed.tolerance) / scale)
