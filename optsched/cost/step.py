"""Time and energy of one step of a replica: the sum of its operations, plus overheads, at the clock that its power allows."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from optsched.cost.features import StepFeatures
from optsched.cost.power import SLOW_CLOCK, Load, step_clock, step_power_w
from optsched.cost.precision import Scalar
from optsched.cost.roofline import smooth_max
from optsched.cost.shape import LlmShape
from optsched.cost.tier import TierParameters
from optsched.cost.totals import total
from optsched.cost.transformer import communications, compute_operations

FLOOR_BLEND = 0.02


class StepCost(eqx.Module):
    """What one step takes.

    Attributes
    ----------
    seconds
        Duration, the time until the next step can start included.
    work_s
        The device's time for the operations alone.
    dynamic_j, joules
        Energy of all GPUs above idle, and in all.
    clock
        Clock under the cap over the clock at the board's limit.
    """

    seconds: Scalar
    work_s: Scalar
    dynamic_j: Scalar
    joules: Scalar
    clock: Scalar


def work_time(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> Scalar:
    """Return the device's time for all operations of a step in seconds, before the launch floor and the step overhead.

    At the tier's clock as it is set (`running` sets it). Stages of a pipeline follow one another: one batch is in flight.
    """
    computed = total(compute_operations(shape, features), lambda each: each.seconds(tier))
    sent = total(communications(shape, features, tier.gpus_per_node), lambda each: each.seconds(tier))
    return tier.sequence_overhead_s * features.sequences + computed + sent


def launch_floor(tier: TierParameters, shape: LlmShape, prefill_tokens: Scalar | float = 0.0) -> Scalar:
    """Return the time to launch a step's kernels in seconds; the device's work hides behind it, or it behind the work."""
    return shape.num_layers * (tier.layer_overhead_s + tier.prefill_layer_overhead_s * jnp.minimum(prefill_tokens, 1.0))


def duration(tier: TierParameters, shape: LlmShape, features: StepFeatures, work_s: Scalar) -> Scalar:
    """Return the duration of a step in seconds whose operations take `work_s`."""
    return tier.step_overhead_s + smooth_max(launch_floor(tier, shape, features.prefill_tokens), work_s, FLOOR_BLEND)


def load(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> Load:
    """Return a step's work on one GPU of the stage that runs."""
    operations, sent = compute_operations(shape, features), communications(shape, features, tier.gpus_per_node)
    compute_j = total(operations, lambda each: each.compute_j(tier))
    memory_j = total(operations, lambda each: each.memory_j(tier))
    memory_j = memory_j + tier.link_j_per_byte * total(sent, lambda each: each.bytes)
    clocks = jnp.array([1.0, SLOW_CLOCK])
    work_s = jax.vmap(lambda clock: work_time(at_clock(tier, clock), shape, features))(clocks)
    full_s, slow_s = (duration(tier, shape, features, each) for each in work_s)
    return Load(compute_j, memory_j, full_s, slow_s)


def at_clock(tier: TierParameters, clock: Scalar) -> TierParameters:
    """Return the tier at a clock."""
    slowed: TierParameters = eqx.tree_at(lambda each: each.clock, tier, clock)
    return slowed


def running(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> TierParameters:
    """Return the tier at the clock that its cap leaves a step; see `optsched.cost.power.step_clock`."""
    return at_clock(tier, step_clock(tier.power, tier.limits, load(tier, shape, features)))


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
    return duration(tier, shape, features, work_time(running(tier, shape, features), shape, features))


def step_cost(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> StepCost:
    """Return the time and the energy of one step.

    Parameters
    ----------
    tier, shape, features
        Scalars; `jax.vmap` for more.

    Notes
    -----
    Time as `step_time`. Each GPU draws its idle power, and above it `optsched.cost.power.step_power_w` on the stage that runs
    and, on the others, what an active card draws that has nothing to do.
    """
    work = load(tier, shape, features)
    clock = step_clock(tier.power, tier.limits, work)
    work_s = work_time(at_clock(tier, clock), shape, features)
    seconds = duration(tier, shape, features, work_s)
    none = jnp.zeros_like(work.compute_j)
    busy_w = step_power_w(tier.power, tier.limits, work, clock, seconds)
    waiting_w = step_power_w(tier.power, tier.limits, Load(none, none, work.full_s, work.slow_s), clock, seconds)
    dynamic_j = shape.tp * (busy_w + (shape.pp - 1.0) * waiting_w) * seconds
    return StepCost(seconds, work_s, dynamic_j, dynamic_j + tier.idle_w * shape.tp * shape.pp * seconds, clock)


def dynamic_energy(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> Scalar:
    """Return the energy of one step above idle in joules, all GPUs of the replica together."""
    return step_cost(tier, shape, features).dynamic_j


def step_energy(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> Scalar:
    """Return the energy of one step in joules, idle power of all GPUs included."""
    return step_cost(tier, shape, features).joules
