"""Fitting the laws of attention: shapes of rows, what is held out, and coefficients that come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from optsched import catalog
from optsched.cost.attention_calibration import (
    CONTEXT_SHARE,
    attention_shapes,
    attention_split,
    fit_attention,
    predict_decode,
    predict_prefill,
    row_weights,
    thinned,
)
from optsched.cost.attention_tables import fit_tables, read_tables
from optsched.cost.decode_attention import DecodeAttentionParameters
from optsched.cost.features import attended_pairs
from optsched.cost.prefill_attention import PrefillAttentionParameters
from optsched.domain.attention_law import DecodeAttentionLaw, PrefillAttentionLaw
from optsched.errors import SpecError
from optsched.profiles.attention import AttentionRows, attention_rows

PEAK, BANDWIDTH = 312e12, 2e12


def batches(number: int, seed: int, *, decode: bool) -> AttentionRows:
    """Return random batches that take a second each."""
    draw = np.random.default_rng(seed)
    kv_heads = draw.choice([1, 2, 3, 6, 12], number)
    return attention_rows(
        {
            "sequences": draw.choice([1, 2, 4, 16, 64, 256], number),
            "new_tokens": 1.0 if decode else draw.choice([16, 64, 300, 1000, 5000], number),
            "context": draw.choice([17, 300, 2000, 30000] if decode else [0, 0, 512, 9000], number),
            "heads": kv_heads * draw.choice([1, 3, 5], number),
            "kv_heads": kv_heads,
            "key_dim": draw.choice([64, 128], number),
            "cache_bytes": 2.0,
            "window": np.inf,
            "warm": 0.0,
            "seconds": np.ones(number),
        },
        "made here",
        {},
    )


def test_rows_have_the_pairs_and_contexts_that_steps_have() -> None:
    rows = batches(50, 1, decode=False)
    limited = attention_rows(
        {name: getattr(rows, name) for name in ("sequences", "new_tokens", "context", "heads", "kv_heads", "key_dim", "seconds")}
        | {"cache_bytes": 2.0, "window": 1000.0, "warm": 0.0},
        "", {},
    )  # fmt: skip
    for each, window in ((rows, None), (limited, 1000)):
        shapes = attention_shapes(each, PEAK, BANDWIDTH)
        expected = each.sequences * attended_pairs(each.new_tokens, each.context, window)
        assert np.allclose(shapes["pairs"], expected)
        held = each.context if window is None else np.minimum(each.context, window)
        assert np.allclose(shapes["context_tokens"], each.sequences * held)


def test_heads_of_held_out_llms_and_a_fifth_of_the_batches_are_not_fitted_to() -> None:
    rows = batches(300, 2, decode=True)
    chosen = attention_split(rows)
    assert np.all(chosen.train.astype(int) + chosen.heldout_shapes + chosen.heldout_llms == 1)
    for name in ("llama-3.1-70b", "qwen3-8b", "mixtral-8x7b"):
        llm = catalog.llm(name)
        one = attention_rows(
            {"sequences": 3.0, "new_tokens": 1.0, "context": 77.0, "heads": llm.num_heads / 2, "kv_heads": llm.num_kv_heads / 2,
             "key_dim": llm.head_dim, "cache_bytes": 2.0, "window": np.inf, "warm": 0.0, "seconds": np.ones(1)}, "", {},
        )  # fmt: skip
        assert attention_split(one).heldout_llms.all()


def test_thinning_keeps_every_held_out_row_and_counts_the_others() -> None:
    rows = batches(400, 3, decode=True)
    before, kept = attention_split(rows), thinned(rows, 100)
    after = attention_split(kept)
    assert (int(after.train.sum()), int((~after.train).sum())) == (100, int((~before.train).sum()))
    assert kept.left_out == {"beyond 100 rows to fit to": int(before.train.sum()) - 100}
    assert thinned(rows, 400) is rows
    assert np.array_equal(thinned(rows, 100).context, kept.context)


def test_chunks_on_a_cached_context_weigh_enough_however_few_they_are() -> None:
    rows = batches(200, 4, decode=False)
    few = rows.where((rows.context == 0) | (np.arange(200) < 10))
    weights = row_weights(few, np.ones(len(few), dtype=bool))
    assert weights[few.context > 0].sum() / weights.sum() == pytest.approx(CONTEXT_SHARE)


@pytest.mark.parametrize("decode", [False, True])
def test_fit_predicts_rows_of_a_law_it_does_not_know(decode: bool) -> None:
    rows = batches(600, 5, decode=decode)
    shapes = attention_shapes(rows, PEAK, BANDWIDTH)
    if decode:
        truth = DecodeAttentionParameters.of(DecodeAttentionLaw(memory=0.7, unit_s=60e-9, launch_s=12e-6, path_s=7e-6))
        times = np.asarray(predict_decode(truth, shapes))
    else:
        known = PrefillAttentionParameters.of(PrefillAttentionLaw(compute=0.5, row_keys=200, launch_s=12e-6, path_s=20e-9))
        times = np.asarray(predict_prefill(known, shapes))
    noisy = times * np.exp(np.random.default_rng(6).normal(0, 0.02, len(times)))
    measured = attention_rows(
        {name: getattr(rows, name) for name in AttentionRows.__dataclass_fields__ if name not in ("seconds", "source", "left_out")}
        | {"seconds": noisy}, "made here", {},
    )  # fmt: skip
    fitted = fit_attention(DecodeAttentionLaw() if decode else PrefillAttentionLaw(), measured, PEAK, BANDWIDTH, "2026-01-02")
    assert fitted.fit.train_mape < 0.03
    assert fitted.fit.heldout_shapes_mape is not None
    assert fitted.fit.heldout_shapes_mape < 0.04
    assert fitted.law.launch_s == pytest.approx(12e-6, rel=0.05)
    assert (fitted.fit.date, fitted.fit.source) == ("2026-01-02", "made here")


def test_tables_become_laws_by_operation_and_cache(tmp_path: Path) -> None:
    draw = np.random.default_rng(7)
    common = {
        "kernel_source": "fa", "num_heads": 12, "num_key_value_heads": 3, "head_dim": 128, "window_size": 0, "attn_dtype": "bfloat16",
        "mla_dtype": "bfloat16",
    }  # fmt: skip
    for name, isl in (
        ("context_attention", 256),
        ("generation_attention", 1),
        ("mla_context", 256),
        ("mla_generation", 1),
        ("x", 1),
    ):
        table = [
            {**common, "op_name": name, "batch_size": batch, "isl": isl, "step": step, "kv_cache_dtype": cache,
             "latency": 0.02 * batch * float(np.exp(draw.normal(0, 0.1)))}
            for batch in (1, 2, 4, 8) for step in range(100, 115) for cache in ("bfloat16", "fp8")
        ]  # fmt: skip
        pl.DataFrame(table).write_parquet(tmp_path / f"{name}.parquet")
    files = sorted(tmp_path.glob("*.parquet"))
    found = read_tables(files)
    laws = ("decode_attention", "latent_decode_attention", "latent_prefill_attention", "prefill_attention")
    assert sorted(found) == [(law, cache) for law in laws for cache in ("bf16", "fp8")]
    fitted = fit_tables(catalog.gpu("l4"), [tmp_path / "generation_attention.parquet"], "2026-01-02")
    assert sorted(fitted) == ["decode_attention.bf16", "decode_attention.fp8"]
    assert all(law.fit is not None and law.fit.num_rows == 60 for law in fitted.values())


def test_profiles_whose_folders_name_no_replica_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "attention.csv"
    table.write_text("prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n16,1024,0,0,29\n")
    with pytest.raises(SpecError, match=r"names no tensor parallelism; put the table into LLM/tpN"):
        read_tables([table])
