"""Routed experts: one grouped matrix product over the experts that a step's tokens visit."""

from __future__ import annotations

import jax.numpy as jnp

from optsched.cost.precision import Scalar
from optsched.cost.roofline import Card, LawParameters, power_norm


class ExpertsParameters(LawParameters):
    """Coefficients of a `optsched.domain.experts_law.ExpertsLaw`."""

    compute: Scalar
    memory: Scalar
    half_rows: Scalar
    half_width: Scalar
    order: Scalar
    passes: Scalar
    launch_s: Scalar
    routing_s: Scalar
    routing_tokens: Scalar


def touched_experts(tokens: Scalar, num_experts: Scalar, experts_per_token: Scalar, groups: Scalar, load_cv: Scalar) -> Scalar:
    """Return how many of one GPU's experts are expected to be visited.

    Parameters
    ----------
    tokens
        T >= 1 tokens, each with k of E experts.
    num_experts, experts_per_token
        E and k of the llm.
    groups
        GPUs that the experts are spread over; 1 where every GPU holds a slice of all.
    load_cv
        v, standard deviation of the experts' popularity over its mean.

    Notes
    -----
    The first token visits k. Popularities with a Gamma distribution leave an expert out of T - 1 more draws with probability
    ``(1 + v^2 x)^(-1 / v^2)``, ``x = -(T - 1) log(1 - k/E)``; at v = 0 that is ``(1 - k/E)^(T - 1)``, and in all
    ``E (1 - (1 - k/E)^T)`` are visited.
    """
    expected = -(tokens - 1.0) * jnp.log1p(-jnp.minimum(experts_per_token / num_experts, 1.0 - 1e-12))
    variance = load_cv**2 + 1e-9
    missed = jnp.exp(-jnp.log1p(variance * expected) / variance)
    return (experts_per_token + (num_experts - experts_per_token) * (1.0 - missed)) / groups


def busiest_load(num_experts: Scalar, groups: Scalar, load_cv: Scalar) -> Scalar:
    """Return the load of the busiest of the GPUs that hold whole experts, over the mean.

    Notes
    -----
    The sum over ``m = E / g`` experts varies by ``v sqrt((1 - 1/g) / m)`` of itself, and the largest of g such sums is
    expected at ``sqrt(2 ln g)`` deviations (of normal variables; an upper bound for few). It is at most g.
    """
    spread = load_cv * jnp.sqrt(2.0 * jnp.log(groups) * (groups - 1.0) / num_experts + 1e-30)
    return 1.0 + (groups - 1.0) * spread / (groups - 1.0 + spread + 1e-12)


def experts_flops(rows: Scalar, hidden_size: Scalar, expert_size: Scalar, matrices: Scalar) -> Scalar:
    """Return the FLOPs of some routed rows."""
    return 2.0 * rows * matrices * hidden_size * expert_size


def experts_bytes(
    rows: Scalar,
    touched: Scalar,
    hidden_size: Scalar,
    expert_size: Scalar,
    matrices: Scalar,
    weight_bytes: Scalar,
    activation_bytes: Scalar,
) -> Scalar:
    """Return the bytes moved: the visited experts' weights, and the inputs and outputs of every routed row."""
    weights = touched * matrices * hidden_size * expert_size * weight_bytes
    return weights + rows * (2.0 * hidden_size + matrices * expert_size) * activation_bytes


def experts_s(
    law: ExpertsParameters,
    card: Card,
    tokens: Scalar,
    rows: Scalar,
    touched: Scalar,
    passed_rows: Scalar,
    hidden_size: Scalar,
    expert_size: Scalar,
    matrices: Scalar,
    weight_bytes: Scalar,
    activation_bytes: Scalar,
) -> Scalar:
    """Return the time of one layer's routed experts on one GPU in seconds.

    Parameters
    ----------
    law, card
        Of the weights' data type.
    tokens
        T, tokens that are sorted by expert.
    rows, touched
        R, pairs of a token and an expert that this GPU multiplies, and A, experts among them.
    passed_rows
        P, pairs that pass through this GPU's memory: R, or those of all GPUs where each sees every token.
    hidden_size, expert_size
        d, width of the residual stream, and f, that of this GPU's slice of an expert.
    matrices
        m: 3 with a gate, 2 without.
    weight_bytes, activation_bytes
        Bytes of one weight, and of one activation.

    Notes
    -----
    ``launch + routing T / (T + T_half) + |weights, products|_order + passes P (d + m f) bytes / W``, the p-norm of `power_norm`,
    with ``weights = A m d f bytes / (memory W)`` and
    ``products = 2 m d f (R + half_rows A) (1 + half_width / f) / (compute F clock)``.
    Never below either of the two at its peak.
    """
    matrix = matrices * hidden_size * expert_size
    weights_s = touched * matrix * weight_bytes / (card.memory_bytes_per_s * law.memory)
    padded = (rows + law.half_rows * touched) * (1.0 + law.half_width / expert_size)
    products_s = 2.0 * matrix * padded / (card.flops_per_s * card.clock * law.compute)
    passed = law.passes * passed_rows * (hidden_size + matrices * expert_size) * activation_bytes
    sorting_s = law.routing_s * tokens / (tokens + law.routing_tokens)
    return law.launch_s + sorting_s + power_norm(products_s, weights_s, law.order) + passed / card.memory_bytes_per_s
