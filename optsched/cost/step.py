"""Time and energy of one step of a replica: the sum of its operations, plus overheads."""

from __future__ import annotations

import jax.numpy as jnp

from optsched.cost.features import StepFeatures
from optsched.cost.precision import Scalar
from optsched.cost.roofline import smooth_max
from optsched.cost.shape import LlmShape
from optsched.cost.tier import TierParameters
from optsched.cost.transformer import communications, compute_operations

FLOOR_BLEND = 0.02


def work_time(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> Scalar:
    """Return the device's time for all operations of a step in seconds, before the launch floor and the step overhead.

    Stages of a pipeline follow one another: one batch is in flight.
    """
    total = tier.sequence_overhead_s * features.sequences
    for operation in compute_operations(shape, features).values():
        total = total + operation.seconds(tier)
    for message in communications(shape, features, tier.gpus_per_node).values():
        total = total + message.seconds(tier)
    return total


def launch_floor(tier: TierParameters, shape: LlmShape) -> Scalar:
    """Return the time to launch a step's kernels in seconds; the device's work hides behind it, or it behind the work."""
    return shape.num_layers * tier.layer_overhead_s


def step_time(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> Scalar:
    """Return the duration of one step in seconds, the time until the next step can start included.

    Parameters
    ----------
    tier, shape, features
        Scalars; `jax.vmap` for more.

    Notes
    -----
    ``step overhead + smooth max(layers * layer overhead, sum of operations + sequences * sequence overhead)``, each
    operation by the law of its family: a roofline (Williams, Waterman and Patterson, CACM 52(4), 2009,
    doi:10.1145/1498765.1498785) whose efficiency depends on the shape. Differentiable in every field.
    """
    work = work_time(tier, shape, features)
    return tier.step_overhead_s + smooth_max(launch_floor(tier, shape), work, FLOOR_BLEND)


def dynamic_energy(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> Scalar:
    """Return the energy of one step above idle in joules, all GPUs of the replica together.

    Notes
    -----
    FLOPs and bytes cost what fills the cap at full load (`TierParameters`). Where both are busy at once the cap still binds:
    dynamic power stays below ``cap - idle`` on the GPUs of the stage that runs.
    """
    spent, sent_bytes = jnp.zeros_like(features.pairs), jnp.zeros_like(features.pairs)
    for operation in compute_operations(shape, features).values():
        spent = spent + operation.joules(tier)
    for message in communications(shape, features, tier.gpus_per_node).values():
        sent_bytes = sent_bytes + message.bytes
    active = step_time(tier, shape, features) - tier.step_overhead_s
    return shape.tp * (jnp.minimum(spent, (tier.cap_w - tier.idle_w) * active) + sent_bytes * tier.link_j_per_byte)


def step_energy(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> Scalar:
    """Return the energy of one step in joules, idle power of all GPUs included."""
    idle = tier.idle_w * shape.tp * shape.pp * step_time(tier, shape, features)
    return idle + dynamic_energy(tier, shape, features)
