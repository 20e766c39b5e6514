"""Whole prompts before decodes: what the policies of that kind share, given the order to admit and the order to preempt in.

References
----------
vLLM 0.5, ``vllm/core/scheduler.py`` (Apache-2.0), the default scheduler without chunked prefill; Kwon et al., SOSP 2023,
arXiv 2309.06180. The behaviour is reproduced, not the code.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64

from optsched.batching.blocks import blocks_for
from optsched.batching.policies.eviction import evict_backward, evict_forward
from optsched.batching.state import KV, Counts, Decision, Engine, Requests
from optsched.compiled import kernel

Array = np.ndarray


@kernel
def growth(requests: Requests, slot: int, tokens: int, engine: Engine) -> int:
    """Return the blocks that a request lacks to compute so many tokens more; KV cache unless it holds the other kind."""
    kind = requests.cache[slot] if requests.context[slot] > 0 else KV
    needed = blocks_for(requests.context[slot] + tokens, kind, engine.block_tokens, engine.hidden_ratio)
    return int(max(0, needed - requests.blocks[slot]))


@kernel
def take(requests: Requests, slot: int, tokens: int, decision: Decision) -> None:
    """Schedule tokens of a request, in the kind of cache that it holds."""
    decision.tokens[slot] = tokens
    decision.cache[slot] = requests.cache[slot] if requests.context[slot] > 0 else KV


@kernel
def by_key(key: Float64[Array, " n"]) -> Int64[Array, " n"]:
    """Return the positions in ascending order of a key, ties as they stand."""
    return np.argsort(key, kind="mergesort")


@kernel
def admit_prompts(
    requests: Requests,
    queue: Int64[Array, " q"],
    counts: Counts,
    engine: Engine,
    decision: Decision,
    order: Int64[Array, " w"],
) -> int:
    """Admit waiting requests with their whole prompts, in an order of their positions among the waiting; return how many.

    The first that does not fit the token budget, the sequences, or the free blocks above the watermark ends it. Idle caches
    are evicted, least recently used first, where that makes room. A prompt longer than the budget goes alone; with nothing
    running and nothing admitted the watermark does not hold back the first, and waiting caches make room for it.
    """
    start, idle = counts.running, counts.running + counts.waiting
    end = idle + counts.idle
    free, budget, sequences, admitted, idle_blocks = engine.free_blocks, engine.max_batched_tokens, counts.running, 0, 0
    for position in range(idle, end):
        idle_blocks += requests.blocks[queue[position]]
    for index in order:
        slot = queue[start + index]
        tokens = requests.new_tokens[slot]
        if sequences >= engine.max_sequences or (tokens > budget and admitted > 0) or decision.evict[slot] == 1:
            break
        tokens = min(tokens, budget)
        alone = sequences == 0
        grown = growth(requests, slot, tokens, engine)
        needed = grown if alone or grown == 0 else grown + engine.watermark_blocks
        if free + idle_blocks < needed and not alone:
            break
        before = free
        idle, free = evict_forward(requests, queue, idle, end, decision, free, needed)
        idle_blocks -= free - before
        if free < needed:
            held = decision.evict[slot]
            decision.evict[slot] = 1  # not its own cache
            free = evict_backward(requests, queue, start, start + counts.waiting, decision, free, needed)
            decision.evict[slot] = held
        if free < needed:
            break
        take(requests, slot, tokens, decision)
        free -= grown
        budget -= tokens
        sequences += 1
        admitted += 1
    return admitted


@kernel
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
