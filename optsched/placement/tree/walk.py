"""Depth-first through all placements, compiled: conversations in order of arrival, each to every pair that may still be best."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from optsched.compiled import lean
from optsched.placement.clockwork import Clockwork
from optsched.placement.queues import NOBODY
from optsched.placement.retime import Case, Reach, Timed, assign, retime
from optsched.placement.score import COST, ENERGY, MISSES, TTFET, Aim, score

Array = np.ndarray


class Options(NamedTuple):
    """The pairs that each conversation may go to, one after the other, and what it takes there at least.

    Attributes
    ----------
    start
        Where each conversation's pairs begin.
    prefill, decode
        The pairs.
    prefill_s, answer_s, end_s
        Prefill alone; from its end to the last turn's first token, and to the last token.
    joules
        Least energy.
    first_s, tail_s
        Replica time of the prefill and of the rest (up to the last turn's answer where that is what counts), for each way of
        sharing out a step's time.
    """

    start: Int64[Array, " C+1"]
    prefill: Int64[Array, " N"]
    decode: Int64[Array, " N"]
    prefill_s: Float64[Array, " N"]
    answer_s: Float64[Array, " N"]
    end_s: Float64[Array, " N"]
    joules: Float64[Array, " N"]
    first_s: Float64[Array, "V N"]
    tail_s: Float64[Array, "V N"]


class Ground(NamedTuple):
    """What holds for all placements.

    Attributes
    ----------
    late
        How many conversations the percentile leaves out; the only entry.
    later_j, later_end_s
        Of the conversations from one on: least energy together, and the latest of their earliest ends.
    only_prefill
        Replicas of role prefill.
    twin
        The alike replica that must be used before; `NOBODY`: none.
    kind, supply
        Of each replica the kind of GPU, and how many replicas of each kind may be used.
    rate, base
        What a replica takes per second once it is used (W, USD/s), and what is taken anyway (the only entry).
    """

    late: Int64[Array, " 1"]
    later_j: Float64[Array, " C+1"]
    later_end_s: Float64[Array, " C+1"]
    only_prefill: Bool[Array, " R"]
    twin: Int64[Array, " R"]
    kind: Int64[Array, " R"]
    supply: Int64[Array, " K"]
    rate: Float64[Array, " R"]
    base: Float64[Array, " 1"]


class Path(NamedTuple):
    """Where the walk is.

    Attributes
    ----------
    at
        The conversation that is placed next; -1 at the end of the walk.
    option
        Per conversation: the pair to try next.
    used, on
        Conversations per replica, and used replicas per kind.
    stay_s, move_s, old_stay_s, old_move_s
        Per replica: earliest end of the prefills that stay and that move on; and as they were before each conversation.
    size, release_s, work_s
        Per replica: the work on it, one entry per conversation.
    dynamic_j, answer_s, end_s, missed
        Of the conversations placed so far: least energy, least percentile, last end, and misses that are certain.
    best, best_prefill, best_decode
        The best value known, and its placement; `NOBODY` as long as it is not from the walk.
    """

    at: Int64[Array, " 1"]
    option: Int64[Array, " C"]
    used: Int64[Array, " R"]
    on: Int64[Array, " K"]
    stay_s: Float64[Array, " R"]
    move_s: Float64[Array, " R"]
    old_stay_s: Float64[Array, " C"]
    old_move_s: Float64[Array, " C"]
    size: Int64[Array, " R"]
    release_s: Float64[Array, "R C"]
    work_s: Float64[Array, "R V C"]
    dynamic_j: Float64[Array, " C+1"]
    answer_s: Float64[Array, " C+1"]
    end_s: Float64[Array, " C+1"]
    missed: Int64[Array, " C+1"]
    best: Float64[Array, " 1"]
    best_prefill: Int64[Array, " C"]
    best_decode: Int64[Array, " C"]


class Tools(NamedTuple):
    """What placements are timed with: a clockwork, the placement timed last, what a change reaches, and a buffer."""

    works: Clockwork
    timed: Timed
    reach: Reach
    buffer: Float64[Array, " C"]


@lean
def _allowed(ground: Ground, path: Path, p: int, d: int) -> bool:
    """Tell whether a pair keeps to the supply and uses alike replicas in their order."""
    twin = ground.twin[p]
    if twin != NOBODY and path.used[p] == 0 and path.used[twin] == 0:
        return False
    twin = ground.twin[d]
    if d != p and twin not in (NOBODY, p) and path.used[d] == 0 and path.used[twin] == 0:
        return False
    for r in (p, d):
        new = 1 if path.used[r] == 0 else 0
        if r == p and d != p and path.used[d] == 0 and ground.kind[d] == ground.kind[p]:
            new += 1
        if path.on[ground.kind[r]] + new > ground.supply[ground.kind[r]]:
            return False
    return True


@lean
def _push(path: Path, options: Options, n: int, r: int, release_s: float, first: bool, tail: bool) -> float:
    """Add work to a replica; return the earliest end of all the work on it."""
    slot = path.size[r]
    path.size[r] += 1
    path.release_s[r, slot] = release_s
    latest_s = 0.0
    for v in range(len(options.first_s)):
        path.work_s[r, v, slot] = (options.first_s[v, n] if first else 0.0) + (options.tail_s[v, n] if tail else 0.0)
        for k in range(slot + 1):
            start_s = path.release_s[r, k]
            total_s = start_s
            for j in range(slot + 1):
                if path.release_s[r, j] >= start_s:
                    total_s += path.work_s[r, v, j]
            latest_s = max(latest_s, total_s)
    return latest_s


@lean
def _use(ground: Ground, path: Path, r: int) -> None:
    if path.used[r] == 0:
        path.on[ground.kind[r]] += 1
    path.used[r] += 1


@lean
def _enter(case: Case, aim: Aim, options: Options, ground: Ground, path: Path, c: int, n: int) -> float:
    """Place a conversation on a pair; return a lower bound on what can come of it."""
    p, d, arrival_s, limits = options.prefill[n], options.decode[n], case.turns.arrival_s[c], case.limits
    path.old_stay_s[c], path.old_move_s[c] = path.stay_s[p], path.move_s[p]
    begin_s = max(arrival_s, path.move_s[p])
    if p == d:
        begin_s = max(begin_s, path.stay_s[p])
    ready_s = begin_s + options.prefill_s[n]
    if p == d:
        path.stay_s[p] = max(path.stay_s[p], ready_s)
        done_s = _push(path, options, n, d, arrival_s, True, True)
    else:
        path.move_s[p] = ready_s
        done_s = _push(path, options, n, d, ready_s, False, True)
        if not ground.only_prefill[p]:
            done_s = max(done_s, _push(path, options, n, p, arrival_s, True, False))
    _use(ground, path, p)
    if d != p:
        _use(ground, path, d)
    answer_s, end_s = ready_s + options.answer_s[n] - arrival_s, ready_s + options.end_s[n]
    path.dynamic_j[c + 1] = path.dynamic_j[c] + options.joules[n]
    path.end_s[c + 1] = max(path.end_s[c], end_s, done_s if aim.code in (ENERGY, COST) else 0.0)
    late = ground.late[0] > 0
    path.answer_s[c + 1] = max(path.answer_s[c], 0.0 if late else max(answer_s, done_s - arrival_s))
    misses = answer_s > limits.ttfet_s[c] * (1 + 1e-9) or end_s - arrival_s > limits.e2e_s[c] * (1 + 1e-9)
    misses = misses or ready_s - arrival_s > limits.ttft_s[case.turns.first_turn[c]] * (1 + 1e-9)
    if aim.code == TTFET:
        misses = late and answer_s > path.best[0]
    path.missed[c + 1] = path.missed[c] + (1 if misses else 0)
    return _bound(aim, ground, path, c)


@lean
def _standing(ground: Ground, path: Path) -> float:
    """Return what the replicas take per second that are used so far."""
    total = ground.base[0]
    for r in range(len(path.used)):
        if path.used[r] > 0:
            total += ground.rate[r]
    return float(total)


@lean
def _bound(aim: Aim, ground: Ground, path: Path, c: int) -> float:
    if aim.code == TTFET:
        if ground.late[0] > 0:
            return np.inf if path.missed[c + 1] > ground.late[0] else 0.0
        return float(path.answer_s[c + 1])
    if aim.code == MISSES:
        return float(path.missed[c + 1])
    lasting = _standing(ground, path) * max(path.end_s[c + 1], ground.later_end_s[c + 1])
    return float(lasting + (path.dynamic_j[c + 1] + ground.later_j[c + 1] if aim.code == ENERGY else 0.0))


@lean
def _leave(options: Options, ground: Ground, path: Path, c: int, n: int) -> None:
    """Undo the last `_enter`."""
    p, d = options.prefill[n], options.decode[n]
    path.stay_s[p], path.move_s[p] = path.old_stay_s[c], path.old_move_s[c]
    path.size[d] -= 1
    if p != d and not ground.only_prefill[p]:
        path.size[p] -= 1
    path.used[p] -= 1
    if path.used[p] == 0:
        path.on[ground.kind[p]] -= 1
    if p == d:
        return
    path.used[d] -= 1
    if path.used[d] == 0:
        path.on[ground.kind[d]] -= 1


@lean
def _time(case: Case, aim: Aim, options: Options, ground: Ground, path: Path, tools: Tools) -> int:
    """Time the placement of all, keep it if it is the best; return the turns that were timed."""
    timed = tools.timed
    for c in range(len(path.option)):
        n = path.option[c] - 1
        if timed.prefill[c] != options.prefill[n] or timed.decode[c] != options.decode[n]:
            assign(timed, tools.reach, c, options.prefill[n], options.decode[n])
    work = retime(case, tools.works, timed, tools.reach)
    value, _ = score(aim, timed, tools.buffer)
    if aim.code in (ENERGY, COST):
        end_s = 0.0
        for c in range(len(path.option)):
            end_s = max(end_s, timed.end_s[c])
        value += _standing(ground, path) * end_s
    if value < path.best[0]:
        path.best[0] = value
        for c in range(len(path.option)):
            path.best_prefill[c], path.best_decode[c] = timed.prefill[c], timed.decode[c]
    return int(work)


@lean
def walk(case: Case, aim: Aim, options: Options, ground: Ground, path: Path, tools: Tools, work: int) -> int:
    """Go on with the walk until so much was done, or to its end (`Path.at` is -1); return what was done, in turns.

    Parameters
    ----------
    case, aim
        The problem; the aim without idle power and price, which `ground` has.
    options, ground, path, tools
        The pairs, what holds for all placements, where the walk is, and what it works with.
    work
        Turns to time (and pairs to try).
    """
    done, count = 0, len(path.option)
    while path.at[0] >= 0 and done < work:
        c = path.at[0]
        if c == count or path.option[c] == options.start[c + 1]:
            if c == count:
                done += _time(case, aim, options, ground, path, tools)
            else:
                path.option[c] = options.start[c]
            path.at[0] = c - 1
            if c > 0:
                _leave(options, ground, path, c - 1, path.option[c - 1] - 1)
            continue
        n = path.option[c]
        path.option[c] += 1
        done += 1
        if not _allowed(ground, path, options.prefill[n], options.decode[n]):
            continue
        if _enter(case, aim, options, ground, path, c, n) >= path.best[0] * (1 - 1e-10):
            _leave(options, ground, path, c, n)
        else:
            path.at[0] = c + 1
    return done
