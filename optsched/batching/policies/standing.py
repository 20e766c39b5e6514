"""Who can still attain: for policy ``attain``, what the step law says of each request's next token against its deadline."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from optsched.batching.policies.admission import growth, is_decode
from optsched.batching.policies.prefill_first import by_key
from optsched.batching.state import Counts, Engine, Requests
from optsched.batching.step_time import foreseen_s
from optsched.compiled import kernel, lean

Array = np.ndarray


class Decodes(NamedTuple):
    """The decodes of a step: how many, and their cached tokens."""

    number: int
    kv_tokens: int


class Standing(NamedTuple):
    """Per position of the running and waiting requests, n of them.

    Attributes
    ----------
    in_time
        It has met its targets so far, and its next token can come before its deadline.
    guarded
        It is lost for its targets, but its turn to be served in the share of those has come.
    deadline_s
        When its next token is due.
    lost
        Positions that are neither, the earliest arrival first.
    num_lost
        How many entries of `lost` count.
    """

    in_time: Bool[Array, " n"]
    guarded: Bool[Array, " n"]
    deadline_s: Float64[Array, " n"]
    lost: Int64[Array, " n"]
    num_lost: int


@lean
def decodes_of(requests: Requests, queue: Int64[Array, " q"], counts: Counts) -> Decodes:
    """Count the running requests that decode."""
    number, kv_tokens = 0, 0
    for position in range(counts.running):
        slot = queue[position]
        if is_decode(requests, slot):
            number += 1
            kv_tokens += requests.context[slot]
    return Decodes(number, kv_tokens)


@lean
def step_with_s(engine: Engine, decodes: Decodes, tokens: int) -> float:
    """Return the foreseen time of a step of all decodes and so many tokens of one prompt."""
    prompt, sequences = float(tokens), decodes.number + (1 if tokens > 0 else 0)
    return foreseen_s(
        engine.law, decodes.number + prompt, 0.5 * prompt * prompt, 0.0, float(decodes.kv_tokens), float(sequences), 0.0
    )


@lean
def _soonest_s(requests: Requests, slot: int, engine: Engine, decodes: Decodes, full_s: float) -> float:
    """Return in how much time a request can have its next token, if its prompt comes first in the steps to follow."""
    tokens = requests.new_tokens[slot]
    if is_decode(requests, slot):
        return step_with_s(engine, decodes, 0)
    steps = (tokens - 1) // engine.max_batched_tokens
    return float(steps * full_s + step_with_s(engine, decodes, tokens - steps * engine.max_batched_tokens))


@kernel
def standing_of(
    requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decodes: Decodes, share: float
) -> Standing:
    """Tell who can still attain; of the others, guard the earliest arrivals until they fill a share of the pool.

    Parameters
    ----------
    share
        0 guards nobody; otherwise at least one is guarded, whatever it needs.
    """
    n = counts.running + counts.waiting
    in_time, guarded, deadline_s = np.zeros(n, np.bool_), np.zeros(n, np.bool_), np.empty(n)
    late, arrival_s, num_lost = np.empty(n, np.int64), np.empty(n), 0
    full_s = step_with_s(engine, decodes, engine.max_batched_tokens)
    for position in range(n):
        slot = queue[position]
        target_s = engine.ttft_slo_s if requests.emitted[slot] == 0 else engine.tbt_slo_s
        deadline_s[position] = requests.last_token_s[slot] + target_s
        soonest_s = engine.now_s + _soonest_s(requests, slot, engine, decodes, full_s)
        in_time[position] = requests.late[slot] == 0 and soonest_s < deadline_s[position]
        if not in_time[position]:
            late[num_lost], arrival_s[num_lost] = position, requests.arrival_s[slot]
            num_lost += 1
    lost = late[:num_lost][by_key(arrival_s[:num_lost])]
    held, first, most = 0, 0, share * engine.total_blocks
    while first < num_lost and held < most:
        slot = queue[lost[first]]
        guarded[lost[first]] = True
        held += requests.blocks[slot] + growth(requests, slot, requests.new_tokens[slot], engine)
        first += 1
    return Standing(in_time, guarded, deadline_s, lost[first:], num_lost - first)
