"""Operations are told apart, and each is measured against the law for its own content."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from factories import LAW, make_plan, make_workload
from report_examples import slowed

from optsched.domain.log import Event
from optsched.report.accuracy import DRIFT, OperationClass, operation_classes
from optsched.report.drift import drift_in_words
from optsched.simulator.simulate import simulate

WORK = make_workload([[(100, 50), (20, 70)], [(60, 40)], [(200, 30)]], [0.0, 0.05, 0.1], gap_s=0.5)


@pytest.mark.parametrize("roles", [["mixed"], ["prefill", "decode"], ["prefill", "mixed", "decode"]])
def test_a_simulation_takes_exactly_as_long_as_predicted(roles) -> None:
    plan = make_plan(roles, policy="collocated" if roles == ["mixed"] else "conserve")
    log = simulate(plan, WORK)
    found = operation_classes(log, plan)
    assert sum(len(each.start_s) for each in found) == log.iterations + len(log.transfers.start_s)
    for each in found:
        np.testing.assert_allclose(each.observed_s, each.predicted_s, rtol=1e-9, atol=1e-12)
        assert not each.drifted
    assert drift_in_words(found) == "Every kind of operation took as long as predicted, to 10 %."


def test_replicas_that_share_a_host_are_predicted_with_their_slow_down() -> None:
    law = LAW.replace(busy_slowdown=(1.0, 1.5, 2.5))
    plan = make_plan(["mixed", "mixed", "mixed"], policy="collocated", law=law, host="here")
    log = simulate(plan, WORK)
    assert log.steps.busy_replicas.max() > 1
    for each in operation_classes(log, plan):
        np.testing.assert_allclose(each.observed_s, each.predicted_s, rtol=1e-9)


def test_hand_overs_between_neighbours_are_predicted_with_their_slow_down() -> None:
    plan = make_plan(["prefill", "decode", "decode"], host="here")
    slow = tuple(link.replace(latency_s=0.01, busy_slowdown=(1.0, 2.0, 3.0)) for link in plan.links)
    log = simulate(plan.replace(links=slow), WORK)
    took = log.transfers.end_s - log.transfers.start_s
    alone = simulate(plan.replace(links=tuple(link.replace(busy_slowdown=(1.0,)) for link in slow)), WORK).transfers
    alone_s = (alone.end_s - alone.start_s)[np.argsort(alone.conversation)]
    assert set(np.round(took[np.argsort(log.transfers.conversation)] / alone_s, 9)) <= {1.0, 2.0, 3.0}
    assert took.max() > 2 * alone_s.max() - 1e-9
    (moves,) = [each for each in operation_classes(log, plan.replace(links=slow)) if each.name == "transfers"]
    np.testing.assert_allclose(moves.observed_s, moves.predicted_s, rtol=1e-9)


def test_steps_are_prefill_decode_or_mixed() -> None:
    plan = make_plan(["mixed"], policy="collocated")
    log = simulate(plan, WORK)
    found = {each.name: len(each.start_s) for each in operation_classes(log, plan)}
    steps = log.steps
    assert found["mixed steps"] == ((steps.prefill_tokens > 0) & (steps.decode_sequences > 0)).sum() > 0
    assert found["decode steps"] == ((steps.prefill_tokens == 0) & (steps.decode_sequences > 0)).sum() > 0
    assert "transfers" not in found


@pytest.mark.parametrize(("factor", "drifts"), [(1.05, False), (0.96, False), (1.3, True), (0.7, True)])
def test_drift_is_flagged_beyond_the_limit_and_only_there(factor, drifts) -> None:
    plan = make_plan(["prefill", "decode"])
    found = operation_classes(slowed(simulate(plan, WORK), factor), plan)
    steps = [each for each in found if each.name == "decode steps"]
    assert [each.drifted for each in steps] == [drifts]
    assert steps[0].error == pytest.approx(1 / factor - 1)
    if drifts:
        assert f"decode steps took {factor:.2f} times" in drift_in_words(found)
        assert "the limit is 10 % either way" in drift_in_words(found)


def test_few_operations_drift_never() -> None:
    few = OperationClass("transfers", np.arange(4.0), np.full(4, 2.0), np.ones(4))
    assert few.error == pytest.approx(-0.5)
    assert not few.drifted
    assert drift_in_words([]) == "The log holds no operations to judge."


def test_the_ratio_over_time_shows_when_it_went_wrong() -> None:
    start = np.arange(200.0)
    observed = np.where(start < 100, 1.0, 1.5)
    found = OperationClass("decode steps", start, observed, np.ones(200)).over_time(most=10)
    assert len(found) == 10
    assert [ratio for _, ratio in found] == pytest.approx([1.0] * 5 + [1.5] * 5)
    assert abs(OperationClass("decode steps", start, observed, np.ones(200)).error) > DRIFT


def test_transfers_that_never_ended_or_have_no_link_are_left_out() -> None:
    plan = make_plan(["prefill", "decode"])
    log = simulate(plan, WORK)
    count = len(log.transfers.start_s)
    end_s = log.transfers.end_s.copy()
    end_s[0] = np.nan
    cut = replace(log, transfers=replace(log.transfers, end_s=end_s), events=(Event(0.1, "worker_died", -1, 1),))
    found = {each.name: len(each.start_s) for each in operation_classes(cut, plan)}
    assert found["transfers"] == count - 1
    assert "transfers" not in {each.name for each in operation_classes(log, plan.replace(links=()))}
