"""How waiting requests are admitted in a given order, and what every policy that schedules tokens starts from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from optsched.batching.blocks import blocks_for
from optsched.batching.policies.eviction import evict_backward, evict_forward
from optsched.batching.state import KV, Counts, Decision, Engine, Requests
from optsched.compiled import lean

Array = np.ndarray


class Room(NamedTuple):
    """What is left of a step for admissions: free blocks, tokens, and the sequences that are in it or keep running."""

    free: int
    tokens: int
    sequences: int


@lean
def is_decode(requests: Requests, slot: int) -> bool:
    """Tell whether a request has nothing left to prefill but its newest token."""
    return bool(requests.new_tokens[slot] == 1 and requests.context[slot] > 0)


@lean
def growth(requests: Requests, slot: int, tokens: int, engine: Engine) -> int:
    """Return the blocks that a request lacks to compute so many tokens more; KV cache unless it holds the other kind."""
    kind = requests.cache[slot] if requests.context[slot] > 0 else KV
    needed = blocks_for(requests.context[slot] + tokens, kind, engine.block_tokens, engine.hidden_ratio)
    return int(max(0, needed - requests.blocks[slot]))


@lean
def take(requests: Requests, slot: int, tokens: int, decision: Decision) -> None:
    """Schedule tokens of a request, in the kind of cache that it holds."""
    decision.tokens[slot] = tokens
    decision.cache[slot] = requests.cache[slot] if requests.context[slot] > 0 else KV


@lean
def admit(
    requests: Requests,
    queue: Int64[Array, " q"],
    counts: Counts,
    engine: Engine,
    decision: Decision,
    order: Int64[Array, " w"],
    room: Room,
    whole: bool,
    promised: bool,
) -> int:
    """Admit waiting requests up to the first that does not fit, and return how many.

    Idle caches are evicted, least recently used first, where that makes room above the watermark. With no sequence in the
    step or running, the watermark does not hold back the first, and waiting caches make room for it.

    Parameters
    ----------
    order
        Positions among the waiting.
    room
        What is left of the step.
    whole
        Whether a prompt that exceeds the tokens left waits, unless it is the first, instead of being cut.
    promised
        Whether a prompt that is cut needs blocks for all of it at once.
    """
    start, idle = counts.running, counts.running + counts.waiting
    end = idle + counts.idle
    free, budget, sequences = room
    admitted, idle_blocks = 0, 0
    for position in range(idle, end):
        slot = queue[position]
        idle_blocks += 0 if decision.evict[slot] == 1 else requests.blocks[slot]
    for index in order:
        slot = queue[start + index]
        asked = requests.new_tokens[slot]
        if budget <= 0 or sequences >= engine.max_sequences or decision.evict[slot] == 1:
            break
        if whole and asked > budget and admitted > 0:
            break
        tokens = min(asked, budget)
        alone = sequences == 0
        grown = growth(requests, slot, asked if promised else tokens, engine)
        needed = grown if alone or grown == 0 else grown + engine.watermark_blocks
        if free + idle_blocks < needed and not alone:
            break
        before = free
        idle, free = evict_forward(requests, queue, idle, end, decision, free, needed)
        idle_blocks -= free - before
        if free < needed:
            decision.evict[slot] = 1  # not its own cache
            free = evict_backward(requests, queue, start, start + counts.waiting, decision, free, needed)
            decision.evict[slot] = 0
        if free < needed:
            break
        take(requests, slot, tokens, decision)
        free -= grown
        budget -= tokens
        sequences += 1
        admitted += 1
    return admitted
