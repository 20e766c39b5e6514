"""Matrix products of weights: FLOPs, bytes, and the time that a law gives their shape."""

from __future__ import annotations

import jax.numpy as jnp

from optsched.cost.precision import Scalar
from optsched.cost.roofline import Card, LawParameters, power_norm, smooth_max

CLIFF = 8.0  # how abruptly a cache stops helping: least-recently-used caches lose everything once they overflow
CONVERSION_CORNER = 4.0  # power of the norm that joins a conversion's two limits: 19 % above either where they meet


class GemmParameters(LawParameters):
    """Coefficients of a `optsched.domain.gemm_law.GemmLaw`."""

    compute: Scalar
    memory: Scalar
    half_rows: Scalar
    half_inner: Scalar
    half_outer: Scalar
    wave_outer: Scalar
    wave_rows: Scalar
    tile_rows: Scalar
    row_quantum: Scalar
    row_padding: Scalar
    overlap: Scalar
    output: Scalar
    fixed_bytes: Scalar
    cache_bytes: Scalar
    cache_saving: Scalar
    repeated_bytes: Scalar
    converted_bytes: Scalar
    conversion: Scalar
    conversion_row_s: Scalar
    launch_s: Scalar


def gemm_flops(rows: Scalar, inner: Scalar, outer: Scalar) -> Scalar:
    """Return the FLOPs of an (M, K) by (K, N) product, ``2 M K N``."""
    return 2.0 * rows * inner * outer


def gemm_bytes(rows: Scalar, inner: Scalar, outer: Scalar, weight_bytes: Scalar, activation_bytes: Scalar) -> Scalar:
    """Return the bytes that it moves: the weights, its inputs and its outputs, each once."""
    return inner * outer * weight_bytes + rows * (inner + outer) * activation_bytes


def uncached(num_bytes: Scalar, cache_bytes: Scalar, saving: Scalar) -> Scalar:
    """Return the bytes of device memory that take as long as a working set, some of which a cache may hold.

    Parameters
    ----------
    num_bytes, cache_bytes
        The working set, and what the cache holds.
    saving
        Share of the time that the cache saves, below 1.

    Notes
    -----
    ``n (1 - saving / (1 + (n / cache)^8))``: smooth, and non-decreasing in n for every saving below 1.
    """
    return num_bytes * (1.0 - saving / (1.0 + (num_bytes / cache_bytes) ** CLIFF))


def padded_rows(rows: Scalar, quantum: Scalar) -> Scalar:
    """Return the rows of the tiles that a product of M rows fills: a staircase that rises within one row.

    Parameters
    ----------
    rows
        M, positive.
    quantum
        Rows of the largest tile; tiles of a half, a quarter and a sixteenth of it serve fewer rows.

    Notes
    -----
    The smallest of these tiles that holds M; beyond the largest, the next multiple of that. A polynomial of the fifth degree
    joins the steps, so that the function is twice differentiable and never falls.
    """
    small = (1 / 16, 1 / 4, 1 / 2)
    stairs = quantum * small[0]
    for held, larger in zip(small, (*small[1:], 1.0), strict=True):
        stairs = stairs + quantum * (larger - held) * _risen(rows - quantum * held)
    full = jnp.floor(rows / quantum)
    return stairs + quantum * jnp.maximum(full - 1.0 + _risen(rows - full * quantum), 0.0) * jnp.minimum(full, 1.0)


def _risen(rows: Scalar) -> Scalar:
    """Return 0 up to 0 rows, 1 from one on, and a smooth step between."""
    within = jnp.clip(rows, 0.0, 1.0)
    return within**3 * (10.0 - 15.0 * within + 6.0 * within**2)


def _compute_s(law: GemmParameters, card: Card, rows: Scalar, inner: Scalar, outer: Scalar) -> Scalar:
    tiled = jnp.where(law.row_quantum > 0, padded_rows(rows, jnp.maximum(law.row_quantum, 1.0)), rows)
    rows = rows + law.row_padding * (tiled - rows)
    tiles = (rows + law.half_rows) * (outer + law.half_outer)
    idle = law.wave_outer * (law.wave_rows + rows * law.tile_rows / (rows + law.tile_rows))
    return 2.0 * (inner + law.half_inner) * (tiles + idle) / (card.flops_per_s * card.clock * law.compute)


def _memory_s(law: GemmParameters, card: Card, activations: Scalar, weights: Scalar, repeated: Scalar | float) -> Scalar:
    moved = uncached(activations, law.cache_bytes, law.cache_saving)
    moved = moved + uncached(weights, law.repeated_bytes, law.cache_saving * repeated) + law.fixed_bytes
    return moved / (card.memory_bytes_per_s * law.memory)


def _conversion_s(law: GemmParameters, card: Card, rows: Scalar, inner: Scalar, activation_bytes: Scalar) -> Scalar:
    moved = rows * inner * (activation_bytes + law.converted_bytes)
    read = uncached(moved, law.cache_bytes, law.cache_saving) / (card.memory_bytes_per_s * law.conversion)
    least = rows * law.conversion_row_s
    return jnp.where(law.converted_bytes > 0, power_norm(read, least, CONVERSION_CORNER), 0.0)


def gemm_s(
    law: GemmParameters,
    card: Card,
    rows: Scalar,
    inner: Scalar,
    outer: Scalar,
    weight_bytes: Scalar,
    activation_bytes: Scalar,
    repeated: Scalar | float = 0.0,
) -> Scalar:
    """Return the time of one matrix product on one GPU in seconds.

    Parameters
    ----------
    law, card
        Of the weights' data type.
    rows, inner, outer
        M, K and N, each positive.
    weight_bytes, activation_bytes
        Bytes of one weight, and of one element of the input and the output (two also between 8-bit and 4-bit products).
    repeated
        1 if the same weights were multiplied just before, as a benchmark does; 0 in a step, which reads every weight once.

    Notes
    -----
    ``launch + conversion + smax(C, B, overlap)`` with the compute time

    ``C = 2 (K + K_half) ((M' + M_half) (N + N_half) + N_wave (M_wave + M' M_tile / (M' + M_tile))) / (compute F clock)``

    with ``M' = M + padding (padded(M) - M)`` (`padded_rows`; without a row quantum M), and the memory time ``B =
    (uncached(input + output bytes) + uncached(weight bytes) + fixed) / (memory W)``. It does not decrease in M, N, K or any
    byte count, does not increase in F, W or the clock, and is smooth in all of them. Waves of tiles are not modelled as
    steps: their first harmonic lowered no error by more than 0.4 percentage points.

    References
    ----------
    Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009, doi:10.1145/1498765.1498785. NVIDIA, "Matrix
    Multiplication Background User's Guide" (tile and wave quantisation), docs.nvidia.com/deeplearning/performance.
    """
    converted = jnp.where(law.converted_bytes > 0, law.converted_bytes, activation_bytes)
    activations = rows * (inner * converted + outer * activation_bytes * law.output)
    weights = inner * outer * weight_bytes
    compute = _compute_s(law, card, rows, inner, outer)
    memory = _memory_s(law, card, activations, weights, repeated)
    converting = _conversion_s(law, card, rows, inner, activation_bytes)
    return law.launch_s + converting + smooth_max(compute, memory, law.overlap)
