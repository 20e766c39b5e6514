"""Closed loops keep so many conversations in flight, and a link carries one cache at a time."""

from __future__ import annotations

import numpy as np
import pytest
from factories import make_plan, make_workload
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import workloads

from optsched.domain.scenario import EngineSpec
from optsched.domain.workload import Arrivals, Workload
from optsched.simulator.simulate import simulate
from optsched.traces.arrivals import arrival_times


@pytest.mark.parametrize("policy", ["collocated", "conserve"])
@settings(max_examples=25)
@given(workload=workloads(), concurrency=st.integers(1, 8))
def test_a_closed_loop_keeps_its_concurrency_until_nobody_is_left(policy: str, workload: Workload, concurrency: int) -> None:
    count = workload.num_conversations
    closed = workload.with_arrivals(np.zeros(count), concurrency)
    roles = ["mixed"] if policy == "collocated" else ["prefill", "decode"]
    log = simulate(make_plan(roles, policy=policy), closed)
    first, last = closed.first_turn[:-1], closed.first_turn[1:] - 1
    start, end = log.arrival_s[first], np.sort(log.end_s[last])
    assert (start[:concurrency] == 0).all()
    np.testing.assert_array_equal(start[concurrency:], end[: max(0, count - concurrency)])


def test_a_closed_loop_of_one_is_one_after_the_other() -> None:
    workload = make_workload([[(40, 5)], [(20, 3), (4, 2)], [(10, 1)]], [0.0] * 3, gap_s=1.0)
    log = simulate(make_plan(["mixed"], policy="collocated"), workload.with_arrivals(np.zeros(3), 1))
    np.testing.assert_array_equal(log.arrival_s[[1, 3]], log.end_s[[0, 2]])
    np.testing.assert_array_equal(log.start_s[[0, 1, 3]], log.arrival_s[[0, 1, 3]])


def test_a_closed_loop_is_told_by_its_concurrency() -> None:
    assert Arrivals(process="closed", concurrency=4).concurrency == 4
    with pytest.raises(ValueError, match="process 'closed' and concurrency go together"):
        Arrivals(process="closed")
    with pytest.raises(ValueError, match="process 'closed' and concurrency go together"):
        Arrivals(process="poisson", rate_per_s=1, concurrency=4)
    with pytest.raises(ValueError, match="process 'closed' has no rate_per_s"):
        Arrivals(process="closed", concurrency=4, rate_per_s=2)
    assert not arrival_times(Arrivals(process="closed", concurrency=4), 9).any()


def test_caches_that_go_to_one_decoder_wait_for_each_other() -> None:
    """Two prefillers end at the same moment; their caches of 160 tokens take as long together as one of 320."""
    engine = EngineSpec(max_batched_tokens=256, max_sequences=8)
    plan = make_plan(["prefill", "prefill", "decode"], engine=engine)
    log = simulate(plan, make_workload([[(160, 5)], [(160, 5)]], [0.0, 0.0]))
    start, end = log.transfers.start_s, log.transfers.end_s
    assert log.first_token_s[0] == log.first_token_s[1]
    assert start[0] == log.first_token_s[0]
    assert start[1] == end[0]
    np.testing.assert_allclose(end - start, 1e-3 + log.transfers.bytes / 1e9, rtol=1e-9)


@settings(max_examples=25)
@given(workload=workloads())
def test_no_link_carries_two_caches_at_once(workload: Workload) -> None:
    log = simulate(make_plan(["prefill", "prefill", "decode", "decode"], kv_blocks=120), workload)
    for ends in (log.transfers.source, log.transfers.target):
        for replica in np.unique(ends):
            mine = ends == replica
            order = np.argsort(log.transfers.start_s[mine])
            assert (log.transfers.start_s[mine][order][1:] >= log.transfers.end_s[mine][order][:-1]).all()
