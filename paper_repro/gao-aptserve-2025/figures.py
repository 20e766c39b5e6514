"""Plot Figures 1, 2, 8, 9 and 10 and Tables 4, 5 and 6 from the tables of a results folder; nothing is computed here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..drawing import draw_all, new_figure
from ..tables import Row, Tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LLM = "opt-13b"
SHOWN = {
    "vllm": ("vLLM", "#888888"), "sarathi": ("Sarathi", "#4477aa"), "fastgen": ("FastGen", "#228833"),
    "apt-serve": ("Apt-Serve (text)", "#cc3311"), "apt-serve-code": ("Apt-Serve (code)", "#ee9944"),
    "apt-serve-decay": ("Apt-Serve, decay", "#aa3377"), "density": ("density, KV only", "#000000"),
}  # fmt: skip


def draw(folder: Path) -> None:
    """Draw every figure that the tables of a folder allow, as PNG and SVG beside them.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    draw_all(folder, DRAWERS)


def _rows(tables: Tables, **wanted: str | float) -> list[Row]:
    return [row for row in tables.get("attainment", []) if all(row[key] == value for key, value in wanted.items())]


def _line(axes: Axes, rows: Sequence[Row], x: str, y: str, label: str, colour: str, style: str = "-") -> None:
    ordered = sorted(rows, key=lambda row: row[x])
    if ordered:
        axes.plot([row[x] for row in ordered], [row[y] for row in ordered], style, marker="o", ms=3, color=colour, label=label)


def _share_axis(axes: Axes, x: str, title: str = "") -> None:
    axes.set(xlabel=x, ylabel="share", ylim=(-0.02, 1.02), title=title)
    axes.grid(alpha=0.3)


def figure_1(tables: Tables) -> Figure | None:
    """Draw vLLM's attainment of TTFT and of TBT against the rate, ShareGPT."""
    rows = _rows(tables, section="curves", llm=LLM, workload="sharegpt", variant="vllm")
    if not rows:
        return None
    figure, (axes,) = new_figure(1, 1, 3.6, 2.4)
    for column, label, style in (("paper", "both", "-"), ("ttft", "TTFT", "--"), ("tbt", "P99 TBT", ":")):
        _line(axes, rows, "rate_per_s", column, label, SHOWN["vllm"][1], style)
    _share_axis(axes, "requests per second", "Figure 1: which target vLLM misses")
    axes.legend()
    return figure


def figure_2(tables: Tables) -> Figure | None:
    """Draw vLLM's attainment and its share of time at the memory limit against the rate, ShareGPT."""
    rows = _rows(tables, section="points", workload="sharegpt", variant="vllm")
    if not rows:
        return None
    figure, (axes,) = new_figure(1, 1, 3.6, 2.4)
    _line(axes, rows, "rate_per_s", "paper", "attainment", SHOWN["vllm"][1])
    _line(axes, rows, "rate_per_s", "limited", "time at the memory limit", SHOWN["sarathi"][1])
    axes.plot([2.6, 3.0], [0.9, 0.7], "x", color=SHOWN["vllm"][1], label="attainment, published")
    axes.plot([2.6, 3.0], [0.6, 0.8], "x", color=SHOWN["sarathi"][1], label="at the limit, published")
    _share_axis(axes, "requests per second", "Figure 2a: vLLM at its memory limit")
    axes.legend()
    return figure


def figure_8(tables: Tables) -> Figure | None:
    """Draw attainment against the rate for every llm and workload."""
    curves = _rows(tables, section="curves")
    llms, workloads = ([str(x) for x in dict.fromkeys(row[key] for row in curves)] for key in ("llm", "workload"))
    if not curves:
        return None
    figure, all_axes = new_figure(len(llms), len(workloads), 2.6 * len(workloads), 2.0 * len(llms))
    for axes, (llm, workload) in zip(all_axes, ((a, b) for a in llms for b in workloads), strict=True):
        for variant, (label, colour) in SHOWN.items():
            _line(
                axes, [r for r in curves if (r["llm"], r["workload"], r["variant"]) == (llm, workload, variant)],
                "rate_per_s", "paper", label, colour,
            )  # fmt: skip
        for target in (0.6, 0.9):
            axes.axhline(target, color="#bbbbbb", lw=0.6)
        _share_axis(axes, "requests per second", f"{llm}, {workload}")
    all_axes[0].legend(fontsize=6)
    figure.suptitle("Figure 8: attainment (1 s / 1 s) against the rate")
    return figure


