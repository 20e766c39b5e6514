"""How far a value is from what is proven, as a bar."""

from __future__ import annotations

from collections.abc import Callable

from optsched.report.charts.frame import WIDTH, Axis, label, line, svg
from optsched.report.markup import Html

_HEIGHT, _TOP, _BAR = 92, 30, 26


def gap_chart(value: float, bound: float, *, title: str, write: Callable[[float], str]) -> Html:
    """Return a bar: solid up to what is proven unavoidable, hatched from there to the value."""
    axis = Axis(0.0, max(value, bound) or 1.0, 0, WIDTH - 6)
    proven, reached = axis.at(bound), axis.at(value)
    parts = [
        '<defs><pattern id="open" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect width="7" height="7" fill="var(--grid)"/><rect width="3" height="7" fill="var(--faint)"/></pattern></defs>',
        label(0, 12, title, colour="var(--text)", bold=True),
        f'<rect x="0" y="{_TOP}" width="{proven:.1f}" height="{_BAR}" fill="var(--accent)" rx="3"/>',
        f'<rect x="{proven:.1f}" y="{_TOP}" width="{max(reached - proven, 0):.1f}" height="{_BAR}" fill="url(#open)"/>',
        line(reached, _TOP - 4, reached, _TOP + _BAR + 4, "var(--text)", width=2.5),
        label(max(proven, 90), _TOP + _BAR + 18, f"proven >= {write(bound)}", anchor="end", colour="var(--accent)"),
        label(reached, _TOP + _BAR + 18 if reached - proven > 110 else _TOP + _BAR + 34, f"plan {write(value)}", anchor="end"),
    ]
    return svg(parts, title, height=_HEIGHT)
