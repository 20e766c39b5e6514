"""The highest rate that still attains, on attainment curves whose answer is known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsched.errors import NoPlanError, ProblemError
from optsched.planner.effective_throughput import EffectiveThroughput, RateSearch, Shares, effective_throughput


def falling(knee: float) -> Shares:
    """Return all shares at a rate relative to the knee: everything attains below it, less and less above."""
    share = 1.0 if knee <= 1 else 1.0 / knee
    return {"paper": share, "strict": share**2, "sustained": share**3}


@given(knee=st.floats(1e-3, 1e3), first=st.floats(1e-2, 1e2), target=st.floats(0.05, 0.99))
def test_the_crossing_is_found_from_any_start(knee: float, first: float, target: float) -> None:
    search = RateSearch(lambda rate: falling(rate / knee), first)
    for reading, power in (("paper", 1), ("strict", 2), ("sustained", 3)):
        found = search.highest(reading, target, 0.001)  # type: ignore[arg-type]
        assert found <= knee / target ** (1 / power) * (1 + 1e-9)
        assert found >= knee / target ** (1 / power) / 1.0011
        assert search.seen[found][reading] >= target  # type: ignore[index]


def test_simulations_are_shared_between_targets() -> None:
    asked: list[float] = []

    def simulate(rate: float, seed: int) -> Shares:
        asked.append(rate)
        return falling(rate / (2.0 + seed))

    found = effective_throughput(simulate, seeds=[0, 1], targets=(0.5, 0.9))
    assert found["paper", 0.5].per_seed == pytest.approx((4.0, 6.0), rel=0.01)
    assert found["strict", 0.9].rate_per_s == pytest.approx(2.5 / math.sqrt(0.9), rel=0.01)
    assert len(asked) < 90


def test_the_interval_is_students() -> None:
    summary = EffectiveThroughput.of([1.0, 2.0, 3.0])
    assert (summary.rate_per_s, summary.high_per_s) == (2.0, pytest.approx(2.0 + 4.302652729911275 / math.sqrt(3)))
    assert EffectiveThroughput.of([1.0]).high_per_s == math.inf


def test_targets_that_are_never_met_and_always_met_are_told_apart() -> None:
    with pytest.raises(NoPlanError, match=r"no rate down to .* reaches 50%"):
        RateSearch(lambda _: {"paper": 0.1}, 1.0).highest("paper", 0.5)
    with pytest.raises(NoPlanError, match="50% attain even at"):
        RateSearch(lambda _: {"paper": 0.9}, 1.0).highest("paper", 0.5)


def test_bad_questions_are_refused() -> None:
    with pytest.raises(ProblemError, match=r"target 1\.5 must lie in"):
        RateSearch(falling, 1.0).highest("paper", 1.5)
    with pytest.raises(ProblemError, match="must be a positive number of requests per second"):
        RateSearch(falling, 0.0)
    with pytest.raises(ProblemError, match="at least one seed"):
        effective_throughput(lambda rate, _: falling(rate), seeds=[])
