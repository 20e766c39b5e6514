"""How a plan bears other traffic than it was made for, as pictures and a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from optsched.report.charts.lines import Mark, Series, line_chart
from optsched.report.markup import Cell, Html, Section, badge, details, figure, figures, join, table
from optsched.report.numbers import plain, seconds, share

if TYPE_CHECKING:
    from optsched.planner.robustness import Disturbed, Robustness


def sensitivity_section(found: Robustness, name: str = "") -> Section:
    """Return a section on a plan's robustness.

    Parameters
    ----------
    found
        What simulation says of the plan under other traffic.
    name
        Of the plan, where there are several.
    """
    title = f"Sensitivity: {name}" if name else "Sensitivity"
    anchor = "sensitivity" + "".join(letter if letter.isalnum() else "-" for letter in f"-{name}" if name)
    return Section(anchor, title, break_in_words(found), _body(found))


def break_in_words(found: Robustness) -> str:
    """Return up to where the targets are kept, in one sentence."""
    rate, outputs = (_limit(value) for value in (found.rate_breaks, found.outputs_break))
    return f"Every target is kept {rate} the planned arrival rate, and {outputs} the planned output lengths."


def _limit(value: float) -> str:
    if value == 0:
        return "at no tried multiple of"
    return f"up to {value:.3g} times" if math.isfinite(value) else "at every tried multiple of"


def _body(found: Robustness) -> Html:
    pictures = [
        figure(_attainment(found.rate, found.rate_breaks, "arrival rate"), "Conversations that meet every target, by rate."),
        figure(_attainment(found.outputs, found.outputs_break, "output lengths"), "The same, by length of the answers."),
    ]
    if any(each.usd_per_million_tokens for each in (*found.rate, *found.outputs)):
        pictures.append(figure(_price(found), "Idle replicas cost as much as busy ones."))
    rows = [_row(what, each) for what, tried in (("rate", found.rate), ("outputs", found.outputs)) for each in tried]
    columns = ("traffic", "meet every target", "", "TTFT p95", "TPOT p95", "USD per million output tokens")
    return join([figures(pictures), details("All that was simulated", table(columns, rows))])


def _attainment(tried: Sequence[Disturbed], breaks: float, what: str) -> Html:
    drawn = [Series("attainment", [(each.factor, each.attainment) for each in tried])]
    for name, met, colour in (("every target kept", True, "var(--good)"), ("one missed", False, "var(--bad)")):
        points = [(each.factor, each.attainment) for each in tried if each.met == met]
        if points:
            told = [f"{what} x {x:g}: {share(y)}, {name}" for x, y in points]
            drawn.append(Series(name, points, colour, joined=False, told=told))
    inside = min(each.factor for each in tried) <= breaks <= max(each.factor for each in tried)
    marks = [Mark(f"holds up to {breaks:.3g}", breaks, "along", "var(--soft)")] if inside else []
    low = min(each.attainment for each in tried)
    return line_chart(
        drawn, title=f"Attainment and {what}", along=f"times the planned {what}", write_up=_percent, marks=marks,
        zero=low < 0.5, most_up=1.0,
    )  # fmt: skip


def _percent(value: float) -> str:
    return f"{100 * value:g} %"


def _price(found: Robustness) -> Html:
    def points(tried: Sequence[Disturbed]) -> list[tuple[float, float]]:
        return [(each.factor, each.usd_per_million_tokens) for each in tried if each.usd_per_million_tokens is not None]

    series = [Series("rate", points(found.rate)), Series("outputs", points(found.outputs), "var(--second)")]
    return line_chart(series, title="USD per million output tokens", along="times the planned", zero=True)


def _row(what: str, each: Disturbed) -> Sequence[Cell]:
    price = "-" if each.usd_per_million_tokens is None else plain(each.usd_per_million_tokens)
    verdict = badge("kept", "good") if each.met else badge(f"misses {each.worst[0]}", "bad")
    return f"{what} x {each.factor:g}", share(each.attainment), verdict, seconds(each.ttft_p95_s), seconds(each.tpot_p95_s), price
