"""Read aiconfigurator's tables of collectives (Parquet; PyPI aiconfigurator-core, systems/data/SYSTEM/comm).

``custom_allreduce_perf.parquet`` of a serving engine holds its own all-reduce, ``nccl_perf.parquet`` NCCL's collectives.
Sizes are elements, not bytes; latencies are ms of one collective among the GPUs of one node.

References
----------
https://github.com/ai-dynamo/aiconfigurator (Apache-2.0); https://pypi.org/project/aiconfigurator-core
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from optsched.errors import SpecError
from optsched.profiles.collectives import CollectiveRows
from optsched.profiles.published import read_published

if TYPE_CHECKING:
    import polars as pl

ELEMENT_BYTES = {"half": 2, "bfloat16": 2, "float16": 2, "int8": 1, "fp8": 1, "float": 4, "float32": 4}
NCCL_KINDS = {
    "all_reduce": "all_reduce", "all_gather": "all_gather", "reduce_scatter": "reduce_scatter", "alltoall": "all_to_all",
}  # fmt: skip
_SHAPE = ["kind", "gpus", "num_bytes"]


def _table(path: Path, dtype_column: str) -> pl.DataFrame:
    """Return a table with kind, gpus, num_bytes, seconds and graph (whether it was captured) columns."""
    import polars as pl

    needed = (dtype_column, "op_name", "num_gpus", "message_size", "latency", "kernel_source")
    table = read_published(path, needed)
    for column, known in ((dtype_column, ELEMENT_BYTES), ("op_name", NCCL_KINDS)):
        for name in table[column].unique().to_list():
            if name not in known:
                raise SpecError(f"{column} {name!r} is none of {', '.join(known)}; drop its rows", file=path)
    return table.select(
        kind=pl.col("op_name").replace_strict(NCCL_KINDS),
        gpus=pl.col("num_gpus").cast(pl.Int64),
        num_bytes=pl.col("message_size") * pl.col(dtype_column).replace_strict(ELEMENT_BYTES, return_dtype=pl.Float64),
        seconds=pl.col("latency").cast(pl.Float64) / 1e3,
        launched=pl.col("kernel_source").str.ends_with("eager"),
        eight_bits=pl.col(dtype_column) == "int8",
    )


def _rows(table: pl.DataFrame, source: str, left_out: dict[str, int]) -> CollectiveRows:
    """Return the fastest of equal shapes: two kernels of one shape are two choices of the engine."""
    import polars as pl

    positive = table.filter(pl.col("seconds") > 0)
    best = positive.group_by(_SHAPE).agg(pl.col("seconds").min()).sort(_SHAPE)
    reasons = {
        **left_out,
        "no time": table.height - positive.height,
        "a slower kernel of the same shape": positive.height - best.height,
    }
    return CollectiveRows(
        kind=np.asarray(best["kind"].to_list()),
        gpus=best["gpus"].to_numpy(),
        nodes=np.ones(best.height, dtype=np.int64),
        num_bytes=best["num_bytes"].to_numpy(),
        seconds=best["seconds"].to_numpy(),
        source=source,
        left_out={reason: count for reason, count in reasons.items() if count},
    )


def read_engine_all_reduce(path: Path) -> CollectiveRows:
    """Return a serving engine's own all-reduce inside CUDA graphs.

    Parameters
    ----------
    path
        A ``custom_allreduce_perf.parquet``. Rows launched one by one are left out: their first 20 to 45 us are the host's,
        which a step's launch overhead counts.

    Raises
    ------
    SpecError
        If the file is not such a table.
    """
    import polars as pl

    table = _table(path, "allreduce_dtype")
    captured = table.filter(~pl.col("launched"))
    engine, version = path.parts[-3:-1] if len(path.parts) >= 3 else ("engine", "unknown")
    source = f"aiconfigurator-core comm/{engine}/{version} (all-reduce of {engine} {version} in CUDA graphs)"
    return _rows(captured, source, {"launched outside a CUDA graph": table.height - captured.height})


def read_nccl(path: Path) -> CollectiveRows:
    """Return NCCL's all-gather, reduce-scatter and all-to-all.

    Parameters
    ----------
    path
        An ``nccl_perf.parquet``. Its all-reduces are left out, since engines choose among kernels, and so are 8-bit
        integers, whose sums are no activations.

    Raises
    ------
    SpecError
        If the file is not such a table.
    """
    import polars as pl

    table = _table(path, "nccl_dtype")
    wide = table.filter(~pl.col("eight_bits"))
    others = wide.filter(pl.col("kind") != "all_reduce")
    source = f"aiconfigurator-core comm/nccl/{path.parent.name} (NCCL {path.parent.name})"
    left_out = {"8-bit integers": table.height - wide.height, "NCCL's own all-reduce": wide.height - others.height}
    return _rows(others, source, left_out)
