"""The exact solver inside other compiled code, which keeps no buffers: room is allocated for each problem, and grows with it.

`optsched.batching.batch_solver.BatchSolver` is the same for Python, with buffers that are kept and limits of time.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int8, Int64

from optsched.batching.core_frame import DONE, FULL, TIES_OPEN
from optsched.batching.greedy import NO_LIMIT, SKIP, select
from optsched.batching.memory_solver import INVALID, go_on, solve_in, with_more_room
from optsched.batching.rows import MEMORY_FIRST, ROWS_WORK_LIMIT, breaks, empty_rows_space, solve_rows
from optsched.batching.vertices import Rows
from optsched.batching.workspace import empty_buffer, view
from optsched.compiled import kernel

Array = np.ndarray

STATES, NODES = 1 << 12, 1 << 14  # room at first: enough for most problems of a serving engine
ROWS_NODES = 1 << 17  # more than `ROWS_WORK_LIMIT` can fill
WORK_LIMIT = 1_000_000  # states; some 10 ms


@kernel
def solve_alone(
    pending_s: Float64[Array, " n"],
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    hidden_penalty_s: Float64[Array, " n"],
    tokens: Int64[Array, " n"],
    memory: int,
    token_budget: int,
    max_sequences: int,
    choice: Int8[Array, " n"],
) -> bool:
    """Choose the batch of largest value; among equals, leave out the largest contexts.

    Parameters
    ----------
    pending_s, kv_blocks, hidden_blocks, hidden_penalty_s, tokens
        Per request: p, m, s, u, and the tokens it takes from the budget.
    memory, token_budget, max_sequences
        The rows; `NO_LIMIT` for an absent one.
    choice
        Filled with 0 skip, 1 hidden, 2 KV; never worth less than the greedy selection.

    Returns
    -------
    bool
        Whether the value is proven optimal; where not, a limit of the search was hit. Invalid data select nobody.
    """
    num = len(pending_s)
    rowed = token_budget != NO_LIMIT or max_sequences != NO_LIMIT
    most = MEMORY_FIRST if rowed else WORK_LIMIT
    buffer = empty_buffer(num, STATES, NODES)
    buffer[3] = 1  # ties matter
    code, _, _, _ = solve_in(buffer, pending_s, kv_blocks, hidden_blocks, hidden_penalty_s, memory, most, choice)
    while code == FULL:
        buffer = with_more_room(buffer)
        code, _, _, _ = go_on(buffer, pending_s, kv_blocks, hidden_blocks, hidden_penalty_s, memory, most, choice)
    if code == INVALID:
        choice[:] = SKIP
        return False
    proven, broken = code in (DONE, TIES_OPEN), breaks(choice, tokens, token_budget, max_sequences)
    if not broken and (proven or not rowed):
        return proven
    if broken:
        select(
            pending_s,
            kv_blocks,
            hidden_blocks,
            hidden_penalty_s,
            tokens,
            memory,
            token_budget,
            max_sequences,
            False,
            True,
            choice,
        )
    rows = Rows(kv_blocks, hidden_blocks, tokens, memory, min(token_budget, tokens.sum()), min(max_sequences, num))
    space = empty_rows_space(num, ROWS_NODES)
    proven, _, _ = solve_rows(view(buffer), space, pending_s, hidden_penalty_s, rows, ROWS_WORK_LIMIT, choice)
    return proven
