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

import heapq
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from optsched.compiled import kernel
from optsched.placement.step_time import Laws, decode_run_j, decode_run_s, step_j, step_s, steps_until
from optsched.placement.tables import Pools, Turns

Array = np.ndarray

FIRST, ADMIT, MOVED, LATER, OVER = 0, 1, 2, 3, 4
NOBODY = -1
MOMENT_S = 1e-9


class Schedule(NamedTuple):
    """When everything happened, and what the replicas did in all; NaN for what never happened.

    Attributes
    ----------
    prefill_start_s, prefill_end_s
        First turns.
    admitted_s, moved_s, released_s
        When the decoder's blocks were reserved, when the cache was there, and when the blocks were given back.
    turn_arrival_s, first_token_s, end_s
        Per turn.
    tokens, dynamic_j
        Per replica: tokens computed, and energy above idle by the step law.
    """

    prefill_start_s: Float64[Array, " C"]
    prefill_end_s: Float64[Array, " C"]
    admitted_s: Float64[Array, " C"]
    moved_s: Float64[Array, " C"]
    released_s: Float64[Array, " C"]
    turn_arrival_s: Float64[Array, " T"]
    first_token_s: Float64[Array, " T"]
    end_s: Float64[Array, " T"]
    tokens: Float64[Array, " R"]
    dynamic_j: Float64[Array, " R"]


class Queues(NamedTuple):
    """First-in-first-out queues of conversations, one per replica, as linked lists."""

    head: Int64[Array, " R"]
    tail: Int64[Array, " R"]
    after: Int64[Array, " C"]


class State(NamedTuple):
    """Where every conversation and replica stands.

    Attributes
    ----------
    turn, stage, done, left
        Per conversation: current turn, kind of its next event, prefilled tokens of the turn, output tokens still to decode.
    resident, residents
        Per replica: the conversations that decode, and their number.
    cached
        Per replica: tokens of cache that the residents read in the next step.
    boundary_s, start_s, run, chunk
        Per replica: end and start of what it is doing (infinite: nothing), its steps, and tokens of the prefill chunk in it.
    free
        Per replica: KV blocks not reserved.
    """

    turn: Int64[Array, " C"]
    stage: Int64[Array, " C"]
    done: Int64[Array, " C"]
    left: Int64[Array, " C"]
    resident: Int64[Array, "R C"]
    residents: Int64[Array, " R"]
    cached: Float64[Array, " R"]
    boundary_s: Float64[Array, " R"]
    start_s: Float64[Array, " R"]
    run: Int64[Array, " R"]
    chunk: Int64[Array, " R"]
    free: Int64[Array, " R"]


@kernel
def _push(queues: Queues, replica: int, conversation: int) -> None:
    queues.after[conversation] = NOBODY
    if queues.head[replica] == NOBODY:
        queues.head[replica] = conversation
    else:
        queues.after[queues.tail[replica]] = conversation
    queues.tail[replica] = conversation


@kernel
def _pop(queues: Queues, replica: int) -> None:
    queues.head[replica] = queues.after[queues.head[replica]]


@kernel
def _settle(state: State, turns: Turns, replica: int, conversation: int) -> None:
    """Let a conversation decode the rest of its turn on a replica."""
    turn = state.turn[conversation]
    state.left[conversation] = turns.outputs[turn] - 1
    state.resident[replica, state.residents[replica]] = conversation
    state.residents[replica] += 1
    state.cached[replica] += turns.cached[turn] + turns.tokens[turn]


@kernel
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


@kernel
def _start(
    laws: Laws, turns: Turns, chunks: Int64[Array, " R"], state: State, jobs: Queues, joining: Queues, out: Schedule,
    replica: int, now_s: float,
) -> None:  # fmt: skip
    """Start the next step of an idle replica, or a run of decode steps up to the first end of a turn."""
    while joining.head[replica] != NOBODY:
        _settle(state, turns, replica, joining.head[replica])
        _pop(joining, replica)
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


