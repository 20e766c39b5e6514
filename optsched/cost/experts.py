"""Routed experts: one grouped matrix product over the experts that a step's tokens visit."""

from __future__ import annotations

import jax.numpy as jnp

from optsched.cost.precision import Scalar
from optsched.cost.roofline import ROOFLINE_BLEND, Card, LawParameters, smooth_max


class ExpertsParameters(LawParameters):
    """Coefficients of a `optsched.domain.efficiency.ExpertsLaw`."""

    compute: Scalar
    memory: Scalar
    half_rows: Scalar
    imbalance: Scalar
    launch_s: Scalar


def touched_experts(tokens: Scalar, num_experts: Scalar, experts_per_token: Scalar, groups: Scalar) -> Scalar:
    """Return how many of one GPU's experts are expected to be visited.

    Parameters
    ----------
    tokens
        T tokens, each drawing k of E experts evenly.
    num_experts, experts_per_token
        E and k of the llm.
    groups
        GPUs that the experts are spread over; 1 where every GPU holds a slice of all.

    Notes
    -----
    ``E / groups (1 - (1 - k/E)^T)``.
    """
    missed = jnp.log1p(-jnp.minimum(experts_per_token / num_experts, 1.0 - 1e-12))
    return -num_experts / groups * jnp.expm1(tokens * missed)


def experts_flops(
    tokens: Scalar, hidden_size: Scalar, expert_size: Scalar, experts_per_token: Scalar, groups: Scalar, matrices: Scalar
) -> Scalar:
    """Return the FLOPs on the mean GPU."""
    return 2.0 * tokens * experts_per_token / groups * matrices * hidden_size * expert_size


def experts_bytes(
    tokens: Scalar,
    hidden_size: Scalar,
    expert_size: Scalar,
    num_experts: Scalar,
    experts_per_token: Scalar,
    groups: Scalar,
    matrices: Scalar,
    weight_bytes: Scalar,
    activation_bytes: Scalar,
) -> Scalar:
    """Return the bytes moved on the mean GPU: the visited experts' weights, and the inputs and outputs of every visit."""
    touched = touched_experts(tokens, num_experts, experts_per_token, groups)
    visits = tokens * experts_per_token / groups
    weights = touched * matrices * hidden_size * expert_size * weight_bytes
    return weights + visits * (2.0 * hidden_size + matrices * expert_size) * activation_bytes


def experts_s(
    law: ExpertsParameters,
    card: Card,
    tokens: Scalar,
    hidden_size: Scalar,
    expert_size: Scalar,
    num_experts: Scalar,
    experts_per_token: Scalar,
    groups: Scalar,
    matrices: Scalar,
    weight_bytes: Scalar,
    activation_bytes: Scalar,
) -> Scalar:
    """Return the time of one layer's routed experts on the busiest GPU in seconds.

    Parameters
    ----------
    law, card
        Of the weights' data type.
    tokens
        Tokens of the step, all GPUs of the stage together; at least 1.
    hidden_size, expert_size
        Width of the residual stream, and of this GPU's slice of an expert.
    num_experts, experts_per_token
        Of the llm.
    groups
        GPUs that the experts are spread over whole (expert parallel); 1 where every GPU holds a slice of all.
    matrices
        3 with a gate, 2 without.
    weight_bytes, activation_bytes
        Bytes of one weight, and of one activation.
    """
    touched = touched_experts(tokens, num_experts, experts_per_token, groups)
    rows = tokens * experts_per_token / groups / jnp.maximum(touched, 1.0)
    flops = experts_flops(tokens, hidden_size, expert_size, experts_per_token, groups, matrices)
    moved = experts_bytes(
        tokens, hidden_size, expert_size, num_experts, experts_per_token, groups, matrices, weight_bytes, activation_bytes
    )
    busiest = 1.0 + law.imbalance * (1.0 - 1.0 / groups)
    compute = flops * busiest * (1.0 + law.half_rows / jnp.maximum(rows, 1.0)) / (card.flops_per_s * card.clock * law.compute)
    return law.launch_s + smooth_max(compute, moved / (card.memory_bytes_per_s * law.memory), ROOFLINE_BLEND)
