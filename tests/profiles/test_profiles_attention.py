"""Readers of published tables of attention, on small files of the same form and on the published ones where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from optsched import catalog
from optsched.errors import SpecError
from optsched.profiles import aiconfigurator_attention, frontier_attention, llmservingsim_attention
from optsched.profiles.rows import joined

ROW = {
    "op_name": "context_attention", "kernel_source": "vllm_flash_attn_fa3", "batch_size": 4, "isl": 512, "step": 0, "num_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "window_size": 0, "attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16",
    "latency": 0.05,
}  # fmt: skip


def written(path: Path, *changes: dict[str, object]) -> Path:
    """Write a table with one row per change to `ROW`."""
    pl.DataFrame([{**ROW, **change} for change in changes]).write_parquet(path)
    return path


def test_prefill_table_keeps_the_fastest_kernel_and_counts_the_rest(tmp_path: Path) -> None:
    changes = [
        {}, {"kernel_source": "vllm_flash_attn_fa4", "latency": 0.04}, {"kernel_source": "vllm_triton_attn", "latency": 0.01},
        {"isl": 1}, {"head_dim": 512}, {"latency": 0.0}, {"window_size": 128}, {"kv_cache_dtype": "fp8", "latency": 0.125},
    ]  # fmt: skip
    path = written(tmp_path / "context.parquet", *changes)
    rows = aiconfigurator_attention.read_attention(path, "bf16", decode=False)
    assert rows.seconds.tolist() == [4e-5, 5e-5]
    assert rows.window.tolist() == [np.inf, 128.0]
    assert rows.left_out == {
        "no time": 1,
        "a fallback kernel": 1,
        "heads wider than 256": 1,
        "a prefill of one token, which is a decode step": 1,
        "a slower kernel of the same shape": 1,
    }
    assert rows.cache_width.tolist() == [2048.0, 2048.0]
    eight = aiconfigurator_attention.read_attention(path, "fp8", decode=False)
    assert (eight.seconds.tolist(), eight.cache_bytes.tolist()) == ([1.25e-4], [1.0])


def test_decode_table_counts_the_new_token_into_the_context(tmp_path: Path) -> None:
    path = written(tmp_path / "generation.parquet", {"op_name": "generation_attention", "isl": 1, "step": 1023})
    rows = aiconfigurator_attention.read_attention(path, "bf16", decode=True)
    assert (rows.context.tolist(), rows.new_tokens.tolist(), rows.warm.tolist()) == ([1024.0], [1.0], [1.0])
    assert aiconfigurator_attention.operation(path) == "generation_attention"
    assert rows.keys() == ["s4 n1 c1024"]


def test_latent_tables_have_one_absorbed_head_in_decode_and_all_heads_in_prefill(tmp_path: Path) -> None:
    path = written(tmp_path / "mla.parquet", {"op_name": "mla_generation", "num_heads": 16, "isl": 1, "step": 511})
    decode = aiconfigurator_attention.read_latent_attention(path, "bf16", decode=True)
    assert [float(column[0]) for column in (decode.heads, decode.kv_heads, decode.key_dim, decode.value_dim)] == [16, 1, 576, 512]
    assert decode.context.tolist() == [512.0]
    path = written(tmp_path / "mla.parquet", {"op_name": "mla_context", "num_heads": 16, "step": 1})
    prefill = aiconfigurator_attention.read_latent_attention(path, "bf16", decode=False)
    assert [float(column[0]) for column in (prefill.heads, prefill.kv_heads, prefill.key_dim, prefill.value_dim)] == [
        16,
        16,
        192,
        128,
    ]
    assert (prefill.context.tolist(), prefill.cache_width.tolist()) == ([0.0], [576.0])


def test_attention_profile_of_vllm_is_split_into_chunks_and_steps(tmp_path: Path) -> None:
    path = tmp_path / "attention.csv"
    path.write_text("prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n16,1024,0,0,29\n0,0,8,2048,60\n16,64,2,32,9\n")
    chunks, steps = llmservingsim_attention.read_attention(path, catalog.llm("llama-3.1-8b"), 2, 2.0)
    assert (chunks.new_tokens.tolist(), chunks.context.tolist(), chunks.heads.tolist()) == ([16.0], [1024.0], [16.0])
    assert (steps.sequences.tolist(), steps.context.tolist(), steps.kv_heads.tolist()) == ([8.0], [2048.0], [4.0])
    assert chunks.left_out == {"chunks beside decoding sequences": 1}
    assert steps.seconds.tolist() == [6e-5]
    both = joined([chunks, steps])
    assert (len(both), both.left_out, both.source) == (2, chunks.left_out, chunks.source)


def test_damaged_attention_tables_are_refused(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.parquet"
    garbage.write_text("nothing")
    with pytest.raises(SpecError, match="give the file as published"):
        aiconfigurator_attention.read_attention(garbage, "bf16", decode=False)
    pl.DataFrame({"isl": [1]}).write_parquet(garbage)
    with pytest.raises(SpecError, match=r"columns kernel_source, batch_size.* are missing"):
        aiconfigurator_attention.read_attention(garbage, "bf16", decode=False)
    empty = tmp_path / "empty.parquet"
    pl.DataFrame({"op_name": pl.Series([], dtype=pl.String)}).write_parquet(empty)
    with pytest.raises(SpecError, match="no rows"):
        aiconfigurator_attention.operation(empty)
    table = tmp_path / "attention.csv"
    table.write_text("a,b\n1,2\n")
    with pytest.raises(SpecError, match=r"columns prefill_chunk.* are missing"):
        llmservingsim_attention.read_attention(table, catalog.llm("llama-3.1-8b"), 1, 2.0)
    with pytest.raises(SpecError, match=r"columns time_stats.attn_prefill.median.* are missing"):
        frontier_attention.read_attention(table)
    for reader in (frontier_attention.read_attention, lambda file: llmservingsim_attention.read_attention(file, LLM, 1, 2.0)):
        with pytest.raises(SpecError, match=r"give the file as published"):
            reader(tmp_path / "none.csv")


LLM = catalog.llm("llama-3.1-8b")


def test_published_profiles_are_read_whole(third_party_data: Path) -> None:
    profiles = third_party_data / "profiles"
    chunks, steps = llmservingsim_attention.read_attention(
        profiles / "llmservingsim/RTXPRO6000/Llama-3.1-8B/tp1/attention.csv", LLM, 1, 2.0
    )
    assert (len(chunks), len(steps)) == (233, 171)
    assert chunks.seconds.max() == pytest.approx(2.138e-3, rel=1e-3)
    prefills, decodes = frontier_attention.read_attention(profiles / "frontier/a800/Llama-2-7b-hf/attention.csv")
    assert (set(prefills.key_dim), set(prefills.heads)) == ({128.0}, {32.0})
    assert len(prefills) + sum(prefills.left_out.values()) == 652
    assert len(decodes) + sum(decodes.left_out.values()) == 10_320
