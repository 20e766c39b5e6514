"""The compiled event loop: steps, tokens and transfers; it returns to Python only when placement has to be asked.

All events of one moment are processed, then Python is told what happened (`Outbox`), then replicas start their steps.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from optsched.batching.blocks import blocks_for
from optsched.batching.policies.dispatch import call_policy
from optsched.batching.state import KV, NO_CACHE, Counts, Decision, Requests
from optsched.batching.state import Engine as ReplicaEngine
from optsched.compiled import lean
from optsched.placement.step_time import slowdown, step_j, step_s
from optsched.simulator.coast import coast
from optsched.simulator.gaps import count_gaps, keep_gap
from optsched.simulator.heap import ARRIVAL, STEP_END, TRANSFER_END, TURN_READY, drop_first, push
from optsched.simulator.state import (
    ARRIVED,
    BLOCKED,
    DONE,
    EVICTED,
    FINISHED,
    MOVING,
    PREEMPTED,
    PREFILLED,
    QUEUED,
    ROOM,
    TURN_ARRIVED,
    Engine,
    Outbox,
    Replicas,
    State,
)

Array = np.ndarray
DRAINED, TELL, FULL, PAUSED = 0, 1, 2, 3
MOST_MOMENTS = 20_000  # before Python may show progress or be interrupted


@lean
def _tell(outbox: Outbox, kind: int, subject: int) -> None:
    """Ask Python about something that cannot wait."""
    end = outbox.size[0]
    outbox.kind[end], outbox.subject[end] = kind, subject
    outbox.size[0] = end + 1
    outbox.questions[0] += 1


@lean
def _note(outbox: Outbox, kind: int, slot: int, replica: int, time_s: float) -> None:
    """Have Python note something whenever it is told the next time."""
    end = outbox.size[0]
    outbox.kind[end], outbox.subject[end], outbox.replica[end], outbox.time_s[end] = kind, slot, replica, time_s
    outbox.size[0] = end + 1


@lean
def _insert(replicas: Replicas, replica: int, position: int, slot: int, segment: int) -> None:
    queue, counts = replicas.queue[replica], replicas.counts[replica]
    for index in range(counts[0] + counts[1] + counts[2], position, -1):
        queue[index] = queue[index - 1]
    queue[position] = slot
    counts[segment] += 1
    replicas.refused[replica] = False


@lean
def _remove(replicas: Replicas, replica: int, slot: int) -> None:
    queue, counts = replicas.queue[replica], replicas.counts[replica]
    total = counts[0] + counts[1] + counts[2]
    position = 0
    while queue[position] != slot:
        position += 1
    segment = 0 if position < counts[0] else (1 if position < counts[0] + counts[1] else 2)
    for index in range(position, total - 1):
        queue[index] = queue[index + 1]
    counts[segment] -= 1
    replicas.refused[replica] = False


@lean
def enqueue(state: State, slot: int, replica: int) -> None:
    """Put a slot at the end of a replica's waiting segment."""
    counts, refused = state.replicas.counts[replica], state.replicas.refused[replica]
    _insert(state.replicas, replica, counts[0] + counts[1], slot, 1)
    # Behind somebody who was refused, whom a policy of this kind serves first.
    state.replicas.refused[replica] = refused and state.replicas.first_come[replica] and counts[1] > 1
    state.replica[slot] = replica
    state.place[slot] = QUEUED
    state.replicas.woken[replica] = True


@lean
def start_turn(state: State, slot: int, replica: int, stays: bool) -> None:
    """Queue a conversation's first turn on the replica that prefills it; it stays there to decode if `stays`."""
    turn = state.turn[slot]
    state.stays[slot] = stays
    state.requests.new_tokens[slot] = state.turns.new_tokens[turn]
    enqueue(state, slot, replica)


@lean
def _free(requests: Requests, replicas: Replicas, slot: int, replica: int) -> None:
    replicas.free_blocks[replica] += requests.blocks[slot]
    requests.blocks[slot] = 0
    requests.cache[slot] = NO_CACHE
    replicas.woken[replica] = True
    replicas.refused[replica] = False


