"""Uneventful steps in one go: while nothing can happen but that every running request decodes, no policy is asked.

Every policy but a pacing one schedules all running requests if nothing waits, all of them decode from KV cache, their growth
fits the free blocks, and the limits of a step allow it; and a steady policy goes on to refuse those who wait (property tests
hold the policies to both). Until the next event of the heap, the end of a turn, or the pool's last block, the steps are
therefore known.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from optsched.batching.state import KV
from optsched.compiled import lean
from optsched.placement.step_time import slowdown, step_j, step_s
from optsched.simulator.gaps import count_gaps, keep_gap, keep_run
from optsched.simulator.state import Engine, State

Array = np.ndarray


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


@lean
def coast(state: State, engine: Engine, replica: int) -> float:
    """Take all steps that end before anything else can happen; return when the step after them starts."""
    now, replicas = state.clock[0], state.replicas
    growing = state.growing
    growing[:] = 0
    most, kv_tokens = _steps_to_go(state, engine, replica, growing)
    if most < 1:
        return float(now)
    running, busy = replicas.counts[replica, 0], 1
    if replicas.host[replica] >= 0:
        busy += replicas.busy_on_host[replicas.host[replica]]
    slow, turns = slowdown(state.laws, replica, busy), state.turns
    until = state.heap.time_s[0] if state.heap.size[0] > 0 else np.inf
    steps, first_s, longest_s = 0, 0.0, 0.0
    while steps < most and growing[steps % engine.block_tokens] <= replicas.free_blocks[replica]:
        content = (float(running), 0.0, 0.0, float(kv_tokens), float(running), 0.0)
        end = now + step_s(state.laws, replica, *content) * slow
        if end >= until:
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
    return float(now)
