"""Read aiconfigurator's tables of matrix products (Parquet; PyPI aiconfigurator-core, systems/data/SYSTEM/gemm).

``gemm_perf.parquet`` of a serving engine: ms of one product of m rows, k inner and n outer, over a grid of widths that no llm
has all of. 8-bit floats include the conversion of the 16-bit inputs.

References
----------
https://github.com/ai-dynamo/aiconfigurator (Apache-2.0); https://pypi.org/project/aiconfigurator-core
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from optsched.domain.dtypes import Dtype
from optsched.errors import SpecError
from optsched.profiles.gemms import GemmRows
from optsched.profiles.published import read_published

if TYPE_CHECKING:
    pass

# The table's name of the format whose kernels multiply as a data type of this project does.
FORMATS: dict[Dtype, str] = {"bf16": "bfloat16", "fp8": "fp8", "int8": "sq", "int4": "int4_wo"}
_REASONS = {
    "fp8_block": "fp8 scaled by blocks",
    "nvfp4": "4-bit floats, which no llm file has",
    "int8_wo": "8-bit weights multiplied in 16 bits",
}
_COLUMNS = ("gemm_dtype", "m", "n", "k", "latency")


def formats_of(path: Path) -> frozenset[Dtype]:
    """Return the data types that a table has products of.

    Raises
    ------
    SpecError
        If the file is not such a table.
    """
    names = set(read_published(path, _COLUMNS)["gemm_dtype"].unique().to_list())
    return frozenset(dtype for dtype, name in FORMATS.items() if name in names)


def read_gemms(path: Path, dtype: Dtype, *, odd: bool = False) -> GemmRows:
    """Return the products of weights of one data type, the fastest of equal shapes, without odd ones unless asked for.

    Parameters
    ----------
    path
        A ``gemm_perf.parquet``, in its folder ``SYSTEM/gemm/ENGINE/VERSION``.
    dtype
        One of `FORMATS`; int8 is SmoothQuant, which multiplies 8-bit inputs, and int4 expands to 16 bits.
    odd
        Whether to keep rows that are out of order with their neighbours (`GemmRows.in_order`).

    Raises
    ------
    SpecError
        If the file is not such a table, or has no products of that type.
    """
    import polars as pl

    if dtype not in FORMATS:
        raise SpecError(f"{dtype} is no format of these tables; choose among {', '.join(FORMATS)}", file=path)
    table = read_published(path, _COLUMNS)
    chosen = table.filter(pl.col("gemm_dtype") == FORMATS[dtype])
    seconds = pl.col("latency").cast(pl.Float64) / 1e3
    timed = chosen.with_columns(seconds=seconds).filter(pl.col("seconds") > 0)
    best = timed.group_by("m", "k", "n").agg(pl.col("seconds").min()).sort("k", "n", "m")
    if best.height == 0:
        found = ", ".join(sorted(table["gemm_dtype"].unique().to_list()))
        raise SpecError(f"has no {FORMATS[dtype]} products with a time; it has {found}", file=path)
    engine, version = path.parts[-3:-1] if len(path.parts) >= 3 else ("engine", "unknown")
    others = {reason: int((table["gemm_dtype"] == name).sum()) for name, reason in _REASONS.items() if dtype == "bf16"}
    reasons = {**others, "no time": chosen.height - timed.height, "a slower kernel of the same shape": timed.height - best.height}
    rows = GemmRows(
        rows=best["m"].to_numpy().astype(np.int64),
        inner=best["k"].to_numpy().astype(np.int64),
        outer=best["n"].to_numpy().astype(np.int64),
        seconds=best["seconds"].to_numpy(),
        llm=np.full(best.height, ""),
        dtype=dtype,
        source=f"aiconfigurator-core 0.12.0, {'/'.join(path.parts[-5:])} ({engine} {version})",
        left_out={reason: count for reason, count in reasons.items() if count},
    )
    return rows if odd else rows.in_order()
