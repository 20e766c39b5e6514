"""Read aiconfigurator's tables of attention (Parquet; PyPI aiconfigurator-core, systems/data/SYSTEM/{attention,mla}).

``context_attention_perf.parquet`` holds prefills without cached context, ``generation_attention_perf.parquet`` decode steps;
``context_mla_perf.parquet`` and ``generation_mla_perf.parquet`` the same of latent attention (DeepSeek-V3's widths). Latencies
are ms of one layer on one GPU, writing the new keys and values included. Each measurement repeats itself on one cache, so caches
smaller than the card's last-level cache are read from there.

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
from optsched.profiles.attention import AttentionRows, attention_rows
from optsched.profiles.published import read_published

if TYPE_CHECKING:
    import polars as pl

CACHE_TYPES: dict[Dtype, tuple[str, float]] = {"bf16": ("bfloat16", 2.0), "fp8": ("fp8", 1.0)}
WIDEST_HEAD = 256  # wider ones run in kernels of their own, and no llm here has them
FALLBACKS = ("triton",)  # kernels for heads that the engine's own ones cannot do
LATENT = {"key_dim": 192.0, "value_dim": 128.0}
ABSORBED = {"key_dim": 576.0, "value_dim": 512.0}
LATENT_WIDTH = 576.0
_SHAPE = ["batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim", "window_size"]


def _source(path: Path) -> str:
    """Return the system, engine, version and file that a path of the package names."""
    return "aiconfigurator-core " + "/".join(path.parts[-5:])


def _fastest(table: pl.DataFrame, shape: list[str], left_out: dict[str, int]) -> pl.DataFrame:
    """Return the fastest of equal shapes: two kernels of one shape are two choices of the engine."""
    import polars as pl

    best = table.group_by(shape).agg(pl.col("latency").min()).sort(shape)
    left_out["a slower kernel of the same shape"] = table.height - best.height
    return best


def _kept(table: pl.DataFrame, rules: dict[str, pl.Expr], left_out: dict[str, int]) -> pl.DataFrame:
    for reason, keep in rules.items():
        kept = table.filter(keep)
        left_out[reason] = table.height - kept.height
        table = kept
    return table


def read_attention(path: Path, cache: Dtype, *, decode: bool) -> AttentionRows:
    """Return prefills or decode steps of plain attention.

    Parameters
    ----------
    path
        ``context_attention_perf.parquet``, or ``generation_attention_perf.parquet`` with `decode`.
    cache
        Data type of the cache whose rows are wanted.
    decode
        Which of the two files it is.

    Raises
    ------
    SpecError
        If it is not such a table.
    """
    import polars as pl

    columns = ("kernel_source", "batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim", "kv_cache_dtype")
    table = read_published(path, (*columns, "latency"))
    if "window_size" not in table.columns:
        table = table.with_columns(window_size=pl.lit(0))
    left_out: dict[str, int] = {}
    fallback = pl.any_horizontal(pl.col("kernel_source").str.contains(name) for name in FALLBACKS)
    rules = {
        "no time": pl.col("latency") > 0,
        "a fallback kernel": ~fallback,
        f"heads wider than {WIDEST_HEAD}": pl.col("head_dim") <= WIDEST_HEAD,
    }
    if not decode:
        rules["a prefill of one token, which is a decode step"] = pl.col("isl") > 1
    table = table.filter(pl.col("kv_cache_dtype") == CACHE_TYPES[cache][0])
    best = _fastest(_kept(table, rules, left_out), _SHAPE, left_out)
    window = best["window_size"].to_numpy().astype(float)
    return attention_rows(
        {
            "sequences": best["batch_size"].to_numpy(),
            "new_tokens": 1.0 if decode else best["isl"].to_numpy(),
            "context": best["step"].to_numpy() + (best["isl"].to_numpy() if decode else 0.0),
            "heads": best["num_heads"].to_numpy(),
            "kv_heads": best["num_key_value_heads"].to_numpy(),
            "key_dim": best["head_dim"].to_numpy(),
            "cache_bytes": CACHE_TYPES[cache][1],
            "window": np.where(window > 0, window, np.inf),
            "warm": 1.0,
            "seconds": best["latency"].to_numpy() / 1e3,
        },
        _source(path),
        left_out,
    )


def read_latent_attention(path: Path, cache: Dtype, *, decode: bool) -> AttentionRows:
    """Return prefills or decode steps of latent attention, in decode in absorbed form.

    Parameters
    ----------
    path
        ``context_mla_perf.parquet``, or ``generation_mla_perf.parquet`` with `decode`.
    cache, decode
        As in `read_attention`.

    Raises
    ------
    SpecError
        If it is not such a table.
    """
    import polars as pl

    table = read_published(path, ("batch_size", "isl", "step", "num_heads", "kv_cache_dtype", "latency"))
    left_out: dict[str, int] = {}
    rules = {"no time": pl.col("latency") > 0}
    if not decode:
        rules["a prefill of one token, which is a decode step"] = pl.col("isl") > 1
    table = table.filter(pl.col("kv_cache_dtype") == CACHE_TYPES[cache][0])
    best = _fastest(_kept(table, rules, left_out), ["batch_size", "isl", "step", "num_heads"], left_out)
    heads = best["num_heads"].to_numpy().astype(float)
    return attention_rows(
        {
            "sequences": best["batch_size"].to_numpy(),
            "new_tokens": 1.0 if decode else best["isl"].to_numpy(),
            # In prefill these tables count a cache of no tokens as step 1 or 0.
            "context": best["step"].to_numpy() + best["isl"].to_numpy() if decode else 0.0,
            "heads": heads,
            "kv_heads": 1.0 if decode else heads,
            **(ABSORBED if decode else LATENT),
            "cache_width": LATENT_WIDTH,
            "cache_bytes": CACHE_TYPES[cache][1],
            "window": np.inf,
            "warm": 1.0,
            "seconds": best["latency"].to_numpy() / 1e3,
        },
        _source(path),
        left_out,
    )


def operation(path: Path) -> str:
    """Return which operation a table times, as it says itself (``context_attention``, ``mla_generation``, ...).

    Raises
    ------
    SpecError
        If it is no such table, or empty.
    """
    table = read_published(path, ("op_name",))
    if not table.height:
        raise SpecError("no rows; give the table as published", file=path)
    return str(table["op_name"][0])
