"""Sarathi-Serve's stall-free batches: every decode, then one chunk's worth of prompts.

References
----------
Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve", OSDI 2024, arXiv 2403.02310,
section 4 and Algorithm 3; its scheduler at github.com/microsoft/sarathi-serve. The behaviour is reproduced, not the code.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from optsched.batching.policies.admission import Room, admit, growth, is_decode, take
from optsched.batching.policies.eviction import evict_backward, evict_forward
from optsched.batching.state import Counts, Decision, Engine, Requests
from optsched.compiled import kernel, lean

Array = np.ndarray


@lean
def keep_running(requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision) -> int:
    """Preempt from the back until every decode and every prompt begun has its blocks; return the blocks left over.

    A prompt was promised all its blocks when it was admitted. Idle caches go before any running request, waiting caches
    before the last one.
    """
    idle, end = counts.running + counts.waiting, counts.running + counts.waiting + counts.idle
    needed = 0
    for position in range(counts.running):
        slot = queue[position]
        needed += growth(requests, slot, requests.new_tokens[slot], engine)
    _, free = evict_forward(requests, queue, idle, end, decision, engine.free_blocks, needed)
    for position in range(counts.running - 1, 0, -1):
        if free >= needed:
            break
        slot = queue[position]
        decision.evict[slot] = 1
        free += requests.blocks[slot]
        needed -= growth(requests, slot, requests.new_tokens[slot], engine)
    free = evict_backward(requests, queue, counts.running, idle, decision, free, needed)
    if free < needed:  # larger than the pool: preempted; executors refuse such requests beforehand
        slot = queue[0]
        decision.evict[slot] = 1
        free += requests.blocks[slot]
        needed -= growth(requests, slot, requests.new_tokens[slot], engine)
    return free - needed


@kernel
def decide(requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision) -> int:
    """Compose the next step: all decodes, then prompts begun, then new ones, until the chunk is full.

    The chunk (parameter ``chunk_tokens``, at most the engine's token budget) holds the decodes' tokens too, so that no
    step is much longer than another. A prompt is admitted, first come, first served, if the free blocks above the watermark
    hold all of it. Where decodes run out of blocks, the request admitted last is preempted and recomputed later. KV cache
    only.

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
    free = keep_running(requests, queue, counts, engine, decision)
    chunk = min(max(1, int(engine.parameters[0])), engine.max_batched_tokens)
    budget, scheduled, kept = engine.max_batched_tokens, 0, 0
    for decodes in (True, False):
        for position in range(counts.running):
            slot = queue[position]
            if decision.evict[slot] == 1 or is_decode(requests, slot) != decodes:
                continue
            kept += 1
            tokens = 1 if decodes else min(requests.new_tokens[slot], chunk)
            if tokens <= 0 or budget < tokens or scheduled >= engine.max_sequences:
                continue
            take(requests, slot, tokens, decision)
            budget -= tokens
            chunk -= tokens
            scheduled += 1
    if kept < counts.running:  # a step that had to preempt admits nothing
        return scheduled
    order, room = np.arange(counts.waiting), Room(free, min(chunk, budget), kept)
    return scheduled + admit(requests, queue, counts, engine, decision, order, room, False, True)
