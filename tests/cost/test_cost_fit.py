from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float

from optsched.cost.fit import Fitted, Provenance, fit_law
from optsched.cost.precision import double_precision, scalar
from optsched.cost.roofline import LawParameters
from optsched.cost.split import Split, split
from optsched.domain.efficiency import ElementwiseLaw
from optsched.errors import ProblemError

PRIOR = ElementwiseLaw(memory=0.6, launch_s=4e-6)
FROM = Provenance(source="a test", date="2026-11-21", rows_left_out={"twice": 3})
BYTES = np.geomspace(1e4, 1e9, 160)
BANDWIDTH = 2e12


class Passes(LawParameters):
    """A law of memory passes with the two coefficients that every tier has."""

    memory: Float[jax.Array, ""]
    launch_s: Float[jax.Array, ""]


def predicted(law: Passes, moved: Float[jax.Array, " S"]) -> Float[jax.Array, " S"]:
    return law.launch_s + jnp.asarray(moved) / (BANDWIDTH * law.memory)


@double_precision
def synthetic(memory: float, launch_s: float, noise: float, seed: int) -> np.ndarray:
    times = np.asarray(predicted(Passes(memory=scalar(memory), launch_s=scalar(launch_s)), BYTES))
    return times * np.exp(noise * np.random.default_rng(seed).standard_normal(len(BYTES)))


def fitted(seconds: np.ndarray, parts: Split | None = None, ridge: float = 0.1) -> Fitted[ElementwiseLaw]:
    keys = np.arange(len(BYTES))[:, None]
    return fit_law(PRIOR, Passes, predicted, BYTES, seconds, parts or split(keys, BYTES > 9e8), FROM, ridge=ridge)


@given(memory=st.floats(0.3, 0.95), launch_s=st.floats(1e-6, 2e-5))
@settings(max_examples=10)
def test_a_fit_recovers_the_coefficients_that_made_the_rows(memory: float, launch_s: float) -> None:
    found = fitted(synthetic(memory, launch_s, 0.0, 0), ridge=1e-4)
    assert found.law.memory == pytest.approx(memory, rel=1e-4)
    assert found.law.launch_s == pytest.approx(launch_s, rel=1e-4)
    assert max(found.fit.train_mape, found.fit.heldout_shapes_mape or 1) < 1e-4
    assert found.fit.heldout_llms_mape is not None
    assert found.fit.parameters == ("memory", "launch_s")


@given(factor=st.floats(0.01, 100.0), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_held_out_times_never_influence_the_law(factor: float, seed: int) -> None:
    seconds = synthetic(0.7, 5e-6, 0.05, 1)
    parts = split(np.arange(len(BYTES))[:, None], BYTES > 9e8)
    changed = np.where(parts.train, seconds, seconds * factor * np.exp(np.random.default_rng(seed).normal(size=len(BYTES))))
    one, two = fitted(seconds, parts), fitted(changed, parts)
    assert two.law.replace(fit=None) == one.law.replace(fit=None)
    assert two.fit.covariance == one.fit.covariance
    assert two.fit.heldout_shapes_mape != one.fit.heldout_shapes_mape


def test_the_covariance_is_the_spread_of_repeated_fits() -> None:
    laws = [fitted(synthetic(0.7, 8e-6, 0.05, seed), ridge=1e-3) for seed in range(60)]
    logs = np.log([[each.law.memory, each.law.launch_s] for each in laws])
    stated = np.mean([each.fit.covariance for each in laws], axis=0)
    measured = np.cov(logs.T)
    assert np.all(np.abs(np.log(np.diag(stated) / np.diag(measured))) < np.log(2))
    assert abs(stated[0, 1] / np.sqrt(stated[0, 0] * stated[1, 1]) - np.corrcoef(logs.T)[0, 1]) < 0.3


def test_a_strong_ridge_stays_at_the_prior_and_a_coefficient_without_evidence_does_too() -> None:
    seconds = synthetic(0.9, 1e-5, 0.0, 0)
    held = fitted(seconds, ridge=1e3)
    assert held.law.memory == pytest.approx(PRIOR.memory, rel=1e-3)
    # only large transfers: nothing tells the launch time
    large = Split(BYTES > 5e8, BYTES < 1e6, np.zeros(len(BYTES), bool))
    assert fitted(synthetic(0.9, 1e-7, 0.0, 0), large).law.launch_s == pytest.approx(PRIOR.launch_s, rel=0.02)


def test_a_share_of_the_peak_never_exceeds_one_however_fast_the_rows_are() -> None:
    assert fitted(synthetic(0.9, 1e-6, 0.0, 0) / 3).law.memory <= 1.0


def test_a_few_wild_rows_hardly_move_the_fit() -> None:
    seconds = synthetic(0.7, 5e-6, 0.01, 2)
    wild = seconds.copy()
    wild[::20] *= 30
    assert fitted(wild).law.memory == pytest.approx(fitted(seconds).law.memory, rel=0.05)


def test_fixed_coefficients_stay_and_a_fit_reports_where_it_comes_from() -> None:
    parts = split(np.arange(len(BYTES))[:, None])
    found = fit_law(PRIOR, Passes, predicted, BYTES, synthetic(0.9, 1e-5, 0.0, 0), parts, FROM, fixed=("launch_s",))
    assert found.law.launch_s == PRIOR.launch_s
    assert found.fit.parameters == ("memory",)
    assert (found.fit.source, found.fit.num_rows, found.fit.rows_left_out) == ("a test", 160, {"twice": 3})
    assert found.fit.heldout_llms_mape is None


def test_rows_that_cannot_be_fitted_are_refused() -> None:
    good = synthetic(0.7, 5e-6, 0.0, 0)
    with pytest.raises(ProblemError, match="every measured time must be positive and finite"):
        fitted(np.where(np.arange(160) == 3, 0.0, good))
    with pytest.raises(ProblemError, match=r"7 measured times for rows of lengths \[160\]; give one time per row"):
        fitted(good[:7])
    few = Split(np.arange(160) < 3, np.arange(160) >= 3, np.zeros(160, bool))
    with pytest.raises(ProblemError, match="3 rows to fit 2 coefficients to, held-out ones aside; give at least 4"):
        fitted(good, few)