@lean
def hand_over(state: State, slot: int, target: int, block_tokens: int, hidden_ratio: float, kv_bytes: float) -> bool:
    """Start moving a prefilled cache to its decoder; False (and blocked) while the decoder's pool has no room for it."""
    source = state.replica[slot]
    blocks = blocks_for(state.requests.context[slot], state.requests.cache[slot], block_tokens, hidden_ratio)
    state.target[slot] = target
    if blocks > state.replicas.free_blocks[target]:
        state.place[slot] = BLOCKED
        return False
    state.replicas.free_blocks[target] -= blocks
    state.place[slot] = MOVING
    duration = (
        state.transfer_latency_s[source, target]
        + kv_bytes * state.requests.context[slot] * state.transfer_s_per_byte[source, target]
    )
    push(state.heap, state.clock[0] + duration, TRANSFER_END, slot)
    return True


@lean
def _land(state: State, slot: int, engine: Engine) -> None:
    source, target, turn = state.replica[slot], state.target[slot], state.turn[slot]
    cache = state.requests.cache[slot]
    _free(state.requests, state.replicas, slot, source)
    state.requests.cache[slot] = cache
    state.requests.blocks[slot] = blocks_for(state.requests.context[slot], cache, engine.block_tokens, engine.hidden_ratio)
    state.turns.decode_replica[turn] = target
    if state.requests.emitted[slot] == state.turns.output_tokens[turn]:
        _become_idle(state, slot, target)
    else:
        enqueue(state, slot, target)


@lean
def _become_idle(state: State, slot: int, replica: int) -> None:
    counts = state.replicas.counts[replica]
    _insert(state.replicas, replica, counts[0] + counts[1] + counts[2], slot, 2)
    state.replica[slot] = replica
    state.place[slot] = QUEUED
    turn = state.turn[slot]
    ready = state.turns.end_s[turn] + state.turns.gap_s[turn + 1]
    push(state.heap, max(state.clock[0], ready), TURN_READY, slot)


@lean
def _next_turn(state: State, slot: int, direct: bool) -> None:
    ended = state.turn[slot]
    turn = ended + 1
    state.turn[slot] = turn
    arrival = state.turns.end_s[ended] + state.turns.gap_s[turn]
    state.turns.arrival_s[turn] = arrival
    state.requests.arrival_s[slot] = arrival
    state.requests.last_token_s[slot] = arrival
    state.requests.emitted[slot] = state.requests.late[slot] = 0
    state.requests.new_tokens[slot] += state.turns.new_tokens[turn]
    replica = state.replica[slot]
    _remove(state.replicas, replica, slot)
    enqueue(state, slot, replica)
    if not direct:
        _tell(state.outbox, TURN_ARRIVED, slot)


@lean
def _evict(
    requests: Requests,
    decision: Decision,
    replicas: Replicas,
    counters: Int64[Array, " 3"],
    outbox: Outbox,
    replica: int,
    now_s: float,
) -> None:
    queue, counts = replicas.queue[replica], replicas.counts[replica]
    total = counts[0] + counts[1] + counts[2]
    running, any_running = counts[0], False
    for index in range(total):
        slot = queue[index]
        if decision.evict[slot]:
            _free(requests, replicas, slot, replica)
            requests.new_tokens[slot] += requests.context[slot]
            requests.context[slot] = 0
            if index < running:
                counters[1] += 1
                any_running = True
            else:
                decision.evict[slot] = 0
            _note(outbox, PREEMPTED if index < running else EVICTED, slot, replica, now_s)
    if not any_running:
        return
    # Evicted running requests return to the front of the waiting segment, in their order.
    for index in range(running - 1, -1, -1):
        slot = queue[index]
        if decision.evict[slot]:
            decision.evict[slot] = 0
            for position in range(index, counts[0] - 1):
                queue[position] = queue[position + 1]
            queue[counts[0] - 1] = slot
            counts[0] -= 1
            counts[1] += 1


@lean
def _admit(decision: Decision, replicas: Replicas, replica: int, most: int) -> int:
    """Collect the `most` scheduled slots; those that waited join the running segment in queue order."""
    queue, counts = replicas.queue[replica], replicas.counts[replica]
    scheduled, number = replicas.scheduled[replica], 0
    for index in range(counts[0] + counts[1]):
        if number == most:
            break
        slot = queue[index]
        if decision.tokens[slot] > 0:
            scheduled[number] = slot
            number += 1
            if index >= counts[0]:
                for position in range(index, counts[0], -1):
                    queue[position] = queue[position - 1]
                queue[counts[0]] = slot
                counts[0] += 1
                counts[1] -= 1
    replicas.num_scheduled[replica] = number
    return number


