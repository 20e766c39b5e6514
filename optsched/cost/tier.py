"""The numbers of a tier that a step's time and energy depend on, as one differentiable module."""

from __future__ import annotations

from typing import Self

import equinox as eqx

from optsched import catalog
from optsched.cost.precision import Scalar, scalar
from optsched.domain.hardware import Dtype, Link, Tier
from optsched.domain.llm import Llm
from optsched.errors import SpecError

# Weight-only formats are expanded to 16 bits before the matrix product; fp8 also on cards without fp8 units.
_RATES: dict[Dtype, tuple[Dtype, ...]] = {
    "fp32": ("fp32",),
    "tf32": ("tf32", "fp32"),
    "bf16": ("bf16", "fp16", "fp32"),
    "fp16": ("fp16", "bf16", "fp32"),
    "fp8": ("fp8", "bf16", "fp16", "fp32"),
    "int8": ("int8", "bf16", "fp16", "fp32"),
    "int4": ("bf16", "fp16", "fp32"),
}


def peak_flops_per_s(tier: Tier, dtype: Dtype) -> float:
    """Return the datasheet rate at which a tier multiplies matrices of weights of a data type.

    Parameters
    ----------
    tier
        The gpu and its cap (the cap does not change the peak).
    dtype
        Data type of the weights. int4 is expanded to 16 bits first; fp8 and int8 run at the 16-bit rate where the card
        has none of their own.

    Raises
    ------
    SpecError
        If the datasheet lists no rate that can be used.
    """
    rates = tier.gpu.datasheet.flops_per_s
    for candidate in _RATES[dtype]:
        if candidate in rates:
            return rates[candidate]
    raise SpecError(
        f"{tier.gpu.name} has no FLOP rate for {dtype} weights; its datasheet lists {', '.join(sorted(rates))}. "
        "Add the rate to its [datasheet.flops], or choose another gpu"
    )


class TierParameters(eqx.Module):
    """Peaks, efficiencies, overheads, powers and the link of a tier; every leaf a float64 scalar (or a stack of them).

    Attributes
    ----------
    flops_per_s, memory_bytes_per_s
        Datasheet peaks, the former at the llm's data type.
    compute, attention, memory
        Shares of the peaks that large matrix products, prefill attention and large reads reach.
    half_rate_tokens
        Rows at which a matrix product reaches half of `compute`.
    layer_overhead_s, step_overhead_s, sequence_overhead_s
        Launch time per layer (a floor under the device's work), time between steps, and time per sequence.
    idle_w, board_w, cap_w
        Power of the idle card, its board limit, and the cap of the tier.
    cap_exponent, dynamic_memory_share
        See `clock`, and `memory_j_per_byte`.
    link_bytes_per_s, link_latency_s, link_j_per_byte
        The link between the GPUs of one replica.

    Notes
    -----
    Under a cap the clock falls to ``f = min(1, ((cap - idle) / (board - idle)) ** (1 / e))`` because dynamic power grows as
    ``f V^2`` and the voltage V nearly as f, so e is near 3. Compute rates scale with f and memory bandwidth does not (the
    memory has its own clock). One FLOP then costs ``f ** (e - 1)`` of its uncapped dynamic energy (f^2 at e = 3), and one
    byte ``f ** e`` (f^3), since the time of a byte stays while the power of the chip around it falls. Both give exactly
    the cap's power at full load. Short prefills are not exempted from the slow-down.
    """

    flops_per_s: Scalar
    memory_bytes_per_s: Scalar
    compute: Scalar
    attention: Scalar
    memory: Scalar
    half_rate_tokens: Scalar
    layer_overhead_s: Scalar
    step_overhead_s: Scalar
    sequence_overhead_s: Scalar
    idle_w: Scalar
    board_w: Scalar
    cap_w: Scalar
    cap_exponent: Scalar
    dynamic_memory_share: Scalar
    link_bytes_per_s: Scalar
    link_latency_s: Scalar
    link_j_per_byte: Scalar

    @classmethod
    def of(cls, tier: Tier, llm: Llm, link: Link | None = None) -> Self:
        """Collect the parameters of a tier for an llm's data type.

        Parameters
        ----------
        tier, llm
            Where, and what.
        link
            Between the GPUs of one replica; None where a replica has one GPU.

        Raises
        ------
        SpecError
            If the datasheet lists no FLOP rate for the llm's data type.
        """
        sheet, achieved = tier.gpu.datasheet, tier.gpu.efficiency
        return cls(
            flops_per_s=scalar(peak_flops_per_s(tier, llm.dtype)),
            memory_bytes_per_s=scalar(sheet.memory_bytes_per_s),
            compute=scalar(achieved.compute),
            attention=scalar(achieved.attention),
            memory=scalar(achieved.memory),
            half_rate_tokens=scalar(achieved.half_rate_tokens),
            layer_overhead_s=scalar(achieved.layer_overhead_s),
            step_overhead_s=scalar(achieved.step_overhead_s),
            sequence_overhead_s=scalar(achieved.sequence_overhead_s),
            idle_w=scalar(achieved.idle_w),
            board_w=scalar(sheet.power_w),
            cap_w=scalar(tier.power_cap_w),
            cap_exponent=scalar(achieved.cap_exponent),
            dynamic_memory_share=scalar(achieved.dynamic_memory_share),
            # A replica of one GPU sends nothing, so any positive bandwidth serves.
            link_bytes_per_s=scalar(link.bytes_per_s if link else sheet.memory_bytes_per_s),
            link_latency_s=scalar(link.latency_s if link else 0.0),
            link_j_per_byte=scalar(link.joules_per_byte if link else 0.0),
        )

    @property
    def clock(self) -> Scalar:
        """Clock under the cap, as a share of the uncapped clock; at most 1 because a cap never exceeds the board power."""
        return ((self.cap_w - self.idle_w) / (self.board_w - self.idle_w)) ** (1.0 / self.cap_exponent)

    @property
    def gemm_flops_per_s(self) -> Scalar:
        """Achieved FLOP rate of a matrix product with many rows."""
        return self.flops_per_s * self.compute * self.clock

    @property
    def attention_flops_per_s(self) -> Scalar:
        """Achieved FLOP rate of prefill attention with many rows."""
        return self.flops_per_s * self.attention * self.clock

    @property
    def read_bytes_per_s(self) -> Scalar:
        """Achieved memory bandwidth."""
        return self.memory_bytes_per_s * self.memory

    @property
    def gemm_j_per_flop(self) -> Scalar:
        """Dynamic energy of one FLOP of a matrix product: at the full rate it fills the cap."""
        return (self.cap_w - self.idle_w) / self.gemm_flops_per_s

    @property
    def attention_j_per_flop(self) -> Scalar:
        """Dynamic energy of one FLOP of attention."""
        return (self.cap_w - self.idle_w) / self.attention_flops_per_s

    @property
    def memory_j_per_byte(self) -> Scalar:
        """Dynamic energy of one byte read or written, at full bandwidth `dynamic_memory_share` of the dynamic power."""
        return self.dynamic_memory_share * (self.cap_w - self.idle_w) / self.read_bytes_per_s


def link_of(tier: Tier, link: Link | None, num_gpus: int) -> Link | None:
    """Return the link between a replica's GPUs: the one given, else the gpu's own interconnect; None for a single GPU.

    Raises
    ------
    UnknownNameError
        If the gpu's interconnect is in no link file.
    """
    if num_gpus == 1:
        return None
    return link or catalog.link(tier.gpu.datasheet.interconnect)
