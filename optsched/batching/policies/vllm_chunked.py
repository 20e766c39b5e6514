"""The scheduler of vLLM's V1 engine: running requests first, then first come first served, prompts in chunks.

References
----------
vLLM, ``vllm/v1/core/sched/scheduler.py`` (Apache-2.0): the behaviour is reproduced, not the code. Idle caches stand for
vLLM's cached free blocks, which it hands out in least-recently-used order.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from optsched.batching.policies.admission import Room, admit, growth, take
from optsched.batching.policies.eviction import evict_backward, evict_forward
from optsched.batching.state import Counts, Decision, Engine, Requests
from optsched.compiled import kernel, lean

Array = np.ndarray


@lean
def _continue_running(
    requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision
) -> tuple[int, int, int, bool]:
    """Schedule the running requests in order of admission, preempting the last ones where blocks run out.

    Returns
    -------
    tuple
        Scheduled requests, tokens left of the budget, free blocks, whether blocks ran out.
    """
    idle, end = counts.running + counts.waiting, counts.running + counts.waiting + counts.idle
    budget, free, scheduled, ran_out = engine.max_batched_tokens, engine.free_blocks, 0, False
    position, kept = 0, counts.running
    while position < kept and budget > 0 and scheduled < engine.max_sequences:
        slot = queue[position]
        tokens = min(requests.new_tokens[slot], budget)
        needed = growth(requests, slot, tokens, engine)
        idle, free = evict_forward(requests, queue, idle, end, decision, free, needed)
        while free < needed and kept > position + 1:
            kept -= 1
            decision.evict[queue[kept]] = 1
            free += requests.blocks[queue[kept]]
            ran_out = True
        if free < needed:
            free = evict_backward(requests, queue, counts.running, counts.running + counts.waiting, decision, free, needed)
            ran_out = True
        if free < needed:  # larger than the pool: preempted like in vLLM; executors refuse such requests beforehand
            decision.evict[slot] = 1
            free += requests.blocks[slot]
            break
        take(requests, slot, tokens, decision)
        free -= needed
        budget -= tokens
        scheduled += 1
        position += 1
    return scheduled, budget, free, ran_out


@kernel
def decide(requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision) -> int:
    """Compose the next step as vLLM does, KV cache only.

    Running requests come first, in order of admission, each with its decode token or the next chunk of its prompt. Where
    blocks run out, idle caches are evicted (least recently used first), then the request admitted last is preempted, then
    waiting requests lose the caches they hold, the last first. A step in which that happened admits nothing. Otherwise
    waiting requests are admitted in order while the token budget, the sequences and the free blocks above the watermark
    last, evicting idle caches if that makes room; the first that does not fit ends it. With nothing running, the watermark
    does not hold back the first. An evicted request is never scheduled in the same step.

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
    scheduled, budget, free, ran_out = _continue_running(requests, queue, counts, engine, decision)
    if ran_out:
        return scheduled
    order, room = np.arange(min(counts.waiting, engine.max_sequences)), Room(free, budget, counts.running)
    return scheduled + admit(requests, queue, counts, engine, decision, order, room, False, False)
