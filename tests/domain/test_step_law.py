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
    tokens, pairs, kv, sequences, hidden, context = 100.0, 5e4, 3000.0, 7.0, 40.0, 900.0
    gemm = 3e-3 + (40e-3 - 3e-3) * (100 - 64) / (1024 - 64)
    work = gemm + 1e-9 * pairs + 2e-7 * kv + 2e-5 * sequences + 3e-6 * hidden + 4e-4 + 1e-7 * context
    assert float(LAW.step_s(tokens, pairs, kv, sequences, hidden, context)) == pytest.approx(1e-3 + max(4e-3, work), rel=1e-12)
    assert float(LAW.step_s(1.0)) == pytest.approx(1e-3 + 4e-3)


def test_the_energy_of_a_step_adds_up_and_is_piecewise_linear_in_the_tokens():
    gemm = 2.0 + (11.0 - 2.0) * (100 - 64) / (1024 - 64)
    expected = 0.1 + gemm + 1e-7 * 5e4 + 1e-6 * 3000 + 3e-3 * 7 + 1e-4 * 40 + 0.05 + 2e-6 * 900
    assert float(LAW.energy_j(100.0, 5e4, 3000.0, 7.0, 40.0, 900.0)) == pytest.approx(expected, rel=1e-12)
    assert float(LAW.gemm_energy(2048)) == pytest.approx(11.0 + 1024 * 9.0 / (1024 - 64))


def test_a_law_of_an_earlier_version_reads_as_one_of_the_same_time_and_energy():
    data = LAW.model_dump(
        exclude={"prefill_context_s", "hidden_step_s", "gemm_j", "prefill_context_j", "sequence_j", "hidden_step_j"}
    )
    old = type(LAW).model_validate({**data, "token_j": 0.02})
    tokens = np.array([0.0, 1.0, 63.0, 64.0, 700.0, 5000.0])
    assert np.allclose(old.energy_j(tokens, 100.0, 50.0), 0.1 + 0.02 * tokens + 1e-7 * 100 + 1e-6 * 50, rtol=1e-12)
    assert (old.prefill_context_s, old.prefill_context_j, old.sequence_j, old.hidden_step_s, old.hidden_step_j) == (0, 0, 0, 0, 0)
    assert type(LAW).model_validate(old.model_dump()) == old
    assert type(LAW).model_validate(data).gemm_j == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"token_j": "much"}, "token_j must be a number of joules"), ({"token_j": -1.0}, "gemm_j must be non-negative"),
     ({"token_j": float("nan")}, "finite"), ({"gemm_tokens": None}, "gemm_tokens"), ({"gemm_tokens": ["a", "b"]}, "gemm_tokens"),
     ({"token_j": 1.0, "gemm_j": (1.0, 2.0, 3.0)}, "token_j")],
)  # fmt: skip
def test_a_law_of_an_earlier_version_that_makes_no_sense_is_refused(change, says):
    with pytest.raises(ValidationError, match=says):
        type(LAW).model_validate({**LAW.model_dump(exclude={"gemm_j"}), **change})


def test_gemm_continues_its_last_slope():
    assert float(LAW.gemm(2048)) == pytest.approx(40e-3 + 1024 * (40e-3 - 3e-3) / (1024 - 64))


@given(law=step_laws(), new=st.integers(1, 700), context=st.integers(0, 5000), chunk=st.integers(1, 512))
def test_prefill_time_is_the_sum_of_its_chunks(law, new, context, chunk):
    total, done = 0.0, 0
    while done < new:
        size = min(chunk, new - done)
        total += float(law.step_s(size, size * (context + done + size / 2), prefill_context_tokens=context + done))
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
    assert law.step_s(1, prefill_context_tokens=tokens + more) >= law.step_s(1, prefill_context_tokens=tokens) - 1e-15
    assert law.energy_j(tokens + more) >= law.energy_j(tokens) - 1e-12


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"gemm_tokens": (1, 1, 2)}, "must increase strictly"),
        ({"gemm_tokens": (1, 2)}, "2 knots and gemm_s 3"),
        ({"gemm_s": (3, 2, 1)}, "gemm_s must be non-negative and must not decrease"),
        ({"gemm_j": (3, 2, 1)}, "gemm_j must be non-negative and must not decrease"),
        ({"gemm_j": (1, 2)}, "3 knots and gemm_j 2"),
        ({"busy_slowdown": (1.1,)}, "must start at 1"),
        ({"busy_slowdown": (1.0, 2.0, 1.5)}, "must not decrease"),
        ({"decode_jitter": ((0.5, 1.5),)}, "each row of decode_jitter must be 20 positive factors in rising order, of mean 1"),
        ({"prefill_jitter": (tuple(np.linspace(1.5, 0.5, 20)),)}, "each row of prefill_jitter must be 20 positive factors"),
        ({"decode_jitter": (tuple(np.linspace(0.5, 1.6, 20)),)}, "of mean 1"),
        ({"overhead_s": float("nan")}, "finite"),
        ({"pair_s": -1}, "greater than or equal to 0"),
    ],
)
def test_a_law_that_makes_no_sense_is_refused(change, says):
    with pytest.raises(ValidationError, match=says):
        LAW.replace(**change)


def test_arrays_give_arrays():
    assert LAW.step_s(np.arange(1, 5)).shape == (4,)
