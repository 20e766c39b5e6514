"""The data types of weights, caches and activations."""

from __future__ import annotations

from typing import Literal

Dtype = Literal["fp32", "tf32", "bf16", "fp16", "fp8", "int8", "int4"]

DTYPE_BYTES: dict[str, float] = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1, "int4": 0.5}

# Types whose kernels are nearest, first the type itself: where a table has no entry for one, the next one stands in.
NEAREST_DTYPES: dict[Dtype, tuple[Dtype, ...]] = {
    "fp32": ("fp32", "tf32", "bf16", "fp16"),
    "tf32": ("tf32", "fp32", "bf16", "fp16"),
    "bf16": ("bf16", "fp16", "fp32"),
    "fp16": ("fp16", "bf16", "fp32"),
    "fp8": ("fp8", "int8", "bf16", "fp16", "fp32"),
    "int8": ("int8", "fp8", "bf16", "fp16", "fp32"),
    "int4": ("int4", "bf16", "fp16", "fp32"),
}
