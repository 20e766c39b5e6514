"""Strict JAX, third-party data by path, and Hypothesis profiles."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ["OPTSCHED_MODELS"] = os.environ.get("OPTSCHED_MODELS", "/nonexistent")  # tests never see a user's own specs

settings.register_profile("default", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("slow", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

_DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def third_party_data() -> Path:
    """Folder of third-party traces and measurements; tests that need it skip without it."""
    folder = Path(os.environ.get("OPTSCHED_DATA", _DEFAULT_DATA))
    if not folder.is_dir():
        pytest.skip(f"no third-party data at {folder}; set OPTSCHED_DATA")
    return folder


@pytest.fixture(scope="session")
def conserve_trace(third_party_data: Path) -> Path:
    """Return the per-turn token trace of ConServe (Apache-2.0), 2,294 conversations."""
    path = third_party_data / "conserve" / "trace_profile_summary.csv"
    if not path.is_file():
        pytest.skip(f"no ConServe trace at {path}")
    return path
