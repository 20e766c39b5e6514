"""Lay out the event loop's arrays for a plan and a workload."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from optsched.batching.policies import FIRST_COME, PACING, STEADY, policy_parameters
from optsched.batching.policies.dispatch import own_parameters
from optsched.batching.state import Decision, Requests
from optsched.batching.step_time import law_rows
from optsched.domain.gaps import NUM_BINS, largest_needed
from optsched.domain.plan import Plan
from optsched.domain.slowdown import factors_at
from optsched.domain.workload import Workload
from optsched.placement.step_time import pack
from optsched.simulator.coast import MOST_STALE
from optsched.simulator.heap import ARRIVAL, Heap, push
from optsched.simulator.state import Engine, GapBook, Outbox, Prefixes, Replicas, State, StepBuffer, Turns

Array = np.ndarray


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
        run=np.zeros(count, np.int64),
        run_start_s=np.zeros(count),
        due=np.full(count, -1, np.int64),
        stale=np.zeros(count, np.int64),
        law=law_rows(replicas),
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


def _prefixes(plan: Plan, workload: Workload) -> Prefixes:
    """Give numbers to the units of first prompts; the last token of a prompt is always computed."""
    count, conversations = len(plan.replicas), workload.num_conversations
    unit, size = np.zeros(0, np.int64), np.zeros(conversations, np.int64)
    unit_tokens = workload.prefix_block_tokens
    if plan.engine.prefix_caching and workload.prefix_offset is not None and workload.prefix_blocks is not None:
        first = workload.first_turn[:-1]
        start = workload.prefix_offset[first]
        size = np.minimum(np.diff(workload.prefix_offset)[first], (workload.first_turn_tokens - 1) // unit_tokens)
        within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        unit = np.unique(workload.prefix_blocks[np.repeat(start, size) + within], return_inverse=True)[1].astype(np.int64)
    units = int(unit.max(initial=-1)) + 1
    users = np.zeros((count, units), np.int64)
    start_of_ring, end_of_ring, retained = np.zeros((3, count), np.int64)
    return Prefixes(
        unit, np.concatenate([[0], np.cumsum(size)]).astype(np.int64), np.zeros(conversations, np.int64), users,
        np.zeros((count, 2 * units + 1), np.int64), start_of_ring, end_of_ring, np.full((count, units), -1, np.int64), retained,
        np.array([unit_tokens // plan.engine.block_tokens]), np.array([unit_tokens]), np.zeros(1, np.int64),
    )  # fmt: skip


def _outbox(capacity: int) -> Outbox:
    kind, subject, replica = np.zeros((3, capacity), np.int64)
    return Outbox(kind, subject, replica, np.zeros(capacity), np.zeros(1, np.int64), np.zeros(1, np.int64))


def engine_of(
    plan: Plan, workload: Workload, direct: int | None, *, per_turn: bool, coasts: bool, record_steps: bool, record_tokens: bool
) -> Engine:
    """Return what stays the same during a simulation; `direct` is the replica of all conversations where no policy is asked."""
    parameters = policy_parameters(plan.batching.policy, plan.batching.parameters)
    return Engine(
        block_tokens=plan.engine.block_tokens,
        max_sequences=plan.engine.max_sequences,
        hidden_ratio=float(plan.llms[0].shape.hidden_ratio),
        rho_s_per_block=plan.batching.rho_s_per_block,
        ttft_slo_s=parameters["ttft_slo_s"],
        tbt_slo_s=parameters["tbt_slo_s"],
        parameters=own_parameters(plan.batching.policy, parameters),
        record_steps=record_steps,
        record_tokens=record_tokens,
        direct=-1 if direct is None else direct,
        per_turn=per_turn,
        circles=sum(replica.role == "mixed" for replica in plan.replicas) > 1 and len(plan.links) > 0,
        steady=plan.batching.policy in STEADY,
        eager=plan.batching.policy not in PACING,
        coasts=coasts,
        concurrency=workload.concurrency or 0,
        prefixes=plan.engine.prefix_caching and workload.prefix_blocks is not None,
    )


def _links(plan: Plan) -> tuple[Float64[Array, "R R"], Float64[Array, "R R"]]:
    """Return the time per byte and the latency from each replica to each; infinite where no link is."""
    count = len(plan.replicas)
    s_per_byte, latency_s = np.full((2, count, count), np.inf)
    index_of = {replica.id: index for index, replica in enumerate(plan.replicas)}
    for link in plan.links:
        pair = index_of[link.source], index_of[link.target]
        s_per_byte[pair], latency_s[pair] = 1 / link.bytes_per_s, link.latency_s
    return s_per_byte, latency_s


def _link_slowdowns(plan: Plan) -> Float64[Array, "R R busy"]:
    """Return the factors on each replica's hand-overs to each while 0, 1, ... replicas of their host are busy."""
    count, levels = len(plan.replicas), max((len(link.busy_slowdown) for link in plan.links), default=1)
    found = np.ones((count, count, levels))
    index_of = {replica.id: index for index, replica in enumerate(plan.replicas)}
    host_of = {replica.id: replica.host for replica in plan.replicas}
    for link in plan.links:
        if host_of[link.source] is not None and host_of[link.source] == host_of[link.target]:
            found[index_of[link.source], index_of[link.target]] = factors_at(link.busy_slowdown, np.arange(levels))
    return found


def initial_state(plan: Plan, workload: Workload, step_capacity: int, record_tokens: bool) -> State:
    """Lay out a simulation of a workload on a plan's replicas at time 0, with all arrivals in the heap."""
    conversations, count = workload.num_conversations, len(plan.replicas)
    heap = Heap.empty(2 * conversations + (MOST_STALE + 1) * count + 8)
    for index, arrival in enumerate(workload.arrival_s[: workload.concurrency]):
        push(heap, float(arrival), ARRIVAL, index)
    s_per_byte, latency_s = _links(plan)
    requests = Requests.empty(conversations)
    requests.identity[:] = np.arange(conversations)
    return State(
        requests=requests,
        decision=Decision.empty(conversations),
        turn=workload.first_turn[:-1].astype(np.int64).copy(),
        place=np.zeros(conversations, np.int8),
        replica=np.full(conversations, -1, np.int64),
        target=np.full(conversations, -1, np.int64),
        stays=np.zeros(conversations, bool),
        away=np.zeros(conversations, bool),
        home=np.full(conversations, -1, np.int64),
        home_blocks=np.zeros(conversations, np.int64),
        home_context=np.zeros(conversations, np.int64),
        home_cache=np.zeros(conversations, np.int8),
        replicas=_replicas(plan, conversations),
        laws=pack([replica.coefficients for replica in plan.replicas]),
        turns=_turns(workload, record_tokens),
        gaps=_gap_book(workload, record_tokens),
        prefixes=_prefixes(plan, workload),
        heap=heap,
        steps=StepBuffer(np.zeros((step_capacity, 8), np.int64), np.zeros((step_capacity, 3)), np.zeros(2, np.int64)),
        outbox=_outbox(4 * conversations + 64),
        clock=np.zeros(1),
        counters=np.zeros(4, np.int64),
        transfer_s_per_byte=s_per_byte,
        transfer_latency_s=latency_s,
        transfer_slowdown=_link_slowdowns(plan),
        sending_until_s=np.zeros(count),
        receiving_until_s=np.zeros(count),
        moved_s=np.full(conversations, np.nan),
        moved_tokens=np.zeros(conversations, np.int64),
        growing=np.zeros(plan.engine.block_tokens, np.int64),
    )
