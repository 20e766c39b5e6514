"""Read Vidur's network measurements (CSV; github.com/microsoft/vidur, data/profiling/network): all-reduces and sends.

Groups of 2 to 16 GPUs of DGX-like servers with A100 and H100, over one node and over several, launched from torch.

References
----------
Agrawal et al., "Vidur: A Large-Scale Simulation Framework For LLM Inference", MLSys 2024, arXiv 2405.05465.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from optsched.errors import SpecError
from optsched.profiles.collectives import CollectiveRows

SOURCE = "Vidur network profiles (github.com/microsoft/vidur, data/profiling/network/{name}; arXiv 2405.05465)"
KINDS = {"all_reduce": "all_reduce", "send_recv": "send"}


def read_vidur_network(path: Path) -> CollectiveRows:
    """Return the quickest run of each group and size.

    Parameters
    ----------
    path
        ``all_reduce.csv`` or ``send_recv.csv``. Times are of a few runs, and the slower ones wait for a shared machine, so the
        minimum stands for the link.

    Raises
    ------
    SpecError
        If the file is not such a table.
    """
    import polars as pl

    shape = ["num_workers", "devices_per_node", "size"]
    try:
        table = pl.read_csv(path)
        found = table["collective"].unique().to_list() if "collective" in table.columns else []
        if len(found) != 1 or found[0] not in KINDS:
            raise SpecError(f"collective is none of {', '.join(KINDS)}; give the file as published", file=path)
        name = str(found[0])
        least = pl.col(f"time_stats.{name}.min").min() / 1e3
        best = table.group_by(shape).agg(least.alias("seconds")).filter(pl.col("seconds") > 0).sort(shape)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise SpecError(f"{error}; give the file as published", file=path) from error
    workers = best["num_workers"].to_numpy()
    repeated = table.height - best.height
    return CollectiveRows(
        kind=np.full(best.height, KINDS[name]),
        gpus=workers,
        nodes=workers // best["devices_per_node"].to_numpy(),
        num_bytes=best["size"].to_numpy().astype(np.float64),
        seconds=best["seconds"].to_numpy(),
        source=SOURCE.format(name=path.parent.name),
        left_out={"a slower run of the same shape": repeated} if repeated else {},
    )
