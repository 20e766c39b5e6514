"""Prices of blocks, tokens and sequences: the linear relaxation with all rows, by descent from vertex to vertex.

Notes
-----
The relaxation's dual, L(pi) = pi . b + sum_i max_o (v_io - pi . a_io), is convex and piecewise linear in at most three prices.
A vertex is where three hyperplanes meet: a price is 0, or a request is indifferent between two options. A vertex is left
along the edge that drops a hyperplane whose multiplier shows that L still falls, and the minimum along the edge is found
by weighted selection among the requests' indifference points: a dual simplex method with long steps. Any prices bound, so
stopping early costs tightness, never validity.

Where many requests are indifferent at the same prices (even sizes, equal waiting times), most steps would lead nowhere. So the
descent runs on gains that differ from the true ones by random 6e-8 at most, and the hyperplanes it ends at are put back.

References
----------
Maros, "Computational Techniques of the Simplex Method", Kluwer 2003, chapter 10 (bound-flipping ratio test).
"""

from __future__ import annotations

import numpy as np

from optsched.batching.greedy import SKIP, TAKE_HIDDEN, TAKE_KV
from optsched.batching.threshold import find_break
from optsched.batching.vertices import NO_REQUEST, Rows, allowed, edge_of, hold, leaving, rebase, vertex
from optsched.batching.workspace import Workspace
from optsched.compiled import lean

Array = np.ndarray

MOST_PIVOTS = 80
PERTURBATION = 2.0**-34  # relative; a request's is up to 1,023 times this
END = 1e300


@lean
def choose(space: Workspace, rows: Rows, prices: tuple[float, float, float]) -> tuple[float, float, float]:
    """Write each request's best option at some prices into `start`; return what is left of the limits."""
    gain, penalty, start = space.gain, space.penalty, space.start
    kv_blocks, hidden_blocks, tokens = rows.kv_blocks, rows.hidden_blocks, rows.tokens
    limits = (rows.memory, rows.token_budget, rows.max_sequences)
    blocks, token, count = 0.0, 0.0, 0.0
    for i in range(len(kv_blocks)):
        p, u, m, s = gain[i], penalty[i], kv_blocks[i], hidden_blocks[i]
        hidden, kv = allowed(p, u, m, s, tokens[i], limits)
        best, option, size = 0.0, SKIP, np.int64(0)
        net = p - prices[1] * tokens[i] - prices[2]
        if hidden and net - u - prices[0] * s > best:
            best, option, size = net - u - prices[0] * s, TAKE_HIDDEN, s
        if kv and net - prices[0] * m > best:
            option, size = TAKE_KV, m
        start[i] = option
        if option != SKIP:
            blocks += size
            token += tokens[i]
            count += 1.0
    return rows.memory - blocks, rows.token_budget - token, rows.max_sequences - count


@lean
def _left(space: Workspace, rows: Rows) -> tuple[float, float, float]:
    """Return what the options in `start` leave of the limits."""
    blocks, token, count = 0.0, 0.0, 0.0
    for i in range(len(rows.kv_blocks)):
        if space.start[i] != SKIP:
            blocks += rows.hidden_blocks[i] if space.start[i] == TAKE_HIDDEN else rows.kv_blocks[i]
            token += rows.tokens[i]
            count += 1.0
    return rows.memory - blocks, rows.token_budget - token, rows.max_sequences - count


@lean
def _list_indifferences(
    space: Workspace, rows: Rows, prices: tuple[float, float, float], along: tuple[float, float, float], kept: tuple[int, int]
) -> tuple[int, float]:
    """List where along an edge requests change their option, and by how much the slope of L rises there.

    Requests on the edge itself are indifferent between two options all along it; where a third becomes better, the edge
    ends.

    Parameters
    ----------
    kept
        The two hyperplanes that make the edge.

    Returns
    -------
    tuple
        How many there are, and the slope's rise over all of them.
    """
    gain, penalty, start, held = space.gain, space.penalty, space.start, space.held
    density, weight, element = space.density, space.weight, space.element
    kv_blocks, hidden_blocks, tokens = rows.kv_blocks, rows.hidden_blocks, rows.tokens
    limits, (one, two) = (rows.memory, rows.token_budget, rows.max_sequences), kept
    e, rise = 0, 0.0
    for i in range(len(kv_blocks)):
        p, u, m, s = gain[i], penalty[i], kv_blocks[i], hidden_blocks[i]
        hidden, kv = allowed(p, u, m, s, tokens[i], limits)
        if not (hidden or kv):
            continue
        other1, other2 = held[one, 2] if held[one, 0] == i else -1, held[two, 2] if held[two, 0] == i else -1
        on_edge = other1 >= 0 or other2 >= 0
        net, pace = p - prices[1] * tokens[i] - prices[2], along[1] * tokens[i] + along[2]
        hidden_net, hidden_pace = net - u - prices[0] * s, pace + along[0] * s
        kv_net, kv_pace = net - prices[0] * m, pace + along[0] * m
        now = start[i]
        for _ in range(2):
            net_now = 0.0 if now == SKIP else (hidden_net if now == TAKE_HIDDEN else kv_net)
            pace_now = 0.0 if now == SKIP else (hidden_pace if now == TAKE_HIDDEN else kv_pace)
            at, then, pace_then = np.inf, -1, 0.0
            for option in range(3):
                if option in (now, other1, other2) or (option == TAKE_HIDDEN and not hidden) or (option == TAKE_KV and not kv):
                    continue
                net_other = 0.0 if option == SKIP else (hidden_net if option == TAKE_HIDDEN else kv_net)
                pace_other = 0.0 if option == SKIP else (hidden_pace if option == TAKE_HIDDEN else kv_pace)
                if pace_other < pace_now:
                    meets = max(0.0, (net_now - net_other) / (pace_now - pace_other))
                    if meets < at or (meets == at and pace_other < pace_then):
                        at, then, pace_then = meets, option, pace_other
            if then < 0:
                break
            density[e], element[e] = -at, 16 * i + 4 * now + then
            weight[e] = END if on_edge else pace_now - pace_then
            rise += weight[e]
            e += 1
            if on_edge:
                break
            now = then
    return e, rise


