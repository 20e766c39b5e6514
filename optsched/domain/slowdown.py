"""Factors by which busy neighbours stretch what happens on a shared host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Float64, Int64
from pydantic import AfterValidator

Array = np.ndarray


def _rising_from_one(factors: tuple[float, ...]) -> tuple[float, ...]:
    if not factors or factors[0] != 1 or np.any(np.diff(factors) < 0):
        raise ValueError("busy_slowdown must start at 1 and must not decrease")
    return factors


Slowdown = Annotated[tuple[float, ...], AfterValidator(_rising_from_one)]
"""Factors for growing numbers of busy replicas: the first is 1, none is less than the one before, the last continues."""


def slowdown_of(totals: Sequence[tuple[float, float]]) -> tuple[float, tuple[float, ...]]:
    """Return level and slow-downs that make total times right, as far as more neighbours never help.

    Parameters
    ----------
    totals
        For each number of busy replicas, the measured total time and the one foreseen without slow-down (0: nothing measured).

    Returns
    -------
    tuple
        The factor on everything, set by the smallest number that was measured, and those for each number on top of it.
    """
    ratios = [measured / foreseen if foreseen > 0 else np.nan for measured, foreseen in totals]
    level = next(ratio for ratio in ratios if not np.isnan(ratio))
    factors = np.fmax.accumulate([1.0, *(ratio / level for ratio in ratios[1:])])
    return level, tuple(float(factor) for factor in factors)


def factors_at(factors: Sequence[float], index: Int64[Array, " n"]) -> Float64[Array, " n"]:
    """Return the factors of given positions, the last continued."""
    chosen: Float64[Array, " n"] = np.asarray(factors, np.float64)[np.clip(index, 0, len(factors) - 1)]
    return chosen
