"""Run the cost model in float64 without touching JAX's global configuration."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar, cast

import jax
import numpy as np
from jaxtyping import Array, Float64

Scalar = Float64[Array, ""]
P = ParamSpec("P")
R = TypeVar("R")


def double_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function running with 64-bit JAX types, whatever the process's own setting.

    FLOP and byte counts overflow int32 and lose digits in float32, so every entry point of the cost model is wrapped;
    the flag holds for the call (and its thread) only, never from the import on.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.enable_x64(True):
            return function(*args, **kwargs)

    return call


def scalar(value: float) -> Scalar:
    """Return a number as a float64 leaf that JAX traces (a NumPy scalar array: cheap to make, and never float32)."""
    return cast(Scalar, np.asarray(value, dtype=np.float64))
