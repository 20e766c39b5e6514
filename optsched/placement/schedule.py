"""The compiled event loop of the evaluator ``event-v1``: what a placement leads to, step boundary by step boundary.

Rules, the whole of them:

1. A replica runs one step at a time; its duration is the step law of what is in it. All resident conversations that
   decode take part in every step and get one token each. Decode steps between two events are added up in closed form.
2. A step also carries at most one prefill chunk: of the job at the head of the replica's queue, first come, first
   served by the time at which it joined. First turns and later turns queue alike; a job is done chunk by chunk and yields
   its turn's first token with its last chunk.
3. A conversation decoded elsewhere joins the queue of its prefill replica at its arrival. One that stays (same replica)
   joins when it is admitted.
4. Admission: per decoder first come, first served by the end of the prefill (by the arrival for one that stays); it
   reserves the blocks of the conversation's peak context until its end; the first that does not fit stops those behind it.
5. Once admitted, the cache moves in ``latency + bytes / bandwidth``; transfers do not slow each other. A conversation that
   ends with its first token is not admitted and does not move.
6. A later turn arrives at the end of the turn before plus its gap.
7. Events inside a step wait for its end. What happens within a nanosecond happens at the same moment (the latest of them),
   conversations in the order of their index: rounding decides nothing.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from optsched.compiled import kernel, lean
from optsched.placement.clockwork import Clockwork, Schedule, State, clockwork, empty_schedule
from optsched.placement.queues import NOBODY, Calendar, Queues, next_s, note, pop, push, take_due
from optsched.placement.step_time import Laws, decode_run_j, decode_run_s, step_j, step_s, steps_until
from optsched.placement.tables import Pools, Turns

Array = np.ndarray

FIRST, ADMIT, MOVED, LATER, OVER = 0, 1, 2, 3, 4
MOMENT_S = 1e-9


@lean
def _settle(state: State, turns: Turns, replica: int, conversation: int) -> None:
    """Let a conversation decode the rest of its turn on a replica."""
    turn = state.turn[conversation]
    state.left[conversation] = turns.outputs[turn] - 1
    state.resident[replica, state.residents[replica]] = conversation
    state.residents[replica] += 1
    state.cached[replica] += turns.cached[turn] + turns.tokens[turn]


@lean
def _end_turn(state: State, turns: Turns, out: Schedule, need: int, replica: int, conversation: int, now_s: float) -> float:
    """End a conversation's turn; return when its next one arrives, or -1 after releasing what the whole one held."""
    turn = state.turn[conversation]
    out.end_s[turn] = now_s
    if turn + 1 < turns.first_turn[conversation + 1]:
        state.turn[conversation] = turn + 1
        state.done[conversation] = 0
        state.stage[conversation] = LATER
        out.turn_arrival_s[turn + 1] = now_s + turns.gap_s[turn + 1]
        return float(now_s + turns.gap_s[turn + 1])
    state.stage[conversation] = OVER
    out.released_s[conversation] = now_s
    if not np.isnan(out.admitted_s[conversation]):
        state.free[replica] += need
    return -1.0


@lean
def _start(
    laws: Laws, turns: Turns, chunks: Int64[Array, " R"], state: State, jobs: Queues, joining: Queues, out: Schedule,
    replica: int, now_s: float,
) -> None:  # fmt: skip
    """Start the next step of an idle replica, or a run of decode steps up to the first end of a turn."""
    while joining.head[replica] != NOBODY:
        _settle(state, turns, replica, joining.head[replica])
        pop(joining, replica)
    job, count, cached = jobs.head[replica], state.residents[replica], state.cached[replica]
    if job != NOBODY:
        turn = state.turn[job]
        chunk = min(chunks[replica], turns.tokens[turn] - state.done[job])
        context = float(turns.cached[turn] + state.done[job])
        tokens, pairs = float(count + chunk), chunk * (context + 0.5 * chunk)
        if turn == turns.first_turn[job] and state.done[job] == 0:
            out.prefill_start_s[job] = now_s
        state.run[replica], state.chunk[replica] = 1, chunk
        state.boundary_s[replica] = now_s + step_s(laws, replica, tokens, pairs, context, cached, count + 1.0, 0.0)
        # a step with a chunk is never cut short, a run of decode steps may be: its energy is booked at its end
        out.dynamic_j[replica] += step_j(laws, replica, tokens, pairs, context, cached, count + 1.0, 0.0)
    elif count > 0:
        run = state.left[state.resident[replica, 0]]
        for slot in range(1, count):
            run = min(run, state.left[state.resident[replica, slot]])
        state.run[replica], state.chunk[replica] = run, 0
        state.boundary_s[replica] = now_s + decode_run_s(laws, replica, count, cached, run)
    else:
        return
    state.start_s[replica] = now_s


