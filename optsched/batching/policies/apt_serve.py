"""Apt-Serve's per-iteration decision: prefill or decode, which requests, and in which kind of cache.

References
----------
Gao et al., "Apt-Serve", PACMMOD 3(3) 130, 2025, arXiv 2504.07494, sections 4 and 5; the defects of the released code
(github.com/eddiegaoo/Apt-Serve at a97ca49) are not reproduced.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int8, Int64

from optsched.batching.blocks import blocks_for
from optsched.batching.greedy import NO_LIMIT, TAKE_HIDDEN, TAKE_KV, select
from optsched.batching.policies.eviction import evict_backward, evict_forward, leave_all_out
from optsched.batching.state import HIDDEN, KV, Counts, Decision, Engine, Requests
from optsched.compiled import kernel

Array = np.ndarray

NEAR_ZERO = 1e-4  # violators' density relative to the least pending time per block of the pool (released code)
NEAR_ZERO_ALONE = 1e-6  # the same where nothing waits


@kernel
def pending_s(requests: Requests, slot: int, now_s: float) -> float:
    """Return the time since a request's last token, or since its arrival."""
    return float(max(0.0, now_s - requests.last_token_s[slot]))


@kernel
def violates(requests: Requests, slot: int, engine: Engine) -> bool:
    """Tell whether a request has waited longer than its target: TTFT before its first token, TBT after it."""
    limit = engine.ttft_slo_s if requests.emitted[slot] == 0 else engine.tbt_slo_s
    return pending_s(requests, slot, engine.now_s) > limit


class Demotion(NamedTuple):
    """What violators are worth: the density that they keep at least, and the half-life of their demotion (0: for good)."""

    near_zero: float
    half_life_s: float


@kernel
def violator_worth(demotion: Demotion, pending: float, overdue: float, blocks: int) -> float:
    """Return the value of a violator that asks for so many blocks."""
    least = demotion.near_zero * blocks
    if demotion.half_life_s <= 0.0:
        return least
    return float(max(least, pending * (1.0 - 0.5 ** (overdue / demotion.half_life_s))))


@kernel
def _urgencies(
    requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, exclude_violators: bool
) -> tuple[float, float, int, float]:
    """Return the pending time of all running and all waiting requests, U, and the density of violators."""
    running, waiting, pressure, least = 0.0, 0.0, counts.running + counts.waiting, np.inf
    for position in range(counts.running + counts.waiting):
        slot = queue[position]
        p = pending_s(requests, slot, engine.now_s)
        if position < counts.running:
            running += p
        else:
            waiting += p
            least = min(least, p)
        if exclude_violators and violates(requests, slot, engine):
            pressure -= 1
    near_zero = NEAR_ZERO * least / engine.total_blocks if counts.waiting > 0 else NEAR_ZERO_ALONE
    return running, waiting, pressure, near_zero


@kernel
def _choose(
    requests: Requests,
    slots: Int64[Array, " n"],
    engine: Engine,
    pressure: int,
    demotion: Demotion,
    waiting: bool,
    rows: tuple[int, int, int],
) -> Int8[Array, " n"]:
    """Build the candidates' values and sizes, and select greedily.

    A running request is charged all its blocks, a waiting one the blocks that it lacks. A waiting request that holds a
    cache offers only that kind, and a violator only the kind that it holds, or KV: a switch would cost a re-prefill.
    """
    n = len(slots)
    value, penalty = np.empty(n), np.empty(n)
    kv, hidden, tokens = np.empty(n, np.int64), np.empty(n, np.int64), np.zeros(n, np.int64)
    memory, token_budget, sequences = rows
    can_hide = 0.0 < engine.hidden_ratio < 1.0
    for j in range(n):
        slot = slots[j]
        length = requests.context[slot] + requests.new_tokens[slot]
        held = requests.cache[slot] if requests.context[slot] > 0 else 0
        paid = requests.blocks[slot] if waiting else 0
        value[j] = pending_s(requests, slot, engine.now_s)
        kv[j] = blocks_for(length, KV, engine.block_tokens, engine.hidden_ratio)
        penalty[j] = pressure * engine.rho_s_per_block * kv[j]
        demoted = violates(requests, slot, engine)
        hidden[j] = kv[j]
        if can_hide:
            hidden[j] = blocks_for(length, HIDDEN, engine.block_tokens, engine.hidden_ratio)
        kv[j], hidden[j] = max(0, kv[j] - paid), max(0, hidden[j] - paid)
        if held == HIDDEN and (waiting or demoted):
            value[j] = max(value[j] - penalty[j], demotion.near_zero * hidden[j])
            kv[j] = hidden[j]
        if demoted:
            limit = engine.ttft_slo_s if requests.emitted[slot] == 0 else engine.tbt_slo_s
            value[j] = violator_worth(demotion, value[j], pending_s(requests, slot, engine.now_s) - limit, kv[j])
        if demoted or (waiting and held > 0):
            hidden[j] = kv[j]
        if waiting:  # a prompt longer than the budget goes alone
            tokens[j] = min(requests.new_tokens[slot], token_budget)
    choice = np.zeros(n, np.int8)
    select(value, kv, hidden, penalty, tokens, memory, token_budget, sequences, False, False, choice)
    for j in range(n):
        held = requests.cache[slots[j]] if requests.context[slots[j]] > 0 else 0
        if choice[j] == TAKE_KV and held == HIDDEN and (waiting or violates(requests, slots[j], engine)):
            choice[j] = TAKE_HIDDEN
    return choice


