"""What of a step's matrix products, in seconds or in joules, a token accounts for whatever else is in the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float64, Int64

from optsched.placement.step_time import Laws, between_knots

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Gemm:
    """gemm(T) of one replica in seconds or in joules, and what of it is a token's own whatever else is in the step.

    Attributes
    ----------
    tokens, values
        Knots.
    """

    tokens: Float64[Array, " K"]
    values: Float64[Array, " K"]

    @classmethod
    def of(cls, laws: Laws, replica: int, values: Float64[Array, "R K"]) -> Self:
        """Take a replica's row of `Laws.gemm_s` or `Laws.gemm_j`."""
        knots = int(laws.knots[replica])
        return cls(laws.gemm_tokens[replica, :knots], values[replica, :knots])

    def at(self, tokens: float) -> float:
        """Return gemm(T)."""
        return float(between_knots(self.tokens, self.values, len(self.tokens), tokens))

    @property
    def per_decode(self) -> float:
        """By how much it grows at least with every decoding sequence, the first one of a step included."""
        slope = float((np.diff(self.values) / np.diff(self.tokens)).min()) if self.tokens[0] <= 1 else 0.0
        return min(slope, self.at(1.0))

    def of_prefills(self, tokens: Int64[Array, " T"], chunk: int) -> Float64[Array, " T"]:
        """Return the sum over each prefill's chunks: whole ones, and the rest."""
        x, y = self.tokens, self.values
        whole = tokens // chunk
        rest = (tokens - whole * chunk).astype(float)
        slope = (y[-1] - y[-2]) / (x[-1] - x[-2])
        last = np.interp(rest, x, y) + np.maximum(rest - x[-1], 0.0) * slope
        return np.asarray(whole * self.at(float(chunk)) + np.where(rest > 0, last, 0.0))
