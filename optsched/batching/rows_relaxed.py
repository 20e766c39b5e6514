"""The relaxation with all rows, and the start that the search with several rows deviates from."""

from __future__ import annotations

from typing import NamedTuple

from optsched.batching.core_frame import change
from optsched.batching.duals import best_prices, choose
from optsched.batching.greedy import SKIP, TAKE_HIDDEN, TAKE_KV
from optsched.batching.memory_row import ROUNDING, ROUNDING_QUANTA
from optsched.batching.vertices import Rows, allowed
from optsched.batching.workspace import Workspace
from optsched.batching.worth import plan_worth
from optsched.compiled import lean


class Relaxed(NamedTuple):
    """The relaxation: what the search starts from, in quanta.

    Attributes
    ----------
    prices
        Of blocks, tokens and sequences.
    order
        The rows in the order of the search.
    left
        What the start leaves of the rows, in that order.
    start, start_tie
        Value and tie value of the start.
    most
        No plan is worth more than this above the start.
    tolerance
        Differences up to it are rounding.
    """

    prices: tuple[float, float, float]
    order: tuple[int, int, int]
    left: tuple[int, int, int]
    start: int
    start_tie: int
    most: float
    tolerance: float


@lean
def _settle_ties(
    space: Workspace, rows: Rows, prices: tuple[float, float, float], left: tuple[float, float, float], tolerance: float
) -> tuple[float, float, float]:
    """Make deviations that lose nothing part of the start where they mend a row, then where the rows have room for them.

    Returns
    -------
    tuple
        What is left then.
    """
    blocks, tokens, seats = left
    limits = (rows.memory, rows.token_budget, rows.max_sequences)
    for filling in (False, True):
        for i in range(len(rows.kv_blocks)):
            if filling != (blocks >= 0 and tokens >= 0 and seats >= 0):
                break
            token = rows.tokens[i]
            hidden, kv = allowed(space.gain[i], space.penalty[i], rows.kv_blocks[i], rows.hidden_blocks[i], token, limits)
            for option in (SKIP, TAKE_HIDDEN, TAKE_KV):
                if option == space.start[i] or (option != SKIP and not (hidden if option == TAKE_HIDDEN else kv)):
                    continue
                w, v, c = change(space.gain, space.penalty, space.start, rows.kv_blocks, rows.hidden_blocks, i, option)
                mends = (blocks < 0 and w < 0) or (tokens < 0 and c * token < 0) or (seats < 0 and c < 0)
                fits = w <= max(0, blocks) and c * token <= max(0, tokens) and c <= max(0, seats)
                if prices[0] * w + (prices[1] * token + prices[2]) * c - v > tolerance:
                    continue
                if fits and (w >= 0 and c >= 0 if filling else mends):
                    space.start[i] = option
                    blocks, tokens, seats = blocks - w, tokens - c * token, seats - c
    return blocks, tokens, seats


@lean
def _order(prices: tuple[float, float, float]) -> tuple[int, int, int]:
    """Return the rows in the order of the search: a priced one with many different sizes first."""
    if prices[1] > 0.0:
        return 1, 0, 2
    return (0, 1, 2) if prices[0] > 0.0 else (2, 0, 1)


@lean
def relax(space: Workspace, rows: Rows) -> Relaxed:
    """Solve the relaxation, and choose among its solutions a start that keeps the rows as far as can be told at once."""
    prices = best_prices(space, rows)
    blocks, tokens, seats = choose(space, rows, prices)
    start, _, _ = plan_worth(space, rows.kv_blocks, space.start)
    total = start + prices[0] * blocks + prices[1] * tokens + prices[2] * seats
    tolerance = 0.5 * (ROUNDING_QUANTA + ROUNDING * total)  # half for what is worth no more, half for what dominates
    left = _settle_ties(space, rows, prices, (blocks, tokens, seats), tolerance / (1.0 + len(rows.kv_blocks)))
    start, tie, _ = plan_worth(space, rows.kv_blocks, space.start)
    most, order = prices[0] * left[0] + prices[1] * left[1] + prices[2] * left[2], _order(prices)
    ordered = (int(left[order[0]]), int(left[order[1]]), int(left[order[2]]))
    return Relaxed(prices, order, ordered, start, tie, most, tolerance)
