"""Apt-Serve's greedy selection by marginal density (Algorithm 1), made right for any sizes, and a variant that fills up.

Each request offers a schedule of marginal gains: hidden cache first, then the upgrade to KV cache; or KV cache at once.
Hidden is offered where the schedule is concave, so that sorting by density never puts an upgrade before its hidden entry.

References
----------
Gao et al., "Apt-Serve", PACMMOD 3(3) 130, 2025, arXiv 2504.07494: Algorithm 1 and Theorem 1 of the appendix.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int8, Int64

from optsched.compiled import kernel, lean

Array = np.ndarray

SKIP, TAKE_HIDDEN, TAKE_KV, UPGRADE = 0, 1, 2, 3
NO_LIMIT = np.iinfo(np.int64).max


@lean
def hidden_pays(pending: float, kv: int, hidden: int, penalty: float, memory: int, paper: bool) -> bool:
    """Tell whether a request offers hidden cache.

    Right for any sizes: ``s < m``, ``p > u`` and ``(p - u) / s >= p / m``; where ``m > M >= s`` hidden is all that fits and
    ``p > u`` suffices. The published rule, ``p >= 2 u``, is the same where ``s = m / 2``.
    """
    if hidden >= kv or hidden > memory or pending <= penalty:
        return False
    if paper:
        return pending >= 2.0 * penalty
    return kv > memory or (pending - penalty) * kv >= pending * hidden


@lean
def single_best(pending: float, kv: int, hidden: int, penalty: float, memory: int) -> int:
    """Return the best option of one request that has the memory to itself."""
    if kv <= memory:
        return TAKE_KV
    return TAKE_HIDDEN if hidden <= memory and pending > penalty else SKIP


@lean
def density_of(gain: float, blocks: int) -> float:
    """Return the gain per block; infinite where nothing is taken."""
    return gain / blocks if blocks > 0 else np.inf


@kernel
def schedules(
    pending_s: Float64[Array, " n"],
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    hidden_penalty_s: Float64[Array, " n"],
    tokens: Int64[Array, " n"],
    memory: int,
    token_budget: int,
    paper: bool,
) -> tuple[Int64[Array, " e"], Int8[Array, " e"], Int64[Array, " e"]]:
    """List marginal gains: request, step (hidden, KV at once, upgrade), and their order: densest first, ties as given."""
    n = len(pending_s)
    request, step, density = np.empty(2 * n, np.int64), np.empty(2 * n, np.int8), np.empty(2 * n)
    e = 0
    for i in range(n):
        p, m, s, u = pending_s[i], kv_blocks[i], hidden_blocks[i], hidden_penalty_s[i]
        if tokens[i] > token_budget:
            continue
        offered = hidden_pays(p, m, s, u, memory, paper)
        if offered:
            request[e], step[e], density[e] = i, TAKE_HIDDEN, density_of(p - u, s)
            e += 1
        if m > memory:
            continue
        if offered:
            # rounding must not put an upgrade before its hidden entry
            request[e], step[e], density[e] = i, UPGRADE, min(density_of(u, m - s), density[e - 1])
        else:
            request[e], step[e], density[e] = i, TAKE_KV, density_of(p, m)
        e += 1
    return request[:e], step[:e], np.argsort(-density[:e], kind="mergesort")


@lean
def _take_in_order(
    pending_s: Float64[Array, " n"],
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    hidden_penalty_s: Float64[Array, " n"],
    tokens: Int64[Array, " n"],
    entries: tuple[Int64[Array, " e"], Int8[Array, " e"], Int64[Array, " e"]],
    rows: tuple[int, int, int],
    fill: bool,
    choice: Int8[Array, " n"],
) -> tuple[int, int, int]:
    """Take entries in order, up to the first misfit unless `fill`; then prefer the best misfit alone if it is worth more.

    Returns
    -------
    tuple
        What is left of memory, tokens and sequences.
    """
    request, step, order = entries
    left, budget, sequences = rows
    value, best_alone, alone = 0.0, 0.0, -1
    for e in order:
        i, p, m, s, u = (
            request[e], pending_s[request[e]], kv_blocks[request[e]], hidden_blocks[request[e]], hidden_penalty_s[request[e]],
        )  # fmt: skip
        blocks = s if step[e] == TAKE_HIDDEN else (m if step[e] == TAKE_KV else m - s)
        if step[e] == UPGRADE:
            fits = choice[i] == TAKE_HIDDEN and blocks <= left
        else:
            fits = blocks <= left and tokens[i] <= budget and sequences >= 1
        if fits:
            left -= blocks
            value += u if step[e] == UPGRADE else (p if step[e] == TAKE_KV else p - u)
            if step[e] != UPGRADE:
                budget -= tokens[i]
                sequences -= 1
            choice[i] = TAKE_HIDDEN if step[e] == TAKE_HIDDEN else TAKE_KV
            continue
        option = single_best(p, m, s, u, rows[0])
        worth = p if option == TAKE_KV else p - u
        if option != SKIP and worth > best_alone:
            best_alone, alone = worth, i
        if not fill:
            break
    if best_alone > value:
        choice[:] = SKIP
        choice[alone] = single_best(pending_s[alone], kv_blocks[alone], hidden_blocks[alone], hidden_penalty_s[alone], rows[0])
        left = rows[0] - (kv_blocks[alone] if choice[alone] == TAKE_KV else hidden_blocks[alone])
        budget, sequences = rows[1] - tokens[alone], rows[2] - 1
    return left, budget, sequences


@lean
def _fill(
    pending_s: Float64[Array, " n"],
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    hidden_penalty_s: Float64[Array, " n"],
    tokens: Int64[Array, " n"],
    entries: tuple[Int64[Array, " e"], Int8[Array, " e"], Int64[Array, " e"]],
    rows: tuple[int, int, int],
    choice: Int8[Array, " n"],
) -> None:
    """Use what is left: in order of density give each request the best option that still fits."""
    request, _, order = entries
    memory, budget, sequences = rows
    for e in order:
        i = request[e]
        held = hidden_blocks[i] if choice[i] == TAKE_HIDDEN else 0
        if choice[i] == TAKE_KV or (choice[i] == SKIP and (tokens[i] > budget or sequences < 1)):
            continue
        best = SKIP
        if kv_blocks[i] - held <= memory:
            best = TAKE_KV
            memory -= kv_blocks[i] - held
        elif choice[i] == SKIP and hidden_blocks[i] <= memory and pending_s[i] > hidden_penalty_s[i]:
            best = TAKE_HIDDEN
            memory -= hidden_blocks[i]
        if best == SKIP:
            continue
        if choice[i] == SKIP:
            budget -= tokens[i]
            sequences -= 1
        choice[i] = best


@kernel
def select(
    pending_s: Float64[Array, " n"],
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    hidden_penalty_s: Float64[Array, " n"],
    tokens: Int64[Array, " n"],
    memory: int,
    token_budget: int,
    max_sequences: int,
    paper: bool,
    fill: bool,
    choice: Int8[Array, " n"],
) -> None:
    """Select requests by marginal density; never over-commits a row.

    Entries are taken densest first up to the first misfit; then the misfit's request alone is preferred if it is worth
    more (with the memory row alone this gives at least half the optimum, Theorem 1).

    Parameters
    ----------
    pending_s, kv_blocks, hidden_blocks, hidden_penalty_s, tokens
        Per request: p, m, s, u, and the tokens it takes from the budget.
    memory, token_budget, max_sequences
        The rows; `NO_LIMIT` for an absent one.
    paper
        Offer hidden by the published rule ``p >= 2 u``.
    fill
        Go on after the first misfit and use what is left.
    choice
        Filled with 0 skip, 1 hidden, 2 KV.
    """
    choice[:] = SKIP
    if max_sequences < 1:
        return
    entries = schedules(pending_s, kv_blocks, hidden_blocks, hidden_penalty_s, tokens, memory, token_budget, paper)
    rows = (memory, token_budget, max_sequences)
    left = _take_in_order(pending_s, kv_blocks, hidden_blocks, hidden_penalty_s, tokens, entries, rows, fill, choice)
    if fill:
        _fill(pending_s, kv_blocks, hidden_blocks, hidden_penalty_s, tokens, entries, left, choice)
