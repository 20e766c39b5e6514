"""Call a batching policy by its integer id, from compiled loops and from plain Python alike."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from optsched.batching.policies import POLICIES, apt_serve, vllm_chunked
from optsched.batching.state import Counts, Decision, Engine, Requests
from optsched.compiled import kernel

Array = np.ndarray

_APT_SERVE = POLICIES["apt-serve"]
_apt_serve, _vllm_chunked = apt_serve.decide, vllm_chunked.decide


@kernel
def decide(policy: int, requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision) -> int:
    """Compose the next step by the policy of that id, see `optsched.batching.policies.policy_id`.

    Fields of `engine` must keep their types (``hidden_ratio=0.0``, not 0): other types compile the policies again.

    Returns
    -------
    int
        Number of scheduled requests.
    """
    if policy == _APT_SERVE:
        return _apt_serve(requests, queue, counts, engine, decision)
    return _vllm_chunked(requests, queue, counts, engine, decision)
