"""Latencies and figures by hand, on both clocks."""

from __future__ import annotations

import numpy as np
import pytest
from factories import make_workload

from optsched.domain.log import ExecutionLog, Steps, Transfers
from optsched.domain.results import Latencies, Quantiles, StandaloneLatency, measure
from optsched.domain.scenario import LatencyTarget, Slo

# One conversation of two turns: arrival 1 s; first tokens at 3 and 8 s; ends at 5 and 10 s.
WORKLOAD = make_workload([[(10, 3), (5, 2)]], [1.0], gap_s=1.0)


def _log() -> ExecutionLog:
    def empty(record):
        fields = record.__dataclass_fields__
        return record(**{name: np.zeros(0, float if "Float" in str(fields[name].type) else np.int64) for name in fields})

    return ExecutionLog(
        origin="observed",
        arrival_s=np.array([1.0, 6.0]), start_s=np.array([2.0, 6.5]), first_token_s=np.array([3.0, 8.0]), end_s=np.array([5.0, 10.0]),
        prefill_replica=np.array([0, 1]), decode_replica=np.array([1, 1]), queue_s=np.array([1.0, 0.0]),
        admission_s=np.array([0.5, 0.0]), token_s=np.array([3.0, 4.5, 5.0, 8.0, 10.0]),
        steps=empty(Steps), transfers=empty(Transfers), dynamic_j=None,
    )  # fmt: skip


ALONE = StandaloneLatency(
    ttft_s=np.array([1.0, 1.0]), tpot_s=np.array([0.5, 1.0]), ttfet_s=np.array([4.0]), e2e_s=np.array([5.0]),
    last_turn_tbt_s=np.array([1.0]),
)  # fmt: skip


def test_the_true_clock_counts_from_arrival():
    found = Latencies.of(_log(), WORKLOAD, ALONE, "true")
    assert found.ttft_s.tolist() == [2.0, 2.0]
    assert found.ttfet_s.tolist() == [7.0]
    assert found.e2e_s.tolist() == [9.0]
    assert found.tpot_s.tolist() == [1.0, 2.0]
    assert found.tbt_s.tolist() == [1.5, 0.5, 2.0]
    assert found.last_turn_tbt_s.tolist() == [2.0]
    assert found.last_turn_gap_normalised.tolist() == [2.0]


def test_the_paper_clock_leaves_out_queueing_and_admission():
    found = Latencies.of(_log(), WORKLOAD, ALONE, "paper")
    assert found.ttft_s.tolist() == [1.0, 2.0]
    assert found.ttfet_s.tolist() == [5.5]
    assert found.e2e_s.tolist() == [7.5]
    assert found.tbt_s.tolist() == [1.0, 0.5, 2.0]
    assert found.tpot_s.tolist() == [0.75, 2.0]


@pytest.mark.parametrize(
    ("target", "missed"),
    [
        ({"ttfet": LatencyTarget(seconds=6.9)}, True),
        ({"ttfet": LatencyTarget(seconds=7.0)}, False),
        ({"ttfet": LatencyTarget(standalone_factor=1.7)}, True),
        ({"e2e": LatencyTarget(standalone_factor=1.8)}, False),
        ({"tbt": LatencyTarget(standalone_factor=1.9)}, True),
        ({"ttft": LatencyTarget(seconds=1.5)}, True),
        ({"tpot": LatencyTarget(seconds=2.0)}, False),
        ({}, False),
    ],
)
def test_a_target_is_missed_exactly_beyond_its_limit(target, missed):
    metrics = measure(_log(), WORKLOAD, ALONE, Slo(**target), energy_j=100.0, cost_usd_per_hour=None)
    assert metrics.slo_attainment == (0.0 if missed else 1.0)
    assert metrics.slo_violations == dict.fromkeys(target, float(missed))


def test_tokens_per_joule_count_appended_tokens_and_the_context_variant_counts_every_turn_whole():
    metrics = measure(_log(), WORKLOAD, ALONE, Slo(), energy_j=10.0, cost_usd_per_hour=2.0)
    assert metrics.tokens.prompt == 15
    assert metrics.tokens.output == 5
    assert metrics.tokens_per_joule == pytest.approx(20 / 10)
    assert metrics.context_tokens_per_joule == pytest.approx((13 + 20) / 10)
    assert metrics.makespan_s == 10.0


def test_energy_that_nobody_metered_stays_unknown():
    metrics = measure(_log(), WORKLOAD, ALONE, Slo(), energy_j=None, cost_usd_per_hour=None)
    assert metrics.energy_j is None
    assert metrics.tokens_per_joule is None


def test_quantiles_leave_out_what_never_happened():
    assert Quantiles.of(np.array([1.0, np.nan, 3.0])).mean == 2.0
    assert Quantiles.of(np.array([np.nan])).p95 is None
