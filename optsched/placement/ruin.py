"""Large-neighbourhood search, compiled: take a few conversations out, put each back where it is best, keep what is good."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from optsched.compiled import lean
from optsched.placement.clockwork import Clockwork
from optsched.placement.queues import NOBODY
from optsched.placement.retime import Case, Reach, Timed, assign, copy_members, copy_replicas, retime
from optsched.placement.score import MISSES, TTFET, Aim, score

Array = np.ndarray
TRIED = 3
"""Pairs of which the most promising is tried, where there are too many to try all."""
MOST = 8
"""Conversations that are taken out together at most."""


class Choices(NamedTuple):
    """The pairs that each conversation may go to, one after the other.

    Attributes
    ----------
    start
        Where each conversation's pairs begin.
    prefill, decode
        The pairs.
    """

    start: Int64[Array, " C+1"]
    prefill: Int64[Array, " N"]
    decode: Int64[Array, " N"]


class Spoiled(NamedTuple):
    """Conversations and replicas that may differ from those of the placement that is kept."""

    conversation: Bool[Array, " C"]
    replica: Bool[Array, " R"]
    members: Int64[Array, " C"]
    active: Int64[Array, " R"]


class Bench(NamedTuple):
    """What the search works on.

    Attributes
    ----------
    works, reach, spoiled, buffer
        Buffers.
    kept, known, trial
        The current placement; what is left of it once some are taken out; and the one that is tried.
    best_prefill, best_decode, best
        The best placement so far, and its score: objective and mean TTFET.
    out
        Conversations that are taken out.
    draws, cursor
        Random numbers in [0, 1), and how many are used.
    """

    works: Clockwork
    reach: Reach
    spoiled: Spoiled
    buffer: Float64[Array, " C"]
    kept: Timed
    known: Timed
    trial: Timed
    best_prefill: Int64[Array, " C"]
    best_decode: Int64[Array, " C"]
    best: Float64[Array, " 2"]
    out: Int64[Array, " K"]
    draws: Float64[Array, " U"]
    cursor: Int64[Array, " 1"]


@lean
def _draw(bench: Bench, count: int) -> int:
    """Return a random integer from 0 to before `count`."""
    value = bench.draws[bench.cursor[0] % len(bench.draws)]
    bench.cursor[0] += 1
    return min(int(value * count), count - 1)


@lean
def _settle(case: Case, bench: Bench) -> None:
    """Make what was just timed known, and remember what it touched."""
    reach, spoiled = bench.reach, bench.spoiled
    copy_members(case.turns, bench.trial, bench.known, reach.members, reach.sizes[1])
    copy_replicas(bench.trial, bench.known, reach.active, reach.sizes[0])
    for k in range(reach.sizes[1]):
        spoiled.conversation[reach.members[k]] = True
    for k in range(reach.sizes[0]):
        spoiled.replica[reach.active[k]] = True


@lean
def _conclude(case: Case, bench: Bench, accept: bool) -> None:
    """Keep what is known now, or go back to what was kept."""
    spoiled, conversations, replicas = bench.spoiled, 0, 0
    for c in range(len(spoiled.conversation)):
        if spoiled.conversation[c]:
            spoiled.conversation[c] = False
            spoiled.members[conversations] = c
            conversations += 1
    for r in range(len(spoiled.replica)):
        if spoiled.replica[r]:
            spoiled.replica[r] = False
            spoiled.active[replicas] = r
            replicas += 1
    if accept:
        copy_members(case.turns, bench.known, bench.kept, spoiled.members, conversations)
        copy_replicas(bench.known, bench.kept, spoiled.active, replicas)
        return
    for target in (bench.known, bench.trial):
        copy_members(case.turns, bench.kept, target, spoiled.members, conversations)
        copy_replicas(bench.kept, target, spoiled.active, replicas)


@lean
def _pick(aim: Aim, bench: Bench, count: int) -> int:
    """Choose who is taken out: one who is late (or ends late), and neighbours of its arrival or of its replica."""
    conversations = len(bench.kept.prefill)
    first = _draw(bench, conversations)
    if _draw(bench, 2) == 0:
        for _ in range(3):
            other = _draw(bench, conversations)
            late = bench.kept.ttfet_s if aim.code in (TTFET, MISSES) else bench.kept.end_s
            if late[other] > late[first]:
                first = other
    bench.out[0] = first
    found, span = 1, 4 * len(bench.reach.touched)
    for _ in range(4 * count):
        if found == count:
            break
        other = first - span + _draw(bench, 2 * span + 1)
        if _draw(bench, 4) == 0:
            other = _draw(bench, conversations)
        new = 0 <= other < conversations
        for k in range(found):
            new = new and bench.out[k] != other
        if new:
            bench.out[found] = other
            found += 1
    return found


@lean
def _better(a: float, b: float, c: float, d: float) -> bool:
    """Tell whether score (a, b) is better than (c, d); rounding decides nothing."""
    close = 1e-12 * (abs(a) + abs(c))
    return bool(a < c - close or (a <= c + close and b < d))


@lean
def _neighbour_s(bench: Bench, conversation: int, replica: int) -> float:
    """Return the TTFET of whoever arrived nearest to a conversation on a replica: how crowded it is then."""
    count, span = len(bench.known.prefill), 6 * len(bench.reach.touched)
    for offset in range(1, span):
        for other in (conversation - offset, conversation + offset):
            if 0 <= other < count and bench.known.decode[other] == replica:
                return float(bench.known.ttfet_s[other])
    return 0.0


@lean
def _promising(choices: Choices, bench: Bench, conversation: int) -> int:
    """Return of a few random pairs the one whose decoder is least crowded about the conversation's arrival."""
    start, end = choices.start[conversation], choices.start[conversation + 1]
    best, least_s = start, np.inf
    for _ in range(TRIED):
        option = start + _draw(bench, end - start)
        crowd_s = _neighbour_s(bench, conversation, choices.decode[option])
        if crowd_s < least_s:
            best, least_s = option, crowd_s
    return int(best)


