"""Read aiconfigurator's tables of routed experts (Parquet; PyPI aiconfigurator-core, systems/data/SYSTEM/moe).

``moe_perf.parquet`` of a serving engine holds the latency in ms of one layer's routed experts on the busiest GPU, after the
router: sizes of the llm, tensor- and expert-parallel sizes, and how the loads of the experts were drawn.

References
----------
https://github.com/ai-dynamo/aiconfigurator (Apache-2.0): collector/helper.py draws the loads.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64

from optsched.domain.dtypes import Dtype
from optsched.errors import SpecError
from optsched.profiles.experts import ExpertRows
from optsched.profiles.published import read_published

if TYPE_CHECKING:
    import polars as pl

# Names in the order of preference: llms with fp8 experts (DeepSeek-V3, Qwen3 FP8) scale their weights by blocks.
DTYPES: dict[Dtype, tuple[str, ...]] = {"bf16": ("bfloat16",), "fp8": ("fp8_block", "fp8"), "int4": ("int4_wo",)}
# Nemotron's experts have no gate: their rows are faster than three matrices can be read.
UNGATED = ((2688, 1856), (2048, 5120), (4096, 2688))
SLICE = 64  # engines hold slices of an expert whose width is a multiple of this; others fall out of the tuned tiles
DRAWS = 16  # random loads that expectations are taken over
_SHAPE = ["num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size", "distribution"]


def data_types(path: Path) -> frozenset[Dtype]:
    """Return the data types that a table has experts of.

    Raises
    ------
    SpecError
        If the file is not such a table.
    """
    present = set(_table(path)["moe_dtype"].unique().to_list())
    return frozenset(dtype for dtype, names in DTYPES.items() if present & set(names))


def _table(path: Path) -> pl.DataFrame:
    return read_published(path, (*_SHAPE, "moe_dtype", "kernel_source", "latency"))


def read_experts(path: Path, dtype: Dtype, kernel: str | None = None) -> ExpertRows:
    """Return the routed experts of one data type.

    Parameters
    ----------
    path
        A ``moe_perf.parquet``.
    dtype
        Data type of the weights: bf16, fp8 (scaled by blocks; one scale per matrix where the file has no other) or int4 (weights
        only).
    kernel
        Part of the name of the kernel to keep, where an engine has several; None: all.

    Raises
    ------
    SpecError
        If the file is not such a table, or has no rows of that type.
    """
    import polars as pl

    if dtype not in DTYPES:
        raise SpecError(f"data type {dtype} has no table of experts; choose among {', '.join(DTYPES)}", file=path)
    table = _table(path)
    present = set(table["moe_dtype"].unique().to_list())
    chosen = next((name for name in DTYPES[dtype] if name in present), None)
    if chosen is None:
        raise SpecError(f"no rows of {' or '.join(DTYPES[dtype])}; the file has {', '.join(sorted(present))}", file=path)
    typed = table.filter((pl.col("moe_dtype") == chosen) & (pl.col("latency") > 0))
    same = typed.filter(pl.col("kernel_source").str.contains(kernel, literal=True)) if kernel else typed
    best = same.group_by(_SHAPE).agg(pl.col("latency").min()).sort(_SHAPE)
    whole = best.filter(pl.col("inter_size") % (pl.col("moe_tp_size") * SLICE) == 0)
    left_out = {
        "another data type, or no time": table.height - typed.height,
        "another kernel": typed.height - same.height,
        "a slower kernel of the same shape": same.height - best.height,
        f"a slice of an expert that is no multiple of {SLICE}": best.height - whole.height,
    }
    engine, version = path.parts[-3:-1] if len(path.parts) >= 3 else ("engine", "unknown")
    source = f"aiconfigurator-core moe/{engine}/{version} (routed experts of {engine} {version}, {chosen})"
    return _rows(whole, dtype, source, {reason: count for reason, count in left_out.items() if count})


def _rows(table: pl.DataFrame, dtype: Dtype, source: str, left_out: dict[str, int]) -> ExpertRows:
    columns = {name: table[name].to_numpy() for name in _SHAPE if name != "distribution"}
    loads = _loads(table)
    gated = [pair not in UNGATED for pair in zip(columns["hidden_size"].tolist(), columns["inter_size"].tolist(), strict=True)]
    return ExpertRows(
        tokens=columns["num_tokens"].astype(np.float64),
        hidden_size=columns["hidden_size"],
        expert_size=columns["inter_size"],
        num_experts=columns["num_experts"],
        experts_per_token=columns["topk"],
        tp=columns["moe_tp_size"],
        groups=columns["moe_ep_size"],
        matrices=np.where(gated, 3, 2),
        rows=loads[:, 0],
        touched=loads[:, 1],
        seconds=table["latency"].to_numpy() / 1e3,
        dtype=dtype,
        source=source,
        left_out=left_out,
    )


def _loads(table: pl.DataFrame) -> Float64[np.ndarray, "N 2"]:
    """Return the expected rows on the measured GPU and the experts among them."""
    known: dict[tuple[int, int, int, int, str], tuple[float, float]] = {}
    found = []
    for key in table.select("num_tokens", "num_experts", "topk", "moe_ep_size", "distribution").iter_rows():
        if key not in known:
            known[key] = expected_load(*key)
        found.append(known[key])
    return np.asarray(found, dtype=np.float64).reshape(-1, 2)


def expected_load(tokens: int, num_experts: int, experts_per_token: int, groups: int, distribution: str) -> tuple[float, float]:
    """Return the rows on the measured GPU and the experts among them, as the collector draws them.

    Parameters
    ----------
    tokens, num_experts, experts_per_token
        Of the layer.
    groups
        GPUs with different experts; the measured one is the busiest.
    distribution
        ``balanced``: round robin; ``power_law_A``: loads drawn with density ``x^-A`` between 1 and 0.8 tokens (few tokens:
        0.01 and 2), scaled to the number of pairs and rounded.

    Raises
    ------
    SpecError
        If the distribution is neither.
    """
    pairs = tokens * experts_per_token
    if distribution == "balanced":
        return pairs / groups, max(min(num_experts, pairs) / groups, 1.0)
    if not distribution.startswith("power_law_"):
        raise SpecError(f"distribution {distribution!r} is neither balanced nor power_law_A; drop its rows")
    exponent = 1.0 - float(distribution.removeprefix("power_law_"))
    low, high = (1.0, 0.8 * tokens) if pairs > num_experts else (0.01, 2.0)
    random = np.random.default_rng(0)
    drawn = random.random((DRAWS, num_experts)) * (high**exponent - low**exponent) + low**exponent
    shares = drawn ** (1.0 / exponent)
    loads = np.array([_whole(row / row.sum() * pairs, pairs, tokens) for row in shares])
    grouped = loads.reshape(DRAWS, groups, -1)
    busiest = grouped.sum(axis=2).argmax(axis=1)
    chosen = grouped[np.arange(DRAWS), busiest]
    return float(chosen.sum(axis=1).mean()), float((chosen > 0).sum(axis=1).mean())


def _whole(loads: Float64[np.ndarray, " E"], pairs: int, most: int) -> Float64[np.ndarray, " E"]:
    """Return whole loads with the given sum, the largest ones changed first, none above the number of tokens."""
    whole = np.round(loads)
    order = np.argsort(-loads)
    rest = int(pairs - whole.sum())
    whole += rest // len(loads)
    whole[order[: rest % len(loads)]] += 1.0
    return np.asarray(np.clip(whole, 0.0, most), dtype=np.float64)
