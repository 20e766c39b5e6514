from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from optsched.cost.calibrate import fit_step_law, predicted_durations
from optsched.domain.log import Steps
from optsched.domain.step_law import StepLaw
from optsched.errors import ProblemError

TRUTH = StepLaw(
    overhead_s=5e-4, floor_s=3e-3, gemm_tokens=(0, 16, 64, 512), gemm_s=(1e-3, 2e-3, 6e-3, 5e-2), pair_s=2e-8,
    prefill_context_s=2e-6, kv_s=4e-7,
    sequence_s=5e-5, hidden_s=6e-6, hidden_step_s=8e-4, busy_slowdown=(1, 1.25, 1.6), step_j=0.3, idle_w=20.0,
)  # fmt: skip


def steps_like_a_log(number: int, seed: int, most_busy: int = 3) -> Steps:
    draw = np.random.default_rng(seed)
    prefilling = draw.random(number) < 0.4
    context = np.where(prefilling, draw.integers(0, 4000, number), 0)
    new = np.where(prefilling, np.round(np.exp(draw.uniform(1, 6.2, number))), 0)
    batch = np.where(prefilling, draw.integers(0, 8, number), draw.integers(1, 16, number))
    hidden = np.where(draw.random(number) < 0.3, batch * 200, 0)
    whole = [np.zeros(number), new, batch + prefilling, batch, batch * draw.integers(50, 1500, number), hidden]
    replica, new, sequences, batch, kv, hidden = (each.astype(np.int64) for each in whole)
    return Steps(
        replica=replica,
        start_s=np.zeros(number),
        end_s=np.ones(number),
        prefill_tokens=new,
        pairs=new * (context + new / 2),
        prefill_context_tokens=context,
        sequences=sequences,
        decode_sequences=batch,
        kv_tokens=kv,
        hidden_tokens=hidden,
        busy_replicas=draw.integers(1, most_busy + 1, number),
    )


def measured(steps: Steps, noise: float, outliers: float, seed: int) -> tuple[Steps, np.ndarray]:
    draw = np.random.default_rng(seed)
    number = len(steps.replica)
    durations = predicted_durations(TRUTH, steps) * np.exp(draw.normal(0, noise, number))
    durations[draw.random(number) < outliers] *= 4
    slow = np.asarray(TRUTH.busy_slowdown)[steps.busy_replicas - 1]
    return replace(steps, end_s=durations - TRUTH.overhead_s * slow), durations


def test_a_known_law_is_recovered_from_noisy_steps() -> None:
    steps, durations = measured(steps_like_a_log(800, seed=1), noise=0.05, outliers=0.0, seed=2)
    found = fit_step_law(steps, durations)
    fresh = steps_like_a_log(500, seed=3)
    error = np.abs(predicted_durations(found.law, fresh) / predicted_durations(TRUTH, fresh) - 1)
    assert error.mean() <= 0.02
    assert found.law.overhead_s == pytest.approx(TRUTH.overhead_s, rel=0.05)
    assert found.law.floor_s == pytest.approx(TRUTH.floor_s, rel=0.05)
    assert found.law.pair_s == pytest.approx(TRUTH.pair_s, rel=0.1)
    assert found.law.prefill_context_s == pytest.approx(TRUTH.prefill_context_s, rel=0.1)
    assert found.law.kv_s == pytest.approx(TRUTH.kv_s, rel=0.1)
    assert found.law.hidden_s == pytest.approx(TRUTH.hidden_s, rel=0.1)
    assert found.busy_slowdown == pytest.approx(TRUTH.busy_slowdown, rel=0.03)
    assert found.heldout_median <= 0.05
    assert found.num_steps == 800


def test_rare_long_steps_raise_the_level_but_leave_the_shape() -> None:
    steps, durations = measured(steps_like_a_log(4000, seed=1), noise=0.05, outliers=0.03, seed=2)
    found = fit_step_law(steps, durations)
    for busy in (1, 2, 3):
        at = steps.busy_replicas == busy
        assert predicted_durations(found.law, steps)[at].sum() == pytest.approx(durations[at].sum(), rel=0.05)
    ratio = predicted_durations(found.law, steps) / predicted_durations(TRUTH, steps)
    assert ratio.mean() > 1.05  # three of a hundred steps take four times as long
    for busy in (1, 2, 3):
        shape = ratio[steps.busy_replicas == busy]
        assert shape.std() / shape.mean() <= 0.03


def test_exact_steps_are_fitted_exactly_where_the_knots_agree() -> None:
    steps = steps_like_a_log(400, seed=4)
    few = np.where(steps.prefill_tokens > 0, np.where(steps.prefill_tokens > 60, 512, 64), 0)
    steps = replace(steps, prefill_tokens=few, decode_sequences=np.where(few > 0, 0, 16))
    steps, durations = measured(steps, noise=0.0, outliers=0.0, seed=5)
    found = fit_step_law(steps, durations, ridge=1e-6)
    assert found.heldout_mape <= 1e-3


def test_the_fit_depends_on_the_seed_of_the_split_only() -> None:
    steps, durations = measured(steps_like_a_log(300, seed=6), noise=0.05, outliers=0.02, seed=7)
    assert fit_step_law(steps, durations, seed=1) == fit_step_law(steps, durations, seed=1)
    assert fit_step_law(steps, durations, seed=1).law != fit_step_law(steps, durations, seed=2).law


def test_the_held_out_error_is_that_of_steps_the_fit_never_saw() -> None:
    steps, durations = measured(steps_like_a_log(300, seed=8), noise=0.02, outliers=0.0, seed=9)
    order = np.random.default_rng(0).permutation(300)
    spoiled = durations.copy()
    spoiled[order[:60]] *= 3  # seed 0, share 0.2: the steps that are set aside
    clean, dirty = fit_step_law(steps, durations), fit_step_law(steps, spoiled)
    assert dirty.law == clean.law
    assert dirty.train_mape == clean.train_mape
    assert dirty.heldout_mape > 0.5 > clean.heldout_mape


def test_a_prior_fills_in_what_never_occurred_and_keeps_its_energy() -> None:
    steps = steps_like_a_log(300, seed=10, most_busy=1)
    steps = replace(steps, hidden_tokens=np.zeros(300, np.int64))
    steps, durations = measured(steps, noise=0.03, outliers=0.0, seed=11)
    prior = TRUTH.replace(kv_s=8e-7, floor_s=1e-3, hidden_s=7e-6)
    found = fit_step_law(steps, durations, prior=prior)
    assert found.law.hidden_s == pytest.approx(7e-6, rel=0.01)
    assert found.law.kv_s == pytest.approx(4e-7, rel=0.1)
    assert (found.law.step_j, found.law.idle_w) == (0.3, 20.0)
    assert found.busy_slowdown == (1.0,)


def test_measurements_that_cannot_be_fitted_are_refused() -> None:
    steps, durations = measured(steps_like_a_log(100, seed=12), noise=0.0, outliers=0.0, seed=13)
    with pytest.raises(ProblemError, match="99 durations for 100 steps"):
        fit_step_law(steps, durations[:99])
    with pytest.raises(ProblemError, match=r"held-out share 1 must lie between 0 and 1"):
        fit_step_law(steps, durations, heldout_share=1.0)
    with pytest.raises(ProblemError, match="every step must take positive time"):
        fit_step_law(steps, durations * 0.5)
    few, short = measured(steps_like_a_log(30, seed=14), noise=0.0, outliers=0.0, seed=15)
    with pytest.raises(ProblemError, match="30 measured steps are too few"):
        fit_step_law(few, short)