@lean
def _cut(laws: Laws, state: State, replica: int, now_s: float) -> None:
    """Shorten a run of decode steps to the first step boundary at or after now."""
    if state.chunk[replica] > 0 or state.run[replica] <= 1 or state.boundary_s[replica] <= now_s:
        return
    count, cached, start = state.residents[replica], state.cached[replica], state.start_s[replica]
    run = steps_until(laws, replica, count, cached, state.run[replica], now_s - start - MOMENT_S)
    state.run[replica] = run
    state.boundary_s[replica] = max(now_s, start + decode_run_s(laws, replica, count, cached, run))


@lean
def _finish(
    laws: Laws, turns: Turns, need: Int64[Array, " C"], decode: Int64[Array, " C"], state: State, jobs: Queues, out: Schedule,
    events: Calendar, replica: int,
) -> None:  # fmt: skip
    """Book the step or run that ends now: tokens, ends of turns, the prefill chunk."""
    now_s, run, chunk, count = state.boundary_s[replica], state.run[replica], state.chunk[replica], state.residents[replica]
    state.boundary_s[replica] = np.inf
    out.tokens[replica] += float(run) * count + chunk
    if chunk == 0:
        out.dynamic_j[replica] += decode_run_j(laws, replica, count, state.cached[replica], run)
    state.cached[replica] += float(run) * count
    slot = 0
    while slot < state.residents[replica]:
        conversation = state.resident[replica, slot]
        state.left[conversation] -= run
        if state.left[conversation] > 0:
            slot += 1
            continue
        turn = state.turn[conversation]
        state.cached[replica] -= turns.cached[turn] + turns.tokens[turn] + turns.outputs[turn] - 1
        state.residents[replica] -= 1
        state.resident[replica, slot] = state.resident[replica, state.residents[replica]]
        later = _end_turn(state, turns, out, need[conversation], replica, conversation, now_s)
        if later >= 0.0:
            note(events, later, conversation)
    if chunk == 0:
        return
    job = jobs.head[replica]
    turn = state.turn[job]
    state.done[job] += chunk
    if state.done[job] < turns.tokens[turn]:
        return
    pop(jobs, replica)
    out.first_token_s[turn] = now_s
    first, only = turn == turns.first_turn[job], turn + 1 == turns.first_turn[job + 1]
    if first:
        out.prefill_end_s[job] = now_s
    if first and decode[job] != replica and not (only and turns.outputs[turn] == 1):
        state.stage[job] = ADMIT
        note(events, now_s, job)
    elif turns.outputs[turn] > 1:
        _settle(state, turns, replica, job)
    else:
        later = _end_turn(state, turns, out, need[job], replica, job, now_s)
        if later >= 0.0:
            note(events, later, job)


@lean
def _admit(
    turns: Turns, pools: Pools, prefill: Int64[Array, " C"], state: State, jobs: Queues, waiting: Queues, out: Schedule,
    events: Calendar, replica: int, now_s: float,
) -> bool:  # fmt: skip
    """Admit conversations to a decoder in their order while they fit; tell whether its prefill queue grew."""
    grew = False
    while waiting.head[replica] != NOBODY:
        conversation = waiting.head[replica]
        if pools.need[conversation] > state.free[replica]:
            break
        pop(waiting, replica)
        state.free[replica] -= pools.need[conversation]
        out.admitted_s[conversation] = now_s
        source = prefill[conversation]
        if source == replica:
            out.moved_s[conversation] = now_s
            push(jobs, replica, conversation)
            grew = True
        else:
            first = turns.tokens[turns.first_turn[conversation]]
            moved_s = now_s + pools.latency_s[source, replica] + pools.s_per_token[source, replica] * first
            state.stage[conversation] = MOVED
            note(events, moved_s, conversation)
    return grew


