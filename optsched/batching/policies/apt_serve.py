"""Apt-Serve's per-iteration decision: prefill or decode, which requests, and in which kind of cache.

References
----------
Gao et al., "Apt-Serve", PACMMOD 3(3) 130, 2025, arXiv 2504.07494, sections 4 and 5; the defects of the released code
(github.com/eddiegaoo/Apt-Serve at a97ca49) are not reproduced.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int8, Int64

from optsched.batching.blocks import blocks_for
from optsched.batching.greedy import SKIP, TAKE_KV, select
from optsched.batching.policies.apt_serve_program import (
    COMPOSED,
    DECODE,
    PREFILL,
    Step,
    Worth,
    candidates,
    held_kind,
    kind_of,
    program_of,
    urgencies,
)
from optsched.batching.policies.eviction import evict_backward, evict_forward, leave_all_out
from optsched.batching.state import HIDDEN, KV, Counts, Decision, Engine, Requests
from optsched.compiled import kernel, lean

Array = np.ndarray


@lean
def _admit(
    requests: Requests,
    queue: Int64[Array, " q"],
    counts: Counts,
    engine: Engine,
    decision: Decision,
    step: Step,
    choice: Int8[Array, " n"],
) -> int:
    """Admit the selected waiting requests, evicting idle caches as needed; return how many."""
    slots, admitted, needed = candidates(queue, counts, step), 0, 0
    for j in range(len(slots)):
        if choice[j] == SKIP:
            continue
        slot = slots[j]
        kind = kind_of(requests, slot, engine, step, choice[j])
        total = requests.context[slot] + requests.new_tokens[slot]
        needed += max(0, blocks_for(total, kind, engine.block_tokens, engine.hidden_ratio) - requests.blocks[slot])
        decision.tokens[slot], decision.cache[slot] = requests.new_tokens[slot], kind
        admitted += 1
    idle = counts.running + counts.waiting
    evict_forward(requests, queue, idle, idle + counts.idle, decision, engine.free_blocks, needed)
    return admitted


@lean
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
    free = evict_backward(requests, queue, max(1, counts.running), idle, decision, free, needed - held)
    if free < needed - held:  # caches that left the queue and wait to be handed over hold the rest
        return 0
    decision.tokens[slot], decision.cache[slot], decision.evict[slot] = requests.new_tokens[slot], kind, 0
    return 1


@lean
def _go_on(
    requests: Requests,
    queue: Int64[Array, " q"],
    counts: Counts,
    engine: Engine,
    decision: Decision,
    step: Step,
    choice: Int8[Array, " n"],
    everyone: bool,
) -> int:
    """Step the selected running requests (or everyone, as KV), and preempt the others; return how many.

    A request whose kind of cache is to change is evicted and prefilled again later; if that would leave the step empty, the
    first request stays as it is.
    """
    scheduled, budget, free = 0, engine.max_batched_tokens, step.free
    for j in range(counts.running):
        slot = queue[j]
        option = TAKE_KV if everyone else choice[j]
        kind = kind_of(requests, slot, engine, step, option)
        if option == SKIP or (requests.context[slot] > 0 and requests.cache[slot] != kind):
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


@lean
def _turn_to_decode(
    requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision, step: Step
) -> Step:
    """Make a decode due, or the step composed where there is nothing to select.

    Idle caches go first where the running requests outgrow the free blocks. If all of them then fit as KV, all go on.
    """
    idle, growth, hidden = counts.running + counts.waiting, 0, False
    if counts.running == 0:
        forced = _force(requests, queue, counts, engine, decision, engine.free_blocks) if counts.waiting > 0 else 0
        return Step(COMPOSED, forced, step.pressure, step.worth, step.free)
    for slot in queue[: counts.running]:
        kind = held_kind(requests, slot) if requests.context[slot] > 0 else KV
        total = requests.context[slot] + requests.new_tokens[slot]
        growth += max(0, blocks_for(total, kind, engine.block_tokens, engine.hidden_ratio) - requests.blocks[slot])
        hidden = hidden or kind == HIDDEN
    _, free = evict_forward(requests, queue, idle, idle + counts.idle, decision, engine.free_blocks, growth)
    due = Step(DECODE, 0, step.pressure, step.worth, free)
    if growth > free or hidden:
        return due
    scheduled = _go_on(requests, queue, counts, engine, decision, due, decision.cache, True)
    return Step(COMPOSED, scheduled, step.pressure, step.worth, free)


@lean
def begin(
    requests: Requests,
    queue: Int64[Array, " q"],
    counts: Counts,
    engine: Engine,
    decision: Decision,
    exclude_violators: bool,
    half_life_s: float,
    resolution_s: float,
) -> Step:
    """Leave everyone out, and find which selection is due first.

    Parameters
    ----------
    exclude_violators
        Leave violators out of U, as the released code does; the paper counts all waiting and running requests.
    half_life_s, resolution_s
        See `Worth`.
    """
    leave_all_out(requests, queue, counts, decision)
    running, waiting, pressure, near_zero = urgencies(requests, queue, counts, engine, exclude_violators, resolution_s)
    step = Step(PREFILL, 0, pressure, Worth(near_zero, half_life_s, resolution_s), engine.free_blocks)
    decodes = counts.running > 0 and running > waiting
    if decodes or counts.waiting == 0 or counts.running >= engine.max_sequences:
        return _turn_to_decode(requests, queue, counts, engine, decision, step)
    return step


@lean
def apply(
    requests: Requests,
    queue: Int64[Array, " q"],
    counts: Counts,
    engine: Engine,
    decision: Decision,
    step: Step,
    choice: Int8[Array, " n"],
) -> Step:
    """Carry a selection out; if a prefill admits nobody, a decode is due.

    Parameters
    ----------
    choice
        Per candidate: skip, hidden, KV.
    """
    if step.phase == DECODE:
        scheduled = _go_on(requests, queue, counts, engine, decision, step, choice, False)
    else:
        scheduled = _admit(requests, queue, counts, engine, decision, step, choice)
        if scheduled == 0:
            return _turn_to_decode(requests, queue, counts, engine, decision, step)
    return Step(COMPOSED, scheduled, step.pressure, step.worth, step.free)


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
    """Compose the next step by greedy selections; see `decide` and, for the last two parameters, `begin`."""
    step = begin(requests, queue, counts, engine, decision, exclude_violators, half_life_s, 0.0)
    while step.phase != COMPOSED:
        p, m, s, u, tokens, memory, token_budget, sequences = program_of(requests, queue, counts, engine, step)
        choice = np.zeros(len(p), np.int8)
        select(p, m, s, u, tokens, memory, token_budget, sequences, False, False, choice)
        step = apply(requests, queue, counts, engine, decision, step, choice)
    return step.scheduled


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
