"""Read Frontier's profile of routed experts (``moe.csv``: ms of one layer on one A800, the silicon of an A100; vLLM's kernels).

References
----------
https://github.com/NetX-lab/Frontier (MIT), data/profiling
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from optsched.domain.dtypes import Dtype
from optsched.errors import SpecError
from optsched.profiles.experts import ExpertRows
from optsched.profiles.published import read_published

TIME = "time_stats.moe_grouped_gemm.median"
SHAPE = (
    "num_tokens", "num_experts", "num_experts_per_device", "expert_parallel_size", "router_topk", "hidden_dim",
    "expert_hidden_dim", "use_gated", "num_tensor_parallel_workers", "total_routed_tokens", "expert_utilization",
)  # fmt: skip
COLUMNS = (TIME, *SHAPE, "profiling_precision", "quant_signature")
PRECISIONS: dict[str, Dtype] = {"BF16": "bf16", "FP16": "fp16"}
SOURCE = "Frontier data/profiling, a800 moe.csv (grouped products of vLLM's fused experts, {})"


def read_experts(path: Path) -> ExpertRows:
    """Return the grouped products of the routed experts; routing and shuffling are no part of them.

    Raises
    ------
    SpecError
        If a column is missing, or the weights have no data type or several that costs are known for.

    Notes
    -----
    Every draw of a routing is a row of its own, with the pairs and the experts that the measured GPU had. Of repeated runs of
    one draw the quickest counts.
    """
    import polars as pl

    table = read_published(path, COLUMNS)
    timed = table.filter((pl.col(TIME) > 0) & (pl.col("quant_signature").fill_null("none") == "none"))
    dtype = _dtype(timed["profiling_precision"].unique().to_list(), path)
    best = timed.group_by(SHAPE).agg(pl.col(TIME).min()).sort(SHAPE)
    left_out = {
        "quantised, or no time": table.height - timed.height,
        "a slower run of the same shape": timed.height - best.height,
    }
    columns = {name: best[name].to_numpy() for name in SHAPE}
    return ExpertRows(
        tokens=columns["num_tokens"].astype(np.float64),
        hidden_size=columns["hidden_dim"],
        expert_size=columns["expert_hidden_dim"],
        num_experts=columns["num_experts"],
        experts_per_token=columns["router_topk"],
        tp=columns["num_tensor_parallel_workers"],
        groups=columns["expert_parallel_size"],
        matrices=np.where(columns["use_gated"], 3, 2),
        rows=columns["total_routed_tokens"].astype(np.float64),
        touched=columns["expert_utilization"] * columns["num_experts_per_device"],
        seconds=best[TIME].to_numpy() / 1e3,
        dtype=dtype,
        source=SOURCE.format(dtype),
        left_out={reason: count for reason, count in left_out.items() if count},
    )


def _dtype(precisions: list[str], path: Path) -> Dtype:
    known = [PRECISIONS[name] for name in precisions if name in PRECISIONS]
    if len(known) != 1 or len(precisions) != 1:
        raise SpecError(f"profiling_precision must be one of {', '.join(PRECISIONS)} throughout; split the file", file=path)
    return known[0]
