"""Latency of each conversation with nothing else running: the yardstick of relative targets and normalised figures."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64

from optsched.domain.results import StandaloneLatency
from optsched.domain.step_law import StepLaw
from optsched.domain.workload import Workload

Array = np.ndarray


def standalone_latency(workload: Workload, law: StepLaw, max_batched_tokens: int) -> StandaloneLatency:
    """Compute the latencies of each conversation alone on one mixed replica, gaps between turns included.

    A turn first computes its new tokens (and, after the first turn, the previous turn's last output token, whose K and V
    are not cached yet), which yields its first token; every further token is one decode step.

    Parameters
    ----------
    workload
        The conversations.
    law
        Step law of the replica.
    max_batched_tokens
        Chunk of a prefill, in tokens.
    """
    carried = (workload.turn_in_conversation > 0).astype(np.int64)
    cached = workload.context_before - carried
    new = workload.new_tokens + carried
    ttft = _prefills_s(law, new, cached, max_batched_tokens)
    decode = _decodes_s(law, cached + new, workload.output_tokens - 1)
    spans = np.concatenate([[0.0], np.cumsum(ttft + decode + workload.gap_s)])
    first, last = workload.first_turn[:-1], workload.first_turn[1:] - 1
    steps = np.where(workload.output_tokens > 1, workload.output_tokens - 1, np.nan)
    tpot = decode / steps
    return StandaloneLatency(
        ttft_s=ttft,
        tpot_s=tpot,
        ttfet_s=spans[last] - spans[first] + workload.gap_s[last] + ttft[last],
        e2e_s=spans[last + 1] - spans[first],
        last_turn_tbt_s=tpot[last],
    )


def _prefills_s(law: StepLaw, new: Int64[Array, " T"], cached: Int64[Array, " T"], chunk: int) -> Float64[Array, " T"]:
    """Return the time of each turn's prefill alone, chunk by chunk of all turns together."""
    used = np.zeros(len(new))
    for start in range(0, int(new.max(initial=0)), chunk):
        mine = np.flatnonzero(new > start)
        sizes = np.minimum(chunk, new[mine] - start).astype(float)
        before = (cached[mine] + start).astype(float)
        used[mine] += law.step_s(sizes, sizes * (before + sizes / 2), prefill_context_tokens=before)
    return used


def _decodes_s(law: StepLaw, context: Int64[Array, " T"], steps: Int64[Array, " T"]) -> Float64[Array, " T"]:
    """Return the time of each turn's decode steps alone: at first as long as the floor, then as long as their growing cache."""
    first = law.replace(floor_s=0.0).step_s(1.0, 0.0, context, 1.0)
    shortest = law.overhead_s + law.floor_s
    short = np.where(first < shortest, float(np.max(steps, initial=0)), 0.0)
    if law.kv_s > 0:
        short = np.ceil(np.maximum(0.0, shortest - first) / law.kv_s)
    short = np.minimum(short, steps)
    rest = steps - short
    return np.asarray(short * shortest + rest * first + law.kv_s * rest * (short + (rest - 1) / 2))
