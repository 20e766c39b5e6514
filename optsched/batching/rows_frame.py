"""Where a search with several rows stands, what it holds constant, and what its states can be worth."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from optsched.batching.rows_core import NO_UNIT, Core
from optsched.compiled import inlined, lean

DONE, STOPPED, BROKEN = 0, 1, 2
KNOWN, START = -2, -1


class Frame(NamedTuple):
    """Constants of a search; rows in the order of the core's columns.

    Attributes
    ----------
    num
        Requests of the core.
    prices, left
        Per row: quanta, and what the start leaves unused.
    counts
        Whether the second and third row count; the first always does.
    unit
        Of values, where `Core.rounding` is finite.
    most
        What no plan is worth more than.
    tolerance
        Improvements up to it count as rounding.
    slack
        A state goes if another is worth that much less at most: rounding, too, over all requests of the core together.
    width, narrow
        States that are kept at most; whether beyond that the others are given up, or the search.
    """

    num: int
    prices: tuple[float, float, float]
    left: tuple[int, int, int]
    counts: tuple[bool, bool]
    unit: float
    most: float
    tolerance: float
    slack: int
    width: int
    narrow: bool


class Search(NamedTuple):
    """Where the search stands; values are in quanta and relative to the start.

    Attributes
    ----------
    code
        `DONE`, `STOPPED` by the work limit or by too many states, or `BROKEN`: some row has to count first.
    side, states, nodes, work
        Generation of states in use, their number, nodes of the trail, states generated.
    best_value, best_tie, best_node
        The best plan; its node, or `START`, or `KNOWN` before.
    passed_over, broken
        The most that a plan is worth that breaks only rows that do not count, and one of them (second: 1, third: 2).
    reach
        No plan still open is worth more.
    cut
        Nor is any that was given up because there were too many states.
    """

    code: int
    side: int
    states: int
    nodes: int
    work: int
    best_value: int
    best_tie: int
    best_node: int
    passed_over: int
    broken: int
    reach: float
    cut: float


class Rest(NamedTuple):
    """What bounds the deviations of the requests not looked at yet; see `optsched.batching.rows_core`."""

    least: float
    up: tuple[float, float, float]
    down: tuple[float, float, float]
    rounding: float


@lean
def rest_of(core: Core, frame: Frame, k: int) -> Rest:
    """Return what bounds the deviations of requests from `k` on; rows that do not count bound nothing."""
    up2, down2 = (core.up[k, 1], core.down[k, 1]) if frame.counts[0] else (0.0, 0.0)
    up3, down3 = (core.up[k, 2], core.down[k, 2]) if frame.counts[1] else (0.0, 0.0)
    return Rest(core.least[k], (core.up[k, 0], up2, up3), (core.down[k, 0], down2, down3), core.rounding[k])


@inlined
def reach_of(frame: Frame, rest: Rest, left: tuple[int, int, int], value: int) -> float:
    """Return what a state can be worth at most with further deviations."""
    more, extra = 0.0, rest.least
    for row in range(3):
        more += frame.prices[row] * left[row]
        extra = max(extra, -left[row] * rest.up[row] if left[row] < 0 else left[row] * rest.down[row])
    more -= extra
    if rest.rounding < NO_UNIT:
        more = min(more, np.floor((more + rest.rounding + frame.tolerance) / frame.unit) * frame.unit + rest.rounding)
    return float(value + more)


@inlined
def broken_row(frame: Frame, left: tuple[int, int, int]) -> int:
    """Tell which row a plan breaks: 0 none, -1 one that counts, else 1 or 2: the second or third, which does not count."""
    if left[0] < 0 or (left[1] < 0 and frame.counts[0]) or (left[2] < 0 and frame.counts[1]):
        return -1
    return 1 if left[1] < 0 else (2 if left[2] < 0 else 0)
