"""DeepSpeed-FastGen's Dynamic SplitFuse: steps of nearly constant size, filled with decodes and pieces of prompts.

References
----------
Holmes et al., "DeepSpeed-FastGen", arXiv 2401.08671, section 3; its scheduler ``mii/batching/ragged_batching.py`` at
github.com/microsoft/DeepSpeed-MII (Apache-2.0). The behaviour is reproduced, not the code.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from optsched.batching.policies.admission import growth, is_decode, take
from optsched.batching.policies.eviction import evict_backward, evict_forward, leave_all_out
from optsched.batching.state import Counts, Decision, Engine, Requests
from optsched.compiled import lean

Array = np.ndarray


@lean
def _fitting(requests: Requests, slot: int, most: int, free: int, engine: Engine) -> int:
    """Return how many tokens of a request fit the free blocks, at most `most`."""
    tokens = min(requests.new_tokens[slot], most)
    if growth(requests, slot, tokens, engine) <= free:
        return int(tokens)
    # What a block more holds is known exactly: KV cache, or the kind that is held, grows by whole blocks.
    low, high = 0, tokens
    while high - low > 1:
        middle = (low + high) // 2
        if growth(requests, slot, middle, engine) <= free:
            low = middle
        else:
            high = middle
    return int(low)


@lean
def _fill(
    requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision, free: int, idle: int
) -> int:
    """Schedule decodes, then prompts in order of arrival, whole or in pieces, as far as budget and blocks go."""
    end = counts.running + counts.waiting + counts.idle
    budget = min(max(1, int(engine.parameters[0])), engine.max_batched_tokens)
    scheduled, sequences = 0, 0
    for position in range(counts.running):
        sequences += int(decision.evict[queue[position]] == 0)
    for turn in range(2):
        for position in range(counts.running + counts.waiting):
            slot = queue[position]
            if decision.evict[slot] == 1 or (position < counts.running and is_decode(requests, slot)) != (turn == 0):
                continue
            if budget <= 0 or scheduled >= engine.max_sequences:
                return scheduled
            if position >= counts.running and sequences >= engine.max_sequences:
                return scheduled
            idle, free = evict_forward(
                requests, queue, idle, end, decision, free, growth(requests, slot, min(requests.new_tokens[slot], budget), engine)
            )
            tokens = _fitting(requests, slot, budget, free, engine)
            if tokens == 0:
                continue
            take(requests, slot, tokens, decision)
            free -= growth(requests, slot, tokens, engine)
            budget -= tokens
            scheduled += 1
            sequences += int(position >= counts.running)
    return scheduled


@lean
def decide(requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision) -> int:
    """Compose the next step: decodes, then prompts in pieces, until the step has ``forward_tokens`` tokens.

    Nothing is promised to a prompt that was begun: pieces go on as long as there are blocks, and a decode without a block
    is left out of the step. Only if nothing at all can be scheduled does the request admitted last lose its cache. The
    forward size is at most the engine's token budget. KV cache only.

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
    idle, free = counts.running + counts.waiting, engine.free_blocks
    scheduled = _fill(requests, queue, counts, engine, decision, free, idle)
    if scheduled > 0 or counts.running + counts.waiting == 0:
        return scheduled
    # Stuck: every idle cache is gone, and no request can grow by a block. The last ones make room for the first.
    leave_all_out(requests, queue, counts, decision)
    end = idle + counts.idle
    idle, free = evict_forward(requests, queue, idle, end, decision, free, engine.total_blocks)
    needed = growth(requests, queue[0], 1, engine)
    free = evict_backward(requests, queue, max(1, counts.running), counts.running + counts.waiting, decision, free, needed)
    free = evict_backward(requests, queue, 1, counts.running, decision, free, needed)
    return _fill(requests, queue, counts, engine, decision, free, idle)
