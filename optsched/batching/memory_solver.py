"""The memory row alone, solved to proven optimality by one compiled call: relaxation, reduced-cost fixing, core, corner."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int8, Int64

from optsched.batching.closing import close, with_rest
from optsched.batching.core import expand
from optsched.batching.core_frame import DONE, PAUSED, TIES_OPEN, Frame, Search, stopped
from optsched.batching.greedy import SKIP
from optsched.batching.heap import heapify
from optsched.batching.memory_row import Setting, again, set_up
from optsched.batching.scarce import close_by_parts
from optsched.batching.workspace import Workspace, grown, view
from optsched.batching.worth import worth
from optsched.compiled import kernel, lean

Array = np.ndarray

INVALID = 4  # beside the codes of `optsched.batching.core_frame`: the data contradict each other
FAR, MORE = 10, 20  # blocks that the gap is worth: where sizes are so various, the search itself ends soon
FIRST_WORK = 1_500  # states before the corner relaxation is solved


@lean
def read_off(space: Workspace, search: Search, choice: Int8[Array, " n"]) -> None:
    """Write the best plan into `choice`, unless it is there already."""
    if search.best_node > -2:
        for i in range(len(choice)):
            choice[i] = space.start[i]
    node = search.best_node
    while node >= 0:
        choice[space.request[node]] = space.option[node]
        node = space.parent[node]


@lean
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


@lean
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
    frame = setting.frame
    search = expand(space, kv_blocks, hidden_blocks, memory, frame, setting.search, min(work_limit, first_work))
    if search.code == PAUSED and frame.price * (frame.room - FAR) > search.best_value:
        search = expand(space, kv_blocks, hidden_blocks, memory, frame, search, min(work_limit, MORE * first_work))
    read_off(space, search, choice)
    if search.code == PAUSED and search.work < work_limit:
        frame, search = _close_and_expand(space, kv_blocks, hidden_blocks, memory, setting, search, work_limit, choice)
        setting = Setting(frame, search, setting.scale, setting.start_value)
        read_off(space, search, choice)
    setting = Setting(setting.frame, search, setting.scale, setting.start_value)
    return setting, worth(pending_s, hidden_penalty_s, choice)


@lean
def _save(buffer: Int64[Array, " words"], setting: Setting) -> None:
    """Keep a paused search in the buffer's head."""
    room, price, tie_price, tolerance, divisor, start_blocks, start_tie, ties, tie_work, unit, overdrawn, left, later = (
        setting.frame
    )
    code, side, states, nodes, heap, work, value, tie, node, most = setting.search
    real = buffer.view(np.float64)
    buffer[4], buffer[5], buffer[6], buffer[7], buffer[8] = room, divisor, start_blocks, start_tie, ties
    buffer[9], buffer[10], buffer[11], buffer[12], buffer[13] = tie_work, unit, overdrawn, left, code
    buffer[14], buffer[15], buffer[16], buffer[17], buffer[18] = side, states, nodes, heap, work
    buffer[19], buffer[20], buffer[21], buffer[22] = value, tie, node, setting.start_value
    real[23], real[24], real[25], real[26], real[27], real[28] = price, tie_price, tolerance, later, most, setting.scale


@lean
def _restore(buffer: Int64[Array, " words"]) -> Setting:
    """Return the search in the buffer's head."""
    b, real = buffer, buffer.view(np.float64)
    frame = Frame(b[4], real[23], real[24], real[25], b[5], b[6], b[7], b[8] != 0, b[9], b[10], b[11], b[12], real[26])
    search = Search(b[13], b[14], b[15], b[16], b[17], b[18], b[19], b[20], b[21], real[27])
    return Setting(frame, search, real[28], b[22])


@lean
def _answer(buffer: Int64[Array, " words"], setting: Setting, value: float) -> tuple[int, float, float, int]:
    """Return code, value, bound and work; keep a search that may go on."""
    frame, search = setting.frame, setting.search
    if setting.scale <= 0.0:
        return (INVALID if setting.scale < 0.0 else DONE), 0.0, 0.0, 0
    if search.code in (DONE, TIES_OPEN):
        return search.code, value, value, search.work
    _save(buffer, setting)
    bound = (setting.start_value + max(search.most, search.best_value) + frame.tolerance) / setting.scale
    return search.code, value, max(value, bound), search.work


@lean
def solve_in(
    buffer: Int64[Array, " words"],
    pending_s: Float64[Array, " n"],
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    hidden_penalty_s: Float64[Array, " n"],
    memory: int,
    work_limit: int,
    choice: Int8[Array, " n"],
) -> tuple[int, float, float, int]:
    """Solve in a buffer, whose word 3 tells whether ties matter; see `solve_memory_row`.

    Returns
    -------
    tuple
        `DONE`, `TIES_OPEN`, `PAUSED`, `FULL` or `INVALID` (nothing has been solved), value and bound in seconds, and
        states generated.
    """
    num = len(pending_s)
    if num > buffer[0] or not num == len(kv_blocks) == len(hidden_blocks) == len(hidden_penalty_s) == len(choice):
        return INVALID, 0.0, 0.0, 0
    setting, value = solve_memory_row(
        view(buffer),
        pending_s,
        kv_blocks,
        hidden_blocks,
        hidden_penalty_s,
        memory,
        buffer[3] != 0,
        work_limit,
        FIRST_WORK,
        choice,
    )
    return _answer(buffer, setting, value)


@lean
def go_on(
    buffer: Int64[Array, " words"],
    pending_s: Float64[Array, " n"],
    kv_blocks: Int64[Array, " n"],
    hidden_blocks: Int64[Array, " n"],
    hidden_penalty_s: Float64[Array, " n"],
    memory: int,
    work_limit: int,
    choice: Int8[Array, " n"],
) -> tuple[int, float, float, int]:
    """Go on with the search in a buffer that `solve_in` has paused or found too small; returns the same."""
    space, setting = view(buffer), _restore(buffer)
    search = expand(space, kv_blocks, hidden_blocks, memory, setting.frame, setting.search, work_limit)
    read_off(space, search, choice)
    setting = Setting(setting.frame, search, setting.scale, setting.start_value)
    return _answer(buffer, setting, worth(pending_s, hidden_penalty_s, choice))


@kernel
def with_more_room(buffer: Int64[Array, " words"]) -> Int64[Array, " words"]:
    """Return a larger buffer for the search that did not fit into this one."""
    search = _restore(buffer).search
    return grown(buffer, search.side, search.states, search.nodes)
