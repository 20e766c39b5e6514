"""What commands print: one JSON object or tables on stdout; progress and warnings on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from optsched.domain.results import Metrics, Quantiles
from optsched.report.numbers import seconds


def emit_json(value: Mapping[str, object]) -> None:
    """Print one JSON object on stdout and nothing else."""
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], left: int = 1) -> None:
    """Print a table on stdout; the first `left` columns are left-aligned, the others right-aligned."""
    table = Table(title=Text(title), title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))  # Text: brackets in a user's file are no markup
    Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 140).print(table)


def print_line(text: str) -> None:
    """Print one line on stdout."""
    sys.stdout.write(text + "\n")


def warn(text: str) -> None:
    """Print one line on stderr."""
    sys.stderr.write(text + "\n")


class Advance(Protocol):
    """Tell a progress bar how much is done."""

    def __call__(self, done: float, total: float | None = None) -> None:
        """Set the amount done, and the total if it became known."""
        ...


@contextmanager
def progress(title: str, total: float | None = None) -> Iterator[Advance]:
    """Show a progress bar on stderr while the block runs, if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total=None: None
        return
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)

        def advance(done: float, total: float | None = None) -> None:
            bar.update(task, completed=done) if total is None else bar.update(task, completed=done, total=total)

        yield advance


def metrics_rows(metrics: Metrics) -> list[tuple[str, str, str, str, str]]:
    """Return the latency rows of a metrics table: name, mean, p50, p95, p99."""

    def row(name: str, quantiles: Quantiles, unit: bool = True) -> tuple[str, str, str, str, str]:
        def write(value: float | None) -> str:
            return seconds(value) if unit else ("-" if value is None else f"{value:.3g} x")

        return name, write(quantiles.mean), write(quantiles.p50), write(quantiles.p95), write(quantiles.p99)

    return [
        row("TTFT", metrics.ttft_s),
        row("TTFET", metrics.ttfet_s),
        row("TBT", metrics.tbt_s),
        row("TPOT", metrics.tpot_s),
        row("end to end", metrics.e2e_s),
        row("TTFET / standalone", metrics.normalised.ttfet, unit=False),
        row("last-turn TBT / standalone", metrics.normalised.last_turn_tbt, unit=False),
        row("end to end / standalone", metrics.normalised.e2e, unit=False),
    ]


SUMMARY_COLUMNS = ("", "TTFT p95", "TTFET p95", "TPOT p95", "E2E p95", "attainment")


def summary_row(name: str, metrics: Metrics) -> tuple[str, str, str, str, str, str]:
    """Return one plan's figures in one row."""
    p95 = [seconds(quantiles.p95) for quantiles in (metrics.ttft_s, metrics.ttfet_s, metrics.tpot_s, metrics.e2e_s)]
    return name, p95[0], p95[1], p95[2], p95[3], f"{metrics.slo_attainment:.1%}"
