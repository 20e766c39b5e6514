"""A chart of one or more series over a common axis, with limits to stay within."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optsched.report.charts.frame import HEIGHT, WIDTH, Axis, dot, extent, horizontal_axis, label, line, svg, vertical_axis
from optsched.report.charts.ticks import linear_ticks
from optsched.report.markup import Html
from optsched.report.numbers import plain

_TOP, _RIGHT, _BOTTOM, _LEFT = 44, 14, 40, 52


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one colour, in order.

    Attributes
    ----------
    name
        Written above the chart.
    points
        Values along and up.
    colour
        A CSS colour.
    joined
        Whether a line runs through them.
    told
        What hovering over each says; empty: its values.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: str = "var(--accent)"
    joined: bool = True
    told: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Mark:
    """A value that matters: a limit (`up`), or a place where something changes (`along`), and its name."""

    name: str
    value: float
    direction: str = "up"
    colour: str = "var(--bad)"


@dataclass(frozen=True, slots=True)
class Band:
    """Values up between which all is well."""

    low: float
    high: float


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    along: str,
    write_up: Callable[[float], str] = plain,
    write_along: Callable[[float], str] = plain,
    marks: Sequence[Mark] = (),
    band: Band | None = None,
    zero: bool = False,
    most_up: float | None = None,
) -> Html:
    """Return a chart.

    Parameters
    ----------
    series
        At least one with a point.
    title, along
        What goes up, and what goes along.
    write_up, write_along
        How their values are written.
    marks, band
        Limits, and where all is well.
    zero
        Whether the values up begin at 0.
    most_up
        End of the axis up, where it is given by what is drawn (1 for shares).
    """
    x_axis, y_axis = _axes(series, marks, band, zero, most_up)
    parts = [label(0, 12, title, colour="var(--text)", bold=True), *_legend(series)]
    if band:
        top, bottom, width = y_axis.at(band.high), y_axis.at(band.low), WIDTH - _RIGHT - _LEFT
        parts.append(f'<rect x="{_LEFT}" y="{top:.1f}" width="{width}" height="{bottom - top:.1f}" fill="var(--good-soft)"/>')
    parts += vertical_axis(y_axis, linear_ticks(y_axis.low, y_axis.high), write_up, _LEFT, WIDTH - _RIGHT)
    parts += horizontal_axis(x_axis, linear_ticks(x_axis.low, x_axis.high, 6), write_along, HEIGHT - _BOTTOM, HEIGHT - _BOTTOM)
    parts.append(label((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 5, along, anchor="middle"))
    for mark in marks:
        parts += _mark(mark, x_axis, y_axis)
    for each in series:
        parts += _series(each, x_axis, y_axis, write_along, write_up)
    return svg(parts, f"{title}, over {along}")


def _axes(
    series: Sequence[Series], marks: Sequence[Mark], band: Band | None, zero: bool, most_up: float | None
) -> tuple[Axis, Axis]:
    """Return axes along and up that hold all points and limits."""
    xs = [x for each in series for x, _ in each.points] + [mark.value for mark in marks if mark.direction == "along"]
    ys = [y for each in series for _, y in each.points] + [mark.value for mark in marks if mark.direction == "up"]
    ys += [band.low, band.high] if band else []
    low, high = extent(ys, zero=zero)
    upwards = Axis(low, high if most_up is None else most_up, HEIGHT - _BOTTOM, _TOP)
    return Axis(*extent(xs, margin=0.03), _LEFT, WIDTH - _RIGHT), upwards


def _legend(series: Sequence[Series]) -> list[str]:
    if len(series) < 2:
        return []
    parts, left = [], 0.0
    for each in series:
        parts += [f'<circle cx="{left + 5:.0f}" cy="23" r="4" fill="{each.colour}"/>', label(left + 13, 27, each.name)]
        left += 26 + 6.1 * len(each.name)
    return parts


def _mark(mark: Mark, x_axis: Axis, y_axis: Axis) -> list[str]:
    if mark.direction == "along":
        x = x_axis.at(mark.value)
        anchor = "end" if x > (x_axis.start + x_axis.end) / 2 else "start"
        beside = x - 4 if anchor == "end" else x + 4
        return [
            line(x, y_axis.end, x, y_axis.start, mark.colour, dashes="4 3"),
            label(beside, y_axis.start - 6, mark.name, anchor=anchor, colour=mark.colour),
        ]
    y = y_axis.at(mark.value)
    above = y - 5 if y > y_axis.end + 16 else y + 14
    return [
        line(x_axis.start, y, x_axis.end, y, mark.colour, dashes="4 3"),
        label(x_axis.end, above, mark.name, anchor="end", colour=mark.colour),
    ]


def _series(
    series: Series, x_axis: Axis, y_axis: Axis, write_along: Callable[[float], str], write_up: Callable[[float], str]
) -> list[str]:
    places = [(x_axis.at(x), y_axis.at(y)) for x, y in series.points]
    parts = []
    if series.joined and len(places) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{series.colour}" stroke-width="2" stroke-linejoin="round"/>')
    told = series.told or [f"{series.name}: {write_up(y)} at {write_along(x)}" for x, y in series.points]
    radius = 4 if len(places) <= 30 else 2
    parts += [dot(x, y, series.colour, words, radius=radius) for (x, y), words in zip(places, told, strict=True)]
    return parts
