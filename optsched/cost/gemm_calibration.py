"""Fit the laws of matrix products and of passes over memory to measured rows."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Float, Float64, PyTree

from optsched.cost.elementwise import ElementwiseParameters, elementwise_s
from optsched.cost.fit import Fitted, Provenance, fit_law
from optsched.cost.gemm import GemmParameters, gemm_s
from optsched.cost.precision import double_precision, scalar
from optsched.cost.roofline import Card
from optsched.cost.split import Split, gemm_of_heldout_llm, split
from optsched.domain.dtypes import DTYPE_BYTES, Dtype
from optsched.domain.elementwise_law import ElementwiseLaw
from optsched.domain.gemm_law import GemmLaw
from optsched.domain.hardware import Datasheet
from optsched.profiles.gemms import GemmRows, PassRows

LAUNCH_BOUND_S = 20e-6  # below, the launch and not the shape is most of the time; such rows are reported apart
SHORT_WEIGHT = 0.25  # of a launch-bound row: it pins the launch and should not bend the rest
INPUT_BYTES = 2.0  # activations between kernels
# Bytes of an input element that the kernels convert first; others multiply 16-bit inputs, or get them converted.
CONVERTED_BYTES: dict[Dtype, float] = {"fp8": 1.0, "int8": 1.0}
# Rows of the largest tile that are tried (0: no staircase) where the smooth law misses: it serves 16-bit products well.
TILES: dict[Dtype, tuple[float, ...]] = dict.fromkeys(("fp8", "int8", "int4"), (0.0, 64.0, 128.0, 256.0))
_CONVERSION = ("converted_bytes", "conversion", "conversion_row_s")


def card_of(datasheet: Datasheet, flops_per_s: float) -> Card:
    """Return an uncapped card with a datasheet's bandwidth and a peak rate."""
    return Card(flops_per_s=scalar(flops_per_s), memory_bytes_per_s=scalar(datasheet.memory_bytes_per_s), clock=scalar(1.0))


def gemm_split(rows: GemmRows) -> Split:
    """Return which products are fitted to: a fifth of the weights' shapes and those of held-out llms are not, at any M."""
    return split(rows.keys(), gemm_of_heldout_llm(rows.inner, rows.outer))


def predict_gemms(law: GemmParameters, card: Card, shapes: PyTree, dtype: Dtype, repeated: float) -> Float[jax.Array, " S"]:
    """Return the time of each (M, K, N) of three arrays; weights of benchmarks are `repeated` (1), of llms not (0)."""
    m, k, n = shapes
    return gemm_s(law, card, m, k, n, scalar(DTYPE_BYTES[dtype]), scalar(INPUT_BYTES), repeated)


def shapes_of(rows: GemmRows) -> tuple[Float64[np.ndarray, " S"], ...]:
    """Return M, K and N as floats."""
    return rows.rows.astype(np.float64), rows.inner.astype(np.float64), rows.outer.astype(np.float64)


@double_precision
def gemm_seconds(law: GemmLaw, card: Card, rows: GemmRows, repeated: float = 1.0) -> Float64[np.ndarray, " S"]:
    """Return what a law predicts for measured products, whose weights a benchmark repeats."""
    return np.asarray(predict_gemms(GemmParameters.of(law), card, shapes_of(rows), rows.dtype, repeated), dtype=np.float64)


def fit_gemm(rows: GemmRows, card: Card, date: str, prior: GemmLaw | None = None, ridge: float = 1.0) -> Fitted[GemmLaw]:
    """Fit a law to products of one data type on one card.

    Parameters
    ----------
    rows
        Measured products; held-out ones (`gemm_split`) are only predicted.
    card
        The card, uncapped, with its peak at that data type.
    date
        Day of the fit.
    prior
        Law to lean on; None: the default one, with a conversion of the inputs where the data type has one. Which of `TILES`
        its staircase has is chosen by the mean error of the rows fitted to, launch-bound ones aside.
    ridge
        As in `fit_law`.

    Raises
    ------
    ProblemError
        If there are too few rows.
    """

    def predict(law: GemmParameters, shapes: PyTree) -> Float[jax.Array, " S"]:
        return predict_gemms(law, card, shapes, rows.dtype, 1.0)

    # One function for all, so that what it compiles to is shared.
    tiles = TILES.get(rows.dtype, (0.0,))
    found = [_fit_with_tiles(rows, predict, date, prior or GemmLaw(), ridge, tile) for tile in tiles]
    judged = gemm_split(rows).train & (rows.seconds >= LAUNCH_BOUND_S)
    return min(found, key=lambda each: float(each.errors[judged].mean()))


def _fit_with_tiles(
    rows: GemmRows,
    predict: Callable[[GemmParameters, PyTree], Float[jax.Array, " S"]],
    date: str,
    prior: GemmLaw,
    ridge: float,
    tile: float,
) -> Fitted[GemmLaw]:
    converted = CONVERTED_BYTES.get(rows.dtype, 0.0)
    fixed = ("converted_bytes", "row_quantum") if converted else (*_CONVERSION, "row_quantum")
    return fit_law(
        prior.replace(converted_bytes=converted, row_quantum=tile, fit=None),
        GemmParameters,
        predict,
        shapes_of(rows),
        rows.seconds,
        gemm_split(rows),
        Provenance(source=rows.source, date=date, rows_left_out=dict(rows.left_out)),
        fixed=fixed if tile else (*fixed, "row_padding"),
        ridge=ridge,
        weights=np.where(rows.seconds < LAUNCH_BOUND_S, SHORT_WEIGHT, 1.0),
    )


def fit_elementwise(rows: PassRows, card: Card, date: str, ridge: float = 1.0) -> Fitted[ElementwiseLaw]:
    """Fit a law to passes over memory on one card; a fifth of the sizes is held out.

    Parameters
    ----------
    rows, card, date, ridge
        As in `fit_gemm`.

    Raises
    ------
    ProblemError
        If there are too few rows.
    """
    keys = [f"{kernel} {size:.0f}" for kernel, size in zip(rows.kernel, rows.moved_bytes, strict=True)]
    return fit_law(
        ElementwiseLaw(),
        ElementwiseParameters,
        lambda law, moved: elementwise_s(law, card, scalar(1.0), moved),
        rows.moved_bytes,
        rows.seconds,
        split(keys),
        Provenance(source=rows.source, date=date, rows_left_out=dict(rows.left_out)),
        ridge=ridge,
    )
