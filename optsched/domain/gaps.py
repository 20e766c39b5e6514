"""The gaps between a turn's tokens: what an execution keeps of them once the times of the tokens themselves are gone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64, Int64

from optsched.domain.results import Quantiles

if TYPE_CHECKING:
    from optsched.domain.log import ExecutionLog
    from optsched.domain.workload import Workload

Array = np.ndarray
SHORTEST_S = 1e-6
BINS_PER_E_FOLD = 500
NUM_BINS = 15_000
"""Bins of a histogram of gaps: logarithmic, 0.2 % wide, from a microsecond to some months; the outer ones are open."""


def largest_needed(gaps: Int64[Array, " T"]) -> Int64[Array, " T"]:
    """Return how many of a turn's largest gaps its interpolated 99th percentile and its maximum need, by its number of gaps."""
    below = np.floor(0.99 * np.maximum(gaps - 1, 0)).astype(np.int64)
    return np.asarray(np.where(gaps > 0, gaps - below, 0))


@dataclass(frozen=True, slots=True)
class Gaps:
    """The gaps between the tokens of each turn (T of them), in seconds; 0 where there are none.

    Attributes
    ----------
    p99_s
        99th percentile, linear interpolation; 0 for at most one gap, as Apt-Serve's client has it.
    max_s
        The longest.
    pooled
        Mean and percentiles of all gaps of all turns.
    """

    p99_s: Float64[Array, " T"]
    max_s: Float64[Array, " T"]
    pooled: Quantiles

    @classmethod
    def of(cls, log: ExecutionLog, workload: Workload) -> Gaps:
        """Return the gaps of an execution; a turn that never ended has infinite ones."""
        if log.token_s is None:
            assert log.gaps is not None, "an execution keeps its tokens' times or their gaps"
            return log.gaps
        turns = workload.num_turns
        turn = np.repeat(np.arange(turns), workload.output_tokens)
        inside = turn[1:] == turn[:-1]
        gaps, owner = np.diff(log.token_s)[inside], turn[1:][inside]
        pooled = Quantiles.of(gaps)
        gaps = np.where(np.isfinite(gaps), gaps, np.inf)
        order = np.lexsort((gaps, owner))
        return cls._of_largest(gaps[order], workload.output_tokens - 1, workload.output_tokens - 1, pooled)

    @classmethod
    def of_largest(
        cls,
        largest_s: Float64[Array, " L"],
        workload: Workload,
        histogram: Int64[Array, " bins"],
        total_s: float,
    ) -> Gaps:
        """Return the gaps of an execution of which only the largest of each turn and a histogram of all were kept.

        Parameters
        ----------
        largest_s
            Turn after turn, ascending, as many as `largest_needed` says.
        histogram
            How many gaps lie in each of `NUM_BINS` bins.
        total_s
            Sum of all gaps.
        """
        count = workload.output_tokens - 1
        return cls._of_largest(largest_s, largest_needed(count), count, _spread(histogram, total_s))

    @classmethod
    def _of_largest(
        cls, kept_s: Float64[Array, " L"], kept: Int64[Array, " T"], count: Int64[Array, " T"], pooled: Quantiles
    ) -> Gaps:
        """Read maximum and percentile off each turn's `kept` largest of `count` gaps, ascending."""
        end = np.cumsum(kept)
        longest, p99 = np.zeros(len(kept)), np.zeros(len(kept))
        some, many = count > 0, count > 1
        longest[some] = kept_s[end[some] - 1]
        rank = 0.99 * (count[many] - 1)
        below = np.floor(rank).astype(np.int64)
        # The entry of rank r (from 0) among all stands r - count places from the end of those kept.
        low = kept_s[end[many] - count[many] + below]
        high = kept_s[end[many] - count[many] + np.minimum(below + 1, count[many] - 1)]
        with np.errstate(invalid="ignore"):
            p99[many] = np.where(np.isfinite(high), low + (rank - below) * (high - low), np.inf)
        return cls(p99, longest, pooled)


def _spread(histogram: Int64[Array, " bins"], total_s: float) -> Quantiles:
    """Return the exact mean and the percentiles to within half a bin."""
    count = int(histogram.sum())
    if count == 0:
        return Quantiles.of(np.empty(0))
    centre = SHORTEST_S * np.exp((np.arange(NUM_BINS) + 0.5) / BINS_PER_E_FOLD)
    reached = np.cumsum(histogram)
    p50, p95, p99 = (float(centre[np.searchsorted(reached, share * (count - 1), side="right")]) for share in (0.5, 0.95, 0.99))
    return Quantiles(mean=total_s / count, p50=p50, p95=p95, p99=p99)
