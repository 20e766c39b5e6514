"""What a policy can foresee of a step: its duration by the replica's step law, from a row of numbers.

The law itself is `optsched.domain.step_law.StepLaw`; simulator and runtime hand each policy the row of its replica.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from optsched.compiled import lean
from optsched.domain.plan import PlanReplica

Array = np.ndarray
_SCALARS = (
    "overhead_s", "floor_s", "pair_s", "prefill_context_s", "kv_s", "sequence_s", "hidden_s", "hidden_step_s",
)  # fmt: skip
_KNOTS_AT = len(_SCALARS)


def law_rows(replicas: Sequence[PlanReplica]) -> Float64[Array, "R L"]:
    """Lay out the step laws of a plan's replicas, one row each, for `optsched.batching.state.Engine.law`.

    Where replicas share a host, the times are those with all of them busy.

    Notes
    -----
    A row is the eight scalars, then the knots' tokens, then their seconds; fewer knots are continued on the last slope.
    """
    hosts = [replica.host for replica in replicas]
    width = max(len(replica.coefficients.gemm_tokens) for replica in replicas)
    rows = np.zeros((len(replicas), _KNOTS_AT + 2 * width))
    for row, replica in zip(rows, replicas, strict=True):
        law = replica.coefficients
        tokens, seconds = list(law.gemm_tokens), list(law.gemm_s)
        slope = (seconds[-1] - seconds[-2]) / (tokens[-1] - tokens[-2])
        while len(tokens) < width:
            tokens.append(tokens[-1] + 1.0)
            seconds.append(seconds[-1] + slope)
        busy = 1 if replica.host is None else hosts.count(replica.host)
        slowdown = law.busy_slowdown[min(busy, len(law.busy_slowdown)) - 1]
        row[:_KNOTS_AT] = [slowdown * getattr(law, name) for name in _SCALARS]
        row[_KNOTS_AT : _KNOTS_AT + width] = tokens
        row[_KNOTS_AT + width :] = slowdown * np.array(seconds)
    return rows


@lean
def foreseen_s(
    law: Float64[Array, " L"], tokens: float, pairs: float, context: float, kv_tokens: float, sequences: float, hidden: float
) -> float:
    """Return the duration of a step as `StepLaw.step_s` has it; 0 if the law is unknown (no row).

    Parameters
    ----------
    law
        A row of `law_rows`.
    tokens, pairs, context, kv_tokens, sequences, hidden
        The step's content; `context` is that of the sequences in prefill.
    """
    if len(law) == 0:
        return 0.0
    width = (len(law) - _KNOTS_AT) // 2
    k = _KNOTS_AT + 1
    while k < _KNOTS_AT + width - 1 and tokens > law[k]:
        k += 1
    before, after = law[k - 1 + width], law[k + width]
    work = before + max(0.0, tokens - law[k - 1]) * (after - before) / (law[k] - law[k - 1])
    work += law[2] * pairs + law[3] * context + law[4] * kv_tokens + law[5] * sequences + law[6] * hidden
    work += law[7] * min(hidden, 1.0)
    return float(law[0] + max(law[1], work))