@kernel
def _cut(laws: Laws, state: State, replica: int, now_s: float) -> None:
    """Shorten a run of decode steps to the first step boundary at or after now."""
    if state.chunk[replica] > 0 or state.run[replica] <= 1 or state.boundary_s[replica] <= now_s:
        return
    count, cached, start = state.residents[replica], state.cached[replica], state.start_s[replica]
    run = steps_until(laws, replica, count, cached, state.run[replica], now_s - start - MOMENT_S)
    state.run[replica] = run
    state.boundary_s[replica] = max(now_s, start + decode_run_s(laws, replica, count, cached, run))


@kernel
def _finish(
    laws: Laws, turns: Turns, need: Int64[Array, " C"], decode: Int64[Array, " C"], state: State, jobs: Queues, out: Schedule,
    events: list[tuple[float, int]], replica: int,
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
            heapq.heappush(events, (later, conversation))
    if chunk == 0:
        return
    job = jobs.head[replica]
    turn = state.turn[job]
    state.done[job] += chunk
    if state.done[job] < turns.tokens[turn]:
        return
    _pop(jobs, replica)
    out.first_token_s[turn] = now_s
    first, only = turn == turns.first_turn[job], turn + 1 == turns.first_turn[job + 1]
    if first:
        out.prefill_end_s[job] = now_s
    if first and decode[job] != replica and not (only and turns.outputs[turn] == 1):
        state.stage[job] = ADMIT
        heapq.heappush(events, (now_s, job))
    elif turns.outputs[turn] > 1:
        _settle(state, turns, replica, job)
    else:
        later = _end_turn(state, turns, out, need[job], replica, job, now_s)
        if later >= 0.0:
            heapq.heappush(events, (later, job))


@kernel
def _admit(
    turns: Turns, pools: Pools, prefill: Int64[Array, " C"], state: State, jobs: Queues, waiting: Queues, out: Schedule,
    events: list[tuple[float, int]], replica: int, now_s: float,
) -> bool:  # fmt: skip
    """Admit conversations to a decoder in their order while they fit; tell whether its prefill queue grew."""
    grew = False
    while waiting.head[replica] != NOBODY:
        conversation = waiting.head[replica]
        if pools.need[conversation] > state.free[replica]:
            break
        _pop(waiting, replica)
        state.free[replica] -= pools.need[conversation]
        out.admitted_s[conversation] = now_s
        source = prefill[conversation]
        if source == replica:
            out.moved_s[conversation] = now_s
            _push(jobs, replica, conversation)
            grew = True
        else:
            first = turns.tokens[turns.first_turn[conversation]]
            moved_s = now_s + pools.latency_s[source, replica] + pools.s_per_token[source, replica] * first
            state.stage[conversation] = MOVED
            heapq.heappush(events, (moved_s, conversation))
    return grew


@kernel
def _happen(
    turns: Turns, prefill: Int64[Array, " C"], decode: Int64[Array, " C"], state: State, jobs: Queues, waiting: Queues,
    joining: Queues, out: Schedule, events: list[tuple[float, int]], conversation: int, now_s: float,
) -> int:  # fmt: skip
    """Handle a conversation's event; return the replica whose queue or residents it changed, or `NOBODY`."""
    source, target, stage = prefill[conversation], decode[conversation], state.stage[conversation]
    turn = state.turn[conversation]
    if stage == FIRST and source != target:
        _push(jobs, source, conversation)
        return int(source)
    if stage in (FIRST, ADMIT):
        _push(waiting, target, conversation)
        return NOBODY
    if stage == MOVED:
        out.moved_s[conversation] = now_s
        if turns.outputs[turn] > 1:
            _push(joining, target, conversation)
            return int(target)
        # the first token was the turn's last: the turn ended at the prefill, and the next one needs the cache here
        later = _end_turn(state, turns, out, 0, target, conversation, out.first_token_s[turn])
        heapq.heappush(events, (max(later, now_s), conversation))
        return NOBODY
    _push(jobs, target, conversation)
    return int(target)


@kernel
def _empty_schedule(conversations: int, turns: int, replicas: int) -> Schedule:
    return Schedule(
        np.full(conversations, np.nan), np.full(conversations, np.nan), np.full(conversations, np.nan),
        np.full(conversations, np.nan), np.full(conversations, np.nan), np.full(turns, np.nan), np.full(turns, np.nan),
        np.full(turns, np.nan), np.zeros(replicas), np.zeros(replicas),
    )  # fmt: skip


@kernel
def _empty_queues(conversations: int, replicas: int) -> Queues:
    return Queues(np.full(replicas, NOBODY), np.full(replicas, NOBODY), np.full(conversations, NOBODY))


@kernel
def _empty_state(turns: Turns, pools: Pools, conversations: int, replicas: int) -> State:
    stage, done, left = np.zeros(conversations, np.int64), np.zeros(conversations, np.int64), np.zeros(conversations, np.int64)
    return State(
        turns.first_turn[:conversations].copy(), stage, done, left, np.zeros((replicas, conversations), np.int64),
        np.zeros(replicas, np.int64), np.zeros(replicas), np.full(replicas, np.inf), np.zeros(replicas),
        np.zeros(replicas, np.int64), np.zeros(replicas, np.int64), pools.have.copy(),
    )  # fmt: skip


@kernel
def _take_due(events: list[tuple[float, int]], due: list[int], limit_s: float, now_s: float) -> float:
    """Move the conversations whose events are due into `due`, in order of their index; return the latest of the times."""
    due.clear()
    while len(events) > 0 and events[0][0] <= limit_s:
        time_s, conversation = heapq.heappop(events)
        now_s = max(now_s, time_s)
        due.append(conversation)
    due.sort()
    return now_s


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
    state = _empty_state(turns, pools, count, replicas)
    out = _empty_schedule(count, turns.first_turn[count], replicas)
    jobs, waiting, joining = _empty_queues(count, replicas), _empty_queues(count, replicas), _empty_queues(count, replicas)
    due = [NOBODY]
    # Not a comprehension: numba 0.68 drops a loop that follows one over the same range.
    events = [(np.inf, NOBODY)]
    events.clear()
    for c in range(count):
        events.append((turns.arrival_s[c], c))
        out.turn_arrival_s[turns.first_turn[c]] = turns.arrival_s[c]
    while True:
        now_s = events[0][0] if len(events) > 0 else np.inf
        for r in range(replicas):
            now_s = min(now_s, state.boundary_s[r])
        if now_s == np.inf:
            return out
        limit_s = now_s + MOMENT_S
        for r in range(replicas):
            if state.boundary_s[r] <= limit_s:
                now_s = max(now_s, state.boundary_s[r])
                _finish(laws, turns, pools.need, decode, state, jobs, out, events, r)
        while True:
            now_s = _take_due(events, due, limit_s, now_s)
            for c in due:
                r = _happen(turns, prefill, decode, state, jobs, waiting, joining, out, events, c, now_s)
                if r != NOBODY and state.boundary_s[r] < np.inf:
                    _cut(laws, state, r, now_s)
            for r in range(replicas):
                if waiting.head[r] == NOBODY:
                    continue
                if _admit(turns, pools, prefill, state, jobs, waiting, out, events, r, now_s) and state.boundary_s[r] < np.inf:
                    _cut(laws, state, r, now_s)
            if len(events) == 0 or events[0][0] > limit_s:
                break
        for r in range(replicas):
            busy = jobs.head[r] != NOBODY or joining.head[r] != NOBODY or state.residents[r] > 0
            if busy and state.boundary_s[r] == np.inf:
                _start(laws, turns, pools.chunk, state, jobs, joining, out, r, now_s)