@lean
def put_back(case: Case, aim: Aim, choices: Choices, bench: Bench, conversation: int, most: int) -> int:
    """Place one conversation where the score is best; of many pairs a random choice is tried. Return the turns timed."""
    start, end = choices.start[conversation], choices.start[conversation + 1]
    work, chosen, value, mean = 0, start, np.inf, np.inf
    first = _draw(bench, end - start)
    for k in range(min(most, end - start)):
        option = start + (first + k) % (end - start) if end - start <= most else _promising(choices, bench, conversation)
        assign(bench.trial, bench.reach, conversation, choices.prefill[option], choices.decode[option])
        work += retime(case, bench.works, bench.trial, bench.reach)
        found, found_mean = score(aim, bench.trial, bench.buffer)
        if _better(found, found_mean, value, mean):
            chosen, value, mean = option, found, found_mean
        copy_members(case.turns, bench.known, bench.trial, bench.reach.members, bench.reach.sizes[1])
        copy_replicas(bench.known, bench.trial, bench.reach.active, bench.reach.sizes[0])
    return work + settle_on(case, bench, conversation, choices.prefill[chosen], choices.decode[chosen])


@lean
def settle_on(case: Case, bench: Bench, conversation: int, prefill: int, decode: int) -> int:
    """Place a conversation that is out on a pair, and time it; return the turns timed."""
    assign(bench.trial, bench.reach, conversation, prefill, decode)
    work = retime(case, bench.works, bench.trial, bench.reach)
    _settle(case, bench)
    return work


@lean
def take_out(case: Case, bench: Bench, count: int) -> int:
    """Take the first `count` conversations of `out` out; return the turns timed."""
    for k in range(count):
        c = bench.out[k]
        assign(bench.trial, bench.reach, c, NOBODY, NOBODY)
        bench.known.prefill[c], bench.known.decode[c] = NOBODY, NOBODY
        bench.known.moved_j[c], bench.trial.moved_j[c] = 0.0, 0.0
        bench.spoiled.conversation[c] = True
    work = retime(case, bench.works, bench.trial, bench.reach)
    _settle(case, bench)
    return work


@lean
def search(case: Case, aim: Aim, choices: Choices, bench: Bench, work: int, slack: float, most: int) -> int:
    """Ruin and recreate until so many turns were timed; return how many were.

    Parameters
    ----------
    slack
        A placement is kept whose objective is at most this share above the best, with a mean TTFET that is as well.
    most
        Pairs that are tried for each conversation.
    """
    done = 0
    while done < work:
        count = _pick(aim, bench, 1 + _draw(bench, min(MOST, len(bench.kept.prefill), len(bench.out))))
        done += take_out(case, bench, count)
        for k in range(count):
            done += put_back(case, aim, choices, bench, bench.out[k], most)
        value, mean = score(aim, bench.known, bench.buffer)
        if _better(value, mean, bench.best[0], bench.best[1]):
            bench.best[0], bench.best[1] = value, mean
            for c in range(len(bench.best_prefill)):
                bench.best_prefill[c], bench.best_decode[c] = bench.known.prefill[c], bench.known.decode[c]
        limit = bench.best[0] + slack * max(bench.best[0], 1.0 if aim.code == MISSES else 0.0)
        keep = value <= limit and (slack > 0.0 or not _better(bench.best[0], bench.best[1], value, mean))
        _conclude(case, bench, keep)
        done += 8 * count + len(bench.kept.prefill) // 16  # bookkeeping, so that the work always grows
    return done
