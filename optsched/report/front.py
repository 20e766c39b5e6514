"""Fleets of which none is better in money, energy and latency at once, as pictures and a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optsched.report.capacity_answer import FrontRow
from optsched.report.charts.lines import Series, line_chart
from optsched.report.markup import Cell, Html, Section, badge, figure, figures, join, table
from optsched.report.numbers import plain, quantity, seconds, share

_LEAD = (
    "No fleet here is worse than another in price, mean power and latency at once; hover over a point for its fleet. Latency is "
    "the 95th percentile end to end without queues, as the fleets were compared; what simulation says stands in the table."
)


def front_section(found: Sequence[FrontRow]) -> Section:
    """Return a section on the front."""
    pictures = [
        figure(
            _scatter(found, "Mean power", lambda each: each.power_w, lambda value: quantity(value, "W")), "Money against energy."
        ),
        figure(_scatter(found, "End to end, p95", lambda each: each.p95_latency_s, seconds), "Money against latency, unqueued."),
    ]
    columns = ("fleet", "price", "mean power", "p95 unqueued", "p95 simulated", "meet every target", "")
    return Section("front", "Front", _LEAD, join([figures(pictures), table(columns, [_row(each) for each in found])]))


def _scatter(found: Sequence[FrontRow], title: str, up: Callable[[FrontRow], float], write: Callable[[float], str]) -> Html:
    series = []
    for name, chosen, colour in (("others", False, "var(--accent)"), ("the answer", True, "var(--second)")):
        rows = [each for each in found if each.chosen == chosen]
        if rows:
            points = [(each.usd_per_hour, up(each)) for each in rows]
            told = [f"{each.words}: {each.usd_per_hour:g} USD/h, {write(up(each))}" for each in rows]
            series.append(Series(name, points, colour, joined=False, told=told))
    return line_chart(series, title=title, along="USD/h", write_up=write)


def _row(each: FrontRow) -> Sequence[Cell]:
    return (
        each.words, f"{plain(each.usd_per_hour)} USD/h", quantity(each.power_w, "W"), seconds(each.p95_latency_s),
        seconds(each.simulated_s), share(each.attainment), badge("the answer", "plain") if each.chosen else "",
    )  # fmt: skip
