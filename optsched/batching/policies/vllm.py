"""The scheduler of vLLM before V1: first come, first served, prompts before decodes, preemption by recomputing.

References
----------
vLLM 0.5, ``vllm/core/scheduler.py`` (Apache-2.0); Kwon et al., SOSP 2023, arXiv 2309.06180, section 4.5. Apt-Serve (arXiv
2504.07494) compares itself with this scheduler.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from optsched.batching.policies.prefill_first import last_first, prompts_first
from optsched.batching.state import Counts, Decision, Engine, Requests
from optsched.compiled import kernel

Array = np.ndarray


@kernel
def decide(requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision) -> int:
    """Compose the next step: the prompts that fit, in order of arrival; if none does, every running request.

    Prompts are prefilled whole, within the token budget, the sequences and the free blocks above the watermark; the first
    that does not fit ends the admissions. A decode that runs out of blocks preempts the request admitted last, which
    returns to the front of the waiting ones and is prefilled again. KV cache only. `optsched.batching.policies.prefill_first`
    tells what becomes of idle and waiting caches.

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
    order, victims = np.arange(min(counts.waiting, engine.max_sequences)), last_first(counts)
    return prompts_first(requests, queue, counts, engine, decision, order, victims)
