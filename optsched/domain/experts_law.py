"""How far the grouped matrix product of routed experts stays below a card's datasheet."""

from __future__ import annotations

from pydantic import Field

from optsched.domain.fit import Fit
from optsched.domain.frozen import Frozen
from optsched.units import Seconds


class ExpertsLaw(Frozen):
    """Routed experts of one layer: sort the tokens by expert, multiply them group by group, and add up what comes back.

    Attributes
    ----------
    compute, memory
        Shares of the peaks that many rows per expert, and many experts, reach.
    half_rows
        Rows per visited expert at which half of `compute` is reached.
    half_width
        Columns of this GPU's slice of an expert at which half of `compute` is left.
    order
        How little compute and reading the weights hide each other: 1 not at all, many completely.
    passes
        Times that the routed rows, their inputs and intermediates, go through memory beside the products.
    launch_s
        Time of a layer's kernels that have nothing to do.
    routing_s, routing_tokens
        What sorting adds where there are many tokens, and the tokens at which half of it is added.
    """

    compute: float = Field(default=0.6, gt=0, le=1)
    memory: float = Field(default=0.85, gt=0, le=1)
    half_rows: float = Field(default=32.0, gt=0)
    half_width: float = Field(default=64.0, gt=0)
    order: float = Field(default=2.5, ge=1, le=20)
    passes: float = Field(default=1.0, gt=0)
    launch_s: Seconds = Field(default=20e-6, ge=0)
    routing_s: Seconds = Field(default=10e-6, ge=0)
    routing_tokens: float = Field(default=4.0, gt=0)
    fit: Fit | None = None
