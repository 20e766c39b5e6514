"""What every policy starts from, and whose caches go first when blocks run out."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from optsched.batching.state import Counts, Decision, Requests
from optsched.compiled import lean

Array = np.ndarray


@lean
def leave_all_out(requests: Requests, queue: Int64[Array, " q"], counts: Counts, decision: Decision) -> None:
    """Reset the decision: every request of the queue keeps its cache and computes nothing."""
    for position in range(counts.running + counts.waiting + counts.idle):
        slot = queue[position]
        decision.tokens[slot] = 0
        decision.cache[slot] = requests.cache[slot]
        decision.evict[slot] = 0


@lean
def evict_forward(
    requests: Requests, queue: Int64[Array, " q"], position: int, stop: int, decision: Decision, free: int, needed: int
) -> tuple[int, int]:
    """Evict caches of ``queue[position:stop]`` from the front until `needed` blocks are free.

    Returns
    -------
    tuple
        The first position that was left alone, and the blocks then free.
    """
    while free < needed and position < stop:
        slot = queue[position]
        if requests.blocks[slot] > 0 and decision.evict[slot] == 0:
            decision.evict[slot] = 1
            free += requests.blocks[slot]
        position += 1
    return position, free


@lean
def evict_backward(
    requests: Requests, queue: Int64[Array, " q"], start: int, stop: int, decision: Decision, free: int, needed: int
) -> int:
    """Evict caches of ``queue[start:stop]`` from the back until `needed` blocks are free, and return the blocks then free."""
    position = stop - 1
    while free < needed and position >= start:
        slot = queue[position]
        if requests.blocks[slot] > 0 and decision.evict[slot] == 0:
            decision.evict[slot] = 1
            free += requests.blocks[slot]
        position -= 1
    return free
