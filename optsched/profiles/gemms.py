"""Durations of matrix products and of passes over memory, as other people measured them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

from optsched.domain.dtypes import Dtype
from optsched.profiles.rows import MeasuredRows

_WINDOW = 5  # neighbours that an odd row is held against
_WITNESSES = 3  # fewer say nothing: one of two may be the odd one
_ODD = 1.5  # a row is odd if it takes this many times as long as the larger ones after it, or as little of the smaller ones


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmRows(MeasuredRows):
    """Matrix products of weights of one data type.

    Attributes
    ----------
    rows, inner, outer
        M, K and N of a product on one GPU.
    llm
        Whose product it is, as the source names the llm; empty in sweeps over shapes.
    dtype
        Data type of the weights.
    """

    rows: Int64[np.ndarray, " S"]
    inner: Int64[np.ndarray, " S"]
    outer: Int64[np.ndarray, " S"]
    llm: Shaped[np.ndarray, " S"]
    dtype: Dtype

    def keys(self) -> Int64[np.ndarray, "S 2"]:
        """Return the weights' shape (K, N) of each row: rows of all M share their fate in a split."""
        return np.stack([self.inner, self.outer], axis=1)

    def in_order(self) -> GemmRows:
        """Return the rows whose time is in keeping with those of the same weights and a few rows less or more.

        Notes
        -----
        A row is left out if it takes over 1.5 times the median of the next five larger M, or under 1 / 1.5 of the median of
        the five smaller M before it; three will do at the ends. No law is asked, so the rule favours none.
        """
        order = np.lexsort((self.rows, self.outer, self.inner))
        shapes = self.keys()[order]
        bounds = np.flatnonzero(np.r_[True, np.any(shapes[1:] != shapes[:-1], axis=1), True])
        kept = np.ones(len(self), dtype=bool)
        for first, last in pairwise(bounds.tolist()):
            kept[order[first:last]] = _in_order(self.seconds[order[first:last]])
        return self.where(kept, "out of order with smaller and larger products of the same weights by over 1.5 times")


def _in_order(seconds: Float64[np.ndarray, " M"]) -> Bool[np.ndarray, " M"]:
    later = _medians_of_next(seconds)
    earlier = _medians_of_next(seconds[::-1])[::-1]
    return ~((seconds > _ODD * later) | (seconds * _ODD < earlier))


def _medians_of_next(seconds: Float64[np.ndarray, " M"]) -> Float64[np.ndarray, " M"]:
    """Return the median of up to five values after each; NaN, which compares false, where there are fewer than three."""
    following = (seconds[index + 1 : index + 1 + _WINDOW] for index in range(len(seconds)))
    return np.array([np.median(window) if len(window) >= _WITNESSES else np.nan for window in following])


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRows(MeasuredRows):
    """Kernels that pass over memory: norms, rotations, activations.

    Attributes
    ----------
    kernel
        Which, in the source's words.
    tokens
        Tokens that it handled.
    moved_bytes
        Bytes that it has to read and write.
    llm
        Whose layer it is, as the source names the llm.
    """

    kernel: Shaped[np.ndarray, " S"]
    tokens: Int64[np.ndarray, " S"]
    moved_bytes: Float64[np.ndarray, " S"]
    llm: Shaped[np.ndarray, " S"]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.seconds)
