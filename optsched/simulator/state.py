"""Everything the event loop knows, as arrays that compiled code and Python share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int64

from optsched.batching.policies import FIRST_COME
from optsched.batching.state import Decision, Requests
from optsched.domain.gaps import NUM_BINS, largest_needed
from optsched.domain.plan import Plan
from optsched.domain.workload import Workload
from optsched.placement.step_time import Laws, pack
from optsched.simulator.heap import ARRIVAL, Heap, push

Array = np.ndarray
NOWHERE, QUEUED, MOVING, BLOCKED, DONE = 0, 1, 2, 3, 4
ARRIVED, TURN_ARRIVED, PREFILLED, FINISHED, EVICTED, PREEMPTED, ROOM = 0, 1, 2, 3, 4, 5, 6


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


class StepBuffer(NamedTuple):
    """Recorded steps; ``size[0]`` are filled. Columns as in `optsched.domain.log.Steps`."""

    integers: Int64[Array, "capacity 8"]
    floats: Float64[Array, "capacity 3"]
    size: Int64[Array, " 1"]


class Outbox(NamedTuple):
    """What Python has to be told: ``size[0]`` entries, ``questions[0]`` of which wait for an answer.

    Attributes
    ----------
    kind, subject, replica, time_s
        What happened, to which slot (`ROOM`: to which replica), where and when.
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
    steady
        Whether the batching policy refuses again whom it refused, while memory shrinks and nobody comes or goes.
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
    steady: bool


class State(NamedTuple):
    """The whole simulation. Slots are conversations: each has one active turn and is in one place.

    Attributes
    ----------
    place, replica, target
        Where a slot is: `NOWHERE`, `QUEUED` on its replica, `BLOCKED` (holds its cache there and waits for a decoder),
        `MOVING` to its target, or `DONE`.
    stays
        Whether the first turn's replica is known to be the decoder too, so that nothing has to be asked in between.
    counters
        Steps started, running requests preempted, and conversations ended.
    growing
        Room for the requests that need a block in each of ``block_tokens`` steps.
    """

    requests: Requests
    decision: Decision
    turn: Int64[Array, " C"]
    place: Int8[Array, " C"]
    replica: Int64[Array, " C"]
    target: Int64[Array, " C"]
    is_decode: Bool[Array, " C"]
    stays: Bool[Array, " C"]
    replicas: Replicas
    laws: Laws
    turns: Turns
    gaps: GapBook
    heap: Heap
    steps: StepBuffer
    outbox: Outbox
    clock: Float64[Array, " 1"]
    counters: Int64[Array, " 3"]
    transfer_s_per_byte: Float64[Array, "R R"]
    transfer_latency_s: Float64[Array, "R R"]
    growing: Int64[Array, " block"]


def _replicas(plan: Plan, conversations: int) -> Replicas:
    replicas = plan.replicas
    hosts = sorted({replica.host for replica in replicas if replica.host is not None})
    blocks = np.array([replica.kv_blocks for replica in replicas], dtype=np.int64)
    count = len(replicas)
    return Replicas(
        prefill_only=np.array([replica.role == "prefill" for replica in replicas]),
        free_blocks=blocks.copy(),
        total_blocks=blocks,
        watermark_blocks=np.floor(plan.engine.watermark * blocks).astype(np.int64),
        max_batched_tokens=np.array([r.max_batched_tokens or plan.engine.max_batched_tokens for r in replicas], np.int64),
        queue=np.zeros((count, conversations), np.int64),
        counts=np.zeros((count, 3), np.int64),
        busy=np.zeros(count, bool),
        woken=np.zeros(count, bool),
        refused=np.zeros(count, bool),
        first_come=np.full(count, plan.batching.policy in FIRST_COME),
        scheduled=np.zeros((count, conversations), np.int64),
        num_scheduled=np.zeros(count, np.int64),
        host=np.array([-1 if r.host is None else hosts.index(r.host) for r in replicas], np.int64),
        busy_on_host=np.zeros(max(1, len(hosts)), np.int64),
        blocked=np.zeros(count, np.int64),
        dynamic_j=np.zeros(count),
    )


def _turns(workload: Workload, record_tokens: bool) -> Turns:
    count = workload.num_turns
    arrival_s, start_s, first_token_s, end_s = np.full((4, count), np.nan)
    prefill_replica, decode_replica = np.full((2, count), -1, np.int64)
    offsets = np.concatenate([[0], np.cumsum(workload.output_tokens)]).astype(np.int64)
    return Turns(
        workload.first_turn.astype(np.int64), workload.new_tokens.astype(np.int64), workload.output_tokens.astype(np.int64),
        workload.gap_s.astype(float), offsets[:-1].copy(), arrival_s, start_s, first_token_s, end_s, prefill_replica,
        decode_replica, np.full(int(offsets[-1]) if record_tokens else 0, np.nan),
    )  # fmt: skip


def _gap_book(workload: Workload, record_tokens: bool) -> GapBook:
    kept = np.zeros(workload.num_turns, np.int64) if record_tokens else largest_needed(workload.output_tokens - 1)
    offset = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
    longest = 0 if record_tokens else int(workload.output_tokens.max(initial=0))
    return GapBook(
        np.zeros(int(offset[-1])), offset, np.zeros(NUM_BINS, np.int64), np.zeros(1), np.full(1, -1.0), np.zeros(1, np.int64),
        np.zeros(longest),
    )  # fmt: skip


def _outbox(capacity: int) -> Outbox:
    kind, subject, replica = np.zeros((3, capacity), np.int64)
    return Outbox(kind, subject, replica, np.zeros(capacity), np.zeros(1, np.int64), np.zeros(1, np.int64))


def initial_state(plan: Plan, workload: Workload, step_capacity: int, record_tokens: bool) -> State:
    """Lay out a simulation of a workload on a plan's replicas at time 0, with all arrivals in the heap."""
    conversations, count = workload.num_conversations, len(plan.replicas)
    heap = Heap.empty(2 * conversations + count + 8)
    for index, arrival in enumerate(workload.arrival_s):
        push(heap, float(arrival), ARRIVAL, index)
    rate, latency = np.full((count, count), np.inf), np.full((count, count), np.inf)
    index_of = {replica.id: index for index, replica in enumerate(plan.replicas)}
    for link in plan.links:
        pair = index_of[link.source], index_of[link.target]
        rate[pair], latency[pair] = 1 / link.bytes_per_s, link.latency_s
    requests = Requests.empty(conversations)
    requests.identity[:] = np.arange(conversations)
    return State(
        requests=requests,
        decision=Decision.empty(conversations),
        turn=workload.first_turn[:-1].astype(np.int64).copy(),
        place=np.zeros(conversations, np.int8),
        replica=np.full(conversations, -1, np.int64),
        target=np.full(conversations, -1, np.int64),
        is_decode=np.zeros(conversations, bool),
        stays=np.zeros(conversations, bool),
        replicas=_replicas(plan, conversations),
        laws=pack([replica.coefficients for replica in plan.replicas]),
        turns=_turns(workload, record_tokens),
        gaps=_gap_book(workload, record_tokens),
        heap=heap,
        steps=StepBuffer(np.zeros((step_capacity, 8), np.int64), np.zeros((step_capacity, 3)), np.zeros(1, np.int64)),
        outbox=_outbox(4 * conversations + 64),
        clock=np.zeros(1),
        counters=np.zeros(3, np.int64),
        transfer_s_per_byte=rate,
        transfer_latency_s=latency,
        growing=np.zeros(plan.engine.block_tokens, np.int64),
    )
