"""Charts are well-formed, stay on their paper, and put values where they belong."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsched.domain.results import Quantiles
from optsched.report.charts.frame import HEIGHT, WIDTH, Axis, extent
from optsched.report.charts.gap import gap_chart
from optsched.report.charts.lines import Band, Mark, Series, line_chart
from optsched.report.charts.spread import Spread, spread_chart
from optsched.report.charts.ticks import linear_ticks, log_ticks
from optsched.report.numbers import seconds

SVG = "{http://www.w3.org/2000/svg}"
VALUES = st.floats(-1e6, 1e6)
POSITIVE = st.floats(1e-6, 1e6)


@given(VALUES, st.floats(1e-6, 1e6), st.integers(2, 9))
def test_ticks_are_round_evenly_spaced_and_inside(low, span, most) -> None:
    found = linear_ticks(low, low + span, most)
    assert 1 <= len(found) <= most + 2
    assert all(low - 1e-6 * span - 1e-9 <= tick <= low + span + 1e-6 * span + 1e-9 for tick in found)
    steps = [b - a for a, b in pairwise(found)]
    assert all(step == pytest.approx(steps[0], rel=1e-3, abs=1e-9) for step in steps)


@given(POSITIVE, st.floats(1.5, 1e6))
def test_ticks_of_a_logarithmic_axis_are_inside_and_few(low, ratio) -> None:
    found = log_ticks(low, low * ratio)
    assert len(found) <= 6
    assert all(low * 0.999 <= tick <= low * ratio * 1.001 for tick in found)


@given(st.lists(VALUES, min_size=1, max_size=20), st.booleans())
def test_an_extent_holds_all_values_and_is_never_empty(values, zero) -> None:
    low, high = extent(values, zero=zero)
    assert low <= min(values)
    assert high > max(values) or high > low
    assert high > low


@given(POSITIVE, POSITIVE)
def test_an_axis_keeps_order_and_ends(a, b) -> None:
    low, high = min(a, b), max(a, b) * 2
    for logarithmic in (False, True):
        axis = Axis(low, high, 10, 110, logarithmic)
        assert axis.at(low) == pytest.approx(10)
        assert axis.at(high) == pytest.approx(110)
        assert axis.at(a) <= axis.at(max(a, b)) + 1e-9
        assert axis.at(high * 5) == pytest.approx(110)  # beyond the end lies at the end


@given(
    st.lists(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=12), min_size=1, max_size=3),
    st.one_of(st.none(), VALUES),
    st.booleans(),
)
def test_every_point_of_a_line_chart_is_drawn_on_the_paper(lines, limit, zero) -> None:
    marks = [] if limit is None else [Mark("limit", limit), Mark("break", limit, "along")]
    series = [Series(f"s{index}", points) for index, points in enumerate(lines)]
    drawn = line_chart(series, title="<up> & so", along='"along"', marks=marks, band=Band(0.9, 1.1), zero=zero)
    root = ElementTree.fromstring(drawn)
    told = [circle for circle in root.iter(f"{SVG}circle") if circle.find(f"{SVG}title") is not None]
    assert len(told) == sum(len(points) for points in lines)
    for circle in told:
        assert 0 <= float(circle.get("cx", -1)) <= WIDTH
        assert 0 <= float(circle.get("cy", -1)) <= HEIGHT


def test_percentiles_lie_in_order_and_a_missed_target_is_red() -> None:
    quantiles = Quantiles(mean=0.3, p50=0.1, p95=0.8, p99=2.0)
    nothing = Quantiles(mean=None, p50=None, p95=None, p99=None)
    drawn = spread_chart([Spread("TTFT", quantiles, 0.5, False), Spread("TBT", nothing)], title="t", write=seconds)
    root = ElementTree.fromstring(drawn)
    x = {title.text: float(circle.get("cx", 0)) for circle in root.iter(f"{SVG}circle") for title in circle.iter(f"{SVG}title")}
    assert x["TTFT p50 100 ms"] < x["TTFT p95 800 ms"] < x["TTFT p99 2 s"]
    assert "var(--bad)" in drawn
    assert "TBT" not in drawn
    assert "nothing was measured" in spread_chart([Spread("TBT", nothing)], title="t", write=seconds)


@given(st.one_of(st.just(0.0), st.floats(1e-9, 1e9)), st.floats(0, 1))
def test_the_gap_is_drawn_to_scale(value, part) -> None:
    root = ElementTree.fromstring(gap_chart(value, value * part, title="t", write=str))
    solid, hatched = [float(rect.get("width", 0)) for rect in root.iter(f"{SVG}rect") if rect.get("y")]
    if value > 0:
        assert solid / max(solid + hatched, 1e-9) == pytest.approx(part, abs=0.01)