@lean
def _switch(space: Workspace, passed: int) -> None:
    """Let the requests whose indifference points have been passed change their option."""
    for _ in range(2):  # a request may change twice, and its points come in any order
        for e in range(passed):
            i, before, after = space.element[e] // 16, space.element[e] // 4 % 4, space.element[e] % 4
            if space.start[i] == before:
                space.start[i] = after


@lean
def _descend(space: Workspace, rows: Rows) -> None:
    """Go from vertex to vertex while L falls."""
    space.normal[:], space.level[:], space.held[:] = 0.0, 0.0, NO_REQUEST
    for k in range(3):
        space.normal[k, k] = 1.0
    prices = (0.0, 0.0, 0.0)
    choose(space, rows, prices)
    for _ in range(MOST_PIVOTS):
        left = _left(space, rows)
        if rebase(space, rows, left):
            left = _left(space, rows)
        drop, sign = leaving(space, left)
        if drop < 0:
            break
        edge, one, two = edge_of(space, drop), (drop + 1) % 3, (drop + 2) % 3
        along = (sign * edge[0], sign * edge[1], sign * edge[2])
        leaves = space.held[drop, 0]
        if (
            leaves >= 0
            and along[0] * space.normal[drop, 0] + along[1] * space.normal[drop, 1] + along[2] * space.normal[drop, 2] > 0
        ):
            space.start[leaves] = space.held[drop, 2]
            left = _left(space, rows)
        slope = left[0] * along[0] + left[1] * along[1] + left[2] * along[2]
        points, rise = _list_indifferences(space, rows, prices, along, (one, two))
        for k in range(3):
            if along[k] < 0.0:
                space.density[points], space.weight[points], space.element[points] = prices[k] / along[k], END, -1 - k
                points, rise = points + 1, END
        if slope >= 0.0 or rise <= -slope:
            break
        broken = find_break(space, points, -slope)
        _switch(space, broken.first)
        code = space.element[broken.first]
        if code < 0:
            space.normal[drop], space.level[drop], space.held[drop] = 0.0, 0.0, NO_REQUEST
            space.normal[drop, -1 - code] = 1.0
        else:
            hold(space, rows, drop, code)
        prices = vertex(space)


@lean
def _perturb(space: Workspace, num: int) -> None:
    """Keep gains and penalties in `member` and `loss`, and make them larger by up to a share `PERTURBATION` of each."""
    for i in range(num):
        gain, penalty = space.gain[i], space.penalty[i]
        space.member[i], space.loss[i] = gain, penalty
        space.gain[i] = gain + np.int64(gain * PERTURBATION * ((i * 2654435761 >> 9) & 1023))
        space.penalty[i] = penalty + np.int64(penalty * PERTURBATION * ((i * 2246822519 >> 11) & 1023))


@lean
def best_prices(space: Workspace, rows: Rows) -> tuple[float, float, float]:
    """Return optimal prices of blocks, tokens and sequences in quanta, or nearly so.

    The gains must have been quantised. Overwrites `start`, `member`, `loss` and the lists of marginal gains.
    """
    num = len(rows.kv_blocks)
    _perturb(space, num)
    _descend(space, rows)
    for i in range(num):
        space.gain[i], space.penalty[i] = space.member[i], np.int64(space.loss[i])
    for k in range(3):
        if space.held[k, 0] != NO_REQUEST:
            hold(space, rows, k, 16 * space.held[k, 0] + 4 * space.held[k, 1] + space.held[k, 2])
    return vertex(space)
