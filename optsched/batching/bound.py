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
from jaxtyping import Bool, Float64, Int64

from optsched.batching.greedy import NO_LIMIT, TAKE_HIDDEN, UPGRADE, density_of, schedules
from optsched.batching.problem import BatchProblem
from optsched.compiled import kernel

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


@kernel
def _break_density(
    pending_s: Float64[Array, " n"],
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    hidden_penalty_s: Float64[Array, " n"],
    tokens: Int64[Array, " n"],
    memory: int,
    token_budget: int,
) -> float:
    """Return the density at which filling the memory in order of marginal density ends; 0 where everything fits."""
    request, step, order = schedules(pending_s, kv_blocks, hidden_blocks, hidden_penalty_s, tokens, memory, token_budget, False)
    for e in order:
        i = request[e]
        p, m, s, u = pending_s[i], kv_blocks[i], hidden_blocks[i], hidden_penalty_s[i]
        gain = u if step[e] == UPGRADE else (p - u if step[e] == TAKE_HIDDEN else p)
        blocks = m - s if step[e] == UPGRADE else (s if step[e] == TAKE_HIDDEN else m)
        if blocks > memory:
            return density_of(gain, blocks)
        memory -= blocks
    return 0.0


def memory_price(problem: BatchProblem) -> float:
    """Return the optimal price of a block in the relaxation of the memory row alone, in O(n log n)."""
    budget = NO_LIMIT if problem.token_budget is None else problem.token_budget
    return float(
        _break_density(
            problem.pending_s,
            problem.kv_blocks,
            problem.hidden_blocks,
            problem.hidden_penalty_s,
            problem.tokens_taken,
            problem.memory_blocks,
            budget,
        )
    )


def _row_prices(problem: BatchProblem) -> Prices:
    """Return the duals of the linear relaxation with all its rows (HiGHS)."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_array, eye_array, hstack, vstack

    offered, num = offers(problem), problem.num_requests
    values = np.concatenate([problem.pending_s - problem.hidden_penalty_s, problem.pending_s])
    upper = np.concatenate([offered.hidden, offered.kv]).astype(float)
    values = np.where(upper > 0, values, 0.0)
    scale = float(values.max()) or 1.0
    rows = [np.concatenate([problem.hidden_blocks, problem.kv_blocks])]
    limits: list[float] = [problem.memory_blocks]
    if problem.tokens is not None and problem.token_budget is not None:
        rows.append(np.concatenate([problem.tokens, problem.tokens]))
        limits.append(problem.token_budget)
    if problem.max_sequences is not None:
        rows.append(np.ones(2 * num))
        limits.append(problem.max_sequences)
    once = hstack([eye_array(num), eye_array(num)])
    answer = linprog(
        -values / scale,
        A_ub=vstack([csr_array(np.array(rows, float)), once]),
        b_ub=np.concatenate([limits, np.ones(num)]),
        bounds=np.column_stack([np.zeros(2 * num), upper]),
        method="highs",
    )
    if answer.status != 0:  # any prices bound; those of the memory row alone need no solver
        return Prices(memory_price(problem), 0.0, 0.0)
    duals = iter(np.maximum(0.0, -answer.ineqlin.marginals[: len(rows)]) * scale)
    block_s = float(next(duals))
    token_s = float(next(duals)) if problem.token_budget is not None else 0.0
    return Prices(block_s, token_s, float(next(duals)) if problem.max_sequences is not None else 0.0)


def relaxation_prices(problem: BatchProblem) -> Prices:
    """Return optimal prices of the linear relaxation."""
    if not problem.has_rows or problem.num_requests == 0:
        return Prices(memory_price(problem), 0.0, 0.0)
    return _row_prices(problem)


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
