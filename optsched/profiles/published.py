"""Read a published table whole, and see that it has the columns that are needed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from optsched.errors import SpecError

if TYPE_CHECKING:
    import polars as pl


def read_published(path: Path, columns: Iterable[str]) -> pl.DataFrame:
    """Return a CSV or Parquet file.

    Parameters
    ----------
    path
        Read as Parquet if it is called so, else as CSV; numbers are whole ones only if they all are.
    columns
        That it must have, besides any others.

    Raises
    ------
    SpecError
        If it cannot be read, or lacks a column.
    """
    import polars as pl

    try:
        table = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path, infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise SpecError(f"{error}; give the file as published", file=path) from error
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise SpecError(f"columns {', '.join(missing)} are missing; give {path.name} as published", file=path)
    return table
