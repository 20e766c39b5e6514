"""The programs that Apt-Serve's iterations ask to be solved: what candidates are worth, what they take, and the limits.

References
----------
Gao et al., "Apt-Serve", PACMMOD 3(3) 130, 2025, arXiv 2504.07494, section 4: Definition 1, and the fallback for violators.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from optsched.batching.blocks import blocks_for
from optsched.batching.greedy import NO_LIMIT, TAKE_HIDDEN
from optsched.batching.state import HIDDEN, KV, Counts, Engine, Requests
from optsched.compiled import inlined, kernel, lean

Array = np.ndarray

PREFILL, DECODE, COMPOSED = 0, 1, 2
NEAR_ZERO = 1e-4  # violators' density relative to the least pending time per block of the pool (released code)
NEAR_ZERO_ALONE = 1e-6  # the same where nothing waits


@lean
def pending_s(requests: Requests, slot: int, now_s: float) -> float:
    """Return the time since a request's last token, or since its arrival."""
    return float(max(0.0, now_s - requests.last_token_s[slot]))


@lean
def violates(requests: Requests, slot: int, engine: Engine) -> bool:
    """Tell whether a request has waited longer than its target: TTFT before its first token, TBT after it."""
    limit = engine.ttft_slo_s if requests.emitted[slot] == 0 else engine.tbt_slo_s
    return pending_s(requests, slot, engine.now_s) > limit


class Worth(NamedTuple):
    """What pending times are worth.

    Attributes
    ----------
    near_zero
        What a violator is worth per block at least, seconds.
    half_life_s
        Time in which a violator regains half of its value; 0: it never does.
    resolution_s
        Pending times count in multiples of it, one at least: everyone waits until the step ends; 0: as they are.
    """

    near_zero: float
    half_life_s: float
    resolution_s: float


@lean
def counted_s(pending: float, resolution_s: float) -> float:
    """Return the pending time that counts."""
    return float(max(1.0, np.rint(pending / resolution_s)) * resolution_s) if resolution_s > 0.0 else pending


@lean
def least_worth(worth: Worth, blocks: int) -> float:
    """Return what a violator is worth that asks for so many blocks; where only what is worth something is taken, something."""
    return float(worth.near_zero * (max(1, blocks) if worth.resolution_s > 0.0 else blocks))


@lean
def violator_worth(worth: Worth, pending: float, overdue: float, blocks: int) -> float:
    """Return the value of a violator that asks for so many blocks."""
    least = least_worth(worth, blocks)
    if worth.half_life_s <= 0.0:
        return least
    return float(max(least, pending * (1.0 - 0.5 ** (overdue / worth.half_life_s))))


@lean
def urgencies(
    requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, exclude_violators: bool, resolution_s: float
) -> tuple[float, float, int, float]:
    """Return the pending time of all running and all waiting requests, U, and the density of violators."""
    running, waiting, pressure, least = 0.0, 0.0, counts.running + counts.waiting, np.inf
    for position in range(counts.running + counts.waiting):
        slot = queue[position]
        p = pending_s(requests, slot, engine.now_s)
        if position < counts.running:
            running += p
        else:
            waiting += p
            least = min(least, p)
        if exclude_violators and violates(requests, slot, engine):
            pressure -= 1
    near_zero = NEAR_ZERO * counted_s(least, resolution_s) / engine.total_blocks if counts.waiting > 0 else NEAR_ZERO_ALONE
    return running, waiting, pressure, near_zero


class Step(NamedTuple):
    """Where the composition of a step stands.

    Attributes
    ----------
    phase
        `PREFILL` or `DECODE`: a selection of that kind is due; `COMPOSED`: the decision is complete.
    scheduled
        Requests in the step, once it is composed.
    pressure
        U, the requests that a step with hidden cache keeps waiting longer.
    worth
        What pending times are worth.
    free
        Free blocks, once caches that must go in any case are gone.
    """

    phase: int
    scheduled: int
    pressure: int
    worth: Worth
    free: int


