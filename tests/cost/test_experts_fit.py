"""Fitting routed experts: a known law is found again, and held-out llms are not fitted to."""

from __future__ import annotations

import numpy as np
import pytest

from optsched import catalog
from optsched.cost.experts import ExpertsParameters
from optsched.cost.experts_fit import experts_split, fit_experts, predicted_s, shapes
from optsched.cost.precision import double_precision, scalar
from optsched.cost.roofline import Card
from optsched.domain.experts_law import ExpertsLaw
from optsched.profiles.experts import ExpertRows

TIER = catalog.tier("h100-sxm")
TRUE = ExpertsLaw(compute=0.5, memory=0.9, half_rows=40.0, half_width=90.0, order=3.0, passes=1.5, launch_s=3e-5)


@double_precision
def layers() -> ExpertRows:
    random = np.random.default_rng(3)
    count = 400
    which = random.integers(0, 3, count)
    tokens = 2.0 ** random.integers(0, 15, count)
    experts, per_token = np.array([8, 128, 64])[which], np.array([2, 8, 4])[which]
    touched = experts * (1 - (1 - per_token / experts) ** tokens)
    columns = {
        "tokens": tokens,
        "hidden_size": np.array([4096, 2048, 3072])[which],
        "expert_size": np.array([14336, 768, 1024])[which],
        "num_experts": experts,
        "experts_per_token": per_token,
        "tp": 2 ** random.integers(0, 3, count),
        "groups": np.ones(count, dtype=np.int64),
        "matrices": np.full(count, 3),
        "rows": tokens * per_token,
        "touched": touched,
    }
    rows = ExpertRows(**columns, seconds=np.ones(count), dtype="bf16", source="made here")
    sheet = TIER.gpu.datasheet
    card = Card(scalar(sheet.flops_per_s["bf16"]), scalar(sheet.memory_bytes_per_s), scalar(1.0))
    times = np.asarray(predicted_s(ExpertsParameters.of(TRUE), card, shapes(rows), 2.0))
    return ExpertRows(**columns, seconds=times, dtype="bf16", source="made here")


def test_a_law_is_found_again_from_its_own_times() -> None:
    fitted = fit_experts(layers(), TIER, "2026-01-01", ridge=1e-3)
    assert fitted.fit.train_mape < 5e-3
    assert fitted.fit.heldout_llms_mape is not None
    assert fitted.fit.heldout_llms_mape < 2e-2
    for name in ("compute", "memory", "launch_s"):
        assert getattr(fitted.law, name) == pytest.approx(getattr(TRUE, name), rel=0.05)


def test_the_shapes_of_a_heldout_llm_are_never_fitted_to() -> None:
    rows = layers()
    mixtral = (rows.hidden_size == 4096) & (rows.num_experts == 8)
    divided = experts_split(rows)
    assert mixtral.any()
    assert np.array_equal(divided.heldout_llms, mixtral)
    assert not (divided.train & mixtral).any()
