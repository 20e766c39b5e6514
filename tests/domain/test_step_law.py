"""The step law is the formula it documents, and its sums over chunks and decodes are exact."""

from __future__ import annotations

import numpy as np
import pytest
from factories import LAW
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from strategies import step_laws


def test_a_step_is_overhead_plus_the_larger_of_floor_and_work():
    tokens, pairs, kv, sequences, hidden = 100.0, 5e4, 3000.0, 7.0, 40.0
    gemm = 3e-3 + (40e-3 - 3e-3) * (100 - 64) / (1024 - 64)
    work = gemm + 1e-9 * pairs + 2e-7 * kv + 2e-5 * sequences + 3e-6 * hidden
    assert float(LAW.step_s(tokens, pairs, kv, sequences, hidden)) == pytest.approx(1e-3 + max(4e-3, work), rel=1e-12)
    assert float(LAW.step_s(1.0)) == pytest.approx(1e-3 + 4e-3)


def test_gemm_continues_its_last_slope():
    assert float(LAW.gemm(2048)) == pytest.approx(40e-3 + 1024 * (40e-3 - 3e-3) / (1024 - 64))


@given(law=step_laws(), new=st.integers(1, 700), context=st.integers(0, 5000), chunk=st.integers(1, 512))
def test_prefill_time_is_the_sum_of_its_chunks(law, new, context, chunk):
    total, done = 0.0, 0
    while done < new:
        size = min(chunk, new - done)
        total += float(law.step_s(size, size * (context + done + size / 2)))
        done += size
    assert law.prefill_s(new, context, chunk) == pytest.approx(total, rel=1e-9)


@given(law=step_laws(), context=st.integers(0, 5000), steps=st.integers(0, 50))
def test_decode_time_is_the_sum_of_its_steps(law, context, steps):
    total = sum(float(law.step_s(1.0, 0.0, context + k, 1.0)) for k in range(steps))
    assert law.decode_s(context, steps) == pytest.approx(total, rel=1e-9, abs=1e-15)


@given(law=step_laws(), tokens=st.integers(1, 4000), more=st.integers(0, 4000))
def test_more_work_never_takes_less_time(law, tokens, more):
    assert law.step_s(tokens + more) >= law.step_s(tokens) - 1e-15
    assert law.step_s(1, 0, tokens + more) >= law.step_s(1, 0, tokens) - 1e-15


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"gemm_tokens": (1, 1, 2)}, "must increase strictly"),
        ({"gemm_tokens": (1, 2)}, "2 knots and gemm_s 3"),
        ({"gemm_s": (3, 2, 1)}, "must not decrease"),
        ({"busy_slowdown": (1.1,)}, "must start at 1"),
        ({"busy_slowdown": (1.0, 2.0, 1.5)}, "must not decrease"),
        ({"overhead_s": float("nan")}, "finite"),
        ({"pair_s": -1}, "greater than or equal to 0"),
    ],
)
def test_a_law_that_makes_no_sense_is_refused(change, says):
    with pytest.raises(ValidationError, match=says):
        LAW.replace(**change)


def test_arrays_give_arrays():
    assert LAW.step_s(np.arange(1, 5)).shape == (4,)
