"""Latency of each conversation with nothing else running: the yardstick of relative targets and normalised figures."""

from __future__ import annotations

import numpy as np

from optsched.domain.results import StandaloneLatency
from optsched.domain.step_law import StepLaw
from optsched.domain.workload import Workload


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
    turns = workload.num_turns
    carried = (workload.turn_in_conversation > 0).astype(np.int64)
    cached = workload.context_before - carried
    ttft, decode = np.empty(turns), np.empty(turns)
    for turn in range(turns):
        new = int(workload.new_tokens[turn] + carried[turn])
        ttft[turn] = law.prefill_s(new, int(cached[turn]), max_batched_tokens)
        decode[turn] = law.decode_s(int(cached[turn]) + new, int(workload.output_tokens[turn]) - 1)
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
