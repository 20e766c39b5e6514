"""Read LLMServingSim's profile of attention under vLLM (``attention.csv``: µs of one layer on one GPU).

Each row is one call of the kernel on at most one prefill chunk beside equal decoding sequences, both on cached contexts.

References
----------
https://github.com/casys-kaist/LLMServingSim (MIT), profiler/perf
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from optsched.domain.llm import Llm
from optsched.profiles.attention import AttentionRows, attention_rows
from optsched.profiles.published import read_published

COLUMNS = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
SOURCE = "LLMServingSim profiler/perf, attention.csv (vLLM 0.19)"


def read_attention(path: Path, llm: Llm, tp: int, cache_bytes: float) -> tuple[AttentionRows, AttentionRows]:
    """Return the chunks alone and the decode steps alone; steps with both are counted as left out.

    Parameters
    ----------
    path
        ``attention.csv``.
    llm, tp
        Whose heads, and over how many GPUs they were split: the file does not say.
    cache_bytes
        Bytes of one cached element.

    Raises
    ------
    SpecError
        If a column is missing.
    """
    table = read_published(path, COLUMNS)
    chunk, context, decoding, cached, micros = (table[name].to_numpy().astype(float) for name in COLUMNS)
    shape = {
        "heads": llm.num_heads / tp,
        "kv_heads": max(1.0, llm.num_kv_heads / tp),
        "key_dim": float(llm.head_dim),
        "cache_bytes": cache_bytes,
        "window": np.inf,
        "warm": 0.0,
    }
    prefill, decode = (chunk > 0) & (decoding == 0), (decoding > 0) & (chunk == 0) & (cached > 0)
    left_out = {"chunks beside decoding sequences": int(((chunk > 0) & (decoding > 0)).sum())}
    chunks = {"sequences": 1.0, "new_tokens": chunk[prefill], "context": context[prefill], "seconds": micros[prefill] / 1e6}
    steps = {"sequences": decoding[decode], "new_tokens": 1.0, "context": cached[decode], "seconds": micros[decode] / 1e6}
    return attention_rows({**shape, **chunks}, SOURCE, left_out), attention_rows({**shape, **steps}, SOURCE, {})