def figure_9(tables: Tables) -> Figure | None:
    """Draw attainment against the coefficient of variation of the arrivals."""
    bursts = _rows(tables, section="bursts")
    cases = list(dict.fromkeys((str(row["workload"]), float(row["rate_per_s"])) for row in bursts))
    if not cases:
        return None
    figure, all_axes = new_figure(1, len(cases), 2.4 * len(cases), 2.4)
    for axes, (workload, rate) in zip(all_axes, cases, strict=True):
        for variant, (label, colour) in SHOWN.items():
            rows = [r for r in bursts if (r["workload"], r["rate_per_s"], r["variant"]) == (workload, rate, variant)]
            _line(axes, rows, "cv", "paper", label, colour)
        _share_axis(axes, "CV of the gaps", f"{workload}, {rate:g}/s")
    all_axes[0].legend(fontsize=6)
    figure.suptitle("Figure 9: bursts, OPT-13B")
    return figure


def figure_10(tables: Tables) -> Figure | None:
    """Draw how many requests have waited longer than what for their first token, and in their longest gap."""
    tail = tables.get("tail", [])
    if not tail:
        return None
    figure, all_axes = new_figure(1, 2, 6.4, 2.6)
    for axes, column, title in zip(all_axes, ("ttft_s", "longest_gap_s"), ("TTFT", "longest gap"), strict=True):
        for variant, (label, colour) in SHOWN.items():
            rows = [row for row in tail if row["variant"] == variant and float(row["quantile"]) < 1]
            axes.plot(
                [max(float(r[column]), 1e-3) for r in rows], [1 - float(r["quantile"]) for r in rows], "-", marker="o", ms=3,
                color=colour, label=label if rows else None,
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="seconds", ylabel="share of requests beyond", title=title)
        axes.grid(alpha=0.3)
    all_axes[0].legend(fontsize=6)
    figure.suptitle(f"Figure 10: who starves at {float(tail[0]['rate_per_s']):g} requests per second")
    return figure


def _table(title: str, header: Sequence[str], body: Sequence[Sequence[str]]) -> Figure | None:
    if not body:
        return None
    figure, (axes,) = new_figure(1, 1, 6.4, 0.5 + 0.22 * (len(body) + 1))
    axes.axis("off")
    axes.set_title(title)
    axes.table(cellText=[list(row) for row in body], colLabels=list(header), loc="center", cellLoc="right").scale(1, 1.1)
    return figure


def table_4(tables: Tables) -> Figure | None:
    """Draw attainment with and without hybrid cache, under the same scheduling."""
    bursts = _rows(tables, section="bursts", variant="density")
    body = []
    for row in bursts:
        same = {key: row[key] for key in ("section", "workload", "rate_per_s", "cv")}
        with_hybrid = [_rows(tables, variant=variant, **same) for variant in ("apt-serve", "apt-serve-code")]
        cells = [f"{float(found[0]['paper']):.1%}" if found else "-" for found in with_hybrid]
        hidden = [f"{float(found[0]['hidden_share']):.1%}" if found else "-" for found in with_hybrid]
        where = (str(row["workload"]), f"{float(row['rate_per_s']):g}", f"{float(row['cv']):g}")
        body.append((*where, f"{float(row['paper']):.1%}", *cells, *hidden))
    header = ("workload", "req/s", "CV", "KV only", "hybrid (text)", "hybrid (code)", "hidden (text)", "hidden (code)")
    return _table("Table 4: hybrid cache, OPT-13B (hidden: share of cached tokens read so)", header, body)


def table_5(tables: Tables) -> Figure | None:
    """Draw attainment under first come, first served and under adaptive scheduling."""
    body = []
    for row in _rows(tables, section="points", variant="vllm"):
        same = {key: row[key] for key in ("section", "workload", "rate_per_s", "cv")}
        others = ("fcfs-demote", "density-no-demotion", "density", "apt-serve", "apt-serve-code")
        cells = [f"{float(_rows(tables, variant=variant, **same)[0]['paper']):.1%}" for variant in others]
        body.append((str(row["workload"]), f"{float(row['rate_per_s']):g}", f"{float(row['paper']):.1%}", *cells))
    header = ("workload", "req/s", "FCFS", "FCFS, demotion", "density order", "both", "Apt-Serve (text)", "(code)")
    return _table("Table 5: scheduling, OPT-13B", header, body)


def table_6(tables: Tables) -> Figure | None:
    """Draw the time of a decision against the number of candidates."""
    rows = tables.get("scheduler", [])
    body = [(f"{float(row['candidates']):g}", f"{float(row['median_ms']):.3g}", f"{float(row['least_ms']):.3g}") for row in rows]
    return _table("Table 6: time of one decision", ("candidates", "median, ms", "least, ms"), body)


DRAWERS: dict[str, Callable[[Tables], Figure | None]] = {
    "figure-1": figure_1, "figure-2": figure_2, "figure-8": figure_8, "figure-9": figure_9, "figure-10": figure_10,
    "table-4": table_4, "table-5": table_5, "table-6": table_6,
}  # fmt: skip
