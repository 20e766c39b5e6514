"""A target stands exactly where the planner says so, and numbers are written for people."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_examples import planned

from optsched.domain.scenario import Slo
from optsched.report.numbers import change, factor, plain, quantity, seconds, share
from optsched.report.verdicts import in_one_sentence, verdicts


def test_a_target_stands_if_no_more_conversations_miss_it_than_may() -> None:
    plan, _, _ = planned()
    (ttft, ttfet) = verdicts(plan.slo, plan.predicted)
    assert (ttft.key, ttft.target, ttft.allowed) == ("ttft", "p95 at most 500 ms", pytest.approx(0.05))
    assert (ttfet.name, ttfet.target) == ("TTFET", "p95 at most 8 x standalone")
    assert ttft.reached is None  # a conversation misses it by its worst turn, quantiles are over all turns
    assert ttfet.reached == plan.predicted.normalised.ttfet.p95
    for each in (ttft, ttfet):
        assert each.missed == plan.predicted.slo_violations[each.key]
        assert each.kept == (each.missed <= 0.05)


def test_the_sentence_names_what_is_missed_and_by_how_many() -> None:
    plan, _, _ = planned(seconds=1e-3)
    found = verdicts(plan.slo, plan.predicted)
    assert in_one_sentence(found).startswith("Targets are missed: TTFT by 100 % of conversations, 5 % may")
    assert in_one_sentence([]) == "No latency targets are set."
    kept = [each for each in found if each.kept]
    assert in_one_sentence(kept) == "The target of TTFET is kept."
    assert in_one_sentence(kept * 2) == "Every latency target is kept."
    assert verdicts(Slo(), plan.predicted) == []


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (seconds(0.0287), "28.7 ms"), (seconds(4.1494), "4.149 s"), (seconds(None), "-"), (factor(7.663), "7.66 x"),
        (share(0.231), "23.1 %"), (share(0.05), "5 %"), (share(0.0), "0 %"), (share(0.0001), "< 0.1 %"),
        (share(0.9999), "> 99.9 %"), (share(1.0), "100 %"), (share(math.nan), "-"), (change(-0.5), "-50.0 %"),
        (quantity(299960, "J"), "300 kJ"), (quantity(1.6, "USD/h"), "1.6 USD/h"), (quantity(1200, "W"), "1.2 kW"),
        (quantity(None, "J"), "-"), (plain(637.26), "637.3"), (plain(1168.2), "1,168"), (plain(0.00123456), "0.001235"),
    ],
)  # fmt: skip
def test_numbers_have_few_digits_and_a_fitting_unit(written, text) -> None:
    assert written == text


@given(st.floats(0, 1))
def test_a_share_is_nothing_or_all_only_if_it_is(value) -> None:
    assert (share(value) == "0 %") == (value == 0)
    assert (share(value) == "100 %") == (value == 1)
