"""How steps of a shared host scatter is found again in what was measured, by kind and by busy neighbours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_cost_calibrate import TRUTH, steps_like_a_log

from optsched.cost.calibrate import predicted_durations
from optsched.cost.jitter import fit_shared_law, with_jitter
from optsched.domain.log import Steps
from optsched.domain.step_law import JITTER_QUANTILES

QUANTILES = (np.arange(JITTER_QUANTILES) + 0.5) / JITTER_QUANTILES


def scattered(number: int, seed: int, spread: tuple[float, float, float]) -> tuple[Steps, np.ndarray]:
    """Return steps whose times are a gamma variable of mean 1 times the truth, wider the more replicas are busy."""
    steps, draw = steps_like_a_log(number, seed), np.random.default_rng(seed)
    variance = np.asarray(spread)[steps.busy_replicas - 1] ** 2
    durations = predicted_durations(TRUTH, steps) * draw.gamma(1 / variance, variance)
    overhead = TRUTH.overhead_s * np.asarray(TRUTH.busy_slowdown)[steps.busy_replicas - 1]
    return replace(steps, end_s=np.maximum(durations - overhead, durations / 2)), durations


def test_the_scatter_of_each_number_of_busy_replicas_is_found_again() -> None:
    spread = (0.05, 0.2, 0.4)
    steps, durations = scattered(6000, 4, spread)
    law = with_jitter(TRUTH, steps, durations)
    for rows in (law.decode_jitter, law.prefill_jitter):
        assert len(rows) == 3
        for row, deviation in zip(rows, spread, strict=True):
            drawn = np.random.default_rng(9).gamma(1 / deviation**2, deviation**2, 200_000)
            assert np.asarray(row) == pytest.approx(np.quantile(drawn, QUANTILES), rel=0.1)


def test_the_law_of_a_shared_host_is_the_plain_fit_and_its_scatter() -> None:
    steps, durations = scattered(800, 5, (0.1, 0.1, 0.3))
    report = fit_shared_law(steps, durations)
    assert np.std(report.law.decode_jitter[2]) > 2 * np.std(report.law.decode_jitter[0])
    assert report.law.replace(decode_jitter=(), prefill_jitter=()).busy_slowdown == report.busy_slowdown


def test_few_steps_of_a_kind_are_judged_together_and_none_scatter_that_do_not() -> None:
    steps, durations = scattered(90, 6, (0.2, 0.2, 0.2))
    law = with_jitter(TRUTH, steps, durations)
    assert len(set(law.prefill_jitter)) == 1  # some 36 steps that prefill: all steps speak for them
    exact = with_jitter(TRUTH, steps, predicted_durations(TRUTH, steps))
    assert exact.decode_jitter == exact.prefill_jitter == ()
