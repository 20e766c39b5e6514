"""Draw the times at which conversations arrive."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from optsched.domain.workload import Arrivals
from optsched.errors import SpecError

Array = np.ndarray
LATEST_S = 1e8
"""The latest arrival, about three years: a double still tells moments 15 ns apart there."""


def arrival_times(arrivals: Arrivals, count: int, recorded: Float64[Array, " C"] | None = None) -> Float64[Array, " C"]:
    """Return the arrival times of `count` conversations, in seconds, non-decreasing.

    The random processes are drawn with ``numpy.random.Generator(PCG64(seed))`` at rate 1 and divided by the rate, so that
    another rate is the same pattern on another scale and a longer schedule begins as the shorter one does. Their first
    arrival, and that of ``uniform``, comes one gap after 0.

    Parameters
    ----------
    arrivals
        The process.
    count
        C, how many.
    recorded
        The times in the source, for process ``trace``; None: it has none.

    Raises
    ------
    SpecError
        If process ``trace`` has no times, fewer than `count`, or is to be rescaled although all of them are equal;
        or if the last arrival lies beyond `LATEST_S`.
    """
    if arrivals.process in ("burst", "closed"):
        return np.zeros(count)
    if arrivals.process == "trace":
        return _recorded(arrivals, count, recorded)
    generator = np.random.Generator(np.random.PCG64(arrivals.seed))
    if arrivals.process == "poisson":
        gaps = generator.exponential(1.0, count)
    elif arrivals.process == "gamma":
        shape = arrivals.cv**-2
        gaps = generator.gamma(shape, 1.0 / shape, count)
    else:
        gaps = np.ones(count)
    rate_per_s = arrivals.rate_per_s or 1.0
    _check_span(float(gaps.sum()), rate_per_s, count)
    return np.asarray(np.cumsum(gaps) / rate_per_s)


def _check_span(gaps: float, rate_per_s: float, count: int) -> None:
    """Refuse a last arrival, `gaps` mean gaps after the first moment, that comes too late."""
    if gaps > LATEST_S * rate_per_s:
        raise SpecError(
            f"{rate_per_s:g}: the last of {count} conversations would arrive after more than {LATEST_S:g} s; raise the rate",
            field="workload.arrivals.rate_per_s",
        )


def _recorded(arrivals: Arrivals, count: int, recorded: Float64[Array, " C"] | None) -> Float64[Array, " C"]:
    if recorded is None:
        raise SpecError(
            "process 'trace': the workload's source has no arrival times; use poisson, gamma, uniform or burst",
            field="workload.arrivals.process",
        )
    if len(recorded) < count:
        raise SpecError(f"process 'trace': {count} arrivals wanted, the source has {len(recorded)}", field="workload.arrivals")
    times = np.asarray(recorded[:count], float)
    if arrivals.rate_per_s is None or count < 2:
        return times
    span = times[-1] - times[0]
    if span <= 0:
        raise SpecError(
            "process 'trace': all recorded arrivals are at one time and cannot be rescaled; leave rate_per_s out",
            field="workload.arrivals.rate_per_s",
        )
    _check_span(count - 1, arrivals.rate_per_s, count)
    # The mean recorded gap is the span over the number of gaps.
    return np.asarray(times[0] + (times - times[0]) * ((count - 1) / (span * arrivals.rate_per_s)))
