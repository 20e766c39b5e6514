"""What a plan is worth: in quanta with its tie value, and in seconds."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int8, Int64

from optsched.batching.greedy import SKIP, TAKE_HIDDEN
from optsched.batching.workspace import Workspace
from optsched.compiled import lean

Array = np.ndarray


@lean
def plan_worth(space: Workspace, kv_blocks: Int64[Array, " n"], choice: Int8[Array, " n"]) -> tuple[int, int, int]:
    """Return value, tie value and number of selected requests of a plan."""
    value, tie, count = 0, 0, 0
    for i in range(len(kv_blocks)):
        if choice[i] != SKIP:
            value += space.gain[i] - (space.penalty[i] if choice[i] == TAKE_HIDDEN else 0)
            tie -= kv_blocks[i]
            count += 1
    return value, tie, count


@lean
def worth(pending_s: Float64[Array, " n"], hidden_penalty_s: Float64[Array, " n"], choice: Int8[Array, " n"]) -> float:
    """Return a plan's value in seconds, summed with compensation (Neumaier)."""
    total, lost = 0.0, 0.0
    for i in range(len(choice)):
        if choice[i] == SKIP:
            continue
        term = pending_s[i] - (hidden_penalty_s[i] if choice[i] == TAKE_HIDDEN else 0.0)
        added = total + term
        lost += (total - added) + term if abs(total) >= abs(term) else (term - added) + total
        total = added
    return total + lost