@kernel
def _prefill(
    requests: Requests,
    queue: Int64[Array, " q"],
    counts: Counts,
    engine: Engine,
    decision: Decision,
    pressure: int,
    demotion: Demotion,
) -> int:
    """Admit waiting requests into the free blocks, evicting idle caches as needed; return how many."""
    idle, end = counts.running + counts.waiting, counts.running + counts.waiting + counts.idle
    seats = engine.max_sequences - counts.running
    if seats < 1 or counts.waiting == 0:
        return 0
    memory = engine.free_blocks
    for position in range(idle, end):
        memory += requests.blocks[queue[position]]
    slots = queue[counts.running : idle]
    choice = _choose(requests, slots, engine, pressure, demotion, True, (memory, engine.max_batched_tokens, seats))
    admitted, needed = 0, 0
    for j in range(len(slots)):
        if choice[j] == 0:
            continue
        slot = slots[j]
        kind = HIDDEN if choice[j] == TAKE_HIDDEN else KV
        total = requests.context[slot] + requests.new_tokens[slot]
        needed += max(0, blocks_for(total, kind, engine.block_tokens, engine.hidden_ratio) - requests.blocks[slot])
        decision.tokens[slot], decision.cache[slot] = requests.new_tokens[slot], kind
        admitted += 1
    evict_forward(requests, queue, idle, end, decision, engine.free_blocks, needed)
    return admitted


@kernel
def _force(requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision, free: int) -> int:
    """Schedule the first request of the queue by itself, evicting idle and then waiting caches; return 1 if that succeeds."""
    idle, end = counts.running + counts.waiting, counts.running + counts.waiting + counts.idle
    slot = queue[0]
    held = requests.blocks[slot]
    total = requests.context[slot] + requests.new_tokens[slot]
    kind = KV if requests.context[slot] == 0 else requests.cache[slot]
    needed = blocks_for(total, kind, engine.block_tokens, engine.hidden_ratio)
    if requests.context[slot] == 0 and needed > engine.total_blocks and 0.0 < engine.hidden_ratio < 1.0:
        kind = HIDDEN
        needed = blocks_for(total, kind, engine.block_tokens, engine.hidden_ratio)
    if needed > engine.total_blocks:
        return 0
    if decision.evict[slot] == 1:
        free -= held
    idle_evicted = idle
    while idle_evicted < end and decision.evict[queue[idle_evicted]] == 1:
        idle_evicted += 1
    _, free = evict_forward(requests, queue, idle_evicted, end, decision, free, needed - held)
    evict_backward(requests, queue, max(1, counts.running), idle, decision, free, needed - held)
    decision.tokens[slot], decision.cache[slot], decision.evict[slot] = requests.new_tokens[slot], kind, 0
    return 1


