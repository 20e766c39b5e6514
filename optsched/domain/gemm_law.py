"""The coefficients that turn the shape of a matrix product into its time on a card."""

from __future__ import annotations

from pydantic import Field

from optsched.domain.fit import Fit
from optsched.domain.frozen import Frozen
from optsched.units import Seconds


class GemmLaw(Frozen):
    """Matrix products of weights: M rows by K inner by N outer; `optsched.cost.gemm.gemm_s` has the formula.

    Attributes
    ----------
    compute, memory
        Shares of the peak FLOP rate and of the peak bandwidth that large products reach.
    half_rows, half_inner, half_outer
        M, K and N at which a product takes twice the time of its FLOPs: padding of tiles, start and end of the inner loop.
    wave_outer, wave_rows, tile_rows
        The wave of tiles that leaves multiprocessors idle: `wave_outer` columns of ``wave_rows + M tile_rows / (M +
        tile_rows)`` rows come on top of M N. It is what a product with few tiles takes.
    row_quantum, row_padding
        Rows of the kernels' largest tile (0: times do not show it), and how much of the rows that fill up tiles is paid.
    overlap
        How little compute and memory hide each other: where both take as long, the product takes ``1 + overlap`` times that.
    output
        Factor on the bytes of the output: writes reach less than reads.
    fixed_bytes
        Bytes that are read in the time it takes the memory to reach its rate.
    cache_bytes, cache_saving
        Inputs and outputs of fewer bytes are still in the card's cache, and take a share of `cache_saving` less.
    repeated_bytes
        Weights of fewer bytes stay in the cache of a benchmark that multiplies them over and over; those of an llm do not.
    converted_bytes, conversion, conversion_row_s
        Bytes of an input element once it is converted to be multiplied (0: none is), the share of the bandwidth that the
        conversion reaches, and the least time of each of its rows.
    launch_s
        Time of a kernel that has nothing to do.
    """

    compute: float = Field(default=0.75, gt=0, le=1)
    memory: float = Field(default=0.82, gt=0, le=1)
    half_rows: float = Field(default=20.0, gt=0)
    half_inner: float = Field(default=120.0, gt=0)
    half_outer: float = Field(default=20.0, gt=0)
    wave_outer: float = Field(default=1200.0, gt=0)
    wave_rows: float = Field(default=40.0, gt=0)
    tile_rows: float = Field(default=200.0, gt=0)
    row_quantum: float = Field(default=0.0, ge=0)
    row_padding: float = Field(default=0.7, gt=0, le=1)
    overlap: float = Field(default=0.25, gt=0, le=1)
    output: float = Field(default=1.1, ge=1)
    fixed_bytes: float = Field(default=1e5, gt=0)
    cache_bytes: float = Field(default=3e7, gt=0)
    cache_saving: float = Field(default=0.3, gt=0, lt=1)
    repeated_bytes: float = Field(default=4e6, gt=0)
    converted_bytes: float = Field(default=0.0, ge=0)
    conversion: float = Field(default=0.5, gt=0, le=1)
    conversion_row_s: Seconds = Field(default=2e-9, gt=0)
    launch_s: Seconds = Field(default=3e-6, ge=0)
    fit: Fit | None = None
