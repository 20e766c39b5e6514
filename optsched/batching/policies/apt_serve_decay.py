"""Apt-Serve with a demotion that wears off, so that nobody starves.

References
----------
Gao et al., "Apt-Serve", PACMMOD 3(3) 130, 2025, arXiv 2504.07494, section 6.6: a variant "Scheduling*" with a decaying factor
in place of the near-zero value of violators. Its formula is not public; this one is ours.
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
    """Compose the next step like policy ``apt-serve``, but let violators regain their value.

    A request that has waited o seconds beyond its target is worth ``p (1 - 2^(-o / half_life_s))``: next to nothing when it
    has just missed it, its whole pending time p in the end, which by then exceeds everybody else's.

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
    return compose(requests, queue, counts, engine, decision, engine.parameters[0] == 0.0, engine.parameters[1])
