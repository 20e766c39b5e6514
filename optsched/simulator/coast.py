"""Uneventful steps in one go: while nothing can happen but that every running request decodes, no policy is asked.

Every policy but a pacing one schedules all running requests if nothing waits, all of them decode from KV cache, their growth
fits the free blocks, and the limits of a step allow it; and a steady policy goes on to refuse those who wait (property tests
hold the policies to both). Until the next event of the heap, the end of a turn, or the pool's last block, the steps are
therefore known.

A replica alone takes them at once (`coast`). Beside others the heap is full of their steps' ends, nearly all of which are no
concern of it: there it enters a run (`begin_run`), whose steps are settled when the last ends, or when something reaches it.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from optsched.batching.state import KV
from optsched.compiled import inlined, lean
from optsched.placement.step_time import jitter, slowdown, step_j, step_s
from optsched.simulator.gaps import count_gaps, keep_gap, keep_run
from optsched.simulator.heap import STEP_END, push
from optsched.simulator.queues import tell
from optsched.simulator.state import ROOM, Engine, State

Array = np.ndarray
LONGEST_RUN = 256
"""Steps that a replica beside others foresees at most; they are computed to know their end, and again when they are settled."""
MOST_STALE = 16
"""Ends of interrupted runs that the heap has room for, per replica."""


@lean
def _steps_to_go(state: State, engine: Engine, replica: int, growing: Int64[Array, " block"]) -> tuple[int, int]:
    """Return how many steps all running requests can take before a turn ends, and their cached tokens; 0 if not all decode.

    Parameters
    ----------
    growing
        Filled with the requests that need another block in the first, second, ... of every ``block_tokens`` steps.
    """
    requests, turns, counts = state.requests, state.turns, state.replicas.counts[replica]
    running = counts[0]
    if (
        not engine.eager
        or (counts[1] > 0 and not state.replicas.refused[replica])
        or running == 0
        or running > min(engine.max_sequences, state.replicas.max_batched_tokens[replica])
    ):
        return 0, 0
    fewest, kv_tokens = np.iinfo(np.int64).max, 0
    for index in range(running):
        slot = state.replicas.queue[replica, index]
        context, emitted = requests.context[slot], requests.emitted[slot]
        if requests.cache[slot] != KV or requests.new_tokens[slot] != 1 or emitted == 0:
            return 0, 0
        fewest = min(fewest, turns.output_tokens[state.turn[slot]] - emitted - 1)
        growing[-context % engine.block_tokens] += 1
        kv_tokens += context
    if engine.record_steps:
        fewest = min(fewest, len(state.steps.integers) - state.steps.size[0] - 2)
    return fewest, kv_tokens


@lean
def _record(state: State, replica: int, running: int, kv_tokens: int, busy: int, start_s: float, end_s: float) -> None:
    row = state.steps.size[0]
    integers, floats = state.steps.integers[row], state.steps.floats[row]
    integers[:] = 0
    integers[0], integers[2], integers[3], integers[4], integers[6] = replica, running, running, kv_tokens, busy
    floats[0], floats[1], floats[2] = start_s, end_s, 0.0
    state.steps.size[0] = row + 1


@lean
def _settle(state: State, engine: Engine, replica: int, steps: int, first_s: float, now_s: float, longest_s: float) -> None:
    """Give every running request the tokens of the steps taken, the first of which ended at `first_s`."""
    requests = state.requests
    for index in range(state.replicas.counts[replica, 0]):
        slot = state.replicas.queue[replica, index]
        first_gap_s = first_s - requests.last_token_s[slot]
        if max(longest_s, first_gap_s) >= engine.tbt_slo_s:
            requests.late[slot] = 1
        if not engine.record_tokens:
            count_gaps(state.gaps, first_gap_s, 1)
            keep_gap(state.gaps, state.turn[slot], first_gap_s)
            keep_run(state.gaps, state.turn[slot], steps)
        requests.context[slot] += steps
        requests.emitted[slot] += steps
        requests.blocks[slot] = -(-requests.context[slot] // engine.block_tokens)
        requests.last_token_s[slot] = now_s
    state.counters[0] += steps


@inlined
def _take(
    state: State, engine: Engine, replica: int, most: int, kv_tokens: int, busy: int, now: float, until_s: float
) -> tuple[int, float]:
    """Take at most so many steps from now on, those that end before a time; return how many, and when the last ended."""
    replicas, growing, turns = state.replicas, state.growing, state.turns
    running, slow = replicas.counts[replica, 0], slowdown(state.laws, replica, busy)
    steps, first_s, longest_s = 0, 0.0, 0.0
    while steps < most and growing[steps % engine.block_tokens] <= replicas.free_blocks[replica]:
        content = (float(running), 0.0, 0.0, float(kv_tokens), float(running), 0.0)
        took_s = step_s(state.laws, replica, *content) * slow
        if replicas.host[replica] >= 0:
            took_s *= jitter(state.laws, replica, busy, False, state.counters[0] + steps)
        end = now + took_s
        if end >= until_s:
            break
        replicas.free_blocks[replica] -= growing[steps % engine.block_tokens]
        replicas.dynamic_j[replica] += step_j(state.laws, replica, *content)
        if engine.record_tokens:
            for index in range(running):
                slot = replicas.queue[replica, index]
                turns.token_s[turns.token_offset[state.turn[slot]] + state.requests.emitted[slot] + steps] = end
        if engine.record_steps:
            _record(state, replica, running, kv_tokens, busy, now, end)
        if steps == 0:
            first_s = end
        else:
            longest_s = max(longest_s, end - now)
            if not engine.record_tokens:
                state.gaps.run_s[steps] = end - now
                count_gaps(state.gaps, end - now, running)
        now = end
        steps += 1
        kv_tokens += running
    if steps > 0:
        _settle(state, engine, replica, steps, first_s, now, longest_s)
    return steps, now


@lean
def coast(state: State, engine: Engine, replica: int) -> float:
    """Take all steps that end before anything else can happen; return when the step after them starts."""
    now, replicas = float(state.clock[0]), state.replicas
    state.growing[:] = 0
    most, kv_tokens = _steps_to_go(state, engine, replica, state.growing)
    if most < 1:
        return now
    busy = 1
    if replicas.host[replica] >= 0:
        busy += replicas.busy_on_host[replicas.host[replica]]
    until_s = float(state.heap.time_s[0]) if state.heap.size[0] > 0 else np.inf
    return _take(state, engine, replica, most, kv_tokens, busy, now, until_s)[1]


@lean
def begin_run(state: State, engine: Engine, replica: int) -> bool:
    """Foresee steps in which nothing happens and have their last end be the next event; False if there are none.

    They are settled when that event comes, or at once as far as they have got when something else reaches the replica.
    Replicas that slow each other down on a shared host do not run ahead, nor those whose prompts share cache.
    """
    replicas, now = state.replicas, float(state.clock[0])
    if replicas.host[replica] >= 0 or engine.prefixes or replicas.stale[replica] >= MOST_STALE:
        return False
    state.growing[:] = 0
    most, kv_tokens = _steps_to_go(state, engine, replica, state.growing)
    most = min(most, LONGEST_RUN)
    if engine.record_steps:
        room = len(state.steps.integers) - state.steps.size[0] - state.steps.size[1]
        most = min(most, room - 2 * len(replicas.woken))
    running, free, steps = float(replicas.counts[replica, 0]), replicas.free_blocks[replica], 0
    while steps < most and state.growing[steps % engine.block_tokens] <= free:
        free -= state.growing[steps % engine.block_tokens]
        alone = slowdown(state.laws, replica, 1)
        now += step_s(state.laws, replica, running, 0.0, 0.0, float(kv_tokens), running, 0.0) * alone
        kv_tokens += replicas.counts[replica, 0]
        steps += 1
    if steps < 1:
        return False
    replicas.run[replica], replicas.run_start_s[replica], replicas.busy[replica] = steps, state.clock[0], True
    if engine.record_steps:
        state.steps.size[1] += steps
    replicas.due[replica] = state.heap.size[1]
    push(state.heap, now, STEP_END, replica)
    return True


@lean
def _settle_run(state: State, engine: Engine, replica: int, until_s: float) -> float:
    """Take the steps of a replica's run that end before a time, and end the run; return when the last of them ended."""
    replicas, requests, growing = state.replicas, state.requests, state.growing
    growing[:] = 0
    kv_tokens = 0
    for index in range(replicas.counts[replica, 0]):
        context = requests.context[replicas.queue[replica, index]]
        growing[-context % engine.block_tokens] += 1
        kv_tokens += context
    most = replicas.run[replica]
    replicas.run[replica] = 0
    if engine.record_steps:
        state.steps.size[1] -= most
    return _take(state, engine, replica, most, kv_tokens, 1, replicas.run_start_s[replica], until_s)[1]


