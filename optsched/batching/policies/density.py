"""Apt-Serve's selection without its hybrid cache: pending time per block, KV cache only.

A control experiment for Apt-Serve (arXiv 2504.07494).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from optsched.batching.policies.apt_serve import compose
from optsched.batching.state import Counts, Decision, Engine, Requests
from optsched.compiled import kernel

Array = np.ndarray


@kernel
def decide(requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision) -> int:
    """Compose the next step like policy ``apt-serve``, but never as hidden cache.

    Parameters
    ----------
    requests, queue, counts, engine
        The state, see `optsched.batching.state`; nothing in it changes. Caches held are KV caches.
    decision
        Zeros on entry; filled for the slots of the queue.

    Returns
    -------
    int
        Number of scheduled requests.
    """
    plain = Engine(
        engine.now_s, engine.free_blocks, engine.total_blocks, engine.block_tokens, engine.watermark_blocks,
        engine.max_batched_tokens, engine.max_sequences, 0.0, engine.rho_s_per_block, engine.ttft_slo_s, engine.tbt_slo_s,
        engine.parameters, engine.law,
    )  # fmt: skip
    return compose(requests, queue, counts, plain, decision, engine.parameters[0] == 0.0, 0.0)
