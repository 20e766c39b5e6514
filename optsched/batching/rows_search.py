"""Dynamic programming over the core of a problem with several rows.

Notes
-----
Request after request every state is kept as it is and with each of the request's deviations. A state goes if another
dominates it (`optsched.batching.rows_states`), or if no set of further deviations makes it better than the best plan
(`optsched.batching.rows_core`). Once no state is left, the best plan is proven.

A row without a price hardly ever decides; it counts only once a plan that breaks it would have been the best. Until then
such plans are passed over, and the most that one of them is worth is remembered: the answer is proven if it is worth no less.

A narrow search keeps only so many states, those that can be worth most. That is no proof any more, but the most that the others
could be worth bounds, and good plans are found soon.

References
----------
Pisinger, "A minimal algorithm for the 0-1 knapsack problem", Operations Research 45(5), 1997 (expanding core, one row);
Weingartner and Ness, "Methods for the solution of the multidimensional 0/1 knapsack problem", Operations Research 15(1), 1967.
"""

from __future__ import annotations

import numpy as np

from optsched.batching.core_frame import NEVER
from optsched.batching.rows_core import NODE, TIE, VALUE, Core
from optsched.batching.rows_frame import BROKEN, DONE, KNOWN, START, STOPPED, Frame, Search, broken_row, reach_of, rest_of
from optsched.batching.rows_states import Pool, dominated, draw, enter, lay_out
from optsched.compiled import kernel, lean

PATIENCE = 10_000  # states, before a plan that was passed over makes its row count


@lean
def _merge(
    pool: Pool, core: Core, frame: Frame, search: Search, k: int, ways: tuple[int, int], spread: tuple[int, int, int, int]
) -> tuple[Search, tuple[int, int, int, int]]:
    """Let the k-th request keep or change its option in every state; keep those that may still win."""
    _, old, states, nodes, work, value, tie, best_node, passed_over, broken, _, cut = search
    new, kept, reach, at = 1 - old, 0, -np.inf, (0, 0, 0 if ways[1] >= 0 else states)
    table, state = lay_out(pool.best, spread, frame.counts), pool.state
    low2, high2, low3, high3 = NEVER, -NEVER, NEVER, -NEVER
    rest = rest_of(core, frame, k + 1)
    while True:
        source, at = draw(state, core.change, k, ways, old, kept, at, states)
        if source < 0:
            break
        second, third, v, t = state[new, kept, 1], state[new, kept, 2], state[new, kept, VALUE], state[new, kept, TIE]
        left, better = (frame.left[0] - state[new, kept, 0], frame.left[1] - second, frame.left[2] - third), False
        if source > 0 and (v > value or (v == value and t > tie)):
            row = broken_row(frame, left)
            better = row == 0
            if row > 0 and v > max(value, passed_over):
                passed_over, broken = v, row
        if not better and dominated(pool.best, table, second, third, v - frame.slack):
            continue
        most = reach_of(frame, rest, left, v)
        lasts = most > (v if better else value) + frame.tolerance
        if not (lasts or better):
            continue
        if source > 0:
            pool.parent[nodes], pool.request[nodes], pool.option[nodes] = (
                state[new, kept, NODE], core.request[k], core.option[k, ways[source - 1]],
            )  # fmt: skip
            state[new, kept, NODE], nodes = nodes, nodes + 1
        if better:
            value, tie, best_node = v, t, state[new, kept, NODE]
        if lasts:
            enter(pool.best, table, second, third, v)
            kept, reach = kept + 1, max(reach, most)
            low2, high2, low3, high3 = min(low2, second), max(high2, second), min(low3, third), max(high3, third)
    search = Search(DONE, new, kept, nodes, work, value, tie, best_node, passed_over, broken, reach, cut)
    return search, (low2, high2, low3, high3)


@kernel
def _thin_out(pool: Pool, core: Core, frame: Frame, search: Search, k: int) -> Search:
    """Keep the states that can be worth most, as many as the width allows, and remember what the others could be worth."""
    code, side, states, nodes, work, value, tie, node, passed_over, broken, _, cut = search
    now, reach, rest = pool.state[side], pool.reach, rest_of(core, frame, k)
    for at in range(states):
        here = now[at]
        left = (frame.left[0] - here[0], frame.left[1] - here[1], frame.left[2] - here[2])
        reach[at] = reach_of(frame, rest, left, here[VALUE])
    least = np.partition(reach[:states], states - frame.width)[states - frame.width]
    kept, most = 0, -np.inf
    for at in range(states):
        if reach[at] > least or (reach[at] == least and kept <= at - (states - frame.width)):
            now[kept] = now[at]
            kept, most = kept + 1, max(most, reach[at])
        else:
            cut = max(cut, reach[at])
    return Search(code, side, kept, nodes, work, value, tie, node, passed_over, broken, most, cut)


