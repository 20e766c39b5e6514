"""The memory row alone, solved to proven optimality by one compiled call: relaxation, reduced-cost fixing, core, corner."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int8, Int64

from optsched.batching.closing import close, with_rest
from optsched.batching.core import PAUSED, Frame, Search, expand, stopped
from optsched.batching.greedy import SKIP
from optsched.batching.heap import heapify
from optsched.batching.memory_row import Setting, again, set_up, worth
from optsched.batching.scarce import close_by_parts
from optsched.batching.workspace import Workspace
from optsched.compiled import kernel

Array = np.ndarray

FIRST_WORK = 1_000  # states before the corner relaxation is solved


@kernel
def read_off(space: Workspace, search: Search, choice: Int8[Array, " n"]) -> None:
    """Write the best plan into `choice`, unless it is there already."""
    if search.best_node > -2:
        choice[:] = space.start[: len(choice)]
    node = search.best_node
    while node >= 0:
        choice[space.request[node]] = space.option[node]
        node = space.parent[node]


@kernel
def _close_and_expand(
    space: Workspace,
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    memory: int,
    setting: Setting,
    search: Search,
    work_limit: int,
    choice: Int8[Array, " n"],
) -> tuple[Frame, Search]:
    """Solve what a short search has left open; `choice` is the best plan it has found."""
    setting = again(space, kv_blocks, hidden_blocks, memory, setting, search)
    frame, search = close(space, kv_blocks, hidden_blocks, memory, setting.frame, setting.search)
    if search.code == PAUSED and search.most > search.best_value + frame.tolerance:
        frame, search, goes_on = close_by_parts(space, kv_blocks, hidden_blocks, memory, frame, search)
        if not goes_on:
            read_off(space, search, choice)
            setting = again(space, kv_blocks, hidden_blocks, memory, setting, search)
            same = setting.frame.unit == frame.unit
            frame = with_rest(setting.frame, frame.overdrawn if same else 0, frame.left if same else -1, np.inf)
            search = stopped(setting.search, PAUSED)
    if search.code == PAUSED:
        heapify(space.loss, space.member, search.heap)
        search = expand(space, kv_blocks, hidden_blocks, memory, frame, search, work_limit)
    return frame, search


@kernel
def solve_memory_row(
    space: Workspace,
    pending_s: Float64[Array, " n"],
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    hidden_penalty_s: Float64[Array, " n"],
    memory: int,
    ties: bool,
    work_limit: int,
    first_work: int,
    choice: Int8[Array, " n"],
) -> tuple[Setting, float]:
    """Solve, or go as far as the workspace and the work limit allow.

    Parameters
    ----------
    ties
        Choose among plans of the same value; see `optsched.batching.core`.
    work_limit
        States that may be generated.
    first_work
        States before the corner relaxation is solved: most problems need no more than `FIRST_WORK`.
    choice
        Filled with the best plan found.

    Returns
    -------
    tuple
        The setting with the search as it stands, and the plan's value in seconds.
    """
    setting = set_up(space, pending_s, kv_blocks, hidden_blocks, hidden_penalty_s, memory, ties)
    if setting.scale <= 0.0:
        choice[:] = SKIP
        return setting, 0.0
    search = expand(space, kv_blocks, hidden_blocks, memory, setting.frame, setting.search, min(work_limit, first_work))
    read_off(space, search, choice)
    if search.code == PAUSED and search.work < work_limit:
        frame, search = _close_and_expand(space, kv_blocks, hidden_blocks, memory, setting, search, work_limit, choice)
        setting = Setting(frame, search, setting.scale, setting.start_value)
        read_off(space, search, choice)
    setting = Setting(setting.frame, search, setting.scale, setting.start_value)
    return setting, worth(pending_s, hidden_penalty_s, choice)
