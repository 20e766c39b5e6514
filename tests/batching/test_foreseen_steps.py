"""What policies foresee of a step is what the step law says."""

from __future__ import annotations

import numpy as np
import pytest
from factories import LAW, make_plan
from hypothesis import given
from hypothesis import strategies as st

from optsched.batching.state import NO_LAW
from optsched.batching.step_time import foreseen_s, law_rows
from optsched.domain.plan import PlanReplica

FEWER_KNOTS = LAW.replace(gemm_tokens=(8, 512), gemm_s=(1e-3, 30e-3), gemm_j=(0, 1), busy_slowdown=(1.0, 1.5, 2.0))


def replicas(host: str | None) -> list[PlanReplica]:
    plan = make_plan(["mixed", "mixed"], host=host)
    return [replica.replace(coefficients=law) for replica, law in zip(plan.replicas, (LAW, FEWER_KNOTS), strict=True)]


@given(
    tokens=st.integers(1, 5000), pairs=st.floats(0, 1e7), context=st.floats(0, 1e5), kv=st.floats(0, 1e5),
    sequences=st.integers(1, 300), hidden=st.sampled_from([0.0, 300.0]),
)  # fmt: skip
def test_a_row_foresees_what_its_law_says(
    tokens: int, pairs: float, context: float, kv: float, sequences: int, hidden: float
) -> None:
    for row, law in zip(law_rows(replicas(None)), (LAW, FEWER_KNOTS), strict=True):
        foreseen = foreseen_s(row, float(tokens), pairs, context, kv, float(sequences), hidden)
        assert foreseen == pytest.approx(law.step_s(tokens, pairs, kv, sequences, hidden, context), rel=1e-12)


def test_replicas_of_one_host_foresee_all_of_them_busy() -> None:
    alone, together = law_rows(replicas(None)), law_rows(replicas("here"))
    np.testing.assert_array_equal(alone[0], together[0])
    content = (64.0, 1e3, 10.0, 100.0, 4.0, 0.0)
    assert foreseen_s(together[1], *content) == pytest.approx(1.5 * foreseen_s(alone[1], *content), rel=1e-12)


def test_an_unknown_law_foresees_no_time() -> None:
    assert foreseen_s(NO_LAW, 64.0, 1e3, 10.0, 100.0, 4.0, 0.0) == 0.0
