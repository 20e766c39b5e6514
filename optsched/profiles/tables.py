"""What a file of measurements holds, told by its columns."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from optsched.errors import SpecError


def column_names(path: Path) -> frozenset[str]:
    """Return the column names of a CSV or Parquet file, or the keys of a JSON file's innermost objects; none for other kinds.

    Raises
    ------
    SpecError
        If the file is called one of the three and cannot be read as such.
    """
    if path.suffix == ".parquet":
        return _parquet_columns(path)
    if path.suffix == ".json":
        return _json_keys(path)
    if path.suffix != ".csv":
        return frozenset()
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            return frozenset(name.strip() for name in next(csv.reader(lines), []))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SpecError(f"not a readable CSV file: {error}", file=path) from error


def _parquet_columns(path: Path) -> frozenset[str]:
    import polars as pl

    try:
        return frozenset(pl.read_parquet_schema(path))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise SpecError("not a readable Parquet file; is it truncated?", file=path) from error


def _json_keys(path: Path) -> frozenset[str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"not a readable JSON file: {error}", file=path) from error
    while isinstance(found, dict):
        below = next((each for each in found.values() if isinstance(each, dict)), None)
        if below is None:
            return frozenset(found)
        found = below
    return frozenset()
