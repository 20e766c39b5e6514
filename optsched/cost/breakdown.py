"""Where the time of one step goes, operation by operation, and which resource limits each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from optsched.cost.features import StepFeatures
from optsched.cost.operations import Operation
from optsched.cost.precision import Scalar, double_precision
from optsched.cost.shape import LlmShape
from optsched.cost.step import duration, running, work_time
from optsched.cost.tier import TierParameters
from optsched.cost.totals import by_kind
from optsched.cost.transformer import communications, compute_operations

# Rows of a breakdown that are no operation: what the engine adds to the kernels.
OVERHEADS = ("per sequence", "kernel launches", "between steps")
Resource = Literal["compute", "memory", "link", "overhead"]


@dataclass(frozen=True, slots=True)
class BreakdownRow:
    """One operation of a step: its time, its work on each GPU, and what limits it."""

    name: str
    seconds: float
    flops: float
    bytes: float
    resource: Resource


def _sped_up(tier: TierParameters, compute: Scalar, memory: Scalar) -> TierParameters:
    """Return the tier with its two peaks scaled by the exponentials of two numbers."""
    faster: TierParameters = eqx.tree_at(
        lambda each: (each.flops_per_s, each.memory_bytes_per_s),
        tier,
        (tier.flops_per_s * jnp.exp(compute), tier.memory_bytes_per_s * jnp.exp(memory)),
    )
    return faster


@jax.jit
def _computed(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> dict[str, dict[str, Scalar]]:
    """Return of each operation its seconds, FLOPs and bytes, and the seconds that faster compute or memory would save."""
    nothing, one = jnp.zeros_like(features.pairs), jnp.ones_like(features.pairs)
    found: dict[str, dict[str, Scalar]] = {}
    for names, alike in by_kind(compute_operations(shape, features)):

        def seconds(compute: Scalar, memory: Scalar, alike: Operation = alike) -> Scalar:
            faster = _sped_up(tier, compute, memory)
            taken: Scalar = jax.vmap(lambda each: each.seconds(faster))(alike)
            return taken

        taken, by_compute = jax.jvp(seconds, (nothing, nothing), (one, nothing))
        _, by_memory = jax.jvp(seconds, (nothing, nothing), (nothing, one))
        columns = {
            "seconds": taken,
            "flops": jax.vmap(lambda each: each.flops)(alike),
            "bytes": jax.vmap(lambda each: each.bytes)(alike),
            "compute": -by_compute,
            "memory": -by_memory,
        }
        found |= {name: {key: column[index] for key, column in columns.items()} for index, name in enumerate(names)}
    return found


@jax.jit
def _sent(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> dict[str, tuple[Scalar, Scalar]]:
    sent = communications(shape, features, tier.gpus_per_node)
    return {name: (each.seconds(tier), each.bytes) for name, each in sent.items()}


@jax.jit
def _overheads(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> dict[str, Scalar]:
    work_s = work_time(tier, shape, features)
    launches_s = duration(tier, shape, features, work_s) - tier.step_overhead_s - work_s
    return dict(zip(OVERHEADS, (tier.sequence_overhead_s * features.sequences, launches_s, tier.step_overhead_s), strict=True))


def _dominating(numbers: dict[str, float]) -> Resource:
    """Return what most of an operation's time depends on; what neither compute nor memory would shorten is launch time."""
    rest = numbers["seconds"] - numbers["compute"] - numbers["memory"]
    shares: dict[Resource, float] = {"compute": numbers["compute"], "memory": numbers["memory"], "overhead": rest}
    return max(shares, key=shares.__getitem__)


def overhead_share(rows: Sequence[BreakdownRow]) -> float:
    """Return the share of a step's time that is none of its operations: launches, sequences, and the time between steps."""
    total = sum(row.seconds for row in rows)
    return sum(row.seconds for row in rows if row.name in OVERHEADS) / total if total else 0.0


_running = jax.jit(running)


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
    tier = _running(tier, shape, features)
    for name, values in _computed(tier, shape, features).items():
        numbers = {key: float(value) for key, value in values.items()}
        rows.append(
            BreakdownRow(name.replace("_", " "), numbers["seconds"], numbers["flops"], numbers["bytes"], _dominating(numbers))
        )
    for name, (seconds, moved) in _sent(tier, shape, features).items():
        rows.append(BreakdownRow(name.replace("_", " "), float(seconds), 0.0, float(moved), "link"))
    for name, seconds in _overheads(tier, shape, features).items():
        rows.append(BreakdownRow(name, float(seconds), 0.0, 0.0, "overhead"))
    return tuple(row for row in rows if row.seconds > 1e-15)
