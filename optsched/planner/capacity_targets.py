"""What a column is held to: a scenario's latency targets as times of a first token and between tokens."""

from __future__ import annotations

import numpy as np

from optsched.capacity.columns import Targets
from optsched.domain.plan import Standalone
from optsched.domain.scenario import LatencyTarget, Slo
from optsched.domain.standalone import standalone_latency
from optsched.domain.workload import Workload


def targets_of(slo: Slo, reference: Standalone, workload: Workload, tightness: float = 1.0) -> Targets:
    """Return what a column is held to.

    Seconds are taken as they are. A multiple of the standalone latency becomes that multiple of the median standalone time: of
    the first token for TTFT, and between tokens for the others, whose conversations it stretches as a whole.

    Parameters
    ----------
    slo
        The targets.
    reference, workload
        What standalone latencies are computed of.
    tightness
        Factor on all targets.
    """
    alone = standalone_latency(workload, reference.coefficients, reference.max_batched_tokens)
    token_s = float(np.median(alone.last_turn_tbt_s[alone.last_turn_tbt_s > 0])) if np.any(alone.last_turn_tbt_s > 0) else None
    steady = [_limit_s(target, token_s) for target in (slo.tbt, slo.tpot)]
    stretched = [_limit_s(target, token_s) for target in (slo.ttfet, slo.e2e) if target is None or target.seconds is None]
    first_s = _limit_s(slo.ttft, float(np.median(alone.ttft_s[workload.first_turn[:-1]])))
    given = [each for each in (*steady, *stretched) if each is not None]
    return Targets(None if first_s is None else tightness * first_s, tightness * min(given) if given else None)


def _limit_s(target: LatencyTarget | None, alone_s: float | None) -> float | None:
    if target is None or target.seconds is not None:
        return None if target is None else target.seconds
    return None if alone_s is None or target.standalone_factor is None else target.standalone_factor * alone_s