class Program(NamedTuple):
    """The selection that is due, see `optsched.batching.problem.BatchProblem`: p, m, s, u and tokens; the three limits."""

    pending_s: Float64[Array, " n"]
    kv_blocks: Int64[Array, " n"]
    hidden_blocks: Int64[Array, " n"]
    hidden_penalty_s: Float64[Array, " n"]
    tokens: Int64[Array, " n"]
    memory: int
    token_budget: int
    max_sequences: int


@inlined
def candidates(queue: Int64[Array, " q"], counts: Counts, step: Step) -> Int64[Array, " n"]:
    """Return the slots that the selection is about."""
    return queue[: counts.running] if step.phase == DECODE else queue[counts.running : counts.running + counts.waiting]


@lean
def held_kind(requests: Requests, slot: int) -> int:
    """Return the kind of cache that a request holds, 0 for none."""
    return int(requests.cache[slot]) if requests.context[slot] > 0 else 0


@lean
def _offer(requests: Requests, slot: int, engine: Engine, step: Step) -> tuple[float, int, int, float, int]:
    """Return a candidate's value, sizes, penalty and tokens.

    A running request is charged all its blocks, a waiting one the blocks that it lacks. A waiting request that holds a
    cache offers only that kind, and a violator only the kind that it holds, or KV: a switch would cost a re-prefill.
    """
    length = requests.context[slot] + requests.new_tokens[slot]
    held, waiting, pending = held_kind(requests, slot), step.phase == PREFILL, pending_s(requests, slot, engine.now_s)
    kv = hidden = blocks_for(length, KV, engine.block_tokens, engine.hidden_ratio)
    if 0.0 < engine.hidden_ratio < 1.0:
        hidden = blocks_for(length, HIDDEN, engine.block_tokens, engine.hidden_ratio)
    value, penalty = counted_s(pending, step.worth.resolution_s), step.pressure * engine.rho_s_per_block * kv
    demoted = violates(requests, slot, engine)
    if waiting:
        kv, hidden = max(0, kv - requests.blocks[slot]), max(0, hidden - requests.blocks[slot])
    if held == HIDDEN and (waiting or demoted):
        value, kv = max(value - penalty, least_worth(step.worth, hidden)), hidden
    if demoted:
        limit = engine.ttft_slo_s if requests.emitted[slot] == 0 else engine.tbt_slo_s
        value = violator_worth(step.worth, value, pending - limit, kv)
    if demoted or (waiting and held > 0):
        hidden = kv
    tokens = min(requests.new_tokens[slot], engine.max_batched_tokens)  # a prompt longer than the budget goes alone
    return value, kv, hidden, penalty, tokens if waiting else 0


@kernel
def program_of(requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, step: Step) -> Program:
    """Build the program of the selection that is due."""
    slots = candidates(queue, counts, step)
    n, memory = len(slots), step.free
    value, penalty = np.empty(n), np.empty(n)
    kv, hidden, tokens = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    for j in range(n):
        value[j], kv[j], hidden[j], penalty[j], tokens[j] = _offer(requests, slots[j], engine, step)
    if step.phase == DECODE:
        for slot in slots:
            memory += requests.blocks[slot]
        return Program(value, kv, hidden, penalty, tokens, memory, NO_LIMIT, NO_LIMIT)
    idle = counts.running + counts.waiting
    for slot in queue[idle : idle + counts.idle]:
        memory += requests.blocks[slot]
    seats = engine.max_sequences - counts.running
    return Program(value, kv, hidden, penalty, tokens, memory, engine.max_batched_tokens, seats)


@lean
def kind_of(requests: Requests, slot: int, engine: Engine, step: Step, option: int) -> int:
    """Return the kind of cache that an option means: one that keeps a hidden cache has been offered as if it were KV."""
    kept = step.phase == PREFILL or violates(requests, slot, engine)
    return HIDDEN if option == TAKE_HIDDEN or (kept and held_kind(requests, slot) == HIDDEN) else KV