@kernel
def _decode(
    requests: Requests,
    queue: Int64[Array, " q"],
    counts: Counts,
    engine: Engine,
    decision: Decision,
    pressure: int,
    demotion: Demotion,
) -> int:
    """Step the running requests that the knapsack over the pool selects; return how many.

    Idle caches go first where the running requests outgrow the free blocks. Unselected requests are preempted. A request
    whose kind of cache is to change is evicted and prefilled again later; if that would leave the step empty, the first
    request stays as it is.
    """
    idle, end = counts.running + counts.waiting, counts.running + counts.waiting + counts.idle
    growth, free, hidden = 0, engine.free_blocks, False
    for position in range(counts.running):
        slot = queue[position]
        kind = requests.cache[slot] if requests.context[slot] > 0 else KV
        total = requests.context[slot] + requests.new_tokens[slot]
        growth += max(0, blocks_for(total, kind, engine.block_tokens, engine.hidden_ratio) - requests.blocks[slot])
        hidden = hidden or kind == HIDDEN
    idle, free = evict_forward(requests, queue, idle, end, decision, free, growth)
    slots = queue[: counts.running]
    if growth <= free and not hidden:  # everything fits as KV: the selection would take all of it
        choice = np.full(counts.running, TAKE_KV, np.int8)
    else:
        memory = free
        for slot in slots:
            memory += requests.blocks[slot]
        choice = _choose(requests, slots, engine, pressure, demotion, False, (memory, NO_LIMIT, NO_LIMIT))
    scheduled, budget = 0, engine.max_batched_tokens
    for j in range(counts.running):
        slot = slots[j]
        kind = HIDDEN if choice[j] == TAKE_HIDDEN else KV
        if choice[j] == 0 or (requests.context[slot] > 0 and requests.cache[slot] != kind):
            decision.evict[slot] = 1
            free += requests.blocks[slot]
        elif scheduled < engine.max_sequences and budget > 0:
            decision.tokens[slot] = min(requests.new_tokens[slot], budget)
            decision.cache[slot] = kind
            budget -= decision.tokens[slot]
            scheduled += 1
    if scheduled == 0:
        return _force(requests, queue, counts, engine, decision, free)
    return scheduled


@kernel
def compose(
    requests: Requests,
    queue: Int64[Array, " q"],
    counts: Counts,
    engine: Engine,
    decision: Decision,
    exclude_violators: bool,
    half_life_s: float,
) -> int:
    """Compose the next step; see `decide`.

    Parameters
    ----------
    exclude_violators
        Leave violators out of U, as the released code does; the paper counts all waiting and running requests.
    half_life_s
        Time in which a violator regains half of its value; 0: it never does.
    """
    leave_all_out(requests, queue, counts, decision)
    running, waiting, pressure, near_zero = _urgencies(requests, queue, counts, engine, exclude_violators)
    demotion = Demotion(near_zero, half_life_s)
    if counts.running > 0 and running > waiting:
        return _decode(requests, queue, counts, engine, decision, pressure, demotion)
    admitted = _prefill(requests, queue, counts, engine, decision, pressure, demotion)
    if admitted > 0:
        return admitted
    if counts.running > 0:
        return _decode(requests, queue, counts, engine, decision, pressure, demotion)
    if counts.waiting > 0:
        return _force(requests, queue, counts, engine, decision, engine.free_blocks)
    return 0


@kernel
def decide(requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision) -> int:
    """Compose the next step as Apt-Serve does: prefills only or decodes only, selected by pending time per block.

    The iteration decodes if the running requests' pending times sum to more than the waiting ones', violators included, or
    if nothing can be admitted. A prefill selects among all waiting requests under the free blocks (idle caches count as
    free and go, least recently used first, where they are needed; no watermark), the token budget and the sequences;
    prompts are prefilled whole, and one longer than the budget goes alone. A decode selects among all running requests
    under the pool less the caches of waiting and idle requests. Violators are worth next to nothing, and U leaves them
    out unless the parameter ``count_violators`` is 1 (the paper's text counts them, the released code does not). With
    nothing running, the first waiting request is served even if nothing was worth selecting, at the cost of idle and then
    waiting caches. An evicted request is never scheduled in the same step.

    Parameters
    ----------
    requests, queue, counts, engine
        The state, see `optsched.batching.state`; nothing in it changes.
    decision
        Zeros on entry; filled for the slots of the queue.

    Returns
    -------
    int
        Number of scheduled requests.
    """
    return compose(requests, queue, counts, engine, decision, engine.parameters[0] == 0.0, 0.0)