@lean
def _start_step(state: State, engine: Engine, policy: int, replica: int) -> None:
    replicas, requests = state.replicas, state.requests
    replicas.woken[replica] = False
    counts = replicas.counts[replica]
    if replicas.busy[replica] or counts[0] + counts[1] == 0:
        return
    total = counts[0] + counts[1] + counts[2]
    # With other replicas about, their events may reach this one before the steps would end.
    now = coast(state, engine, replica) if len(replicas.woken) == 1 else state.clock[0]
    view = ReplicaEngine(
        now, replicas.free_blocks[replica], replicas.total_blocks[replica], engine.block_tokens,
        replicas.watermark_blocks[replica], replicas.max_batched_tokens[replica], engine.max_sequences,
        engine.hidden_ratio, engine.rho_s_per_block, engine.ttft_slo_s, engine.tbt_slo_s, engine.parameters,
    )  # fmt: skip
    running, replicas.refused[replica] = counts[0], engine.steady
    segments = Counts(counts[0], counts[1], counts[2])
    most = call_policy(policy, requests, replicas.queue[replica, :total], segments, view, state.decision)
    _evict(requests, state.decision, replicas, state.counters, state.outbox, replica, now)
    number = _admit(state.decision, replicas, replica, most)
    if number == 0:
        return
    tokens, prefill, read, decodes, kv, hidden, pairs = 0, 0, 0, 0, 0, 0, 0.0
    for index in range(number):
        slot = replicas.scheduled[replica, index]
        count, context = state.decision.tokens[slot], requests.context[slot]
        if context == 0:
            requests.cache[slot] = state.decision.cache[slot]
        blocks = blocks_for(context + count, requests.cache[slot], engine.block_tokens, engine.hidden_ratio)
        replicas.free_blocks[replica] -= blocks - requests.blocks[slot]
        requests.blocks[slot] = blocks
        tokens += count
        decode = requests.emitted[slot] > 0 and requests.new_tokens[slot] == 1 and context > 0
        state.is_decode[slot] = decode
        if decode:
            decodes += 1
            if requests.cache[slot] == KV:
                kv += context
        else:
            prefill += count
            read += context
            pairs += count * (context + 0.5 * count)
        if requests.cache[slot] != KV:
            hidden += context
        turn = state.turn[slot]
        if state.turns.start_s[turn] != state.turns.start_s[turn]:
            state.turns.start_s[turn] = now
            state.turns.prefill_replica[turn] = replica
            state.turns.decode_replica[turn] = replica
    replicas.refused[replica] &= number == running and decodes == number
    host, busy = replicas.host[replica], 1
    if host >= 0:
        replicas.busy_on_host[host] += 1
        busy = replicas.busy_on_host[host]
    content = (float(tokens), pairs, float(read), float(kv), float(number), float(hidden))
    end = now + step_s(state.laws, replica, *content) * slowdown(state.laws, replica, busy)
    replicas.dynamic_j[replica] += step_j(state.laws, replica, *content)
    replicas.busy[replica] = True
    push(state.heap, end, STEP_END, replica)
    state.counters[0] += 1
    if engine.record_steps:
        row = state.steps.size[0]
        integers, floats = state.steps.integers[row], state.steps.floats[row]
        integers[0], integers[1], integers[2], integers[3] = replica, prefill, number, decodes
        integers[4], integers[5], integers[6], integers[7] = kv, hidden, busy, read
        floats[0], floats[1], floats[2] = now, end, pairs
        state.steps.size[0] = row + 1


