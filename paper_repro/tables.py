"""An experiment as sections of tasks that fill tables, and those tables as CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from optsched.files import write_atomically

Row = dict[str, str | float]
Tables = dict[str, list[Row]]
Task = Callable[[Tables], None]
Settings = TypeVar("Settings")

LISTS = ("per_seed",)
"""Columns of several figures in one entry, which stay text even where there is only one."""


def run_sections(
    sections: Sequence[Callable[[Settings], Iterator[Task]]],
    settings: Settings,
    advance: Callable[[float, float], None],
    keep: Callable[[Tables], None] = lambda tables: None,
) -> Tables:
    """Run the tasks of every section in order, and return the tables that they filled.

    Parameters
    ----------
    sections
        Each yields tasks; a task may read what earlier ones wrote.
    settings
        Handed to every section.
    advance
        Called with the tasks done and their number.
    keep
        Called with the tables so far after every section.
    """
    planned = [list(section(settings)) for section in sections]
    tables: Tables = {}
    done, total = 0, sum(map(len, planned))
    for tasks in planned:
        for task in tasks:
            task(tables)
            done += 1
            advance(done, total)
        keep(tables)
    return tables


def save(tables: Tables, folder: Path) -> None:
    """Write each table to ``NAME.csv``; figures are rounded to five digits, the columns are those of all rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        if not rows:
            continue
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{x:.5g}" if isinstance(x, float) else x for key, x in row.items()} for row in rows)
        write_atomically(folder / f"{name}.csv", text.getvalue().encode())


def load(folder: Path) -> Tables:
    """Read the tables of a folder; what reads as a figure becomes a float."""

    def value(text: str) -> str | float:
        try:
            return float(text)
        except ValueError:
            return text

    tables: Tables = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            rows: list[Row] = [
                {key: text if key in LISTS else value(text) for key, text in row.items()} for row in csv.DictReader(file)
            ]
        tables[path.stem] = rows
    return tables
