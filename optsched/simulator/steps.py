"""A replica's step: ask the policy, apply its decision, and hand out the tokens when it ends."""

from __future__ import annotations

from typing import NamedTuple

from optsched.batching.blocks import blocks_for
from optsched.batching.policies.dispatch import call_policy
from optsched.batching.state import KV, Counts, Decision
from optsched.batching.state import Engine as ReplicaEngine
from optsched.compiled import lean
from optsched.placement.step_time import slowdown, step_j, step_s
from optsched.simulator.coast import begin_run, coast, end_run
from optsched.simulator.gaps import count_gaps, keep_gap
from optsched.simulator.heap import ARRIVAL, STEP_END, push
from optsched.simulator.prefixes import claim_prefixes, keep_prefixes, release, squeeze
from optsched.simulator.queues import note, remove, tell
from optsched.simulator.state import (
    BLOCKED,
    CROWDED,
    DONE,
    EVICTED,
    FINISHED,
    PREEMPTED,
    PREFILLED,
    ROOM,
    Engine,
    Replicas,
    State,
)  # fmt: skip
from optsched.simulator.turns import become_idle, forget_copy


@lean
def _evict(state: State, engine: Engine, replica: int, now_s: float) -> None:
    """Drop the caches that the decision gives up; requests that ran return to the front of the waiting, in their order.

    Who neither ran nor holds a cache has none to give up.
    """
    replicas, requests, decision = state.replicas, state.requests, state.decision
    queue, counts = replicas.queue[replica], replicas.counts[replica]
    running, any_running = counts[0], False
    held = replicas.total_blocks[replica] - replicas.free_blocks[replica]
    for index in range(counts[0] + counts[1] + counts[2]):
        slot = queue[index]
        if index >= running and held <= 0 and not engine.prefixes:
            break  # thousands may wait, and none of them holds a block
        held -= requests.blocks[slot]
        if not decision.evict[slot]:
            continue
        if index < running:
            state.counters[1] += 1
            any_running = True
        else:
            decision.evict[slot] = 0
        if index < running or requests.context[slot] > 0:
            release(state, slot, replica)
            requests.new_tokens[slot] += requests.context[slot]
            requests.context[slot] = 0
            note(state.outbox, PREEMPTED if index < running else EVICTED, slot, replica, now_s)
    if not any_running:
        return
    if engine.per_turn:
        tell(state.outbox, CROWDED, replica)
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


class Content(NamedTuple):
    """What a step computes (the columns of `optsched.domain.log.Steps`)."""

    prefill_tokens: int
    pairs: float
    prefill_context: int
    sequences: int
    decodes: int
    kv_tokens: int
    hidden_tokens: int


@lean
def _reserve(state: State, engine: Engine, replica: int, number: int) -> Content:
    """Take the blocks that the scheduled requests need, and return what the step computes.

    Requests for which there are none are left out: evicting a cache whose prefix others use frees less than policies think.
    """
    replicas, requests = state.replicas, state.requests
    kept, prefill, read, decodes, kv, hidden, pairs = 0, 0, 0, 0, 0, 0, 0.0
    for index in range(number):
        slot = replicas.scheduled[replica, index]
        count, context = state.decision.tokens[slot], requests.context[slot]
        if context == 0:
            requests.cache[slot] = state.decision.cache[slot]
        blocks = blocks_for(context + count, requests.cache[slot], engine.block_tokens, engine.hidden_ratio)
        if engine.prefixes and blocks - requests.blocks[slot] > replicas.free_blocks[replica]:
            state.decision.tokens[slot] = 0
            continue
        replicas.free_blocks[replica] -= blocks - requests.blocks[slot]
        requests.blocks[slot] = blocks
        replicas.scheduled[replica, kept] = slot
        kept += 1
        if requests.emitted[slot] > 0 and requests.new_tokens[slot] == 1 and context > 0:
            decodes += 1
            kv += context if requests.cache[slot] == KV else 0
        else:
            prefill += count
            read += context
            pairs += count * (context + 0.5 * count)
        hidden += context if requests.cache[slot] != KV else 0
    state.counters[3] += max(0, -replicas.free_blocks[replica])
    replicas.num_scheduled[replica] = kept
    return Content(prefill, pairs, read, kept, decodes, kv, hidden)


