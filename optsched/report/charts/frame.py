"""Where a chart's values lie on the paper, its axes, and the SVG around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import log

from optsched.report.markup import Html, text

WIDTH, HEIGHT = 380, 244
FONT = 11.5


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale from values to places on the paper.

    Attributes
    ----------
    low, high
        Values at its ends.
    start, end
        Places of its ends; an axis that points up has `end` < `start`.
    logarithmic
        Equal distances are equal factors.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Return a value's place; values beyond the ends lie at them."""
        inside = min(max(value, self.low), self.high)
        if self.logarithmic:
            part = log(inside / self.low) / log(self.high / self.low)
        else:
            part = (inside - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)


def extent(values: Iterable[float], *, zero: bool = False, margin: float = 0.06) -> tuple[float, float]:
    """Return an interval around values with some room, never empty; from zero on if asked."""
    found = list(values)
    low, high = min(found), max(found)
    if zero:
        low = min(0.0, low)
    room = margin * (high - low) or 0.05 * abs(high) or 1.0
    return (low if zero and low == 0 else low - room), high + room


def svg(parts: Iterable[str], label: str, *, width: int = WIDTH, height: int = HEIGHT) -> Html:
    """Return an SVG element as wide as its place, named for those who do not see it."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{text(label)}" '
        f'font-size="{FONT}" fill="var(--soft)">'
    )
    return Html("\n".join([head, *parts, "</svg>"]))


def line(x1: float, y1: float, x2: float, y2: float, colour: str, *, dashes: str = "", width: float = 1) -> str:
    """Return a straight line."""
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width:g}"{dashed}/>'


def label(x: float, y: float, words: str, *, anchor: str = "start", colour: str = "", bold: bool = False) -> str:
    """Return a piece of text."""
    fill = f' fill="{colour}"' if colour else ""
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{fill}{weight}>{text(words)}</text>'


def dot(x: float, y: float, colour: str, told: str, *, radius: float = 4, hollow: bool = False) -> str:
    """Return a point that tells its values when hovered over."""
    paint = f'fill="var(--card)" stroke="{colour}" stroke-width="2"' if hollow else f'fill="{colour}"'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" {paint}><title>{text(told)}</title></circle>'


def vertical_axis(axis: Axis, ticks: Sequence[float], write: Callable[[float], str], left: float, right: float) -> list[str]:
    """Return grid lines from left to right, and their values at the left."""
    parts = []
    for tick in ticks:
        y = axis.at(tick)
        parts += [line(left, y, right, y, "var(--grid)"), label(left - 6, y + 4, write(tick), anchor="end")]
    return parts


def horizontal_axis(axis: Axis, ticks: Sequence[float], write: Callable[[float], str], top: float, bottom: float) -> list[str]:
    """Return grid lines from top to bottom, and their values below as far as they do not touch."""
    parts, taken = [], float("-inf")
    for tick in ticks:
        x, words = axis.at(tick), write(tick)
        parts.append(line(x, top, x, bottom, "var(--grid)"))
        width = 0.58 * FONT * len(words)
        left = min(x - width / 2, WIDTH - width)
        if left > taken + 6:
            parts.append(label(left + width / 2, bottom + 16, words, anchor="middle"))
            taken = left + width
    return parts
