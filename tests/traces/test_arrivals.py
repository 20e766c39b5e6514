from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsched.domain.workload import Arrivals
from optsched.errors import SpecError
from optsched.traces.arrivals import arrival_times

PROCESSES = ("poisson", "gamma", "uniform")


@given(process=st.sampled_from(PROCESSES), seed=st.integers(0, 2**32), rate=st.floats(0.01, 100), cv=st.floats(0.2, 5))
def test_another_rate_is_the_same_pattern_on_another_scale(process: str, seed: int, rate: float, cv: float) -> None:
    base = Arrivals.model_validate({"process": process, "rate_per_s": 1.0, "seed": seed, "cv": cv})
    times = arrival_times(base, 50)
    np.testing.assert_allclose(arrival_times(base.replace(rate_per_s=rate), 50) * rate, times, rtol=1e-12)


@given(process=st.sampled_from(PROCESSES), seed=st.integers(0, 2**32), count=st.integers(0, 60))
def test_a_longer_schedule_begins_as_the_shorter_one(process: str, seed: int, count: int) -> None:
    arrivals = Arrivals.model_validate({"process": process, "rate_per_s": 3.0, "seed": seed})
    times = arrival_times(arrivals, 60)
    assert np.array_equal(arrival_times(arrivals, count), times[:count])
    assert times[0] > 0
    assert (np.diff(times) >= 0).all()


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0])
def test_gamma_gaps_have_the_rate_and_the_variation_asked_for(cv: float) -> None:
    gaps = np.diff(arrival_times(Arrivals(process="gamma", rate_per_s=4.0, cv=cv, seed=1), 200_000), prepend=0.0)
    assert gaps.mean() == pytest.approx(0.25, rel=0.02)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.02)


def test_poisson_gaps_are_exponential() -> None:
    from scipy import stats

    gaps = np.diff(arrival_times(Arrivals(rate_per_s=2.0, seed=5), 20_000), prepend=0.0)
    assert stats.kstest(gaps, "expon", args=(0, 0.5)).pvalue > 0.01


def test_uniform_arrivals_have_constant_gaps_and_a_burst_has_none() -> None:
    uniform = arrival_times(Arrivals(process="uniform", rate_per_s=2.0), 4)
    assert uniform.tolist() == [0.5, 1.0, 1.5, 2.0]
    assert arrival_times(Arrivals(process="burst"), 3).tolist() == [0.0, 0.0, 0.0]


def test_recorded_arrivals_are_kept_or_rescaled_to_a_mean_rate() -> None:
    recorded = np.array([1.0, 2.0, 5.0, 9.0])
    assert arrival_times(Arrivals(process="trace"), 3, recorded).tolist() == [1.0, 2.0, 5.0]
    faster = arrival_times(Arrivals(process="trace", rate_per_s=1.5), 4, recorded)
    assert 3 / (faster[-1] - faster[0]) == pytest.approx(1.5)
    np.testing.assert_allclose(np.diff(faster) / np.diff(recorded), np.full(3, 0.25))
    assert arrival_times(Arrivals(process="trace", rate_per_s=1.5), 1, recorded).tolist() == [1.0]


def test_a_trace_process_needs_times_that_can_be_used() -> None:
    trace = Arrivals(process="trace")
    with pytest.raises(SpecError, match=r"process 'trace': the workload's source has no arrival times; use poisson, gamma"):
        arrival_times(trace, 3)
    with pytest.raises(SpecError, match=r"process 'trace': 3 arrivals wanted, the source has 2"):
        arrival_times(trace, 3, np.zeros(2))
    with pytest.raises(SpecError, match=r"all recorded arrivals are at one time and cannot be rescaled; leave rate_per_s out"):
        arrival_times(trace.replace(rate_per_s=2.0), 3, np.zeros(3))