@lean
def _end_step(state: State, engine: Engine, replica: int) -> None:
    replicas, requests, turns = state.replicas, state.requests, state.turns
    replicas.busy[replica] = False
    replicas.woken[replica] = True
    if replicas.host[replica] >= 0:
        replicas.busy_on_host[replicas.host[replica]] -= 1
    now = state.clock[0]
    for index in range(replicas.num_scheduled[replica]):
        slot = replicas.scheduled[replica, index]
        count = state.decision.tokens[slot]
        state.decision.tokens[slot] = 0  # policies find a decision that leaves everyone out
        requests.context[slot] += count
        requests.new_tokens[slot] -= count
        if requests.new_tokens[slot] > 0:
            continue
        turn = state.turn[slot]
        if engine.record_tokens:
            turns.token_s[turns.token_offset[turn] + requests.emitted[slot]] = now
        elif requests.emitted[slot] > 0:
            count_gaps(state.gaps, now - requests.last_token_s[slot], 1)
            keep_gap(state.gaps, turn, now - requests.last_token_s[slot])
        if now - requests.last_token_s[slot] >= (engine.ttft_slo_s if requests.emitted[slot] == 0 else engine.tbt_slo_s):
            requests.late[slot] = 1
        requests.emitted[slot] += 1
        requests.last_token_s[slot] = now
        requests.new_tokens[slot] = 1
        first = requests.emitted[slot] == 1
        if first:
            turns.first_token_s[turn] = now
        ended = requests.emitted[slot] == turns.output_tokens[turn]
        if ended:
            turns.end_s[turn] = now
        conversation_ended = ended and turn + 1 == turns.first_turn[slot + 1]
        if first and turn == turns.first_turn[slot] and engine.direct < 0:
            _tell(state.outbox, PREFILLED, slot)
        if conversation_ended:
            _remove(state.replicas, replica, slot)
            _free(state.requests, state.replicas, slot, replica)
            state.place[slot] = DONE
            state.counters[2] += 1
            if engine.direct < 0:
                _tell(state.outbox, FINISHED, slot)
        elif first and turn == turns.first_turn[slot] and not state.stays[slot]:
            _remove(state.replicas, replica, slot)
            state.place[slot] = BLOCKED
        elif ended:
            _remove(state.replicas, replica, slot)
            _become_idle(state, slot, replica)
    if replicas.blocked[replica] > 0:
        _tell(state.outbox, ROOM, replica)


@lean
def stay(state: State, slot: int) -> None:
    """Let a prefilled conversation decode where it is."""
    replica, turn = state.replica[slot], state.turn[slot]
    if state.requests.emitted[slot] == state.turns.output_tokens[turn]:
        _become_idle(state, slot, replica)
        return
    _insert(state.replicas, replica, state.replicas.counts[replica, 0], slot, 0)
    state.place[slot] = QUEUED
    state.replicas.woken[replica] = True


@lean
def advance(state: State, engine: Engine, policy: int) -> int:
    """Run until Python has to be told something, the step buffer is nearly full, nothing is left to happen, or for a while."""
    replicas, heap = state.replicas, state.heap
    for _ in range(MOST_MOMENTS):
        for replica in range(len(replicas.woken)):
            if replicas.woken[replica]:
                _start_step(state, engine, policy, replica)
        if state.outbox.questions[0] > 0 or 2 * state.outbox.size[0] > len(state.outbox.kind):
            return TELL
        if heap.size[0] == 0:
            return DRAINED
        if engine.record_steps and state.steps.size[0] + len(replicas.woken) > len(state.steps.integers):
            return FULL
        now = heap.time_s[0]
        state.clock[0] = now
        while heap.size[0] > 0 and heap.time_s[0] == now:
            kind, subject = heap.kind[0], heap.subject[0]
            drop_first(heap)
            if kind == STEP_END:
                _end_step(state, engine, subject)
            elif kind == TRANSFER_END:
                _land(state, subject, engine)
            elif kind == TURN_READY:
                _next_turn(state, subject, engine.direct >= 0)
            elif kind == ARRIVAL:
                turn = state.turn[subject]
                state.turns.arrival_s[turn] = now
                state.requests.arrival_s[subject] = now
                state.requests.last_token_s[subject] = now
                if engine.direct >= 0:
                    start_turn(state, subject, engine.direct, True)
                else:
                    _tell(state.outbox, ARRIVED, subject)
        if state.outbox.questions[0] > 0 or 2 * state.outbox.size[0] > len(state.outbox.kind):
            return TELL
    return PAUSED
