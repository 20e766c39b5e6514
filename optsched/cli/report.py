"""``optsched report``."""

from __future__ import annotations

from pathlib import Path

from optsched.cli.output import emit_json, print_line, progress


def report(source: Path, /, *, out: Path | None = None, sensitivity: bool = True, json: bool = False) -> None:
    """Make one self-contained page of a plan, a log or a capacity answer.

    The page needs no network and no script. Of a plan it shows fleet, promise, certificate, sensitivity and timeline; of a log
    what was predicted against what was observed, by figure and by kind of operation, with what has drifted.

    Parameters
    ----------
    source
        A plan (.json; FILE#NAME: one of a set), a log of run or simulate (.parquet), or what capacity --json printed (.json).
    out
        Where the page goes; otherwise beside the source, with .html for its suffix.
    sensitivity
        Simulate a plan under other arrival rates and output lengths too: some thirty simulations.
    json
        Print one JSON object: where the page is and what it says.
    """
    from optsched.cli.capacity_beyond import robustness_json
    from optsched.files import write_atomically
    from optsched.report.findings import find_out
    from optsched.report.loading import load_source

    page_path = source.with_suffix(".html" if "#" not in source.name else f".{source.name.partition('#')[2]}.html")
    page_path = page_path if out is None else out
    with progress("reporting") as advance:
        found = find_out(load_source(source), source.name, advance, sensitivity=sensitivity)
    write_atomically(page_path, found.page.encode())
    if json:
        borne = {} if found.robustness is None else {"robustness": robustness_json(found.robustness)}
        emit_json({"report": str(page_path), **found.facts, **borne})
        return
    print_line(found.summary)
    print_line(f"Page written to {page_path}")
