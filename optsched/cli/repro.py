"""``optsched repro``."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from optsched.cli.output import emit_json, print_line, print_table, progress, warn
from optsched.errors import SpecError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PAPERS = {"aptserve": "gao-aptserve-2025", "conserve": "ding-conserve-2026"}
_PACKAGE = "optsched_paper_repro"


def repro(paper: str, /, *, smoke: bool = False, trace: Path | None = None, out: Path | None = None, json: bool = False) -> None:
    """Run a paper's experiments again and say which of its claims come out.

    Parameters
    ----------
    paper
        aptserve: Apt-Serve, arXiv 2504.07494; twenty minutes of one core. conserve: ConServe, arXiv 2606.01839; eight minutes;
        reads --trace, or conserve/trace_profile_summary.csv in the folder that OPTSCHED_DATA names, else takes a recipe.
    smoke
        The same code on a fraction of the work, in less than a minute; its figures mean nothing.
    trace
        The authors' trace (conserve: trace_profile_summary.csv of the artifact).
    out
        Write every table as CSV, a stamp, and the figures to this folder.
    json
        Print one JSON object.
    """
    parts = paper_modules(paper)
    if trace is not None and paper != "conserve":
        raise SpecError(f"{paper} reads no trace; leave it out, or reproduce conserve", field="--trace")
    chosen = {} if trace is None else {"trace": trace}
    settings, expected = parts["settings"].settings(smoke, **chosen), parts["settings"].expected()
    for note in parts["settings"].notes(settings) if hasattr(parts["settings"], "notes") else ():
        warn(note)
    started, cpu = time.perf_counter(), time.process_time()
    save = parts["tables"].save

    def keep(tables: Mapping[str, Sequence[Mapping[str, str | float]]]) -> None:
        if out is not None:
            save(tables, out)

    with progress("reproducing") as advance:
        tables = parts["experiment"].compute(settings, advance, keep)
    rows = parts["claims"].judge(expected, tables)
    if out is not None:
        keep({"claims": rows})
        settings_module = parts["settings"]
        parts["stamp"].stamp(
            out, settings_module.HERE, settings_module.facts(settings), wall_s=time.perf_counter() - started,
            cpu_s=time.process_time() - cpu, smoke=smoke,
        )  # fmt: skip
        _draw(parts["figures"], out)
    if json:
        emit_json({"paper": paper, "smoke": smoke, "claims": rows})
        return
    _print(parts["claims"], rows, smoke)


def paper_modules(paper: str) -> dict[str, ModuleType]:
    """Import a paper's modules, and those that all papers share, from ``paper_repro``; return them by name.

    The folder lies beside ``models`` and ``instances`` and is no importable package: folders are named after papers.

    Raises
    ------
    UnknownNameError
        If there is no such paper.
    SpecError
        If its folder is not there.
    """
    from optsched import catalog

    if paper not in PAPERS:
        raise UnknownNameError("paper", paper, PAPERS)
    root = catalog.data_root() / "paper_repro"
    folder = root / PAPERS[paper]
    if not (folder / "experiment.py").is_file():
        raise SpecError("not there; run this in a checkout, or install a wheel that has paper_repro", file=folder)
    found: dict[str, ModuleType] = {}
    for name, path in ((_PACKAGE, root), (f"{_PACKAGE}.{paper}", folder)):
        if name not in sys.modules:
            package = ModuleType(name)
            package.__path__ = [str(path)]
            sys.modules[name] = package
        found |= {file.stem: importlib.import_module(f"{name}.{file.stem}") for file in sorted(path.glob("*.py"))}
    return found


def _draw(figures: ModuleType, folder: Path) -> None:
    from optsched.errors import MissingExtraError

    try:
        figures.draw(folder)
    except MissingExtraError as error:
        warn(str(error))


def _print(claims: ModuleType, rows: Sequence[dict[str, str | float]], smoke: bool) -> None:
    def write(value: str | float) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    verdicts = [name for name in claims.COLUMNS if name.startswith("verdict")]
    print_table(claims.TITLE, claims.TITLES, [tuple(write(row[name]) for name in claims.COLUMNS) for row in rows], left=2)
    good = sum(any(row[name] == "reproduced" for name in verdicts) for row in rows)
    print_line(f"{good} of {len(rows)} figures lie within their limits{claims.WITHIN}.")
    if smoke:
        print_line("This was a smoke run: its figures mean nothing.")
