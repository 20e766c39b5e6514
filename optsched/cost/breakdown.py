"""Where the time of one step goes, operation by operation, and which resource limits each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax

from optsched.cost.features import StepFeatures
from optsched.cost.operations import communications, compute_operations
from optsched.cost.precision import Scalar, double_precision
from optsched.cost.shape import LlmShape
from optsched.cost.step import communication_s, compute_s, operation_s, step_time, work_time
from optsched.cost.tier import TierParameters

Resource = Literal["compute", "memory", "link", "overhead"]


@dataclass(frozen=True, slots=True)
class BreakdownRow:
    """One operation of a step: its time, its work on each GPU, and what limits it."""

    name: str
    seconds: float
    flops: float
    bytes: float
    resource: Resource


@jax.jit
def _computed(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> dict[str, tuple[Scalar, ...]]:
    return {
        name: (operation_s(tier, each), compute_s(tier, each), each.flops, each.bytes)
        for name, each in compute_operations(shape, features).items()
    }


@jax.jit
def _sent(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> dict[str, tuple[Scalar, Scalar]]:
    return {name: (communication_s(tier, each), each.bytes) for name, each in communications(shape, features).items()}


@jax.jit
def _overheads(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> dict[str, Scalar]:
    launch = step_time(tier, shape, features) - tier.step_overhead_s - work_time(tier, shape, features)
    return {
        "per sequence": tier.sequence_overhead_s * features.sequences,
        "kernel launches": launch,
        "between steps": tier.step_overhead_s,
    }


@double_precision
def breakdown(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> tuple[BreakdownRow, ...]:
    """Return the operations of a step with the resource that dominates each; what takes no time is left out.

    Parameters
    ----------
    tier, shape, features
        Scalars.

    Returns
    -------
    tuple of BreakdownRow
        Computing operations, messages, and overheads: per sequence, launches (what the launch floor adds to the work) and
        between steps. Their times add up to `step_time`; FLOPs and bytes are those of one GPU.
    """
    rows: list[BreakdownRow] = []
    for name, values in _computed(tier, shape, features).items():
        seconds, compute, flops, moved = map(float, values)
        resource: Resource = "compute" if compute > seconds / 2 else "memory"
        rows.append(BreakdownRow(name.replace("_", " "), seconds, flops, moved, resource))
    for name, (seconds, moved) in _sent(tier, shape, features).items():
        rows.append(BreakdownRow(name.replace("_", " "), float(seconds), 0.0, float(moved), "link"))
    for name, seconds in _overheads(tier, shape, features).items():
        rows.append(BreakdownRow(name, float(seconds), 0.0, 0.0, "overhead"))
    return tuple(row for row in rows if row.seconds > 1e-15)
