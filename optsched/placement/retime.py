"""Time again only what a change of a placement can reach: the replicas that it touches, and those that they feed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from optsched.compiled import lean
from optsched.placement.clockwork import Clockwork, Schedule
from optsched.placement.queues import NOBODY, note
from optsched.placement.schedule import ADMIT, FIRST, run
from optsched.placement.step_time import Laws
from optsched.placement.tables import Pools, Turns

Array = np.ndarray


class Limits(NamedTuple):
    """The latency that each turn or conversation may have, in seconds; infinite where there is no target."""

    ttft_s: Float64[Array, " T"]
    tpot_s: Float64[Array, " T"]
    tbt_s: Float64[Array, " C"]
    ttfet_s: Float64[Array, " C"]
    e2e_s: Float64[Array, " C"]


class Case(NamedTuple):
    """A problem as compiled code reads it.

    Attributes
    ----------
    laws, turns, pools, limits
        Tables.
    move_j
        Energy of a transfer between two replicas per token.
    """

    laws: Laws
    turns: Turns
    pools: Pools
    limits: Limits
    move_j: Float64[Array, "R R"]


class Timed(NamedTuple):
    """A placement and what it leads to.

    Attributes
    ----------
    prefill, decode
        Replicas of each conversation; `NOBODY` for one that is not placed.
    schedule
        Times of those that are placed.
    ttfet_s, end_s, missed, moved_j
        Per conversation: arrival to first token of the last turn, moment of the last token, 1 if it misses a target, and
        the energy of its transfer.
    """

    prefill: Int64[Array, " C"]
    decode: Int64[Array, " C"]
    schedule: Schedule
    ttfet_s: Float64[Array, " C"]
    end_s: Float64[Array, " C"]
    missed: Int64[Array, " C"]
    moved_j: Float64[Array, " C"]


class Reach(NamedTuple):
    """What a change reaches.

    Attributes
    ----------
    touched
        Replicas whose schedule changes.
    active, members
        Those replicas, and the conversations that are timed again, as lists.
    sizes
        Lengths of the two lists.
    """

    touched: Bool[Array, " R"]
    active: Int64[Array, " R"]
    members: Int64[Array, " C"]
    sizes: Int64[Array, " 2"]


@lean
def assign(timed: Timed, reach: Reach, conversation: int, prefill: int, decode: int) -> None:
    """Place a conversation elsewhere (or nowhere: `NOBODY`), and mark the replicas whose queues change."""
    old_prefill, old_decode = timed.prefill[conversation], timed.decode[conversation]
    if old_prefill != NOBODY:
        reach.touched[old_decode] = True
    if decode != NOBODY:
        reach.touched[decode] = True
    if old_prefill != prefill:
        if old_prefill != NOBODY:
            reach.touched[old_prefill] = True
        if prefill != NOBODY:
            reach.touched[prefill] = True
    timed.prefill[conversation], timed.decode[conversation] = prefill, decode


@lean
def _close(timed: Timed, reach: Reach) -> None:
    """Mark the decoders of all that is prefilled on marked replicas, and list them."""
    grew = True
    while grew:
        grew = False
        for c in range(len(timed.prefill)):
            p = timed.prefill[c]
            if p != NOBODY and reach.touched[p] and not reach.touched[timed.decode[c]]:
                reach.touched[timed.decode[c]] = True
                grew = True
    count = 0
    for r in range(len(reach.touched)):
        if reach.touched[r]:
            reach.active[count] = r
            reach.touched[r] = False
            count += 1
    reach.sizes[0] = count


@lean
def _reset(case: Case, works: Clockwork, timed: Timed, reach: Reach) -> None:
    """Empty the replicas that are timed again."""
    state, out = works.state, timed.schedule
    works.events.size[0] = 0
    for k in range(reach.sizes[0]):
        r = reach.active[k]
        state.residents[r], state.cached[r], state.boundary_s[r] = 0, 0.0, np.inf
        state.run[r], state.chunk[r], state.free[r] = 0, 0, case.pools.have[r]
        works.jobs.head[r], works.waiting.head[r], works.joining.head[r] = NOBODY, NOBODY, NOBODY
        out.tokens[r], out.dynamic_j[r] = 0.0, 0.0


@lean
def _enlist(case: Case, works: Clockwork, timed: Timed, reach: Reach) -> int:
    """Note the first event of every conversation that is timed again; return the number of their turns."""
    state, turns, out = works.state, case.turns, timed.schedule
    for k in range(reach.sizes[0]):
        reach.touched[reach.active[k]] = True
    count, work = 0, 0
    for c in range(len(timed.prefill)):
        p, d = timed.prefill[c], timed.decode[c]
        if p == NOBODY or not (reach.touched[p] or reach.touched[d]):
            continue
        first, after = turns.first_turn[c], turns.first_turn[c + 1]
        if not reach.touched[p] and after == first + 1 and turns.outputs[first] == 1:
            continue  # it ends on its prefiller
        reach.members[count] = c
        count += 1
        work += after - first
        state.turn[c], state.done[c], state.left[c] = first, 0, 0
        out.admitted_s[c], out.moved_s[c], out.released_s[c] = np.nan, np.nan, np.nan
        out.turn_arrival_s[first] = turns.arrival_s[c]
        state.stage[c] = FIRST if reach.touched[p] else ADMIT
        note(works.events, turns.arrival_s[c] if reach.touched[p] else out.prefill_end_s[c], c)
    for k in range(reach.sizes[0]):
        reach.touched[reach.active[k]] = False
    reach.sizes[1] = count
    return work


@lean
def _misses(case: Case, timed: Timed, c: int) -> bool:
    """Tell whether a conversation misses a target, as `Latencies.misses` does."""
    turns, limits, out = case.turns, case.limits, timed.schedule
    last = turns.first_turn[c + 1] - 1
    for turn in range(turns.first_turn[c], last + 1):
        if out.first_token_s[turn] - out.turn_arrival_s[turn] > limits.ttft_s[turn]:
            return True
        if turns.outputs[turn] > 1:
            tpot_s = (out.end_s[turn] - out.first_token_s[turn]) / (turns.outputs[turn] - 1)
            if tpot_s > limits.tpot_s[turn] or (turn == last and tpot_s > limits.tbt_s[c]):
                return True
    return bool(timed.ttfet_s[c] > limits.ttfet_s[c] or timed.end_s[c] - turns.arrival_s[c] > limits.e2e_s[c])


@lean
def retime(case: Case, works: Clockwork, timed: Timed, reach: Reach) -> int:
    """Time again what the marked replicas reach; return the number of turns that this took.

    Parameters
    ----------
    case, works
        The problem, and a clockwork for it.
    timed
        The placement as it is now; its times are brought up to date.
    reach
        The marks that `assign` left; they are cleared.

    Notes
    -----
    The schedule of a replica depends on those that are prefilled or decoded there, and on the ends of the prefills that
    feed it. So the replicas that a change touches are timed again with all that they feed, from those ends on; no other one
    can differ, but for moments of unrelated replicas within a nanosecond, which the evaluator takes as one.
    """
    _close(timed, reach)
    _reset(case, works, timed, reach)
    work = _enlist(case, works, timed, reach)
    run(
        case.laws, case.turns, case.pools, timed.prefill, timed.decode, works, timed.schedule, reach.active, reach.sizes[0],
    )  # fmt: skip
    out, turns = timed.schedule, case.turns
    for k in range(reach.sizes[1]):
        c = reach.members[k]
        first, last = turns.first_turn[c], turns.first_turn[c + 1] - 1
        timed.ttfet_s[c], timed.end_s[c] = out.first_token_s[last] - turns.arrival_s[c], out.end_s[last]
        timed.missed[c] = 1 if _misses(case, timed, c) else 0
        moves = not np.isnan(out.moved_s[c]) and timed.prefill[c] != timed.decode[c]
        timed.moved_j[c] = case.move_j[timed.prefill[c], timed.decode[c]] * turns.tokens[first] if moves else 0.0
    return work


@lean
def copy_members(turns: Turns, source: Timed, target: Timed, members: Int64[Array, " C"], count: int) -> None:
    """Copy the placement and all times of the first `count` conversations of a list."""
    a, b = source.schedule, target.schedule
    for k in range(count):
        c = members[k]
        target.prefill[c], target.decode[c] = source.prefill[c], source.decode[c]
        target.ttfet_s[c], target.end_s[c] = source.ttfet_s[c], source.end_s[c]
        target.missed[c], target.moved_j[c] = source.missed[c], source.moved_j[c]
        b.prefill_start_s[c], b.prefill_end_s[c] = a.prefill_start_s[c], a.prefill_end_s[c]
        b.admitted_s[c], b.moved_s[c], b.released_s[c] = a.admitted_s[c], a.moved_s[c], a.released_s[c]
        for turn in range(turns.first_turn[c], turns.first_turn[c + 1]):
            b.turn_arrival_s[turn], b.first_token_s[turn], b.end_s[turn] = (
                a.turn_arrival_s[turn], a.first_token_s[turn], a.end_s[turn],
            )  # fmt: skip


@lean
def copy_replicas(source: Timed, target: Timed, replicas: Int64[Array, " R"], count: int) -> None:
    """Copy the totals of the first `count` replicas of a list."""
    for k in range(count):
        r = replicas[k]
        target.schedule.tokens[r] = source.schedule.tokens[r]
        target.schedule.dynamic_j[r] = source.schedule.dynamic_j[r]