@lean
def _launch(state: State, engine: Engine, replica: int, content: Content, now_s: float) -> None:
    """Start a step: when it will end, what it costs, and who computes for the first time."""
    replicas, turns = state.replicas, state.turns
    for index in range(content.sequences):
        turn = state.turn[replicas.scheduled[replica, index]]
        if turns.start_s[turn] != turns.start_s[turn]:
            turns.start_s[turn] = now_s
            turns.prefill_replica[turn] = turns.decode_replica[turn] = replica
    host, busy = replicas.host[replica], 1
    if host >= 0:
        replicas.busy_on_host[host] += 1
        busy = replicas.busy_on_host[host]
    law = (
        float(content.prefill_tokens + content.decodes), content.pairs, float(content.prefill_context),
        float(content.kv_tokens), float(content.sequences), float(content.hidden_tokens),
    )  # fmt: skip
    end_s = now_s + step_s(state.laws, replica, *law) * slowdown(state.laws, replica, busy)
    replicas.dynamic_j[replica] += step_j(state.laws, replica, *law)
    replicas.busy[replica] = True
    replicas.due[replica] = state.heap.size[1]
    push(state.heap, end_s, STEP_END, replica)
    state.counters[0] += 1
    if engine.record_steps:
        row = state.steps.size[0]
        integers, floats = state.steps.integers[row], state.steps.floats[row]
        integers[0], integers[1], integers[2], integers[3] = replica, content.prefill_tokens, content.sequences, content.decodes
        integers[4], integers[5], integers[6] = content.kv_tokens, content.hidden_tokens, busy
        integers[7] = content.prefill_context
        floats[0], floats[1], floats[2] = now_s, end_s, content.pairs
        state.steps.size[0] = row + 1


@lean
def _compose(state: State, engine: Engine, policy: int, replica: int, now_s: float) -> Content:
    """Ask the policy, apply what it decides, and return what the step computes."""
    replicas, counts = state.replicas, state.replicas.counts[replica]
    replicas.woken[replica] = False
    view = ReplicaEngine(
        now_s, replicas.free_blocks[replica], replicas.total_blocks[replica], engine.block_tokens,
        replicas.watermark_blocks[replica], replicas.max_batched_tokens[replica], engine.max_sequences,
        engine.hidden_ratio, engine.rho_s_per_block, engine.ttft_slo_s, engine.tbt_slo_s, engine.parameters,
        replicas.law[replica],
    )  # fmt: skip
    running, replicas.refused[replica] = counts[0], engine.steady
    segments = Counts(counts[0], counts[1], counts[2])
    queue = replicas.queue[replica, : counts[0] + counts[1] + counts[2]]
    most = call_policy(policy, state.requests, queue, segments, view, state.decision)
    _evict(state, engine, replica, now_s)
    content = _reserve(state, engine, replica, _admit(state.decision, replicas, replica, most))
    replicas.refused[replica] &= content.sequences > 0 and content.sequences == running and content.decodes == running
    return content


@lean
def start_step(state: State, engine: Engine, policy: int, replica: int) -> None:
    """Have an idle replica take its next step, if it has work and its policy schedules any."""
    replicas = state.replicas
    replicas.woken[replica] = False
    counts = replicas.counts[replica]
    if replicas.busy[replica] or counts[0] + counts[1] == 0:
        return
    now_s = state.clock[0]
    if engine.coasts and len(replicas.woken) == 1:
        now_s = coast(state, engine, replica)
    elif engine.coasts and begin_run(state, engine, replica):
        return
    if engine.prefixes:
        squeeze(state, replica)
        claim_prefixes(state, engine, replica)
    content = _compose(state, engine, policy, replica, now_s)
    while content.sequences == 0 and replicas.woken[replica] and state.outbox.questions[0] == 0:
        # It only evicted, and may serve somebody now. Each time fewer hold a cache, and nobody's grows.
        content = _compose(state, engine, policy, replica, now_s)
    if content.sequences > 0:
        _launch(state, engine, replica, content, now_s)
    elif engine.per_turn:
        tell(state.outbox, CROWDED, replica)
    if engine.prefixes:
        squeeze(state, replica)


