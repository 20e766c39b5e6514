"""Read Frontier's profile of attention (``attention.csv``: ms of one layer on one A800, the silicon of an A100; FlashInfer).

References
----------
https://github.com/NetX-lab/Frontier (MIT), data/profiling
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from optsched.profiles.attention import AttentionRows, attention_rows
from optsched.profiles.published import read_published

COLUMNS = (
    "time_stats.attn_prefill.median", "time_stats.attn_decode.median", "n_embd", "n_q_head", "n_kv_head",
    "num_tensor_parallel_workers", "batch_size", "prefill_chunk_size", "kv_cache_size", "is_prefill",
)  # fmt: skip
SOURCE = "Frontier data/profiling, a800 attention.csv (FlashInfer)"
SHORTEST_S = 20e-6  # times are rounded to whole microseconds


def read_attention(path: Path) -> tuple[AttentionRows, AttentionRows]:
    """Return the prefills and the decode steps; those shorter than 20 µs are left out, being rounded to whole ones.

    Raises
    ------
    SpecError
        If a column is missing.
    """
    import polars as pl

    table = read_published(path, COLUMNS)
    both = []
    for wanted, column in ((True, COLUMNS[0]), (False, COLUMNS[1])):
        rows = table.filter(pl.col("is_prefill") == wanted)
        long = rows.filter(pl.col(column) >= SHORTEST_S * 1e3)
        gpus = long["num_tensor_parallel_workers"].to_numpy()
        kv_heads = np.maximum(1.0, long["n_kv_head"].to_numpy() / gpus)
        numbers = {
            "sequences": long["batch_size"].to_numpy(),
            "new_tokens": long["prefill_chunk_size"].to_numpy() if wanted else 1.0,
            "context": long["kv_cache_size"].to_numpy(),
            "heads": long["n_q_head"].to_numpy() / gpus,
            "kv_heads": kv_heads,
            "key_dim": long["n_embd"].to_numpy() / long["n_q_head"].to_numpy(),
            "cache_bytes": 2.0,
            "window": np.inf,
            "warm": 1.0,
            "seconds": long[column].to_numpy() / 1e3,
        }
        both.append(attention_rows(numbers, SOURCE, {"shorter than 20 us, rounded to whole ones": rows.height - long.height}))
    return both[0], both[1]
