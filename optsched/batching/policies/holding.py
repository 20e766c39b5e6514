"""Whom a replica's memory holds: for policy ``attain``, who is evicted, who is admitted, and in which order."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int64

from optsched.batching.policies.admission import growth, take
from optsched.batching.policies.eviction import evict_backward, evict_forward
from optsched.batching.policies.prefill_first import by_key
from optsched.batching.policies.standing import Standing
from optsched.batching.state import Counts, Decision, Engine, Requests
from optsched.compiled import kernel, lean

Array = np.ndarray


@lean
def whole(requests: Requests, slot: int, engine: Engine) -> int:
    """Return the blocks that a request lacks to compute all its tokens."""
    return growth(requests, slot, requests.new_tokens[slot], engine)


@lean
def _evict_lost(
    requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision, standing: Standing,
    room: int, needed: int,
) -> int:  # fmt: skip
    """Evict lost requests, the latest arrival first, until `needed` blocks are left; return how many are."""
    for index in range(standing.num_lost - 1, -1, -1):
        position = standing.lost[index]
        slot = queue[position]
        if room >= needed:
            break
        if decision.evict[slot] == 0 and requests.blocks[slot] > 0:
            decision.evict[slot] = 1
            room += requests.blocks[slot] + (whole(requests, slot, engine) if position < counts.running else 0)
    return room


@kernel
def _largest_first(requests: Requests, queue: Int64[Array, " q"], counts: Counts, standing: Standing) -> Int64[Array, " r"]:
    """Return the running positions by the blocks that they hold, the most first; ties: the latest arrival; guarded last."""
    arrival, blocks = np.empty(counts.running), np.empty(counts.running)
    for position in range(counts.running):
        slot = queue[position]
        arrival[position] = -requests.arrival_s[slot]
        blocks[position] = 1 if standing.guarded[position] else -requests.blocks[slot]
    order = by_key(arrival)
    victims: Int64[Array, " r"] = order[by_key(blocks[order])]
    return victims


@kernel
def make_room(
    requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision, standing: Standing,
    room: int,
) -> int:  # fmt: skip
    """Evict until the running requests that are kept can have all blocks that they lack; return the blocks then left.

    Idle caches go first, then lost requests, then waiting caches, and then running requests that can still attain, the
    largest first: fewer evictions cannot free as much. The last is kept unless the pool is too small for it.
    """
    n = counts.running + counts.waiting
    _, room = evict_forward(requests, queue, n, n + counts.idle, decision, room, 0)
    for position in range(counts.running):
        slot = queue[position]
        if requests.blocks[slot] + whole(requests, slot, engine) > engine.total_blocks:  # executors refuse such requests
            decision.evict[slot] = 1
            room += requests.blocks[slot] + whole(requests, slot, engine)
    room = _evict_lost(requests, queue, counts, engine, decision, standing, room, 0)
    room = evict_backward(requests, queue, counts.running, n, decision, room, 0)
    for position in _largest_first(requests, queue, counts, standing):
        slot = queue[position]
        if room >= 0:
            break
        if decision.evict[slot] == 0:
            decision.evict[slot] = 1
            room += requests.blocks[slot] + whole(requests, slot, engine)
    return room


@kernel
def line_up(
    requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, standing: Standing
) -> Int64[Array, " w"]:
    """Return the waiting positions in the order of admission, lost ones left out.

    Guarded ones come first, by arrival, then those that can still attain, by the blocks that they lack, the fewest first:
    fewer blocks cannot hold as many. Ties: the fewest tokens, then the earliest arrival, then as they stand.
    """
    positions = np.arange(counts.running, counts.running + counts.waiting)
    positions = positions[(standing.in_time | standing.guarded)[counts.running :]]
    arrival, tokens, blocks = np.empty(len(positions)), np.empty(len(positions)), np.empty(len(positions))
    for index, position in enumerate(positions):
        slot = queue[position]
        arrival[index] = requests.arrival_s[slot]
        tokens[index] = -1 if standing.guarded[position] else requests.context[slot] + requests.new_tokens[slot]
        blocks[index] = -1 if standing.guarded[position] else whole(requests, slot, engine)
    order = by_key(arrival)
    order = order[by_key(tokens[order])]
    line: Int64[Array, " w"] = positions[order[by_key(blocks[order])]]
    return line


@lean
def _to_gain(
    requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision, standing: Standing
) -> int:
    """Return the blocks that evicting all idle caches and lost requests would yield."""
    blocks = 0
    for position in range(counts.running + counts.waiting, len(queue)):
        blocks += 0 if decision.evict[queue[position]] == 1 else requests.blocks[queue[position]]
    for index in range(standing.num_lost):
        position = standing.lost[index]
        slot = queue[position]
        if decision.evict[slot] == 0 and requests.blocks[slot] > 0:
            blocks += requests.blocks[slot] + (whole(requests, slot, engine) if position < counts.running else 0)
    return blocks


@lean
def admit_able(
    requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision, standing: Standing,
    line: Int64[Array, " w"], chosen: Bool[Array, " n"], room: int,
) -> None:  # fmt: skip
    """Choose whom to admit into the blocks left.

    In line up to the first that does not fit above the watermark, at the cost of idle caches and then of lost requests, the
    latest arrival first. If all of the line fits, lost ones follow, the earliest arrival first, as long as headroom remains.
    """
    n, sequences = counts.running + counts.waiting, 0
    for position in range(counts.running):
        sequences += int(decision.evict[queue[position]] == 0)
    gain = _to_gain(requests, queue, counts, engine, decision, standing)
    for position in line:
        slot = queue[position]
        if decision.evict[slot] == 1:  # made room for those who run
            continue
        grown = whole(requests, slot, engine)
        needed = grown + engine.watermark_blocks if sequences > 0 and grown > 0 else grown
        if sequences >= engine.max_sequences or room + gain < needed:
            return
        before = room
        _, room = evict_forward(requests, queue, n, n + counts.idle, decision, room, needed)
        room = _evict_lost(requests, queue, counts, engine, decision, standing, room, needed)
        gain -= room - before
        room -= grown
        chosen[position] = True
        sequences += 1
    headroom = engine.watermark_blocks + int(engine.parameters[2] * engine.total_blocks)
    for index in range(standing.num_lost):
        position = standing.lost[index]
        slot = queue[position]
        if position < counts.running or decision.evict[slot] == 1:
            continue
        grown = whole(requests, slot, engine)
        needed = grown + headroom if sequences > 0 else grown
        _, room = evict_forward(requests, queue, n, n + counts.idle, decision, room, needed)
        if sequences >= engine.max_sequences or room < needed:
            break
        room -= grown
        chosen[position] = True
        sequences += 1


@kernel
def force(
    requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision, standing: Standing,
    line: Int64[Array, " w"],
) -> int:  # fmt: skip
    """With nothing running, serve the first waiting request that the pool can hold, at the cost of all other caches."""
    n, free = counts.running + counts.waiting, engine.free_blocks
    for slot in queue:
        free += requests.blocks[slot] if decision.evict[slot] == 1 else 0
    for position in np.append(line, standing.lost[: standing.num_lost]):
        slot = queue[position]
        grown = whole(requests, slot, engine)
        if decision.evict[slot] == 1 or requests.blocks[slot] + grown > engine.total_blocks:
            continue
        _, free = evict_forward(requests, queue, n, n + counts.idle, decision, free, grown)
        decision.evict[slot] = 1  # not its own cache
        free = evict_backward(requests, queue, counts.running, n, decision, free, grown)
        decision.evict[slot] = 0
        if free < grown:  # caches that left the queue and wait to be handed over hold the rest
            continue
        take(requests, slot, min(requests.new_tokens[slot], engine.max_batched_tokens), decision)
        return 1
    return 0
