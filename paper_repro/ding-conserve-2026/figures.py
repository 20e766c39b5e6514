"""Plot the curves of section 5 from the tables of a results folder; nothing is computed here but means over seeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..drawing import draw_all, new_figure
from ..tables import Row, Tables
from .settings import Table, expected

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = {
    "collocated": ("Collocated", "#4477aa"), "full-disaggregation": ("Full disaggregation", "#cc3311"),
    "ampd": ("AMPD, 10 % wrong", "#aa4499"), "conserve": ("ConServe", "#117733"),
    "ampd-visits": ("AMPD, real visits", "#ee9944"), "per-turn": ("per-turn, honest", "#888888"),
    "conserve-observable": ("ConServe, observable", "#88cc99"),
}  # fmt: skip
RATE = "conversations/s offered (2.0: 1.634 served)"


def draw(folder: Path) -> None:
    """Draw every figure that the tables of a folder allow, as PNG and SVG beside them.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    draw_all(folder, DRAWERS)


def _curve(axes: Axes, rows: list[Row], x: str, y: str, policy: str, style: str = "-") -> None:
    """Draw the mean over the seeds, and their range."""
    if not rows:
        return
    label, colour = SHOWN[policy]
    at = sorted({float(row[x]) for row in rows})
    values = [[float(row[y]) for row in rows if row[x] == each] for each in at]
    axes.plot(at, [np.mean(each) for each in values], style, marker="o", ms=3, color=colour, label=label)
    axes.fill_between(at, [min(each) for each in values], [max(each) for each in values], color=colour, alpha=0.15, lw=0)


def _published(axes: Axes, identifiers: tuple[str, ...]) -> None:
    tables: list[Table] = [table for table in expected().tables if table.id in identifiers]
    for table in tables:
        for policy, values in table.rows.items():
            colour = SHOWN.get(policy.partition(" ")[0], SHOWN["ampd"])[1]
            axes.plot([float(at) for at in table.at], values, "x", color=colour, ms=5)


def _rows(tables: Tables, table: str, **wanted: str | float) -> list[Row]:
    return [row for row in tables.get(table, []) if all(row[key] == value for key, value in wanted.items())]


def latency(tables: Tables) -> Figure | None:
    """Draw p95 TTFET, last-turn TBT and E2E against the rate at 300/300 W; crosses are published."""
    if not tables.get("cells"):
        return None
    figure, axes = new_figure(1, 3, 10, 3)
    panels = (("ttfet", ("T1", "T1-full")), ("tbt", ("T3",)), ("e2e", ("T4",)))
    for own, (metric, identifiers) in zip(axes, panels, strict=True):
        for policy in ("collocated", "full-disaggregation", "ampd", "conserve"):
            _curve(own, _rows(tables, "cells", caps="300/300", policy=policy), "rate_per_s", f"{metric}_p95", policy)
        _published(own, identifiers)
        own.axhline(5, color="#bb5566", ls="--", lw=0.8)
        own.set(xlabel=RATE, ylabel="p95 / standalone", title=metric.upper(), yscale="log")
    axes[0].legend(frameon=False)
    return figure


def energy(tables: Tables) -> Figure | None:
    """Draw context tokens per joule against the rate; crosses are published, ConServe's at the sixth rate were fitted to."""
    if not tables.get("cells"):
        return None
    figure, axes = new_figure(1, 1, 4.5, 3)
    for policy in ("collocated", "ampd", "conserve"):
        _curve(axes[0], _rows(tables, "cells", caps="300/300", policy=policy), "rate_per_s", "tpj_uncorrected", policy)
    capped = _rows(tables, "cells", caps="300/200", policy="conserve")
    _curve(axes[0], capped, "rate_per_s", "tpj_uncorrected", "conserve", "--")
    _published(axes[0], ("T6",))
    axes[0].set(xlabel=RATE, ylabel="context tokens per joule", title="dashed: decoders at 200 W")
    axes[0].legend(frameon=False)
    return figure


def wrong_decisions(tables: Tables) -> Figure | None:
    """Draw p95 TTFET at the sixth rate against the share of wrong decisions: pauses, and real visits."""
    if not tables.get("sweep"):
        return None
    figure, axes = new_figure(1, 1, 4.5, 3)
    _curve(axes[0], _rows(tables, "sweep", reading="artifact"), "wrong_share", "ttfet_p95", "ampd")
    _curve(axes[0], _rows(tables, "sweep", reading="paper"), "wrong_share", "ttfet_p95", "ampd-visits")
    _published(axes[0], ("T9",))
    axes[0].set(xlabel="share of later turns sent away wrongly", ylabel="p95 TTFET / standalone", yscale="log")
    axes[0].legend(frameon=False)
    return figure


def clocks(tables: Tables) -> Figure | None:
    """Draw p95 TTFET of whole runs against the rate: the paper's clock, and from arrival."""
    if not tables.get("whole"):
        return None
    figure, axes = new_figure(1, 2, 8, 3)
    for own, clock in zip(axes, ("paper", "true"), strict=True):
        for policy in ("collocated", "conserve", "conserve-observable", "ampd-visits", "per-turn"):
            rows = _rows(tables, "whole", caps="300/300", policy=policy, reading=clock)
            _curve(own, rows, "rate_per_s", "ttfet_p95", policy)
        own.set(xlabel=RATE, ylabel="p95 TTFET / standalone", title=f"{clock} clock, whole runs", yscale="log")
    axes[0].legend(frameon=False)
    return figure


DRAWERS: dict[str, Callable[[Tables], Figure | None]] = {
    "latency": latency, "energy": energy, "wrong-decisions": wrong_decisions, "clocks": clocks,
}  # fmt: skip
