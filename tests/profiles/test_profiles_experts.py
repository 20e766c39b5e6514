"""Tables of routed experts: which rows count, whose weights are in the cache, and how loads were drawn."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from optsched.errors import SpecError
from optsched.profiles import frontier_experts
from optsched.profiles.aiconfigurator_experts import expected_load, read_experts

COLUMNS = (
    "kernel_source", "moe_dtype", "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size",
    "moe_ep_size", "distribution", "latency",
)  # fmt: skip
ROWS = [
    ("triton", "bfloat16", 4, 4096, 14336, 2, 8, 1, 1, "balanced", 1.2),
    ("cutlass", "bfloat16", 4, 4096, 14336, 2, 8, 1, 1, "balanced", 1.1),
    ("triton", "bfloat16", 64, 2688, 1856, 6, 128, 1, 2, "power_law_1.2", 0.8),
    ("triton", "bfloat16", 4, 2048, 768, 8, 128, 32, 1, "balanced", 0.1),
    ("triton", "fp8", 4, 4096, 14336, 2, 8, 1, 1, "balanced", 0.7),
]


def table(folder: Path, rows: list[tuple[object, ...]] | None = None) -> Path:
    path = folder / "vllm" / "1.2.3" / "moe_perf.parquet"
    path.parent.mkdir(parents=True)
    pl.DataFrame(rows or ROWS, schema=list(COLUMNS), orient="row").write_parquet(path)
    return path


def test_the_fastest_kernel_counts_and_narrow_slices_do_not(tmp_path: Path) -> None:
    rows = read_experts(table(tmp_path), "bf16")
    assert rows.seconds.tolist() == pytest.approx([1.1e-3, 0.8e-3])
    assert rows.matrices.tolist() == [3, 2]
    assert rows.touched[0] == 8
    assert rows.rows[0] == 8
    assert rows.left_out == {
        "another data type, or no time": 1,
        "a slower kernel of the same shape": 1,
        "a slice of an expert that is no multiple of 64": 1,
    }
    assert "vllm 1.2.3, bfloat16" in rows.source
    assert rows.keys()[0] == "t4 d4096 f14336 e8 k2 tp1 ep1"


def test_one_kernel_can_be_chosen(tmp_path: Path) -> None:
    rows = read_experts(table(tmp_path), "bf16", kernel="triton")
    assert rows.seconds[0] == pytest.approx(1.2e-3)
    assert rows.left_out["another kernel"] == 1


def test_weights_that_stay_in_the_cache_are_left_out(tmp_path: Path) -> None:
    rows = read_experts(table(tmp_path), "bf16")
    assert len(rows.cold(2.0, 3.35e12, 50e6)) == 2
    warm = rows.cold(2.0, 3.35e12, 10e9)
    assert len(warm) == 0
    assert warm.left_out["weights that fit the cache, measured again and again"] == 2
    # 8 experts of 352 MB in 1.1 ms would take 2.56 TB/s.
    slow = rows.cold(2.0, 2e12, 0.0)
    assert slow.left_out["faster than the weights can be read"] == 1


def test_balanced_loads_are_even_and_a_group_is_never_empty() -> None:
    assert expected_load(16, 128, 8, 4, "balanced") == (32.0, 32.0)
    assert expected_load(1, 256, 8, 64, "balanced") == (0.125, 1.0)


def test_skewed_loads_keep_their_sum_and_overload_the_busiest_group() -> None:
    rows, touched = expected_load(512, 64, 4, 1, "power_law_1.2")
    assert rows == pytest.approx(512 * 4, rel=0.2)  # an expert takes a token at most once
    assert 32 < touched <= 64
    busiest, _ = expected_load(512, 64, 4, 8, "power_law_1.2")
    assert rows / 8 < busiest < rows


def test_wrong_files_types_and_distributions_are_named(tmp_path: Path) -> None:
    path = table(tmp_path)
    with pytest.raises(SpecError, match="data type fp16 has no table of experts; choose among bf16, fp8, int4"):
        read_experts(path, "fp16")
    with pytest.raises(SpecError, match="no rows of int4_wo; the file has bfloat16, fp8"):
        read_experts(path, "int4")
    with pytest.raises(SpecError, match="neither balanced nor power_law_A"):
        expected_load(4, 8, 2, 1, "zipf")
    with pytest.raises(SpecError, match="give the file as published"):
        read_experts(tmp_path / "absent.parquet", "bf16")
    pl.DataFrame({"latency": [1.0]}).write_parquet(tmp_path / "moe_perf.parquet")
    with pytest.raises(SpecError, match=r"columns num_tokens.* are missing; give moe_perf.parquet as published"):
        read_experts(tmp_path / "moe_perf.parquet", "bf16")


FRONTIER = {
    "time_stats.moe_grouped_gemm.median": 0.8, "num_tokens": 64, "num_experts": 128, "num_experts_per_device": 64,
    "expert_parallel_size": 2, "router_topk": 8, "hidden_dim": 2048, "expert_hidden_dim": 768, "use_gated": True,
    "num_tensor_parallel_workers": 4, "total_routed_tokens": 260, "expert_utilization": 0.75, "profiling_precision": "BF16",
    "quant_signature": "none",
}  # fmt: skip


def frontier(folder: Path, *changes: dict[str, object]) -> Path:
    path = folder / "moe.csv"
    pl.DataFrame([{**FRONTIER, **each} for each in changes]).write_csv(path)
    return path


def test_frontier_says_which_pairs_and_experts_each_drawn_routing_had(tmp_path: Path) -> None:
    time = "time_stats.moe_grouped_gemm.median"
    changes = ({}, {time: 0.7}, {"total_routed_tokens": 250, "use_gated": False}, {time: None}, {"quant_signature": "fp8"})
    rows = frontier_experts.read_experts(frontier(tmp_path, *changes))
    assert rows.rows.tolist() == [250, 260]
    assert rows.touched.tolist() == [48, 48]
    assert rows.matrices.tolist() == [2, 3]
    assert rows.seconds.tolist() == pytest.approx([0.8e-3, 0.7e-3])
    assert rows.keys()[1] == "t64 d2048 f768 e128 k8 tp4 ep2"
    assert rows.left_out == {"quantised, or no time": 2, "a slower run of the same shape": 1}


def test_frontier_files_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="profiling_precision must be one of BF16, FP16 throughout; split the file"):
        frontier_experts.read_experts(frontier(tmp_path, {}, {"profiling_precision": "FP32"}))
    (tmp_path / "moe.csv").write_text("num_tokens\n1\n")
    with pytest.raises(SpecError, match=r"columns time_stats.* are missing; give moe.csv as published"):
        frontier_experts.read_experts(tmp_path / "moe.csv")
    with pytest.raises(SpecError, match=r"give the file as published"):
        frontier_experts.read_experts(tmp_path / "absent.csv")


def test_the_published_profile_of_frontier_is_read_whole(third_party_data: Path) -> None:
    path = third_party_data / "profiles" / "frontier" / "a800" / "qwen3-a3b-30b-moe" / "moe.csv"
    if not path.is_file():
        pytest.skip(f"no {path}")
    rows = frontier_experts.read_experts(path)
    assert len(rows) + sum(rows.left_out.values()) == 8665
    assert set(rows.tp.tolist()) == set(rows.groups.tolist()) == {1, 2, 4, 8}
    assert (rows.touched <= rows.rows).all()
    assert (rows.touched <= 128 / rows.groups).all()
