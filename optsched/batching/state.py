"""What a batching policy sees and what it answers: structs of arrays that compiled code and plain Python share.

A policy is a numba-compiled function

    decide(requests, queue, counts, engine, decision) -> number of scheduled requests

It must not change anything but `decision`. The executor (the simulator's event loop or a worker) owns the rest: it
applies the evictions, then grows each scheduled request's cache by its tokens, then runs the step.

`queue` lists slots (indices into the arrays of `Requests`) in three segments whose sizes are `counts`:

1. running: admitted, in order of admission; each holds blocks; `new_tokens` is 1 for decodes, more in a chunked prefill;
2. waiting: not admitted, in queue order; may hold the cache of earlier turns or one handed over from a prefiller;
3. idle: between two turns of a conversation, least recently used first; holds a cache that may be evicted.

An evicted request loses its blocks and starts again from context 0 (recompute preemption); a running one returns to the
front of the waiting segment.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int8, Int64

Array = np.ndarray

RUNNING, WAITING, IDLE = 0, 1, 2
NO_CACHE, HIDDEN, KV = 0, 1, 2
MOST_PARAMETERS = 8
NO_PARAMETERS = np.zeros(MOST_PARAMETERS)
NO_LAW = np.zeros(0)


class Requests(NamedTuple):
    """Per slot: the request that occupies it.

    Attributes
    ----------
    arrival_s
        Arrival of its current turn.
    last_token_s
        Time of its last output token in this turn; the arrival if there is none yet.
    emitted
        Output tokens of this turn so far.
    context
        Tokens whose cache is resident.
    new_tokens
        Known tokens that are not cached yet; computing the last of them yields an output token.
    blocks
        Blocks held.
    cache
        Kind of cache held: `NO_CACHE`, `HIDDEN` or `KV`.
    late
        1: this turn's first token came at `Engine.ttft_slo_s` or later, or a gap between its tokens reached
        `Engine.tbt_slo_s`. The executor notes it at each token.
    identity
        The conversation's index in the workload: the same wherever and however often it is queued.
    """

    arrival_s: Float64[Array, " slots"]
    last_token_s: Float64[Array, " slots"]
    emitted: Int64[Array, " slots"]
    context: Int64[Array, " slots"]
    new_tokens: Int64[Array, " slots"]
    blocks: Int64[Array, " slots"]
    cache: Int8[Array, " slots"]
    late: Int8[Array, " slots"]
    identity: Int64[Array, " slots"]

    @classmethod
    def empty(cls, slots: int) -> Requests:
        """Return zeroed arrays for so many slots."""
        return cls(
            np.zeros(slots), np.zeros(slots), np.zeros(slots, np.int64), np.zeros(slots, np.int64),
            np.zeros(slots, np.int64), np.zeros(slots, np.int64), np.zeros(slots, np.int8), np.zeros(slots, np.int8),
            np.zeros(slots, np.int64),
        )  # fmt: skip


class Counts(NamedTuple):
    """Sizes of the three segments of the queue."""

    running: int
    waiting: int
    idle: int


class Engine(NamedTuple):
    """What one replica offers at the moment of the decision.

    Attributes
    ----------
    now_s
        Time of the decision.
    free_blocks, total_blocks, block_tokens
        Its cache pool.
    watermark_blocks
        Blocks that admissions keep free.
    max_batched_tokens, max_sequences
        Limits of one step.
    hidden_ratio
        Hidden cache size over KV cache size; hidden is never offered at or above 1, nor where it is 0 (not supported).
    rho_s_per_block
        Seconds that rebuilding one KV block's worth of hidden cache adds to a step (Apt-Serve, Eq. 6).
    ttft_slo_s, tbt_slo_s
        Pending times beyond which a request counts as violating its target.
    parameters
        The policy's own numbers, see `optsched.batching.policies.POLICIES`.
    law
        The replica's step law as a row of `optsched.batching.step_time.law_rows`; empty: unknown.
    """

    now_s: float
    free_blocks: int
    total_blocks: int
    block_tokens: int
    watermark_blocks: int
    max_batched_tokens: int
    max_sequences: int
    hidden_ratio: float
    rho_s_per_block: float
    ttft_slo_s: float
    tbt_slo_s: float
    parameters: Float64[Array, " p"] = NO_PARAMETERS
    law: Float64[Array, " L"] = NO_LAW


class Decision(NamedTuple):
    """Per slot: what the next step does with it. Executors pass zeros, and entries of slots outside the queue are left alone.

    Attributes
    ----------
    tokens
        Tokens to compute; 0 leaves the request out.
    cache
        Kind of cache to hold it in (matters when it starts from context 0).
    evict
        1: drop its cache before the step.
    """

    tokens: Int64[Array, " slots"]
    cache: Int8[Array, " slots"]
    evict: Int8[Array, " slots"]

    @classmethod
    def empty(cls, slots: int) -> Decision:
        """Return zeroed arrays for so many slots."""
        return cls(np.zeros(slots, np.int64), np.zeros(slots, np.int8), np.zeros(slots, np.int8))
