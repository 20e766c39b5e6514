"""Everything the event loop knows, as arrays that compiled code and Python share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int64

from optsched.batching.state import Decision, Requests
from optsched.placement.step_time import Laws
from optsched.simulator.heap import Heap

Array = np.ndarray
NOWHERE, QUEUED, MOVING, BLOCKED, DONE = 0, 1, 2, 3, 4
ARRIVED, TURN_ARRIVED, PREFILLED, FINISHED, EVICTED, PREEMPTED, ROOM, TURN_STAYED, CROWDED, STARVED = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9


class Replicas(NamedTuple):
    """The R replicas: their pools, limits, queues, and what they are doing.

    Attributes
    ----------
    queue, counts
        Slots in the segments running, waiting, idle (see `optsched.batching.state`), and the segments' sizes.
    host, busy_on_host
        Index of the replica's shared host (-1: its own machine), and replicas in a step per host.
    blocked
        Hand-overs that wait for room in the replica's pool.
    woken
        Whether a step should be tried at the next opportunity.
    refused
        Whether the last step took all that ran and nobody who waits, and nobody has come or gone since who could change that.
    first_come
        Whether the batching policy admits nobody past one who waits longer.
    run, run_start_s
        Steps of the uneventful run that the replica is in, not settled yet (see `optsched.simulator.coast`); 0: none. And when
        the first of them started.
    due, stale
        Serial number of the event that ends the replica's step or run, and how many in the heap no longer do.
    law
        Step laws as policies see them (`optsched.batching.step_time.law_rows`).
    """

    prefill_only: Bool[Array, " R"]
    free_blocks: Int64[Array, " R"]
    total_blocks: Int64[Array, " R"]
    watermark_blocks: Int64[Array, " R"]
    max_batched_tokens: Int64[Array, " R"]
    queue: Int64[Array, "R C"]
    counts: Int64[Array, "R 3"]
    busy: Bool[Array, " R"]
    woken: Bool[Array, " R"]
    refused: Bool[Array, " R"]
    first_come: Bool[Array, " R"]
    scheduled: Int64[Array, "R C"]
    num_scheduled: Int64[Array, " R"]
    host: Int64[Array, " R"]
    busy_on_host: Int64[Array, " hosts"]
    blocked: Int64[Array, " R"]
    dynamic_j: Float64[Array, " R"]
    run: Int64[Array, " R"]
    run_start_s: Float64[Array, " R"]
    due: Int64[Array, " R"]
    stale: Int64[Array, " R"]
    law: Float64[Array, "R L"]


class Turns(NamedTuple):
    """The workload and what was recorded of each of its turns (see `optsched.domain.log.ExecutionLog`)."""

    first_turn: Int64[Array, " C+1"]
    new_tokens: Int64[Array, " T"]
    output_tokens: Int64[Array, " T"]
    gap_s: Float64[Array, " T"]
    token_offset: Int64[Array, " T"]
    arrival_s: Float64[Array, " T"]
    start_s: Float64[Array, " T"]
    first_token_s: Float64[Array, " T"]
    end_s: Float64[Array, " T"]
    prefill_replica: Int64[Array, " T"]
    decode_replica: Int64[Array, " T"]
    token_s: Float64[Array, " N"]


class GapBook(NamedTuple):
    """The gaps between tokens, where the times of tokens are not kept (see `optsched.domain.gaps.Gaps`).

    Attributes
    ----------
    largest_s, offset
        The largest gaps of turn t so far, ascending: ``largest_s[offset[t]:offset[t + 1]]``.
    histogram, total_s
        How many gaps lie in each bin, and their sum.
    latest_s, latest_bin
        The gap met last and its bin: most gaps of a step are equal.
    run_s
        Room for the durations of consecutive steps.
    """

    largest_s: Float64[Array, " L"]
    offset: Int64[Array, " T+1"]
    histogram: Int64[Array, " bins"]
    total_s: Float64[Array, " 1"]
    latest_s: Float64[Array, " 1"]
    latest_bin: Int64[Array, " 1"]
    run_s: Float64[Array, " longest"]


class Prefixes(NamedTuple):
    """The U units of prompts that can be shared, and who shares them (see `optsched.simulator.prefixes`).

    Attributes
    ----------
    unit, offset
        The whole units that the prompt of slot c begins with: ``unit[offset[c]:offset[c + 1]]``.
    claimed
        How many of them the slot uses, on its replica.
    users
        How many slots use each unit.
    order, start, end, place
        Units that nobody uses, in the order in which they were left, as a ring; where each unit stands in it, -1: nowhere.
    retained
        Units that nobody uses.
    unit_blocks, unit_tokens
        Cache blocks and tokens of a unit.
    reused_tokens
        Prompt tokens that were not computed since they were cached.
    """

    unit: Int64[Array, " K"]
    offset: Int64[Array, " C+1"]
    claimed: Int64[Array, " C"]
    users: Int64[Array, "R U"]
    order: Int64[Array, "R size"]
    start: Int64[Array, " R"]
    end: Int64[Array, " R"]
    place: Int64[Array, "R U"]
    retained: Int64[Array, " R"]
    unit_blocks: Int64[Array, " 1"]
    unit_tokens: Int64[Array, " 1"]
    reused_tokens: Int64[Array, " 1"]


class StepBuffer(NamedTuple):
    """Recorded steps; ``size[0]`` are filled, ``size[1]`` more promised. Columns as in `optsched.domain.log.Steps`."""

    integers: Int64[Array, "capacity 8"]
    floats: Float64[Array, "capacity 3"]
    size: Int64[Array, " 2"]


class Outbox(NamedTuple):
    """What Python has to be told: ``size[0]`` entries, ``questions[0]`` of which wait for an answer.

    Attributes
    ----------
    kind, subject, replica, time_s
        What happened, to which slot (`ROOM`, `CROWDED`: to which replica), where (`TURN_STAYED`: to which turn) and when.
    """

    kind: Int64[Array, " capacity"]
    subject: Int64[Array, " capacity"]
    replica: Int64[Array, " capacity"]
    time_s: Float64[Array, " capacity"]
    size: Int64[Array, " 1"]
    questions: Int64[Array, " 1"]


class Engine(NamedTuple):
    """Numbers that all replicas share.

    Attributes
    ----------
    record_steps, record_tokens
        Whether every step, and the time of every token, is kept.
    direct
        The replica that takes every conversation at once; -1: placement is asked.
    per_turn
        Whether placement decides where later turns go; otherwise it is only told of them, when it is asked the next time.
    circles
        Whether caches may wait for each other's room: several replicas compute first turns for each other.
    steady
        Whether the batching policy refuses again whom it refused, while memory shrinks and nobody comes or goes.
    eager
        Whether the batching policy schedules every running request where all decode and all of it fits.
    coasts
        Whether uneventful steps are taken in one go.
    concurrency
        Conversations in flight, where each arrival follows an end; 0: arrivals have times of their own.
    prefixes
        Whether prompts share the blocks of what they begin with.
    """

    block_tokens: int
    max_sequences: int
    hidden_ratio: float
    rho_s_per_block: float
    ttft_slo_s: float
    tbt_slo_s: float
    parameters: Float64[Array, " p"]
    record_steps: bool
    record_tokens: bool
    direct: int
    per_turn: bool
    circles: bool
    steady: bool
    eager: bool
    coasts: bool
    concurrency: int
    prefixes: bool


class State(NamedTuple):
    """The whole simulation. Slots are conversations: each has one active turn and is in one place.

    Attributes
    ----------
    place, replica, target
        Where a slot is: `NOWHERE`, `QUEUED` on its replica, `BLOCKED` (holds its cache there and waits for a decoder),
        `MOVING` to its target, or `DONE`.
    stays
        Whether the replica that prefills is known to be the decoder too, so that nothing has to be asked in between.
    away
        Whether a slot's turn left the replica that held its cache.
    home, home_blocks, home_context, home_cache
        The replica (-1: none) that keeps a copy of the cache of a slot that is away, and the copy's blocks, tokens and kind.
    counters
        Steps started, running requests preempted, conversations ended, and blocks promised that were not there.
    sending_until_s, receiving_until_s
        When each replica's link is free again, in either direction.
    moved_s, moved_tokens
        When a slot's cache began to move, and how much of it did.
    growing
        Room for the requests that need a block in each of ``block_tokens`` steps.
    """

    requests: Requests
    decision: Decision
    turn: Int64[Array, " C"]
    place: Int8[Array, " C"]
    replica: Int64[Array, " C"]
    target: Int64[Array, " C"]
    stays: Bool[Array, " C"]
    away: Bool[Array, " C"]
    home: Int64[Array, " C"]
    home_blocks: Int64[Array, " C"]
    home_context: Int64[Array, " C"]
    home_cache: Int8[Array, " C"]
    replicas: Replicas
    laws: Laws
    turns: Turns
    gaps: GapBook
    prefixes: Prefixes
    heap: Heap
    steps: StepBuffer
    outbox: Outbox
    clock: Float64[Array, " 1"]
    counters: Int64[Array, " 4"]
    transfer_s_per_byte: Float64[Array, "R R"]
    transfer_latency_s: Float64[Array, "R R"]
    transfer_slowdown: Float64[Array, "R R busy"]
    sending_until_s: Float64[Array, " R"]
    receiving_until_s: Float64[Array, " R"]
    moved_s: Float64[Array, " C"]
    moved_tokens: Int64[Array, " C"]
    growing: Int64[Array, " block"]
