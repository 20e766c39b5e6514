"""First come, first served, except that requests which missed their target already come last.

A control experiment for Apt-Serve (arXiv 2504.07494): its demotion of violators without its order and its hybrid cache.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from optsched.batching.policies.apt_serve_program import violates
from optsched.batching.policies.prefill_first import by_key, prompts_first
from optsched.batching.state import Counts, Decision, Engine, Requests
from optsched.compiled import kernel

Array = np.ndarray


@kernel
def decide(requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision) -> int:
    """Compose the next step like policy ``vllm``, but with violators last in the queue and first to be preempted.

    A violator has waited longer than its target for its first token, or for its next one, as Apt-Serve defines it.

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
    key, last = np.empty(counts.waiting), np.empty(counts.running)
    for index in range(counts.waiting):
        key[index] = 1.0 if violates(requests, queue[counts.running + index], engine) else 0.0
    for position in range(counts.running):
        last[position] = -position - (counts.running if violates(requests, queue[position], engine) else 0)
    return prompts_first(requests, queue, counts, engine, decision, by_key(key), by_key(last))
