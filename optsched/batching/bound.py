"""How much no plan of a batch problem can exceed: the value of its linear relaxation, by Lagrangian prices.

Notes
-----
For any prices nu, lambda, mu >= 0 of blocks, tokens and sequences,

    nu M + lambda T + mu S + sum_i max(0, p_i - u_i - nu s_i - lambda t_i - mu, p_i - nu m_i - lambda t_i - mu)

is an upper bound, options that fit no limit left out. At the optimal duals of the linear relaxation it equals the
relaxation's value. The sum is rounded once, so a solver's tolerances can make the bound looser but never wrong.
"""

from __future__ import annotations

from math import fsum
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from optsched.batching.duals import best_prices
from optsched.batching.problem import BatchProblem
from optsched.batching.threshold import find_break, list_elements, quantise
from optsched.batching.vertices import Rows
from optsched.batching.workspace import Workspace, empty_workspace
from optsched.compiled import lean

Array = np.ndarray


class Prices(NamedTuple):
    """Seconds per block, per token of the budget, and per sequence."""

    block_s: float
    token_s: float
    sequence_s: float


class Offers(NamedTuple):
    """Which options of each request fit the limits by themselves and are worth something."""

    hidden: Bool[Array, " n"]
    kv: Bool[Array, " n"]


def offers(problem: BatchProblem) -> Offers:
    """Return the options worth looking at: neither too large for any limit, nor worthless, nor dominated."""
    possible = np.full(problem.num_requests, problem.max_sequences is None or problem.max_sequences > 0)
    if problem.tokens is not None:
        possible &= problem.tokens <= problem.token_budget
    kv = possible & (problem.kv_blocks <= problem.memory_blocks)
    smaller = (problem.hidden_blocks < problem.kv_blocks) & (problem.hidden_blocks <= problem.memory_blocks)
    return Offers(hidden=possible & smaller & (problem.pending_s > problem.hidden_penalty_s), kv=kv)


@lean
def _prices(
    space: Workspace, pending_s: Float64[Array, " n"], hidden_penalty_s: Float64[Array, " n"], rows: Rows, memory_only: bool
) -> tuple[float, float, float]:
    """Return optimal prices in seconds: by weighted selection for the memory alone, by vertex descent with more rows."""
    scale = quantise(space, pending_s, rows.kv_blocks, rows.hidden_blocks, hidden_penalty_s)
    if scale <= 0.0:
        return 0.0, 0.0, 0.0
    if memory_only:
        elements, total = list_elements(space, rows.kv_blocks, rows.hidden_blocks, rows.memory)
        price = find_break(space, elements, float(rows.memory)).price if total > rows.memory else 0.0
        return price / scale, 0.0, 0.0
    block, token, sequence = best_prices(space, rows)
    return block / scale, token / scale, sequence / scale


def relaxation_prices(problem: BatchProblem) -> Prices:
    """Return optimal prices of the linear relaxation, in O(n) for the memory row alone."""
    tokens = problem.tokens_taken.copy()  # writable, like those for which the kernels are compiled already
    budget = int(tokens.sum()) if problem.token_budget is None else problem.token_budget
    sequences = problem.num_requests if problem.max_sequences is None else problem.max_sequences
    rows = Rows(problem.kv_blocks.copy(), problem.hidden_blocks.copy(), tokens, problem.memory_blocks, budget, sequences)
    space = empty_workspace(problem.num_requests, 1, 1)
    return Prices(*_prices(space, problem.pending_s.copy(), problem.hidden_penalty_s.copy(), rows, not problem.has_rows))


def lagrangian_bound(problem: BatchProblem, prices: Prices) -> float:
    """Return the bound that some prices prove, in seconds."""
    offered = offers(problem)
    cost = np.full(problem.num_requests, prices.sequence_s)
    if problem.tokens is not None:
        cost += prices.token_s * problem.tokens
    hidden = problem.pending_s - problem.hidden_penalty_s - prices.block_s * problem.hidden_blocks - cost
    kv = problem.pending_s - prices.block_s * problem.kv_blocks - cost
    best = np.maximum(np.where(offered.hidden, hidden, 0.0), np.where(offered.kv, kv, 0.0))
    limits = [prices.block_s * problem.memory_blocks]
    if problem.token_budget is not None:
        limits.append(prices.token_s * problem.token_budget)
    if problem.max_sequences is not None:
        limits.append(prices.sequence_s * problem.max_sequences)
    return fsum([*limits, *np.maximum(best, 0.0).tolist()])


def upper_bound(problem: BatchProblem) -> float:
    """Return the value of the linear relaxation: no plan is worth more, in seconds."""
    return lagrangian_bound(problem, relaxation_prices(problem))
