"""The highest request rate at which a given share of requests meets its targets, with its uncertainty over seeds.

References
----------
Effective throughput: Apt-Serve, arXiv 2504.07494, section 2; goodput in DistServe, arXiv 2401.09670.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import Literal

from optsched.domain.interval import mean_interval
from optsched.errors import NoPlanError, ProblemError

Reading = Literal["paper", "strict", "sustained"]
Shares = Mapping[Reading, float]
"""Share of the requests that attain, by reading (`optsched.domain.attainment.Attained`)."""

_MOST_DOUBLINGS = 24


@dataclass(frozen=True, slots=True)
class EffectiveThroughput:
    """The rate at which attainment falls through a target.

    Attributes
    ----------
    rate_per_s
        Mean over the seeds.
    low_per_s, high_per_s
        95 % confidence interval of that mean (Student's t; from minus to plus infinity for one seed).
    per_seed
        The rate for each seed.
    """

    rate_per_s: float
    low_per_s: float
    high_per_s: float
    per_seed: tuple[float, ...]

    @classmethod
    def of(cls, rates: Sequence[float]) -> EffectiveThroughput:
        """Summarise the rates found for several seeds."""
        return cls(*mean_interval(rates), tuple(rates))


class RateSearch:
    """Attainment against the rate for one seed: simulated where it is asked for, and remembered.

    Parameters
    ----------
    simulate
        Returns the shares that attain at a rate. The same lengths and the same pattern of arrivals on another scale for every
        rate (common random numbers), so that attainment hardly ever rises with the rate.
    first_per_s
        A rate to begin at.
    """

    def __init__(self, simulate: Callable[[float], Shares], first_per_s: float) -> None:
        if not 0 < first_per_s < inf:
            raise ProblemError(f"{first_per_s!r}: the first rate must be a positive number of requests per second")
        self._simulate, self._first = simulate, first_per_s
        self.seen: dict[float, Shares] = {}

    def shares(self, rate_per_s: float) -> Shares:
        """Return the shares that attain at a rate."""
        if rate_per_s not in self.seen:
            self.seen[rate_per_s] = self._simulate(rate_per_s)
        return self.seen[rate_per_s]

    def highest(self, reading: Reading, target: float, tolerance: float = 0.01) -> float:
        """Return the highest rate at which the share attains the target, by doubling and bisection.

        Parameters
        ----------
        reading
            Which of the shares counts.
        target
            The share to reach, in (0, 1].
        tolerance
            Relative width at which the bisection ends; the lower end is returned, where the target was met.

        Raises
        ------
        ProblemError
            If target or tolerance is out of range.
        NoPlanError
            If the target is missed at every rate, or met at every rate that was tried.
        """
        if not (0 < target <= 1 and 0 < tolerance < 1):
            raise ProblemError(
                f"target {target!r} must lie in (0, 1] and tolerance {tolerance!r} in (0, 1); 0.9 and 0.01 are usual"
            )
        low, high = self._bracket(reading, target)
        while high > low * (1 + tolerance):
            middle = sqrt(low * high)
            low, high = (middle, high) if self.shares(middle)[reading] >= target else (low, middle)
        return low

    def _bracket(self, reading: Reading, target: float) -> tuple[float, float]:
        """Return a rate that meets the target and a higher one that does not, begun where earlier searches left off."""
        met = [rate for rate, shares in self.seen.items() if shares[reading] >= target]
        low = max(met, default=self._first)
        above = [rate for rate, shares in self.seen.items() if rate > low and shares[reading] < target]
        for _ in range(_MOST_DOUBLINGS):
            if self.shares(low)[reading] >= target:
                break
            above.append(low)
            low /= 2
        else:
            raise NoPlanError(f"no rate down to {low:.3g} per second reaches {target:.0%}; loosen the targets or lower the share")
        high = min((rate for rate in above if rate > low), default=2 * low)
        for _ in range(_MOST_DOUBLINGS):
            if self.shares(high)[reading] < target:
                return low, high
            low, high = high, min((rate for rate in above if rate > high), default=2 * high)
        raise NoPlanError(f"{target:.0%} attain even at {low:.3g} requests per second; use more requests, or tighter targets")


def effective_throughput(
    simulate: Callable[[float, int], Shares],
    *,
    seeds: Sequence[int],
    targets: Sequence[float] = (0.6, 0.7, 0.9),
    readings: Sequence[Reading] = ("paper", "strict", "sustained"),
    first_per_s: float = 1.0,
    tolerance: float = 0.01,
    progress: Callable[[float, float], None] | None = None,
) -> dict[tuple[Reading, float], EffectiveThroughput]:
    """Return the effective throughput for every reading and target.

    Parameters
    ----------
    simulate
        Returns the shares that attain at a rate for a seed; see `RateSearch`.
    seeds
        At least one; six or more for an interval worth the name, since attainment near saturation varies much.
    targets, readings
        Shares to reach, and how to count.
    first_per_s, tolerance
        See `RateSearch`.
    progress
        Called with the searches done and their number.

    Raises
    ------
    ProblemError
        If there are no seeds, or a target is out of range.
    NoPlanError
        If a target is missed at every rate.
    """
    if not seeds:
        raise ProblemError("effective throughput needs at least one seed; give six or more")
    wanted: list[tuple[Reading, float]] = [(reading, target) for reading in readings for target in targets]
    found: dict[tuple[Reading, float], list[float]] = {each: [] for each in wanted}
    for number, seed in enumerate(seeds):
        search = RateSearch(lambda rate, seed=seed: simulate(rate, seed), first_per_s)  # type: ignore[misc]
        for done, (reading, target) in enumerate(wanted, start=1):
            found[reading, target].append(search.highest(reading, target, tolerance))
            if progress is not None:
                progress(number * len(wanted) + done, len(seeds) * len(wanted))
    return {each: EffectiveThroughput.of(rates) for each, rates in found.items()}
