"""Batches for agents' conversations: decodes and short appended prompts first, and long decodes paced while memory is short.

An agent's later turn appends some tens of tokens to a cache of thousands. Behind a first turn's prompt it would wait for all
chunks of that; ahead of it, it costs next to nothing. A decode of thousands of tokens has everybody else wait at each step
until its large cache is read; most answers are short, so the few that are not give way.

References
----------
Who has had much is served less, with no length known in advance: "foreground-background" scheduling, L. Kleinrock,
"Queueing Systems, volume 2", 1976, section 4.6. The use of it here is this project's own.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from optsched.batching.policies.admission import Room, admit, is_decode, take
from optsched.batching.policies.sarathi import keep_running
from optsched.batching.state import Counts, Decision, Engine, Requests
from optsched.compiled import kernel, lean

Array = np.ndarray


@lean
def _is_held_back(requests: Requests, slot: int, engine: Engine) -> bool:
    """Tell whether a request decodes past ``after_tokens``, and had its last token less than ``pace_s`` ago."""
    recent = engine.now_s - requests.last_token_s[slot] < engine.parameters[1]
    return bool(recent and requests.emitted[slot] > engine.parameters[0] and is_decode(requests, slot))


@lean
def _paces(requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision) -> bool:
    """Tell whether long decodes are held back: the pool is fuller than ``above_share``, and others go on that gain by it."""
    if engine.total_blocks - engine.free_blocks <= engine.parameters[2] * engine.total_blocks:
        return False
    due = 0
    for position in range(counts.running):
        slot = queue[position]
        due += 0 if decision.evict[slot] == 1 or _is_held_back(requests, slot, engine) else 1
    return due > 0


@lean
def _take_decodes(
    requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision
) -> tuple[int, int]:
    """Schedule the decodes that were not evicted, long ones at their pace; return how many, and how many were kept."""
    paces, most, scheduled, kept = _paces(requests, queue, counts, engine, decision), engine.max_batched_tokens, 0, 0
    for position in range(counts.running):
        slot = queue[position]
        if decision.evict[slot] == 1 or not is_decode(requests, slot):
            continue
        kept += 1
        if scheduled < min(most, engine.max_sequences) and not (paces and _is_held_back(requests, slot, engine)):
            take(requests, slot, 1, decision)
            scheduled += 1
    return scheduled, kept


@lean
def _take_prompts(
    requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision, budget: int, scheduled: int
) -> tuple[int, int, int]:
    """Go on with prompts begun; return the tokens then left, all that is scheduled, and how many prompts were kept."""
    kept = 0
    for position in range(counts.running):
        slot = queue[position]
        if decision.evict[slot] == 1 or is_decode(requests, slot):
            continue
        kept += 1
        tokens = min(requests.new_tokens[slot], budget)
        if tokens > 0 and scheduled < engine.max_sequences:
            take(requests, slot, tokens, decision)
            budget -= tokens
            scheduled += 1
    return budget, scheduled, kept


@kernel
def _line_up(requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine) -> tuple[Int64[Array, " w"], int]:
    """Return the order of the waiting, short prompts that append to a cache first, and the tokens of those."""
    order, placed, tokens = np.empty(counts.waiting, np.int64), 0, 0
    for appends in (True, False):
        for index in range(counts.waiting):
            slot = queue[counts.running + index]
            short = requests.context[slot] > 0 and requests.new_tokens[slot] <= engine.parameters[3]
            if short == appends:
                order[placed] = index
                placed += 1
                tokens += requests.new_tokens[slot] if appends else 0
    return order, tokens


@kernel
def decide(requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision) -> int:
    """Compose the next step: decodes, short appended prompts, prompts begun, then new ones, within the token budget.

    While the pool is fuller than ``above_share``, a turn that has put out more than ``after_tokens`` gets a token every
    ``pace_s`` at most, if others run. Beside decodes a step computes at most ``chunk_tokens`` of prompts. Waiting prompts of at
    most ``append_tokens`` that append to a cache have up to half of these before prompts begun. Otherwise first come, first
    served: a prompt is admitted if the free blocks above the watermark hold all of it. Where running requests lack blocks, the
    one admitted last is preempted and recomputed later. KV cache only.

    Parameters
    ----------
    requests, queue, counts, engine
        The state, see `optsched.batching.state`; nothing in it changes.
    decision
        Zeros on entry; filled for the slots of the queue.

    Returns
    -------
    int
        Number of scheduled requests.
    """
    free = keep_running(requests, queue, counts, engine, decision)
    scheduled, decodes = _take_decodes(requests, queue, counts, engine, decision)
    budget = engine.max_batched_tokens - scheduled
    if scheduled > 0:
        budget = min(budget, max(1, int(engine.parameters[4])))
    order, appended = _line_up(requests, queue, counts, engine)
    lent = min(appended, budget // 2)
    left, scheduled, prompts = _take_prompts(requests, queue, counts, engine, decision, budget - lent, scheduled)
    kept = decodes + prompts
    if kept < counts.running:  # a step that had to preempt admits nothing
        return scheduled
    return scheduled + admit(requests, queue, counts, engine, decision, order, Room(free, left + lent, kept), False, True)
