"""Improve a plan with several rows by the best pair of changes, again and again: what one change frees, another takes.

Notes
-----
Where the seats are taken, or all requests left have nearly one density, no single change helps: someone has to go for someone
larger to come. For every change of the first row the most valuable change is kept, by the seats that it takes; the maximum
over all smaller ones then answers for each change which partner is best, so that a pass over all pairs takes O(n).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int8

from optsched.batching.core_frame import change
from optsched.batching.greedy import SKIP, TAKE_HIDDEN, TAKE_KV
from optsched.batching.vertices import Rows, allowed
from optsched.batching.workspace import SPAN, Workspace
from optsched.compiled import lean

Array = np.ndarray

NOBODY = -1
MOST_PASSES = 40


@lean
def _list_changes(space: Workspace, rows: Rows, axis: int, choice: Int8[Array, " n"], i: int) -> None:
    """Write what a request may do instead: in `weight` what it takes of the first row more, in `density` its value.

    `element` is ``16 * request + 4 * (seats + 1) + option``. What is impossible has no value.
    """
    kv, hidden, token, e = rows.kv_blocks[i], rows.hidden_blocks[i], rows.tokens[i], 2 * i
    limits = (rows.memory, rows.token_budget, rows.max_sequences)
    may_hide, may_kv = allowed(space.gain[i], space.penalty[i], kv, hidden, token, limits)
    for option in range(3):
        if option == choice[i]:
            continue
        w, v, c = change(space.gain, space.penalty, choice, rows.kv_blocks, rows.hidden_blocks, i, option)
        first = c * token if axis == 1 else w
        possible = option == SKIP or (may_hide if option == TAKE_HIDDEN else may_kv)
        space.weight[e], space.element[e] = first, 16 * i + 4 * (c + 1) + option
        space.density[e] = v if possible and abs(first) <= SPAN else -np.inf
        e += 1


@lean
def _other(rows: Rows, axis: int, choice: Int8[Array, " n"], code: int) -> int:
    """Return what a change takes of the row that is neither the first nor the seats."""
    i, c, option = code // 16, code // 4 % 4 - 1, code % 4
    if axis != 1:
        return int(c * rows.tokens[i])
    now, kv, hidden = choice[i], rows.kv_blocks[i], rows.hidden_blocks[i]
    taken = hidden if option == TAKE_HIDDEN else (kv if option == TAKE_KV else 0)
    return int(taken - (hidden if now == TAKE_HIDDEN else (kv if now == TAKE_KV else 0)))


@lean
def _find_partners(space: Workspace, changes: int) -> tuple[int, int]:
    """Write the most valuable change that takes so much or less of the first row, by seats; return the limits of the list."""
    low, high, best, partner = 0, 0, space.least, space.deviation
    for e in range(changes):
        if space.density[e] > -np.inf:
            low, high = min(low, int(space.weight[e])), max(high, int(space.weight[e]))
    best[SPAN + low : SPAN + high + 1], partner[SPAN + low : SPAN + high + 1] = -np.inf, NOBODY
    best[SPAN, 1] = 0.0  # no change at all
    for e in range(changes):
        at, k = SPAN + int(space.weight[e]) if space.density[e] > -np.inf else 0, space.element[e] // 4 % 4
        if space.density[e] > -np.inf and space.density[e] > best[at, k]:
            best[at, k], partner[at, k] = space.density[e], space.element[e]
    for at in range(SPAN + low + 1, SPAN + high + 1):
        for k in range(3):
            if best[at - 1, k] > best[at, k]:
                best[at, k], partner[at, k] = best[at - 1, k], partner[at - 1, k]
    return low, high


@lean
def _best_pair(
    space: Workspace, rows: Rows, axis: int, choice: Int8[Array, " n"], left: tuple[int, int, int]
) -> tuple[int, int, float]:
    """Return the two changes that fit and are worth most together, the second perhaps none, and their value."""
    changes = 2 * len(choice)
    low, high = _find_partners(space, changes)
    one, two, best = NOBODY, NOBODY, 0.0
    for e in range(changes):
        v, code = space.density[e], space.element[e]
        if v == -np.inf or left[0] - space.weight[e] < low:
            continue
        at, c = SPAN + min(left[0] - int(space.weight[e]), high), code // 4 % 4 - 1
        for k in range(3):
            if v + space.least[at, k] <= best or c + k - 1 > left[2]:
                continue
            partner, other = space.deviation[at, k], _other(rows, axis, choice, code)
            if partner != NOBODY:
                other += _other(rows, axis, choice, partner)
            if other <= left[1] and partner // 16 != code // 16:
                one, two, best = code, partner, v + space.least[at, k]
    return one, two, best


@lean
def exchange(space: Workspace, rows: Rows, axis: int, tolerance: float, choice: Int8[Array, " n"]) -> None:
    """Improve a plan that keeps all rows, by pairs of changes, until none is left that makes it better.

    Overwrites the lists of marginal gains, and what the corner relaxation keeps.

    Parameters
    ----------
    axis
        The row by whose changes partners are found: 1 tokens, otherwise blocks.
    tolerance
        Improvements up to it, in quanta, count as rounding.
    choice
        The plan; the better one takes its place.
    """
    blocks, tokens, seats = rows.memory, rows.token_budget, rows.max_sequences
    for i in range(len(choice)):
        _list_changes(space, rows, axis, choice, i)
        if choice[i] != SKIP:
            blocks -= rows.hidden_blocks[i] if choice[i] == TAKE_HIDDEN else rows.kv_blocks[i]
            tokens, seats = tokens - rows.tokens[i], seats - 1
    left = (tokens, blocks, seats) if axis == 1 else (blocks, tokens, seats)
    for _ in range(MOST_PASSES):
        one, two, best = _best_pair(space, rows, axis, choice, left)
        if best <= tolerance:
            break
        for code in (one, two):
            if code == NOBODY:
                continue
            i, option = code // 16, code % 4
            w, _, c = change(space.gain, space.penalty, choice, rows.kv_blocks, rows.hidden_blocks, i, option)
            t = c * rows.tokens[i]
            left = (left[0] - t, left[1] - w, left[2] - c) if axis == 1 else (left[0] - w, left[1] - t, left[2] - c)
            choice[i] = option
            _list_changes(space, rows, axis, choice, i)