@lean
def _happen(
    turns: Turns, prefill: Int64[Array, " C"], decode: Int64[Array, " C"], state: State, jobs: Queues, waiting: Queues,
    joining: Queues, out: Schedule, events: Calendar, conversation: int, now_s: float,
) -> int:  # fmt: skip
    """Handle a conversation's event; return the replica whose queue or residents it changed, or `NOBODY`."""
    source, target, stage = prefill[conversation], decode[conversation], state.stage[conversation]
    turn = state.turn[conversation]
    if stage == FIRST and source != target:
        push(jobs, source, conversation)
        return int(source)
    if stage in (FIRST, ADMIT):
        push(waiting, target, conversation)
        return NOBODY
    if stage == MOVED:
        out.moved_s[conversation] = now_s
        if turns.outputs[turn] > 1:
            push(joining, target, conversation)
            return int(target)
        # the first token was the turn's last: the turn ended at the prefill, and the next one needs the cache here
        later = _end_turn(state, turns, out, 0, target, conversation, out.first_token_s[turn])
        note(events, max(later, now_s), conversation)
        return NOBODY
    push(jobs, target, conversation)
    return int(target)


@lean
def _settle_moment(
    laws: Laws, turns: Turns, pools: Pools, prefill: Int64[Array, " C"], decode: Int64[Array, " C"], works: Clockwork,
    out: Schedule, active: Int64[Array, " A"], count: int, limit_s: float, now_s: float,
) -> float:  # fmt: skip
    """Handle the events of a moment and all that they bring about at once; return its time."""
    state, jobs, waiting, joining, events, due = works
    while True:
        number, now_s = take_due(events, due, limit_s, now_s)
        for k in range(number):
            r = _happen(turns, prefill, decode, state, jobs, waiting, joining, out, events, due[k], now_s)
            if r != NOBODY and state.boundary_s[r] < np.inf:
                _cut(laws, state, r, now_s)
        for k in range(count):
            r = active[k]
            if waiting.head[r] == NOBODY:
                continue
            if _admit(turns, pools, prefill, state, jobs, waiting, out, events, r, now_s) and state.boundary_s[r] < np.inf:
                _cut(laws, state, r, now_s)
        if next_s(events) > limit_s:
            return now_s


@lean
def run(
    laws: Laws, turns: Turns, pools: Pools, prefill: Int64[Array, " C"], decode: Int64[Array, " C"], works: Clockwork,
    out: Schedule, active: Int64[Array, " A"], count: int,
) -> None:  # fmt: skip
    """Let everything noted in the events happen on the first `count` replicas of `active`, to the last token.

    Parameters
    ----------
    laws, turns, pools, prefill, decode
        As for `place`.
    works, out
        Where everything stands, and where the times go.
    active, count
        The replicas that take part; no event may lead to another one.
    """
    state, jobs, joining, events = works.state, works.jobs, works.joining, works.events
    while True:
        now_s = next_s(events)
        for k in range(count):
            now_s = min(now_s, state.boundary_s[active[k]])
        if now_s == np.inf:
            return
        limit_s = now_s + MOMENT_S
        for k in range(count):
            r = active[k]
            if state.boundary_s[r] <= limit_s:
                now_s = max(now_s, state.boundary_s[r])
                _finish(laws, turns, pools.need, decode, state, jobs, out, events, r)
        now_s = _settle_moment(laws, turns, pools, prefill, decode, works, out, active, count, limit_s, now_s)
        for k in range(count):
            r = active[k]
            busy = jobs.head[r] != NOBODY or joining.head[r] != NOBODY or state.residents[r] > 0
            if busy and state.boundary_s[r] == np.inf:
                _start(laws, turns, pools.chunk, state, jobs, joining, out, r, now_s)


@kernel
def place(
    laws: Laws, turns: Turns, pools: Pools, prefill: Int64[Array, " C"], decode: Int64[Array, " C"], count: int
) -> Schedule:
    """Return what the placement of the first `count` conversations leads to.

    Parameters
    ----------
    laws, turns, pools
        The problem.
    prefill, decode
        Replicas of each conversation; entries beyond `count` are not read.
    count
        How many conversations there are, in order of arrival.
    """
    replicas = len(pools.have)
    out = empty_schedule(count, turns.first_turn[count], replicas)
    works = clockwork(turns, pools, count, replicas)
    for c in range(count):
        note(works.events, turns.arrival_s[c], c)
        out.turn_arrival_s[turns.first_turn[c]] = turns.arrival_s[c]
    run(laws, turns, pools, prefill, decode, works, out, np.arange(replicas), replicas)
    return out
