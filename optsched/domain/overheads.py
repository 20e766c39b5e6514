"""What a serving engine adds to the kernels of a step."""

from __future__ import annotations

from pydantic import Field

from optsched.domain.fit import Fit
from optsched.domain.frozen import Frozen
from optsched.units import Bytes, Seconds


class Overheads(Frozen):
    """Overheads of one engine on one card's host.

    Attributes
    ----------
    source
        Where the numbers come from.
    layer_overhead_s, step_overhead_s, sequence_overhead_s
        As in `optsched.domain.efficiency.Efficiency`.
    prefill_layer_overhead_s
        More launch time per layer in steps that have prefill: without CUDA graphs these launch more kernels.
    compute_rate
        Share of the laws' FLOP rates that the engine's kernels reach: those of older engines are slower.
    message_overhead_s
        More time per collective.
    slow_message_bytes, slow_message_s_per_byte
        Size from which an all-reduce of more than two GPUs leaves the fast path, and what a byte off it takes more. The
        libraries of some engines have such a cliff; 0 s per byte: none.
    fit
        Of whole steps, if they were fitted.
    """

    source: str
    layer_overhead_s: Seconds
    step_overhead_s: Seconds
    sequence_overhead_s: Seconds
    prefill_layer_overhead_s: Seconds = 0.0
    compute_rate: float = Field(default=1.0, gt=0, le=1)
    message_overhead_s: Seconds = 0.0
    slow_message_bytes: Bytes = Field(default=64e6, gt=0)
    slow_message_s_per_byte: float = Field(default=0.0, ge=0)
    fit: Fit | None = None
