"""Where everyone stands while a placement is timed, and the times that come of it: plain arrays for compiled code."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from optsched.compiled import kernel
from optsched.placement.queues import Calendar, Queues, empty_calendar, empty_queues
from optsched.placement.tables import Pools, Turns

Array = np.ndarray


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


class Clockwork(NamedTuple):
    """All that moves while a placement is timed.

    Attributes
    ----------
    state, jobs, waiting, joining, events
        Where everyone stands; who waits for a prefill, for a pool's blocks, and for the next step; and what comes next.
    due
        Buffer for the conversations whose events are due.
    """

    state: State
    jobs: Queues
    waiting: Queues
    joining: Queues
    events: Calendar
    due: Int64[Array, " C"]


@kernel
def empty_schedule(conversations: int, turns: int, replicas: int) -> Schedule:
    """Return a schedule in which nothing has happened."""
    return Schedule(
        np.full(conversations, np.nan), np.full(conversations, np.nan), np.full(conversations, np.nan),
        np.full(conversations, np.nan), np.full(conversations, np.nan), np.full(turns, np.nan), np.full(turns, np.nan),
        np.full(turns, np.nan), np.zeros(replicas), np.zeros(replicas),
    )  # fmt: skip


@kernel
def _empty_state(turns: Turns, pools: Pools, conversations: int, replicas: int) -> State:
    stage, done, left = np.zeros(conversations, np.int64), np.zeros(conversations, np.int64), np.zeros(conversations, np.int64)
    return State(
        turns.first_turn[:conversations].copy(), stage, done, left, np.zeros((replicas, conversations), np.int64),
        np.zeros(replicas, np.int64), np.zeros(replicas), np.full(replicas, np.inf), np.zeros(replicas),
        np.zeros(replicas, np.int64), np.zeros(replicas, np.int64), pools.have.copy(),
    )  # fmt: skip


@kernel
def clockwork(turns: Turns, pools: Pools, conversations: int, replicas: int) -> Clockwork:
    """Return a clockwork in which nothing has been noted yet."""
    return Clockwork(
        _empty_state(turns, pools, conversations, replicas), empty_queues(conversations, replicas),
        empty_queues(conversations, replicas), empty_queues(conversations, replicas), empty_calendar(conversations),
        np.zeros(conversations, np.int64),
    )  # fmt: skip
