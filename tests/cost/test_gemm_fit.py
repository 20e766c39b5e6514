"""Fitting laws of matrix products and memory passes to tables: what is fitted, what is held out, and to which file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from optsched import catalog
from optsched.cost.gemm_calibration import card_of, fit_gemm, gemm_seconds, gemm_split
from optsched.cost.gemm_tables import as_fitted, datasheet_s, fit_tables, peak_of, read_layers
from optsched.domain.dtypes import Dtype
from optsched.domain.gemm_law import GemmLaw
from optsched.errors import SpecError
from optsched.profiles.gemms import GemmRows

GPU = catalog.gpu("h100-sxm")
ROWS, INNER, OUTER = np.array([1, 16, 128, 1024, 8192]), np.array([256, 1024, 4096, 14336]), np.array([256, 3584, 8192])
CARD = card_of(GPU.datasheet, peak_of(GPU, "bf16"))
TRUTH = GemmLaw(compute=0.6, memory=0.7, half_rows=40.0, launch_s=5e-6)


def grid(dtype: Dtype = "bf16") -> GemmRows:
    m, k, n = (each.ravel() for each in np.meshgrid(ROWS, INNER, OUTER, indexing="ij"))
    return GemmRows(
        rows=m, inner=k, outer=n, seconds=np.ones(m.size), llm=np.full(m.size, ""), dtype=dtype, source="a test"
    )  # fmt: skip


def timed(law: GemmLaw) -> GemmRows:
    rows = grid()
    return replace(rows, seconds=gemm_seconds(law, CARD, rows))


def test_a_fit_predicts_the_law_that_made_the_rows_on_shapes_it_never_saw() -> None:
    found = fit_gemm(timed(TRUTH), CARD, "2026-11-21", ridge=1e-3)
    assert found.fit.num_rows == ROWS.size * INNER.size * OUTER.size
    assert max(found.fit.train_mape, found.fit.heldout_shapes_mape or 1, found.fit.heldout_llms_mape or 1) < 0.005
    assert found.law.launch_s == pytest.approx(5e-6, rel=0.02)
    assert found.law.converted_bytes == 0


def test_the_staircase_of_tiles_is_chosen_by_the_rows_that_are_fitted_to() -> None:
    rows, card = grid("int8"), card_of(GPU.datasheet, peak_of(GPU, "int8"))
    fine = replace(rows, rows=np.where(rows.rows > 128, rows.rows + np.arange(len(rows)) % 200, rows.rows))
    truth = GemmLaw(converted_bytes=1.0, row_quantum=128.0, row_padding=0.9)
    found = fit_gemm(replace(fine, seconds=gemm_seconds(truth, card, fine)), card, "2026-11-21", ridge=1e-3)
    assert found.law.row_quantum == 128
    assert found.law.row_padding == pytest.approx(0.9, rel=0.05)
    assert "row_quantum" not in found.fit.parameters


def test_a_sweep_becomes_a_law_for_each_of_its_data_types(tmp_path: Path) -> None:
    rows = timed(TRUTH)
    path = tmp_path / "gemm_perf.parquet"
    shapes = {"m": rows.rows, "n": rows.outer, "k": rows.inner, "latency": rows.seconds * 1e3}
    pl.concat([pl.DataFrame({"gemm_dtype": [name] * len(rows), **shapes}) for name in ("bfloat16", "nvfp4")]).write_parquet(path)
    laws = fit_tables(GPU, [path], "2026-11-21")
    assert list(laws) == ["gemm.bf16"]
    law = laws["gemm.bf16"]
    assert isinstance(law, GemmLaw)
    assert law.fit is not None
    assert law.fit.rows_left_out == {"4-bit floats, which no llm file has": len(rows)}


def test_all_rows_of_a_shape_and_every_width_of_a_held_out_llm_are_set_aside() -> None:
    rows = grid()
    parts = gemm_split(rows)
    assert np.all(parts.train.astype(int) + parts.heldout_shapes + parts.heldout_llms == 1)
    fates = {(k, n): set() for k, n in rows.keys().tolist()}
    for (k, n), fate in zip(rows.keys().tolist(), parts.train.tolist(), strict=True):
        fates[k, n].add(fate)
    assert all(len(fate) == 1 for fate in fates.values())
    assert parts.heldout_llms[(rows.inner == 14336) & (rows.outer == 8192)].all()  # down projection of Llama-3.1-70B at tp 2


def test_the_datasheet_is_a_floor_of_flops_and_bytes() -> None:
    rows = grid("fp8")
    floor = datasheet_s(GPU, rows)
    large = (rows.rows == 8192) & (rows.inner == 14336) & (rows.outer == 8192)
    assert floor[large] == pytest.approx(2 * 8192 * 14336 * 8192 / 1979e12)
    small = (rows.rows == 1) & (rows.inner == 14336) & (rows.outer == 8192)
    assert floor[small] == pytest.approx((14336 * 8192 + 2 * (14336 + 8192)) / 3.35e12)


def test_layer_tables_are_passes_to_fit_and_products_to_check(third_party_data: Path) -> None:
    path = third_party_data / "profiles" / "llmservingsim" / "RTXPRO6000" / "Llama-3.1-8B" / "tp1" / "dense.csv"
    gpu = catalog.gpu("rtx-pro-6000")
    assert list(fit_tables(gpu, [path], "2026-11-21")) == ["elementwise"]
    products, _ = read_layers(path)
    assert as_fitted(products).dtype == "bf16"


def test_a_layer_table_outside_its_folders_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dense.csv"
    path.write_text("layer,tokens,time_us\nact_fn,1,2\n")
    with pytest.raises(SpecError, match=r"is not tp1, tp2, .*; keep the folders as published"):
        read_layers(path)