@lean
def end_run(state: State, engine: Engine, replica: int) -> None:
    """Settle a run that has come to its end."""
    _settle_run(state, engine, replica, np.inf)
    state.replicas.busy[replica] = False
    state.replicas.woken[replica] = True
    if state.replicas.blocked[replica] > 0:
        tell(state.outbox, ROOM, replica)


@inlined
def interrupt(state: State, engine: Engine, replica: int) -> None:
    """Settle a replica's run, if it is in one, up to the step that is under way now, before something reaches the replica."""
    if state.replicas.run[replica] > 0:
        _interrupt(state, engine, replica)


@lean
def _interrupt(state: State, engine: Engine, replica: int) -> None:
    replicas, requests = state.replicas, state.requests
    start_s = _settle_run(state, engine, replica, float(state.clock[0]))
    running, kv_tokens = replicas.counts[replica, 0], 0
    for index in range(running):
        slot = replicas.queue[replica, index]
        replicas.scheduled[replica, index] = slot
        state.decision.tokens[slot] = 1
        kv_tokens += requests.context[slot]
        if requests.context[slot] % engine.block_tokens == 0:
            requests.blocks[slot] += 1
            replicas.free_blocks[replica] -= 1
    replicas.num_scheduled[replica] = running
    content = (float(running), 0.0, 0.0, float(kv_tokens), float(running), 0.0)
    end_s = start_s + step_s(state.laws, replica, *content) * slowdown(state.laws, replica, 1)
    replicas.dynamic_j[replica] += step_j(state.laws, replica, *content)
    if engine.record_steps:
        _record(state, replica, running, kv_tokens, 1, start_s, end_s)
    state.counters[0] += 1
    replicas.stale[replica] += 1
    replicas.due[replica] = state.heap.size[1]
    push(state.heap, end_s, STEP_END, replica)
