"""How much more traffic, and how much longer answers, a plan bears before it misses its targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Literal

import numpy as np

from optsched.domain.accounting import measure_plan
from optsched.domain.plan import Plan
from optsched.domain.workload import Workload
from optsched.errors import InfeasibleError
from optsched.planner.capacity_strain import worst_target
from optsched.simulator.simulate import simulate

RATES = (0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
OUTPUTS = (0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
WIDEST = 16.0
"""A plan is not asked about traffic beyond so many times the planned."""
What = Literal["rate", "outputs"]


@dataclass(frozen=True, slots=True)
class Disturbed:
    """What a plan does when the traffic is not the planned one.

    Attributes
    ----------
    factor
        On the arrival rate, or on the output lengths.
    attainment
        Share of the conversations that meet every target.
    worst
        The target missed most and by how much its share of violations exceeds what it allows (negative: room to spare).
    ttft_p95_s, tpot_p95_s
        95th percentiles; None where nothing was measured.
    usd_per_million_tokens
        Price of a million output tokens; None where nothing was served.
    """

    factor: float
    attainment: float
    worst: tuple[str, float]
    ttft_p95_s: float | None
    tpot_p95_s: float | None
    usd_per_million_tokens: float | None

    @property
    def met(self) -> bool:
        """Whether every target is kept."""
        return self.worst[1] <= 0


@dataclass(frozen=True, slots=True)
class Robustness:
    """A plan under more and less traffic, and under longer and shorter answers.

    Attributes
    ----------
    rate, outputs
        By factor.
    rate_breaks, outputs_break
        The factor up to which every target is kept, to 1 %; infinite if there is none up to `WIDEST`, 0 if the plan misses one
        at every factor down to the inverse of it.
    """

    rate: tuple[Disturbed, ...]
    outputs: tuple[Disturbed, ...]
    rate_breaks: float
    outputs_break: float


def robustness(
    plan: Plan, workload: Workload, *, rates: Sequence[float] = RATES, outputs: Sequence[float] = OUTPUTS,
    progress: Callable[[float, float], None] | None = None,
) -> Robustness:  # fmt: skip
    """Simulate a plan on its conversations disturbed.

    Parameters
    ----------
    plan, workload
        The plan and its conversations.
    rates, outputs
        Factors on the arrival rate and on the output lengths to try.
    progress
        Called with the simulations done so far and a guess of their number.

    Notes
    -----
    The break point is found by doubling and bisection, so it is right where attainment falls with the factor, as it does but for
    noise near the limit.
    """
    trials = {what: _Trials(plan, workload, what) for what in ("rate", "outputs")}
    guess, done = len(rates) + len(outputs) + 16, 0
    for what, factors in (("rate", rates), ("outputs", outputs)):
        for factor in factors:
            trials[what].at(factor)
            done += 1
            if progress is not None:
                progress(done, guess)
    return Robustness(
        tuple(trials["rate"].at(factor) for factor in rates), tuple(trials["outputs"].at(factor) for factor in outputs),
        trials["rate"].breaks(), trials["outputs"].breaks(),
    )  # fmt: skip


def disturbed(workload: Workload, what: What, factor: float) -> Workload:
    """Return the conversations arriving so many times as fast, or with answers so many times as long (at least one token)."""
    if what == "rate":
        return replace(workload, arrival_s=workload.arrival_s / factor)
    return replace(workload, output_tokens=np.maximum(1, np.rint(workload.output_tokens * factor)).astype(np.int64))


class _Trials:
    """A plan under one kind of disturbance: simulated where it is asked for, and remembered."""

    def __init__(self, plan: Plan, workload: Workload, what: str) -> None:
        self.plan, self.workload = plan, workload
        self.what: What = "rate" if what == "rate" else "outputs"
        self.seen: dict[float, Disturbed] = {}

    def at(self, factor: float) -> Disturbed:
        if factor not in self.seen:
            self.seen[factor] = self._simulated(factor)
        return self.seen[factor]

    def _simulated(self, factor: float) -> Disturbed:
        other = disturbed(self.workload, self.what, factor)
        try:
            log = simulate(self.plan, other, record_steps=False, record_tokens=False)
        except InfeasibleError as error:
            return Disturbed(factor, 0.0, (str(error), 1.0), None, None, None)
        metrics = measure_plan(self.plan, log, other)
        usd = (metrics.cost_usd_per_hour or 0.0) / 3600 * metrics.makespan_s / metrics.tokens.output * 1e6
        worst = worst_target(self.plan.slo, metrics.slo_violations)
        return Disturbed(factor, metrics.slo_attainment, worst, metrics.ttft_s.p95, metrics.tpot_s.p95, usd)

    def breaks(self) -> float:
        """Return the factor up to which every target is kept."""
        missed = [factor for factor, each in self.seen.items() if not each.met]
        kept = [factor for factor, each in self.seen.items() if each.met]
        high = min(missed, default=max(2.0, 2 * max(kept, default=1.0)))
        low = max((factor for factor in kept if factor < high), default=high / 2)
        return highest_factor(lambda factor: self.at(factor).met, high, low=low)


def highest_factor(is_met: Callable[[float], bool], high: float, tolerance: float = 0.01, low: float | None = None) -> float:
    """Return the factor up to which something is kept, by doubling and bisection.

    Parameters
    ----------
    is_met
        Whether it is kept at a factor; it is taken to be missed at all larger ones if it is not.
    high, low
        Where it may be missed, and where it may be kept; None: a fifth less than `high`.
    tolerance
        Relative width at which the bisection ends; the lower end is returned, where it was kept.

    Returns
    -------
    float
        Infinite if it is kept at every factor up to `WIDEST`, 0 if it is missed at every one down to the inverse of it.
    """
    low = high / 1.25 if low is None else low
    while is_met(high):
        if high >= WIDEST:
            return float("inf")
        low, high = high, 2 * high
    while not is_met(low):
        if low <= 1 / WIDEST:
            return 0.0
        low, high = low / 2, low
    while high > low * (1 + tolerance):
        middle = sqrt(low * high)
        low, high = (middle, high) if is_met(middle) else (low, middle)
    return low
