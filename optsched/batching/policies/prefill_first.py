"""Whole prompts before decodes: what the policies of that kind share, given the order to admit and the order to preempt in.

References
----------
vLLM 0.5, ``vllm/core/scheduler.py`` (Apache-2.0), the default scheduler without chunked prefill; Kwon et al., SOSP 2023,
arXiv 2309.06180. The behaviour is reproduced, not the code.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64

from optsched.batching.policies.admission import Room, admit, growth, take
from optsched.batching.policies.eviction import evict_backward, evict_forward, leave_all_out
from optsched.batching.state import Counts, Decision, Engine, Requests
from optsched.compiled import kernel, lean

Array = np.ndarray


@kernel
def by_key(key: Float64[Array, " n"]) -> Int64[Array, " n"]:
    """Return the positions in ascending order of a key, ties as they stand."""
    return np.argsort(key, kind="mergesort")


@lean
def step_running(
    requests: Requests,
    queue: Int64[Array, " q"],
    counts: Counts,
    engine: Engine,
    decision: Decision,
    victims: Int64[Array, " r"],
) -> int:
    """Step all running requests; where blocks run out, preempt in an order of their positions. Return how many are stepped.

    Idle caches go before any running request, and waiting caches before the last one.
    """
    idle, end = counts.running + counts.waiting, counts.running + counts.waiting + counts.idle
    needed = 0
    for position in range(counts.running):
        slot = queue[position]
        needed += growth(requests, slot, min(requests.new_tokens[slot], engine.max_batched_tokens), engine)
    _, free = evict_forward(requests, queue, idle, end, decision, engine.free_blocks, needed)
    for rank in range(counts.running - 1):
        if free >= needed:
            break
        slot = queue[victims[rank]]
        decision.evict[slot] = 1
        free += requests.blocks[slot]
        needed -= growth(requests, slot, min(requests.new_tokens[slot], engine.max_batched_tokens), engine)
    free = evict_backward(requests, queue, counts.running, idle, decision, free, needed)
    if free < needed:  # larger than the pool: preempted like in vLLM; executors refuse such requests beforehand
        decision.evict[queue[victims[counts.running - 1]]] = 1
    scheduled, budget = 0, engine.max_batched_tokens
    for position in range(counts.running):
        slot = queue[position]
        if decision.evict[slot] == 1 or budget <= 0 or scheduled >= engine.max_sequences:
            continue
        tokens = min(requests.new_tokens[slot], budget)
        take(requests, slot, tokens, decision)
        budget -= tokens
        scheduled += 1
    return scheduled


@kernel
def last_first(counts: Counts) -> Int64[Array, " r"]:
    """Return the positions of the running requests, the one admitted last first."""
    return np.arange(counts.running - 1, -1, -1)


@lean
def prompts_first(
    requests: Requests,
    queue: Int64[Array, " q"],
    counts: Counts,
    engine: Engine,
    decision: Decision,
    order: Int64[Array, " w"],
    victims: Int64[Array, " r"],
) -> int:
    """Compose the next step: the whole prompts that fit; if none does, every running request.

    Prompts are admitted within the token budget, the sequences and the free blocks above the watermark; the first that does
    not fit ends the admissions, and one longer than the budget goes alone.

    Parameters
    ----------
    order
        Positions among the waiting, the first to admit first.
    victims
        Positions of the running, the first to preempt first.

    Returns
    -------
    int
        Number of scheduled requests.
    """
    if counts.waiting > 0:
        room = Room(engine.free_blocks, engine.max_batched_tokens, counts.running)
        admitted = admit(requests, queue, counts, engine, decision, order, room, True, False)
        if admitted > 0:
            return admitted
        if counts.running == 0:  # otherwise nobody was evicted in vain
            leave_all_out(requests, queue, counts, decision)
    return step_running(requests, queue, counts, engine, decision, victims) if counts.running > 0 else 0