@lean
def _emit(state: State, engine: Engine, slot: int, replica: int) -> None:
    """Note a request's next token, and what ends with it."""
    requests, turns, turn, now_s = state.requests, state.turns, state.turn[slot], state.clock[0]
    gap_s, first = now_s - requests.last_token_s[slot], requests.emitted[slot] == 0
    if engine.record_tokens:
        turns.token_s[turns.token_offset[turn] + requests.emitted[slot]] = now_s
    elif not first:
        count_gaps(state.gaps, gap_s, 1)
        keep_gap(state.gaps, turn, gap_s)
    if gap_s >= (engine.ttft_slo_s if first else engine.tbt_slo_s):
        requests.late[slot] = 1
    requests.emitted[slot] += 1
    requests.last_token_s[slot] = now_s
    requests.new_tokens[slot] = 1
    if first:
        turns.first_token_s[turn] = now_s
    prefilled = first and (turn == turns.first_turn[slot] or state.away[slot])
    if prefilled and engine.direct < 0:
        tell(state.outbox, PREFILLED, slot)
    ended = requests.emitted[slot] == turns.output_tokens[turn]
    if ended:
        turns.end_s[turn] = now_s
    if ended and turn + 1 == turns.first_turn[slot + 1]:
        _finish(state, engine, slot, replica)
    elif prefilled and not state.stays[slot]:
        remove(state.replicas, replica, slot)
        state.place[slot] = BLOCKED
    elif ended:
        remove(state.replicas, replica, slot)
        become_idle(state, slot, replica)


@lean
def _finish(state: State, engine: Engine, slot: int, replica: int) -> None:
    """End a conversation; where the number in flight is fixed, the next one arrives."""
    remove(state.replicas, replica, slot)
    release(state, slot, replica)
    if state.home[slot] >= 0:
        forget_copy(state, engine, slot)
    state.place[slot] = DONE
    state.counters[2] += 1
    if engine.direct < 0:
        tell(state.outbox, FINISHED, slot)
    following = state.counters[2] + engine.concurrency - 1
    if engine.concurrency > 0 and following < len(state.turn):
        push(state.heap, state.clock[0], ARRIVAL, following)


@lean
def end_step(state: State, engine: Engine, replica: int) -> None:
    """Hand out a finished step's tokens, and see to the turns and conversations that end with it."""
    replicas, requests = state.replicas, state.requests
    replicas.busy[replica] = False
    replicas.woken[replica] = True
    if replicas.host[replica] >= 0:
        replicas.busy_on_host[replicas.host[replica]] -= 1
    for index in range(replicas.num_scheduled[replica]):
        slot = replicas.scheduled[replica, index]
        count = state.decision.tokens[slot]
        state.decision.tokens[slot] = 0  # policies find a decision that leaves everyone out
        requests.context[slot] += count
        requests.new_tokens[slot] -= count
        if engine.prefixes:
            keep_prefixes(state, slot, replica)
        if requests.new_tokens[slot] == 0:
            _emit(state, engine, slot, replica)
    if replicas.blocked[replica] > 0:
        tell(state.outbox, ROOM, replica)


@lean
def end_steps(state: State, engine: Engine, replica: int, order: int) -> None:
    """End what an event with a serial number ends: a step, a run of them, or nothing, if the run was interrupted since."""
    if order != state.replicas.due[replica]:
        state.replicas.stale[replica] -= 1
    elif state.replicas.run[replica] > 0:
        end_run(state, engine, replica)
    else:
        end_step(state, engine, replica)
