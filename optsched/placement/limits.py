"""The latency targets of a problem as arrays, one limit per turn or conversation."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from optsched.domain.scenario import LatencyTarget
from optsched.placement.problem import PlacementProblem
from optsched.placement.retime import Limits

Array = np.ndarray


def target_limit(target: LatencyTarget, reference: Float64[Array, " n"]) -> Float64[Array, " n"]:
    """Return the limit of a target in seconds; infinite where the reference does not exist."""
    if target.seconds is not None:
        return np.full(len(reference), target.seconds)
    factor = np.inf if target.standalone_factor is None else target.standalone_factor
    return np.where(np.isfinite(reference), np.nan_to_num(reference) * factor, np.inf)


def limits_of(problem: PlacementProblem) -> Limits:
    """Return the limits of every turn and conversation; infinite without targets."""
    slo, standalone = problem.slo, problem.standalone
    turns, count = problem.workload.num_turns, problem.workload.num_conversations
    if slo is None or standalone is None:
        return Limits(np.full(turns, np.inf), np.full(turns, np.inf), *(np.full(count, np.inf) for _ in range(3)))

    def of(target: LatencyTarget | None, reference: Float64[Array, " n"]) -> Float64[Array, " n"]:
        return np.full(len(reference), np.inf) if target is None else target_limit(target, reference)

    return Limits(
        of(slo.ttft, standalone.ttft_s), of(slo.tpot, standalone.tpot_s), of(slo.tbt, standalone.last_turn_tbt_s),
        of(slo.ttfet, standalone.ttfet_s), of(slo.e2e, standalone.e2e_s),
    )  # fmt: skip
