"""Time and energy of one step of a replica: a smooth roofline per operation, plus overheads."""

from __future__ import annotations

import jax.numpy as jnp

from optsched.cost.features import StepFeatures
from optsched.cost.operations import Communication, Operation, communications, compute_operations
from optsched.cost.precision import Scalar
from optsched.cost.shape import LlmShape
from optsched.cost.tier import TierParameters

ROOFLINE_BLEND = 0.1  # where compute and memory take equally long, neither hides the other fully: 10 % more than either
FLOOR_BLEND = 0.02


def smooth_max(first: Scalar, second: Scalar, blend: float) -> Scalar:
    """Return a differentiable maximum of two non-negative numbers.

    Parameters
    ----------
    first, second
        The numbers.
    blend
        In [0, 1]: at equal inputs the result is ``1 + blend`` times their value.

    Notes
    -----
    ``(a + b + sqrt((a - b)^2 + 4 blend^2 a b)) / 2``: at least the maximum, equal to it where either is 0, homogeneous, and
    non-decreasing in both. The constant under the root keeps the gradient finite at a = b = 0.
    """
    root = jnp.sqrt((first - second) ** 2 + 4.0 * blend**2 * first * second + 1e-60)
    return 0.5 * (first + second + root)


def compute_s(tier: TierParameters, operation: Operation) -> Scalar:
    """Return the time of an operation's FLOPs in seconds, at the rate its rows allow."""
    rate = tier.attention_flops_per_s if operation.attention else tier.gemm_flops_per_s
    return operation.flops * (1.0 + tier.half_rate_tokens * operation.idle_rows) / rate


def operation_s(tier: TierParameters, operation: Operation) -> Scalar:
    """Return the time of an operation in seconds: the smooth maximum of its compute time and its memory time."""
    return smooth_max(compute_s(tier, operation), operation.bytes / tier.read_bytes_per_s, ROOFLINE_BLEND)


def communication_s(tier: TierParameters, sent: Communication) -> Scalar:
    """Return the time of messages in seconds: latencies that follow one another, plus bytes over bandwidth."""
    return sent.messages * tier.link_latency_s + sent.bytes / tier.link_bytes_per_s


def work_time(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> Scalar:
    """Return the device's time for all operations of a step in seconds, before the launch floor and the step overhead.

    Stages of a pipeline follow one another: one batch is in flight.
    """
    operations, sent = compute_operations(shape, features), communications(shape, features)
    total = sum((operation_s(tier, operation) for operation in operations.values()), jnp.zeros_like(features.pairs))
    total = sum((communication_s(tier, each) for each in sent.values()), total)
    return total + tier.sequence_overhead_s * features.sequences


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
    operation the smooth maximum of its compute time and its memory time (Williams, Waterman and Patterson, "Roofline",
    CACM 52(4), 2009, doi:10.1145/1498765.1498785). Differentiable in every field.
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
    operations, sent = compute_operations(shape, features), communications(shape, features)
    spent = jnp.zeros_like(features.pairs)
    for operation in operations.values():
        per_flop = tier.attention_j_per_flop if operation.attention else tier.gemm_j_per_flop
        spent = spent + operation.flops * per_flop + operation.bytes * tier.memory_j_per_byte
    active = step_time(tier, shape, features) - tier.step_overhead_s
    sent_bytes = sum((each.bytes for each in sent.values()), jnp.zeros_like(spent))
    return shape.tp * (jnp.minimum(spent, (tier.cap_w - tier.idle_w) * active) + sent_bytes * tier.link_j_per_byte)


def step_energy(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> Scalar:
    """Return the energy of one step in joules, idle power of all GPUs included."""
    idle = tier.idle_w * shape.tp * shape.pp * step_time(tier, shape, features)
    return idle + dynamic_energy(tier, shape, features)
