"""Tables of matrix products and memory passes: widths, units, what is left out, and what is said of wrong files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from optsched import catalog
from optsched.errors import SpecError
from optsched.profiles.aiconfigurator_gemm import formats_of, read_gemms
from optsched.profiles.gemms import GemmRows
from optsched.profiles.llmservingsim_layers import read_llmservingsim_gemms, read_llmservingsim_passes
from optsched.profiles.rows import joined
from optsched.profiles.vidur_layers import read_vidur_gemms, read_vidur_passes

VIDUR_TIMES = ("input_layernorm", "post_attention_layernorm", "attn_rope", "mlp_act", "attn_pre_proj", "attn_post_proj",
               "mlp_up_proj", "mlp_down_proj")  # fmt: skip


def sweep(folder: Path, **columns: list[object]) -> Path:
    rows = {"gemm_dtype": ["bfloat16"] * 2, "m": [1, 1], "n": [64, 64], "k": [32, 32], "latency": [0.003, 0.002], **columns}
    path = folder / "h100_sxm" / "gemm" / "vllm" / "0.24.0" / "gemm_perf.parquet"
    path.parent.mkdir(parents=True)
    pl.DataFrame(rows).write_parquet(path)
    return path


def test_the_fastest_kernel_of_a_shape_counts_and_times_are_seconds(tmp_path: Path) -> None:
    path = sweep(tmp_path)
    rows = read_gemms(path, "bf16")
    assert (rows.rows.tolist(), rows.inner.tolist(), rows.outer.tolist()) == ([1], [32], [64])
    assert rows.seconds == pytest.approx([2e-6])
    assert rows.left_out == {"a slower kernel of the same shape": 1}
    assert "vllm 0.24.0" in rows.source
    assert formats_of(path) == {"bf16"}


def test_formats_of_no_data_type_are_counted(tmp_path: Path) -> None:
    path = sweep(tmp_path, gemm_dtype=["bfloat16", "fp8_block"])
    assert read_gemms(path, "bf16").left_out == {"fp8 scaled by blocks": 1}


def products(seconds: list[float]) -> GemmRows:
    number = len(seconds)
    same = np.full(number, 64)
    return GemmRows(
        rows=np.arange(1, number + 1), inner=same, outer=same, seconds=np.array(seconds), llm=np.full(number, ""), dtype="bf16",
        source="a test",
    )  # fmt: skip


def test_a_row_out_of_order_with_its_neighbours_is_left_out_and_a_jump_is_not() -> None:
    assert products([1, 1, 1, 1, 1, 1]).in_order().left_out == {}
    jump = [1.0, 1, 1, 1, 1, 1.4, 1.4, 1.4, 1.4, 1.4]
    assert len(products(jump).in_order()) == len(jump)
    slow = [1.0, 1, 9, 1, 1, 1, 1, 1, 1, 1]
    assert products(slow).in_order().rows.tolist() == [1, 2, 4, 5, 6, 7, 8, 9, 10]
    quick = [1.0, 1, 1, 1, 1, 1, 0.2, 1, 1, 1]
    assert products(quick).in_order().rows.tolist() == [1, 2, 3, 4, 5, 6, 8, 9, 10]


def test_odd_rows_are_kept_on_demand(tmp_path: Path) -> None:
    sizes = list(range(1, 9))
    columns = {"gemm_dtype": ["bfloat16"] * 8, "m": sizes, "n": [64] * 8, "k": [32] * 8, "latency": [0.01, 0.09, *[0.01] * 6]}
    path = sweep(tmp_path, **columns)
    assert len(read_gemms(path, "bf16")) == 7
    assert read_gemms(path, "bf16", odd=True).rows.tolist() == sizes


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"gemm_dtype": ["fp8"] * 2}, "has no bfloat16 products with a time; it has fp8"),
        ({"latency": [0.0, 0.0]}, "has no bfloat16 products with a time"),
    ],
)
def test_a_sweep_without_the_type_is_refused(tmp_path: Path, change: dict[str, list[object]], match: str) -> None:
    with pytest.raises(SpecError, match=match):
        read_gemms(sweep(tmp_path, **change), "bf16")


def test_damaged_and_foreign_tables_are_refused(tmp_path: Path) -> None:
    broken = tmp_path / "gemm_perf.parquet"
    broken.write_bytes(b"PAR1")
    with pytest.raises(SpecError, match="give the file as published"):
        read_gemms(broken, "bf16")
    pl.DataFrame({"m": [1]}).write_parquet(broken)
    with pytest.raises(SpecError, match="columns gemm_dtype, n, k, latency are missing"):
        read_gemms(broken, "bf16")
    with pytest.raises(SpecError, match="fp32 is no format of these tables; choose among bf16, fp8, int8, int4"):
        read_gemms(broken, "fp32")
    other = tmp_path / "mlp.csv"
    other.write_text("a\n1\n")
    for read in (read_vidur_gemms, read_vidur_passes):
        with pytest.raises(SpecError, match="give the file as published"):
            read(other)


def vidur(folder: Path, tp: int = 2) -> Path:
    columns: dict[str, list[object]] = {f"time_stats.{name}.median": [0.004, 0.02] for name in VIDUR_TIMES}
    shape = {
        "n_head": 64, "n_kv_head": 8, "n_embd": 8192, "n_expanded_embd": 28672, "use_gated_mlp": True,
        "num_tensor_parallel_workers": tp,
    }  # fmt: skip
    path = folder / "a100" / "Llama-2-70b-hf" / "mlp.csv"
    path.parent.mkdir(parents=True)
    pl.DataFrame({**columns, **{name: [value] * 2 for name, value in shape.items()}, "num_tokens": [1, 128]}).write_csv(path)
    return path


def test_vidur_names_layers_and_this_gives_their_widths(tmp_path: Path) -> None:
    rows = read_vidur_gemms(vidur(tmp_path))
    widths = list(dict.fromkeys(zip(rows.inner.tolist(), rows.outer.tolist(), strict=True)))
    # 64 query heads and 8 + 8 of K and V, 128 wide, over two GPUs; gate and up of 28,672.
    assert widths == [(8192, 4096 + 1024), (4096, 8192), (8192, 28672), (14336, 8192)]
    assert rows.seconds == pytest.approx([4e-6, 2e-5] * 4)
    assert (set(rows.llm.tolist()), rows.dtype) == ({"Llama-2-70b-hf"}, "fp16")


def test_vidur_passes_leave_out_what_the_clock_cannot_resolve(tmp_path: Path) -> None:
    rows = read_vidur_passes(vidur(tmp_path))
    assert rows.tokens.tolist() == [128] * 4
    moved = [2 * 8192, 2 * 8192, 2 * (4096 + 512), 3 * 14336]
    assert rows.moved_bytes == pytest.approx([128 * 2 * each for each in moved])
    assert rows.left_out["times below 5 us, written to the microsecond"] == 4
    both = joined([rows, rows])
    assert (len(both), both.left_out["times below 5 us, written to the microsecond"]) == (8, 8)


def layers(folder: Path) -> Path:
    path = folder / "RTXPRO6000" / "Llama-3.1-8B" / "tp2"
    path.mkdir(parents=True)
    (path / "dense.csv").write_text(
        "layer,tokens,time_us\nqkv_proj,1,20\no_proj,1,10\ngate_up_proj,1,80\ndown_proj,1,40\nlayernorm,16,2.5\nact_fn,16,3\n"
    )
    (path / "per_sequence.csv").write_text("layer,sequences,time_us\nlm_head,4,350\nsampler,4,20\n")
    return path


def test_llmservingsim_widths_come_from_the_llm(tmp_path: Path) -> None:
    llm = catalog.llm("llama-3.1-8b")
    rows = read_llmservingsim_gemms(layers(tmp_path), llm, 2)
    assert list(zip(rows.rows.tolist(), rows.inner.tolist(), rows.outer.tolist(), strict=True)) == [
        (1, 4096, 3072), (1, 2048, 4096), (1, 4096, 14336), (1, 7168, 4096), (4, 4096, 128256 // 2),
    ]  # fmt: skip
    assert rows.seconds == pytest.approx([20e-6, 10e-6, 80e-6, 40e-6, 350e-6])
    passes = read_llmservingsim_passes(tmp_path / "RTXPRO6000" / "Llama-3.1-8B" / "tp2", llm, 2)
    assert passes.moved_bytes.tolist() == [16 * 2 * 4 * 4096, 16 * 2 * 3 * 7168]


def test_llmservingsim_folders_without_layers_are_refused(tmp_path: Path) -> None:
    folder = layers(tmp_path)
    for name in ("dense.csv", "per_sequence.csv"):
        (folder / name).write_text((folder / name).read_text().split("\n")[0] + "\nother,1,1\n".replace("1,1", "1,1.0"))
    llm = catalog.llm("llama-3.1-8b")
    for read in (read_llmservingsim_gemms, read_llmservingsim_passes):
        with pytest.raises(SpecError, match="has none of the layers"):
            read(folder, llm, 2)


def test_published_layer_profiles_are_read(third_party_data: Path) -> None:
    profiles = third_party_data / "profiles"
    a100 = read_vidur_gemms(profiles / "vidur" / "compute" / "a100" / "Llama-2-7b-hf" / "mlp.csv")
    assert len(a100) == 4 * 1044
    assert a100.seconds.min() > 1e-6
    folder = profiles / "llmservingsim" / "RTXPRO6000" / "Llama-3.1-8B" / "tp1"
    rtx = read_llmservingsim_gemms(folder, catalog.llm("llama-3.1-8b"), 1)
    head = rtx.where(rtx.outer == 128256)
    # 1.05 GB of head in 16 bits at 1,597 GB/s (NVIDIA RTX PRO 6000 Server datasheet) take 658 us at least.
    assert head.seconds.min() > 658e-6
