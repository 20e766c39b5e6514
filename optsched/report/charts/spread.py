"""Where the percentiles of several figures lie, on one logarithmic scale, and the targets beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optsched.domain.results import Quantiles
from optsched.report.charts.frame import WIDTH, Axis, dot, horizontal_axis, label, line, svg
from optsched.report.charts.ticks import log_ticks
from optsched.report.markup import Html

_ROW, _TOP, _BOTTOM, _LEFT, _RIGHT = 34, 40, 26, 96, 16


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure's percentiles, and the target that one of them has to stay within, if there is one."""

    name: str
    quantiles: Quantiles
    target: float | None = None
    kept: bool = True


def spread_chart(rows: Sequence[Spread], *, title: str, write: Callable[[float], str]) -> Html:
    """Return a chart with a row per figure: p50 to p99 as a line, p95 as a full point, the target as a bar.

    Rows of which nothing was measured are left out; of none at all there is an empty chart.
    """
    drawn = [(row, values) for row in rows if (values := _values(row.quantiles)) is not None]
    height = _TOP + _ROW * max(1, len(drawn)) + _BOTTOM
    parts = [label(0, 12, title, colour="var(--text)", bold=True), *_legend()]
    if not drawn:
        return svg([*parts, label(0, _TOP + 20, "nothing was measured")], title, height=height)
    every = [value for _, values in drawn for value in values] + [row.target for row, _ in drawn if row.target]
    axis = Axis(min(every) / 1.25, max(every) * 1.25, _LEFT, WIDTH - _RIGHT, logarithmic=True)
    parts += horizontal_axis(axis, log_ticks(axis.low, axis.high), write, _TOP, height - _BOTTOM)
    for index, (row, (p50, p95, p99)) in enumerate(drawn):
        y = _TOP + _ROW * (index + 0.5)
        colour = "var(--accent)" if row.kept else "var(--bad)"
        parts.append(label(_LEFT - 12, y + 4, row.name, anchor="end", colour="var(--text)"))
        parts.append(line(axis.at(p50), y, axis.at(p99), y, colour, width=3))
        parts.append(dot(axis.at(p50), y, colour, f"{row.name} p50 {write(p50)}", hollow=True))
        parts.append(dot(axis.at(p99), y, colour, f"{row.name} p99 {write(p99)}", hollow=True))
        parts.append(dot(axis.at(p95), y, colour, f"{row.name} p95 {write(p95)}", radius=5))
        if row.target:
            x = axis.at(row.target)
            parts.append(line(x, y - 12, x, y + 12, "var(--text)", width=2.5))
    return svg(parts, title, height=height)


def _values(quantiles: Quantiles) -> tuple[float, float, float] | None:
    p50, p95, p99 = quantiles.p50, quantiles.p95, quantiles.p99
    if p50 is None or p95 is None or p99 is None or p50 <= 0:
        return None
    return p50, p95, p99


def _legend() -> list[str]:
    y = 24
    return [
        dot(5, y, "var(--soft)", "p50", hollow=True), label(13, y + 4, "p50"),
        dot(51, y, "var(--soft)", "p95", radius=5), label(60, y + 4, "p95"),
        dot(99, y, "var(--soft)", "p99", hollow=True), label(107, y + 4, "p99"),
        line(147, y - 7, 147, y + 7, "var(--text)", width=2.5), label(154, y + 4, "target"),
    ]  # fmt: skip