@lean
def _repair(pool: Pool, core: Core, frame: Frame, search: Search) -> Search:
    """Mend what the start over-commits by the first deviations that help, then fill up: a plan in O(n)."""
    value, tie, nodes = 0, 0, search.nodes
    left0, left1, left2 = frame.left
    for filling in (False, True):
        for k in range(frame.num):
            short = left0 < 0 or left1 < 0 or left2 < 0
            if short == filling:
                break
            for way in range(0 if core.mended[k] else core.num[k]):
                d = core.change[k, way]
                helps = (left0 < 0 and d[0] < 0) or (left1 < 0 and d[1] < 0) or (left2 < 0 and d[2] < 0)
                fits = d[0] <= max(0, left0) and d[1] <= max(0, left1) and d[2] <= max(0, left2)
                if not fits or not (d[VALUE] > 0 if filling else helps):
                    continue
                left0, left1, left2 = left0 - d[0], left1 - d[1], left2 - d[2]
                value, tie = value + d[VALUE], tie + d[TIE]
                pool.parent[nodes], pool.request[nodes], pool.option[nodes] = nodes - 1, core.request[k], core.option[k, way]
                nodes, core.mended[k] = nodes + 1, True
                break
    if left0 < 0 or left1 < 0 or left2 < 0 or value <= search.best_value:
        return search
    code, side, states, _, work, _, _, _, passed_over, broken, reach, cut = search
    return Search(code, side, states, nodes, work, value, tie, nodes - 1, passed_over, broken, reach, cut)


@lean
def _ended(search: Search) -> Search:
    """Return the search with nothing open but what was cut."""
    _, side, _, nodes, work, value, tie, node, passed_over, broken, _, cut = search
    return Search(DONE, side, 0, nodes, work, value, tie, node, passed_over, broken, -np.inf, cut)


@lean
def search_core(pool: Pool, core: Core, frame: Frame, value: int, tie: int, work_limit: int) -> Search:
    """Look for plans better than one of a known value, until none is left, or the limit is reached."""
    pool.state[0, 0] = 0
    pool.state[0, 0, NODE] = START
    search = Search(DONE, 0, 1, 0, 0, value, tie, KNOWN, -NEVER, 0, frame.most, -np.inf)
    if min(frame.left) >= 0 and value < 0:
        search = Search(DONE, 0, 1, 0, 0, 0, 0, START, -NEVER, 0, frame.most, -np.inf)
    search = _repair(pool, core, frame, search)
    spread, length = (0, 0, 0, 0), len(pool.parent)
    for k in range(frame.num):
        gap = frame.most - search.best_value + frame.tolerance
        if search.states == 0 or core.least[k] > gap:
            break
        ways = (-1, -1)
        for way in range(core.num[k]):
            if core.loss[k, way] <= gap:
                ways = (way, -1) if ways[0] < 0 else (ways[0], way)
        if ways[0] < 0:
            continue
        if frame.narrow and search.states > frame.width:
            search = _thin_out(pool, core, frame, search, k)
        _, side, states, nodes, work, value, tie, node, passed_over, broken, reach, cut = search
        code = STOPPED if work >= work_limit or states > frame.width or nodes + 2 * states > length else DONE
        if work >= PATIENCE and passed_over > value:
            code = BROKEN
        work += (2 + int(ways[1] >= 0)) * states
        search = Search(code, side, states, nodes, work, value, tie, node, passed_over, broken, reach, cut)
        if code != DONE:
            return search
        one, two = core.change[k, ways[0]], core.change[k, max(ways[0], ways[1])]
        spread = (
            spread[0] + min(0, one[1], two[1]), spread[1] + max(0, one[1], two[1]),
            spread[2] + min(0, one[2], two[2]), spread[3] + max(0, one[2], two[2]),
        )  # fmt: skip
        search, spread = _merge(pool, core, frame, search, k, ways, spread)
    return _ended(search)
