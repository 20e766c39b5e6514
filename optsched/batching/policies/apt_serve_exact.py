"""Apt-Serve with each batch the proven optimum of its program, in place of the greedy selection.

References
----------
Gao et al., "Apt-Serve", PACMMOD 3(3) 130, 2025, arXiv 2504.07494, Definition 1: the program that its greedy selection
approximates.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from optsched.batching.embedded import solve_alone
from optsched.batching.policies.apt_serve import apply, begin
from optsched.batching.policies.apt_serve_program import COMPOSED, program_of
from optsched.batching.state import Counts, Decision, Engine, Requests
from optsched.compiled import kernel

Array = np.ndarray

RESOLUTION_S = 1e-3


@kernel
def decide(requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision) -> int:
    """Compose the next step like policy ``apt-serve``, but of the batch of largest value.

    A decode is optimal under the memory, a prefill under memory, token budget and sequences together; where the search
    hits its limit, its best batch is taken, which is worth no less than the greedy one. Pending times count in whole
    milliseconds, one at least: the difference of two requests whose last tokens came in the same step is noise, and decides
    which of many near-optima is taken if it counts.

    Of batches worth the same, the one that takes the fewest KV blocks is chosen: it leaves out, and so frees, the largest
    contexts. That is proven for decodes unless the search hits its limit; for prefills it holds among the optima that the
    search meets. Batches alike in both are told apart by the order of the queue alone.

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
    step = begin(requests, queue, counts, engine, decision, engine.parameters[0] == 0.0, 0.0, RESOLUTION_S)
    while step.phase != COMPOSED:
        p, m, s, u, tokens, memory, token_budget, sequences = program_of(requests, queue, counts, engine, step)
        choice = np.zeros(len(p), np.int8)
        solve_alone(p, m, s, u, tokens, memory, token_budget, sequences, choice)
        step = apply(requests, queue, counts, engine, decision, step, choice)
    return step.scheduled
