"""Prompts in random order before decodes: vLLM's scheduler with the queue shuffled.

References
----------
Apt-Serve, arXiv 2504.07494, figure 4: under overload a random order misses fewer TTFT targets than first come, first served.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from optsched.batching.policies.prefill_first import by_key, last_first, prompts_first
from optsched.batching.state import Counts, Decision, Engine, Requests
from optsched.compiled import kernel, lean

Array = np.ndarray


@lean
def drawn(identity: int, seed: int) -> float:
    """Return a number in [0, 1) that only the request's identity and the seed decide (SplitMix64, Steele et al. 2014)."""
    z = np.uint64(identity + 1) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed) * np.uint64(0xD1342543DE82EF95)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return float(z >> np.uint64(11)) / 9007199254740992.0


@kernel
def decide(requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision) -> int:
    """Compose the next step like policy ``vllm``, but admit the waiting requests in random order.

    A request's place in that order is drawn once, from its identity and the parameter ``seed``, so that the policy stays a
    pure function and a replayed decision is the same.

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
        key[index] = drawn(requests.identity[queue[counts.running + index]], int(engine.parameters[0]))
    return prompts_first(requests, queue, counts, engine, decision, by_key(key), last_first(counts))
