"""Ours: hold as many requests as possible that can still attain, and serve the others with what is left.

Apt-Serve (arXiv 2504.07494) chooses by the time that requests have waited. What counts at the end is how many meet their
targets, and a request's chance of that is over once one token is late, however long it has waited.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int64

from optsched.batching.policies.admission import is_decode, take
from optsched.batching.policies.holding import admit_able, force, line_up, make_room, whole
from optsched.batching.policies.prefill_first import by_key
from optsched.batching.policies.standing import Decodes, Standing, decodes_of, standing_of, step_with_s
from optsched.batching.state import Counts, Decision, Engine, Requests
from optsched.compiled import kernel, lean

Array = np.ndarray

SMALLEST_CHUNK = 16  # tokens; steps are not cut further to keep decodes in time
FAR_S = 1e12
MARGIN = 0.9  # share of the time left that a step may take as foreseen


@kernel
def _chunk(
    requests: Requests, queue: Int64[Array, " q"], engine: Engine, standing: Standing, decodes: Decodes,
    prompts: Int64[Array, " p"], left_s: float, budget: int,
) -> int:  # fmt: skip
    """Return how many tokens of prompts the step takes.

    The parameter ``chunk_tokens`` less the decodes; half of it, and so on, while the step would take longer than the decodes
    have left; or else twice as many, and so on, while that brings more prompts to their first token in time.
    """
    chunk = min(max(1, int(engine.parameters[0]) - decodes.number), budget)
    while chunk > SMALLEST_CHUNK and step_with_s(engine, decodes, chunk) > left_s:
        chunk //= 2
    best, most = chunk, -1
    while True:
        step_s = step_with_s(engine, decodes, chunk)
        tokens, reached, missed = 0, 0, 0
        for position in prompts:
            if standing.in_time[position]:
                tokens += requests.new_tokens[queue[position]]
                in_time = engine.now_s + -(-tokens // chunk) * step_s < standing.deadline_s[position]
                reached, missed = reached + int(in_time), missed + int(not in_time)
        if reached > most and (most < 0 or step_s <= left_s):
            best, most = chunk, reached
        if missed == 0 or chunk >= budget or step_s > left_s:
            return best
        chunk = min(2 * chunk, budget)


@kernel
def _prompts(
    requests: Requests, queue: Int64[Array, " q"], counts: Counts, decision: Decision, standing: Standing,
    chosen: Bool[Array, " n"],
) -> Int64[Array, " p"]:  # fmt: skip
    """Return the positions to prefill: guarded ones, then by deadline, then lost ones by arrival."""
    n = counts.running + counts.waiting
    due, positions, number = np.empty(n), np.empty(n, np.int64), 0
    for position in range(n):
        slot = queue[position]
        running = position < counts.running and decision.evict[slot] == 0 and not is_decode(requests, slot)
        if not (running or chosen[position]):
            continue
        positions[number], due[number] = position, standing.deadline_s[position]
        if not standing.in_time[position]:
            due[number] = requests.arrival_s[slot] + (-FAR_S if standing.guarded[position] else FAR_S)
        number += 1
    prompts: Int64[Array, " p"] = positions[:number][by_key(due[:number])]
    return prompts


@lean
def _step_decodes(
    requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision, standing: Standing
) -> tuple[int, float]:
    """Schedule the decodes, those that can still attain first; return how many, and the least time that one of those has."""
    scheduled, left_s = 0, np.inf
    most = min(engine.max_sequences, engine.max_batched_tokens)
    for in_time in (True, False):
        for position in range(counts.running):
            slot = queue[position]
            if decision.evict[slot] == 1 or standing.in_time[position] != in_time or not is_decode(requests, slot):
                continue
            if scheduled >= most:
                return scheduled, left_s
            take(requests, slot, 1, decision)
            scheduled += 1
            if in_time:
                left_s = min(left_s, standing.deadline_s[position] - engine.now_s)
    return scheduled, left_s


@kernel
def decide(requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision) -> int:
    """Compose the next step: all decodes, and a chunk of prompts, earliest deadline first.

    A request can still attain if none of its tokens was late and the replica's step law lets the next one come before its
    deadline: TTFT after the arrival, TBT after the last token. Otherwise it is lost, and served with what is left.

    Memory decides whom to hold. Waiting requests that can still attain are admitted with blocks for all their tokens, the
    fewest blocks first; idle caches and lost requests, the latest arrival first, make room for them above the watermark,
    others do not. Lost requests are admitted, the earliest arrival first, if nobody who can attain is left waiting and
    ``headroom_share`` of the pool stays free. Where running requests outgrow the pool, idle caches go, then lost requests,
    then waiting caches, then those that can attain, the largest first. KV cache, unless a request holds the other kind.

    The chunk is ``chunk_tokens`` long, decodes included; shorter if the step would otherwise make a decode late, longer
    (within the engine's token budget) if that brings more first tokens in time. Lost prompts come last. The earliest lost
    arrivals are guarded until they fill ``lost_share`` of the pool, one at least: nobody is admitted before them, and they
    are evicted last. At 0 nobody is guarded, and those who are lost wait for the load to permit.

    Parameters
    ----------
    requests, queue, counts, engine
        The state, see `optsched.batching.state`; nothing in it changes. With ``law`` unknown, steps count as instantaneous.
    decision
        Zeros on entry; filled for the slots of the queue.

    Returns
    -------
    int
        Number of scheduled requests.

    Notes
    -----
    Let p_i be the chance that request i attains if it is held, b_i the blocks it lacks. Among the waiting,
    ``max sum p_i x_i`` under ``sum b_i x_i <= blocks`` is solved exactly by fewest blocks first whenever p_i does not rise
    with b_i: any k requests have at most the value and at least the blocks of the first k. The same argument makes largest
    first exact for evictions: no fewer free as much. Output lengths are unknown, so nothing else tells those requests apart.

    Optima are many, since blocks are whole. Of requests that lack as many, the one of fewest tokens is admitted, then the
    earliest arrival; of those that hold as many, the latest arrival is evicted; of chunks that bring as many first tokens in
    time, the shortest is taken. What is still alike, prompts of one deadline too, goes by the order of the queue.

    Not done, since simulated workloads lost by it or gained nothing: evicting a large request that can attain for several
    small ones, letting decodes pause until their deadline instead of evicting, and hidden cache, whose rebuilding costs
    more steps than its memory gains wherever memory is short.
    """
    n = counts.running + counts.waiting
    if n == 0:
        return 0
    decodes = decodes_of(requests, queue, counts)
    standing = standing_of(requests, queue, counts, engine, decodes, engine.parameters[1])
    room = engine.free_blocks
    for position in range(counts.running):
        room -= whole(requests, queue[position], engine)
    if room < 0:
        room = make_room(requests, queue, counts, engine, decision, standing, room)
    chosen, line = np.zeros(n, np.bool_), line_up(requests, queue, counts, engine, standing)
    if counts.waiting > 0:
        admit_able(requests, queue, counts, engine, decision, standing, line, chosen, room)
    scheduled, left_s = _step_decodes(requests, queue, counts, engine, decision, standing)
    budget = engine.max_batched_tokens - scheduled
    prompts = _prompts(requests, queue, counts, decision, standing, chosen)
    if len(prompts) > 0 and budget > 0:
        chunk = _chunk(requests, queue, engine, standing, decodes, prompts, MARGIN * left_s, budget)
        for position in prompts:
            slot = queue[position]
            if chunk <= 0 or scheduled >= engine.max_sequences:
                break
            tokens = min(requests.new_tokens[slot], chunk)
            take(requests, slot, tokens, decision)
            chunk -= tokens
            scheduled += 1
    return scheduled if scheduled > 0 else force(requests, queue, counts, engine, decision, standing, line)
