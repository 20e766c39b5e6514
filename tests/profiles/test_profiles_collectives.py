"""Tables of collectives: units, which rows count, and what is said of wrong files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from optsched.errors import SpecError
from optsched.profiles.aiconfigurator_collectives import read_engine_all_reduce, read_nccl
from optsched.profiles.rows import joined
from optsched.profiles.vidur_network import read_vidur_network


def engine_table(path: Path) -> Path:
    rows = {
        "op_name": ["all_reduce"] * 4,
        "kernel_source": ["vLLM_custom_graph", "vLLM_custom_eager", "vLLM_custom_graph", "vLLM_custom_graph"],
        "allreduce_dtype": ["bfloat16"] * 4,
        "num_gpus": [2, 2, 2, 4],
        "message_size": [1024, 1024, 1024, 2048],
        "latency": [0.005, 0.02, 0.006, 0.007],
    }
    file = path / "vllm" / "0.24.0" / "custom_allreduce_perf.parquet"
    file.parent.mkdir(parents=True)
    pl.DataFrame(rows).write_parquet(file)
    return file


def test_sizes_are_elements_and_the_fastest_captured_kernel_counts(tmp_path: Path) -> None:
    rows = read_engine_all_reduce(engine_table(tmp_path))
    assert rows.num_bytes.tolist() == [2048.0, 4096.0]
    assert rows.seconds == pytest.approx([5e-6, 7e-6])
    assert rows.gpus.tolist() == [2, 4]
    assert rows.left_out == {"launched outside a CUDA graph": 1, "a slower kernel of the same shape": 1}
    assert "vllm 0.24.0" in rows.source
    assert rows.keys() == ["all_reduce p2 nodes1 2048", "all_reduce p4 nodes1 4096"]


def test_nccl_gives_what_engines_do_not_replace(tmp_path: Path) -> None:
    rows = {
        "op_name": ["all_reduce", "alltoall", "all_gather", "all_gather"],
        "kernel_source": ["NCCL"] * 4,
        "nccl_dtype": ["half", "half", "half", "int8"],
        "num_gpus": [8] * 4,
        "message_size": [256] * 4,
        "latency": [0.01] * 4,
    }
    pl.DataFrame(rows).write_parquet(tmp_path / "nccl_perf.parquet")
    found = read_nccl(tmp_path / "nccl_perf.parquet")
    assert found.kind.tolist() == ["all_gather", "all_to_all"]
    assert found.num_bytes.tolist() == [512.0, 512.0]
    assert found.left_out == {"8-bit integers": 1, "NCCL's own all-reduce": 1}


def test_vidur_gives_the_quickest_run_and_how_many_nodes_it_spans(tmp_path: Path) -> None:
    header = "time_stats.all_reduce.min,time_stats.all_reduce.median,num_workers,size,collective,devices_per_node"
    (tmp_path / "all_reduce.csv").write_text(
        f"{header}\n0.05,0.06,8,2048,all_reduce,4\n0.04,0.09,8,2048,all_reduce,4\n0.01,0.02,2,2048,all_reduce,2\n"
    )
    rows = read_vidur_network(tmp_path / "all_reduce.csv")
    assert rows.gpus.tolist() == [2, 8]
    assert rows.nodes.tolist() == [1, 2]
    assert rows.seconds == pytest.approx([1e-5, 4e-5])
    assert rows.left_out == {"a slower run of the same shape": 1}


def test_tables_are_joined_with_their_sources_and_counts(tmp_path: Path) -> None:
    rows = read_engine_all_reduce(engine_table(tmp_path))
    both = joined([rows, rows.where(rows.gpus == 2)])
    assert len(both) == 3
    assert both.source == rows.source
    assert both.left_out["launched outside a CUDA graph"] == 2
    with pytest.raises(SpecError, match="at least one table"):
        joined([])


def test_a_file_that_is_no_such_table_is_named(tmp_path: Path) -> None:
    pl.DataFrame({"latency": [1.0]}).write_parquet(tmp_path / "nccl_perf.parquet")
    with pytest.raises(SpecError, match=r"columns nccl_dtype.* are missing; give nccl_perf.parquet as published"):
        read_nccl(tmp_path / "nccl_perf.parquet")
    (tmp_path / "empty.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SpecError, match="collective is none of all_reduce, send_recv"):
        read_vidur_network(tmp_path / "empty.csv")
    with pytest.raises(SpecError, match="give the file as published"):
        read_engine_all_reduce(tmp_path / "absent.parquet")


def test_an_unknown_kind_or_data_type_is_named(tmp_path: Path) -> None:
    file = engine_table(tmp_path)
    pl.read_parquet(file).with_columns(allreduce_dtype=pl.lit("fp3")).write_parquet(file)
    with pytest.raises(SpecError, match="allreduce_dtype 'fp3' is none of half, bfloat16"):
        read_engine_all_reduce(file)


def test_the_published_network_profiles_have_seven_groups_of_a100(third_party_data: Path) -> None:
    rows = read_vidur_network(third_party_data / "profiles/vidur/network/a100_dgx/all_reduce.csv")
    groups = {(int(gpus), int(nodes)) for gpus, nodes in zip(rows.gpus, rows.nodes, strict=True)}
    assert groups == {(2, 1), (4, 1), (8, 1), (2, 2), (4, 2), (8, 2), (16, 2)}
    # 64 MiB between the GPUs of one node, at most the 300 GB/s of NVLink 3 in one direction.
    largest = (rows.num_bytes == 2**26) & (rows.gpus == 8) & (rows.nodes == 1)
    assert np.all(2 * 7 / 8 * 2**26 / rows.seconds[largest] < 300e9)
