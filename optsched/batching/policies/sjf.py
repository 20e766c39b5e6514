"""Shortest prompt first, prompts before decodes: vLLM's scheduler with the queue sorted by the work of the prefill.

A control experiment for Apt-Serve (arXiv 2504.07494), whose pending time per block favours short requests too.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from optsched.batching.policies.prefill_first import by_key, last_first, prompts_first
from optsched.batching.state import Counts, Decision, Engine, Requests
from optsched.compiled import kernel

Array = np.ndarray


@kernel
def decide(requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision) -> int:
    """Compose the next step like policy ``vllm``, but admit the waiting requests with the fewest tokens to prefill first.

    Output lengths are not known to it.

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
    key = np.empty(counts.waiting)
    for index in range(counts.waiting):
        key[index] = requests.new_tokens[queue[counts.running + index]]
    return prompts_first(requests, queue, counts, engine, decision, by_key(key), last_first(counts))
