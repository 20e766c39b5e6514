"""The compiled step laws say what the law itself says."""

from __future__ import annotations

import numpy as np
import pytest
from factories import LAW
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import step_laws

from optsched.domain.step_law import JITTER_QUANTILES, StepLaw
from optsched.placement.gemm import Gemm
from optsched.placement.step_time import (
    decode_run_j,
    decode_run_s,
    jitter,
    pack,
    prefill_alone_s,
    slowdown,
    step_j,
    step_s,
    steps_until,
)

LAWS = st.lists(step_laws(), min_size=1, max_size=3)
COUNTS = st.integers(0, 40_000)


@settings(max_examples=200)
@given(LAWS, st.data())
def test_a_compiled_step_takes_the_time_and_energy_of_the_law(laws: list[StepLaw], data: st.DataObject) -> None:
    packed = pack(laws)
    for index, law in enumerate(laws):
        tokens, context, kv, sequences, hidden = (float(data.draw(COUNTS)) for _ in range(5))
        pairs = data.draw(st.floats(0, 1e9))
        said = law.step_s(tokens, pairs, kv, sequences, hidden, context)
        assert step_s(packed, index, tokens, pairs, context, kv, sequences, hidden) == pytest.approx(said, rel=1e-12, abs=1e-15)
        spent = law.energy_j(tokens, pairs, kv, sequences, hidden, context)
        assert step_j(packed, index, tokens, pairs, context, kv, sequences, hidden) == pytest.approx(spent, rel=1e-12, abs=1e-15)
        busy = data.draw(st.integers(1, 6))
        assert slowdown(packed, index, busy) == law.busy_slowdown[min(busy, len(law.busy_slowdown)) - 1]


@given(step_laws(), st.integers(1, 64), st.integers(0, 100_000), st.integers(1, 300))
def test_a_compiled_run_of_decode_steps_is_the_sum_of_its_steps(law: StepLaw, decodes: int, cached: int, steps: int) -> None:
    packed = pack([law])
    kv = cached + decodes * np.arange(steps, dtype=float)
    assert decode_run_s(packed, 0, decodes, float(cached), steps) == pytest.approx(
        law.step_s(float(decodes), 0.0, kv, float(decodes)).sum(), rel=1e-9, abs=1e-12
    )
    assert decode_run_j(packed, 0, decodes, float(cached), steps) == pytest.approx(
        law.energy_j(float(decodes), 0.0, kv, float(decodes)).sum(), rel=1e-9, abs=1e-12
    )
    part = decode_run_s(packed, 0, decodes, float(cached), max(1, steps // 2))
    if part > 0:
        assert steps_until(packed, 0, decodes, float(cached), steps, part * (1 - 1e-12)) <= max(1, steps // 2)


@given(step_laws(), st.integers(1, 3000), st.integers(0, 5000), st.integers(1, 512))
def test_a_compiled_prefill_alone_takes_the_time_of_the_law(law: StepLaw, tokens: int, cached: int, chunk: int) -> None:
    assert prefill_alone_s(pack([law]), 0, tokens, cached, chunk) == pytest.approx(law.prefill_s(tokens, cached, chunk), rel=1e-9)


@given(step_laws(), st.integers(1, 2000), st.integers(0, 200))
def test_a_token_s_own_share_of_gemm_never_exceeds_what_it_adds(law: StepLaw, chunk: int, decodes: int) -> None:
    packed = pack([law])
    for values, function in ((packed.gemm_s, law.gemm), (packed.gemm_j, law.gemm_energy)):
        gemm = Gemm.of(packed, 0, values)
        least = float(function(chunk)) + decodes * gemm.per_decode
        assert float(function(chunk + decodes)) >= least * (1 - 1e-12) - 1e-12
        if decodes:
            assert float(function(decodes)) >= (function(1) + (decodes - 1) * gemm.per_decode) * (1 - 1e-12) - 1e-12
        tokens = np.array([chunk, 3 * chunk + 1, 7], np.int64)
        parts = [sum(float(function(min(chunk, n - k))) for k in range(0, n, chunk)) for n in tokens.tolist()]
        assert gemm.of_prefills(tokens, chunk) == pytest.approx(parts, rel=1e-9, abs=1e-12)


NARROW, WIDE = (tuple(float(value) for value in np.linspace(1 - half, 1 + half, JITTER_QUANTILES)) for half in (0.1, 0.8))


def test_steps_scatter_as_the_law_says_of_their_kind_and_their_neighbours() -> None:
    scattered = LAW.replace(decode_jitter=(NARROW, WIDE), prefill_jitter=(WIDE,))
    packed = pack([LAW, scattered])
    for prefills, busy, row in ((False, 1, NARROW), (False, 2, WIDE), (False, 7, WIDE), (True, 1, WIDE), (True, 3, WIDE)):
        drawn = np.array([jitter(packed, 1, busy, prefills, number) for number in range(4000)])
        assert drawn.mean() == pytest.approx(1.0, abs=0.02)
        for share in (0.05, 0.25, 0.5, 0.75, 0.95):
            assert np.quantile(drawn, share) == pytest.approx(np.quantile(row, share), abs=0.05)
        assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.05
    assert {jitter(packed, 0, busy, True, number) for busy in (1, 5) for number in range(50)} == {1.0}
    assert jitter(pack([LAW]), 0, 2, False, 3) == 1.0


def test_replicas_do_not_scatter_in_step() -> None:
    packed = pack([LAW.replace(decode_jitter=(WIDE,))] * 3)
    drawn = np.array([[jitter(packed, replica, 1, False, number) for number in range(2000)] for replica in range(3)])
    assert np.abs(np.corrcoef(drawn) - np.eye(3)).max() < 0.06
