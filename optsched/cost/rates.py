"""At which of a datasheet's rates an llm's matrices are multiplied."""

from __future__ import annotations

from optsched.domain.dtypes import DTYPE_BYTES, Dtype
from optsched.domain.hardware import Tier
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


def activation_dtype(llm: Llm) -> Dtype:
    """Return the data type of an llm's activations: 8-bit and 4-bit llms keep 16-bit ones between kernels."""
    return llm.dtype if DTYPE_BYTES[llm.dtype] >= 2 else "bf16"
