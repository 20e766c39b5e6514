"""The link between workers, learned from hand-overs."""

from __future__ import annotations

import numpy as np
import pytest
from factories import make_plan, make_workload
from hypothesis import given
from hypothesis import strategies as st

from optsched import catalog
from optsched.cost.link_fit import fit_link, fit_logged_link
from optsched.domain.hardware import Link
from optsched.errors import ProblemError
from optsched.simulator.simulate import simulate

SIZES = np.array([1e5, 1e5, 1e6, 4e6, 2e7])


@given(latency_s=st.floats(1e-6, 1e-1), bytes_per_s=st.floats(1e6, 1e11))
def test_exact_hand_overs_give_latency_and_rate_back(latency_s: float, bytes_per_s: float) -> None:
    fit = fit_link(SIZES, latency_s + SIZES / bytes_per_s)
    moved = fit.latency_s + SIZES / fit.bytes_per_s
    assert moved == pytest.approx(latency_s + SIZES / bytes_per_s, rel=1e-6)
    assert fit.num_handovers == 5


@given(seconds=st.lists(st.floats(1e-4, 10.0), min_size=5, max_size=5))
def test_whatever_the_hand_overs_took_the_level_is_their_geometric_mean(seconds: list[float]) -> None:
    took = np.array(seconds)
    fit = fit_link(SIZES, took)
    assert fit.latency_s >= 0
    if fit.latency_s < took.mean():  # otherwise the sizes say nothing, and the rate is that of the quickest
        assert np.log(took / (fit.latency_s + SIZES / fit.bytes_per_s)).mean() == pytest.approx(0.0, abs=1e-9)


def test_one_hand_over_that_waited_long_does_not_decide() -> None:
    took = np.tile(1e-3 + SIZES / 2e9, 4)
    sizes = np.tile(SIZES, 4)
    took[7] *= 20
    fit = fit_link(sizes, took)
    assert fit.latency_s + sizes / fit.bytes_per_s == pytest.approx(1e-3 + sizes / 2e9, rel=0.35)


def test_hand_overs_of_one_size_say_how_long_they_take() -> None:
    fit = fit_link(np.full(2, 100.0), np.full(2, 1e-3))
    link = Link(name="x", title="x", bytes_per_s=fit.bytes_per_s, latency_s=fit.latency_s, source="x")
    assert link.latency_s + 100.0 / link.bytes_per_s <= 2e-3


@given(
    slowdown=st.lists(st.floats(0.0, 3.0), min_size=1, max_size=3).map(lambda rises: (1.0, *(1.0 + np.cumsum(rises)))),
    bytes_per_s=st.floats(1e6, 1e11),
)
def test_neighbours_slow_hand_overs_down_as_they_did(slowdown: tuple[float, ...], bytes_per_s: float) -> None:
    busy = np.repeat(np.arange(len(slowdown)), len(SIZES))
    sizes, factor = np.tile(SIZES, len(slowdown)), np.asarray(slowdown)[busy]
    fit = fit_link(sizes, (1e-3 + sizes / bytes_per_s) * factor, busy)
    assert fit.busy_slowdown == pytest.approx(slowdown, rel=1e-6)
    moved = fit.latency_s + sizes / fit.bytes_per_s
    assert moved * factor == pytest.approx((1e-3 + sizes / bytes_per_s) * factor, rel=1e-6)


def test_of_neighbours_that_are_rarely_seen_nothing_is_learned() -> None:
    busy = np.array([2] * 5 + [3] * 4 + [0] * 4)
    sizes = np.resize(SIZES, len(busy))
    took = (1e-3 + sizes / 1e9) * np.where(busy == 0, 0.5, np.where(busy == 3, 9.0, 1.0))
    assert fit_link(sizes, took, busy).busy_slowdown == (1.0, 1.0, 1.0)
    assert fit_link(sizes[:4], took[:4], busy[5:9]).busy_slowdown == (1.0,)


def test_no_hand_over_is_refused() -> None:
    with pytest.raises(ProblemError, match="every hand-over must take some time, and there must be one"):
        fit_link(np.zeros(0), np.zeros(0))


def test_a_log_of_this_machine_gives_its_link_back_and_one_of_other_gpus_none() -> None:
    """The simulator's hand-overs follow the plan's links exactly; only that makes its log fit for this test."""
    plan = make_plan(["prefill", "decode", "decode"], policy="conserve")
    workload = make_workload([[(10 + 40 * size, 3)] for size in range(6)], [0.0] * 6)
    log = simulate(plan, workload)
    local = plan.replace(replicas=tuple(replica.replace(gpu="local-cpu") for replica in plan.replicas))
    fit = fit_logged_link(log, local, catalog.gpu("local-cpu"))
    assert fit is not None
    took = log.transfers.end_s - log.transfers.start_s
    assert fit.latency_s + log.transfers.bytes / fit.bytes_per_s == pytest.approx(took, rel=1e-6)
    assert fit_logged_link(log, plan, catalog.gpu(plan.replicas[0].gpu)) is None
    assert fit_logged_link(simulate(plan, workload.head(2, 1)), local, catalog.gpu("local-cpu")) is None
