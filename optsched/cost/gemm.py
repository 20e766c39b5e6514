"""Matrix products of weights: FLOPs, bytes, and the time that a law gives their shape."""

from __future__ import annotations

from optsched.cost.precision import Scalar
from optsched.cost.roofline import ROOFLINE_BLEND, Card, LawParameters, smooth_max


class GemmParameters(LawParameters):
    """Coefficients of a `optsched.domain.efficiency.GemmLaw`."""

    compute: Scalar
    memory: Scalar
    half_rows: Scalar
    half_inner: Scalar
    half_outer: Scalar
    launch_s: Scalar


def gemm_flops(rows: Scalar, inner: Scalar, outer: Scalar) -> Scalar:
    """Return the FLOPs of an (M, K) by (K, N) product, ``2 M K N``."""
    return 2.0 * rows * inner * outer


def gemm_bytes(rows: Scalar, inner: Scalar, outer: Scalar, weight_bytes: Scalar, activation_bytes: Scalar) -> Scalar:
    """Return the bytes that it moves: the weights, its inputs and its outputs, each once."""
    return inner * outer * weight_bytes + rows * (inner + outer) * activation_bytes


def gemm_s(
    law: GemmParameters,
    card: Card,
    rows: Scalar,
    inner: Scalar,
    outer: Scalar,
    weight_bytes: Scalar,
    activation_bytes: Scalar,
) -> Scalar:
    """Return the time of one matrix product on one GPU in seconds.

    Parameters
    ----------
    law, card
        Of the weights' data type.
    rows, inner, outer
        M, K and N, each at least 1.
    weight_bytes, activation_bytes
        Bytes of one weight, and of one element of the input and the output.

    Notes
    -----
    ``launch + smax(2 M K N (1 + M_half/M) (1 + K_half/K) (1 + N_half/N) / (compute F clock), bytes / (memory W), 0.1)``.
    """
    idle = (1.0 + law.half_rows / rows) * (1.0 + law.half_inner / inner) * (1.0 + law.half_outer / outer)
    compute = gemm_flops(rows, inner, outer) * idle / (card.flops_per_s * card.clock * law.compute)
    moved = gemm_bytes(rows, inner, outer, weight_bytes, activation_bytes)
    return law.launch_s + smooth_max(compute, moved / (card.memory_bytes_per_s * law.memory), ROOFLINE_BLEND)
