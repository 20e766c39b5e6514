"""Three readings of who met their targets."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsched.domain.attainment import attained
from optsched.domain.gaps import Gaps
from optsched.domain.log import ExecutionLog, Steps, Transfers
from optsched.domain.workload import Workload
from optsched.errors import ProblemError


def executed(*turns: list[float], arrival_s: float = 0.0) -> tuple[ExecutionLog, Workload]:
    """Return single-turn requests that arrived together and whose tokens came at the given times."""
    count = len(turns)
    outputs = np.array([len(times) for times in turns])
    workload = Workload(
        np.arange(count), np.full(count, arrival_s), np.arange(count + 1), np.ones(count, np.int64), outputs, np.zeros(count)
    )
    first, last = (np.array([times[at] for times in turns]) for at in (0, -1))
    nowhere = np.zeros(count, np.int64)
    log = ExecutionLog(
        origin="simulated", arrival_s=workload.arrival_s, start_s=first, first_token_s=first, end_s=last,
        prefill_replica=nowhere, decode_replica=nowhere, queue_s=np.zeros(count), admission_s=np.zeros(count),
        token_s=np.concatenate(turns), steps=Steps(*(nowhere[:0] for _ in fields(Steps))),
        transfers=Transfers(*(nowhere[:0] for _ in fields(Transfers))), dynamic_j=None,
    )  # fmt: skip
    return log, workload


def test_an_interpolated_percentile_forgives_one_stall_in_a_long_answer() -> None:
    steady = np.arange(1, 202) * 0.01
    stalled = np.concatenate([steady[:100], steady[100:] + 30.0])
    found = attained(*executed(list(stalled)), ttft_s=1.0, tbt_s=1.0)
    assert (found.paper.tolist(), found.strict.tolist(), found.sustained.tolist()) == ([True], [False], [False])


def test_targets_are_missed_where_they_are_just_reached() -> None:
    found = attained(*executed([1.0, 1.1], [0.5, 1.5, 2.5], [0.5, 0.75, 1.0]), ttft_s=1.0, tbt_s=1.0)
    assert found.paper.tolist() == found.strict.tolist() == [False, False, True]


def test_a_single_gap_is_none_to_the_paper_but_counts_strictly() -> None:
    found = attained(*executed([0.5, 5.0]), ttft_s=1.0, tbt_s=1.0)
    assert (found.paper[0], found.strict[0]) == (True, False)
    assert found.shares == {"paper": 1.0, "strict": 0.0, "sustained": 1.0}


def test_a_request_that_never_ended_attains_nothing() -> None:
    found = attained(*executed([0.5, 0.6, float("nan")]), ttft_s=1.0, tbt_s=1.0)
    assert set(found.shares.values()) == {0.0}


@given(st.lists(st.lists(st.floats(0.0, 9.0), min_size=1, max_size=30).map(sorted), min_size=1, max_size=6))
def test_gaps_are_those_of_numpy(turns: list[list[float]]) -> None:
    gaps = Gaps.of(*executed(*turns))
    for turn, times in enumerate(turns):
        own = np.diff(times)
        assert gaps.max_s[turn] == pytest.approx(own.max(initial=0.0), abs=1e-12)
        assert gaps.p99_s[turn] == pytest.approx(np.percentile(own, 99) if len(own) > 1 else 0.0, abs=1e-12)


def test_targets_have_to_be_positive() -> None:
    with pytest.raises(ProblemError, match="targets must be positive seconds"):
        attained(*executed([0.5]), ttft_s=0.0, tbt_s=1.0)
