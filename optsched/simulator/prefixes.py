"""Prefix caching: prompts that begin alike share the blocks of their beginning, within a replica.

A unit is a block of the workload's own kind (512 tokens in Mooncake's traces). A request that starts from nothing claims the
cached units that its prompt begins with, and computes from there; units that it computes itself are kept for others. Units
that nobody uses any more stay in the free blocks until those are needed, least recently used first, the ends of prompts
before their beginnings.

References
----------
vLLM's automatic prefix caching (Kwon et al., SOSP 2023, arXiv 2309.06180); Qin et al., "Mooncake", arXiv 2407.00079.
"""

from __future__ import annotations

from optsched.batching.state import KV, NO_CACHE
from optsched.compiled import lean
from optsched.simulator.state import Engine, Prefixes, State


@lean
def release(state: State, slot: int, replica: int) -> None:
    """Free a slot's blocks; of shared ones only its claim."""
    requests, replicas, prefixes = state.requests, state.replicas, state.prefixes
    shared = prefixes.claimed[slot]
    replicas.free_blocks[replica] += requests.blocks[slot] - shared * prefixes.unit_blocks[0]
    first = prefixes.offset[slot]
    for position in range(first + shared - 1, first - 1, -1):
        unit = prefixes.unit[position]
        prefixes.users[replica, unit] -= 1
        if prefixes.users[replica, unit] == 0:
            replicas.free_blocks[replica] += prefixes.unit_blocks[0]
            _retain(prefixes, replica, unit)
    prefixes.claimed[slot] = 0
    requests.blocks[slot] = 0
    requests.cache[slot] = NO_CACHE
    replicas.woken[replica] = True
    replicas.refused[replica] = False


@lean
def _retain(prefixes: Prefixes, replica: int, unit: int) -> None:
    """Leave a unit that nobody uses in the free blocks, behind those left there before."""
    size = prefixes.order.shape[1]
    if prefixes.end[replica] - prefixes.start[replica] == size:
        _compact(prefixes, replica)
    place = prefixes.end[replica]
    prefixes.end[replica] += 1
    prefixes.order[replica, place % size] = unit
    prefixes.place[replica, unit] = place
    prefixes.retained[replica] += 1


@lean
def _compact(prefixes: Prefixes, replica: int) -> None:
    """Drop from the order of retention the entries whose units were used again since; at most half can remain."""
    size = prefixes.order.shape[1]
    start, end = prefixes.start[replica], prefixes.end[replica]
    kept = start
    for place in range(start, end):
        unit = prefixes.order[replica, place % size]
        if prefixes.place[replica, unit] == place:
            prefixes.order[replica, kept % size] = unit
            prefixes.place[replica, unit] = kept
            kept += 1
    prefixes.end[replica] = kept


@lean
def squeeze(state: State, replica: int) -> None:
    """Forget retained units until the free blocks hold those that are left."""
    prefixes, free = state.prefixes, state.replicas.free_blocks[replica]
    size = prefixes.order.shape[1]
    while prefixes.retained[replica] * prefixes.unit_blocks[0] > free:
        place = prefixes.start[replica]
        unit = prefixes.order[replica, place % size]
        prefixes.start[replica] += 1
        if prefixes.place[replica, unit] == place:
            prefixes.place[replica, unit] = -1
            prefixes.retained[replica] -= 1


@lean
def _use(state: State, slot: int, replica: int) -> None:
    """Have a slot claim the next unit of its prompt, which is cached."""
    prefixes = state.prefixes
    unit = prefixes.unit[prefixes.offset[slot] + prefixes.claimed[slot]]
    if prefixes.users[replica, unit] == 0:
        prefixes.place[replica, unit] = -1
        prefixes.retained[replica] -= 1
        state.replicas.free_blocks[replica] -= prefixes.unit_blocks[0]
    prefixes.users[replica, unit] += 1
    prefixes.claimed[slot] += 1


@lean
def claim_prefixes(state: State, engine: Engine, replica: int) -> None:
    """Give waiting requests that hold nothing what is cached of their prompts, as far as a step could admit them."""
    counts, requests, prefixes = state.replicas.counts[replica], state.requests, state.prefixes
    budget = state.replicas.max_batched_tokens[replica]
    for index in range(counts[0], counts[0] + counts[1]):
        slot = state.replicas.queue[replica, index]
        if requests.context[slot] == 0:
            first, most = prefixes.offset[slot], prefixes.offset[slot + 1] - prefixes.offset[slot]
            while prefixes.claimed[slot] < most:
                unit = prefixes.unit[first + prefixes.claimed[slot]]
                if prefixes.users[replica, unit] == 0 and prefixes.place[replica, unit] < 0:
                    break
                _use(state, slot, replica)
            tokens = prefixes.claimed[slot] * prefixes.unit_tokens[0]
            if tokens > 0:
                requests.context[slot] = tokens
                requests.new_tokens[slot] -= tokens
                requests.blocks[slot] = prefixes.claimed[slot] * prefixes.unit_blocks[0]
                requests.cache[slot] = KV
                prefixes.reused_tokens[0] += tokens
        budget -= requests.new_tokens[slot]
        if budget <= 0:
            break


@lean
def keep_prefixes(state: State, slot: int, replica: int) -> None:
    """Let others use the units of its prompt that a request has computed; those that are cached already are kept once."""
    prefixes, requests = state.prefixes, state.requests
    if requests.cache[slot] != KV:
        return
    first, most = prefixes.offset[slot], prefixes.offset[slot + 1] - prefixes.offset[slot]
    while prefixes.claimed[slot] < most and (prefixes.claimed[slot] + 1) * prefixes.unit_tokens[0] <= requests.context[slot]:
        unit = prefixes.unit[first + prefixes.claimed[slot]]
        if prefixes.users[replica, unit] == 0 and prefixes.place[replica, unit] < 0:
            prefixes.users[replica, unit] = 1
            prefixes.claimed[slot] += 1
        else:
            _use(state, slot, replica)
            state.replicas.free_blocks[replica] += prefixes.unit_blocks[0]
