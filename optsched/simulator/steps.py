"""A replica's step: ask the policy, apply its decision, and see when it will end."""

from __future__ import annotations

from typing import NamedTuple

from optsched.batching.blocks import blocks_for
from optsched.batching.policies.dispatch import call_policy
from optsched.batching.state import KV, Counts, Decision
from optsched.batching.state import Engine as ReplicaEngine
from optsched.compiled import lean
from optsched.placement.step_time import jitter, slowdown, step_j, step_s
from optsched.simulator.coast import begin_run, coast
from optsched.simulator.heap import STEP_END, push
from optsched.simulator.prefixes import claim_prefixes, release, squeeze
from optsched.simulator.queues import note, tell
from optsched.simulator.state import CROWDED, EVICTED, PREEMPTED, STARVED, Engine, Replicas, State


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
    took_s = step_s(state.laws, replica, *law) * slowdown(state.laws, replica, busy)
    if host >= 0:
        took_s *= jitter(state.laws, replica, busy, content.prefill_tokens > 0, state.counters[0])
    end_s = now_s + took_s
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
    starved = content.sequences == 0
    while content.sequences == 0 and replicas.woken[replica] and state.outbox.questions[0] == 0:
        # It only evicted, and may serve somebody now. Each time fewer hold a cache, and nobody's grows.
        content = _compose(state, engine, policy, replica, now_s)
    if content.sequences > 0:
        _launch(state, engine, replica, content, now_s)
    elif engine.per_turn:
        tell(state.outbox, CROWDED, replica)
    if starved and engine.circles:
        tell(state.outbox, STARVED, replica)
    if engine.prefixes:
        squeeze(state, replica)
