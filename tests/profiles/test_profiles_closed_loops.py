"""Published servers under closed loops: what is read, what is refused, and how far simulations of them are off."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from optsched.errors import SpecError
from optsched.profiles.closed_loops import ClosedLoop, read_closed_loops

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

ROW = {
    "backend": "vllm", "model_path": "meta-llama/Llama-3.1-70B", "system": "h100_sxm", "precision": "fp8", "mode": "agg",
    "isl": "1024", "osl": "128", "batch_size": "16", "tp_size": "2", "pp_size": "1",
    "silicon_data_source": "source_file=2026-04-06.csv; model=Llama-3.1-70B", "silicon_ttft_ms": "250.0", "silicon_tpot_ms": "20.0",
}  # fmt: skip


def written(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, ROW)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def loops() -> list[ClosedLoop]:
    folder = os.environ.get("OPTSCHED_AICONFIGURATOR")
    if folder is None or not (Path(folder).parent / "silicon_sample.csv").is_file():
        pytest.skip("no silicon_sample.csv; set OPTSCHED_AICONFIGURATOR to aiconfigurator-core's folder systems/data")
    return read_closed_loops(Path(folder).parent / "silicon_sample.csv")[0]


def test_times_are_seconds_and_names_those_of_the_catalogue(tmp_path: Path) -> None:
    (loop,), refused = read_closed_loops(written(tmp_path / "rows.csv", [ROW]))
    assert loop == ClosedLoop("llama-3.1-70b", "h100-sxm", 2, "fp8", "vllm", True, 16, 1024, 128, 0.25, 0.02)
    assert refused == {}


def test_rows_of_other_kinds_are_refused_with_their_reason(tmp_path: Path) -> None:
    others = (
        {"system": "b200_sxm"},
        {"mode": "disagg"},
        {"model_path": "deepseek-ai/DeepSeek-V3"},
        {"pp_size": "2"},
        {"precision": "int4"},
    )
    kept, refused = read_closed_loops(written(tmp_path / "rows.csv", [ROW, *({**ROW, **other} for other in others)]))
    assert len(kept) == 1
    assert refused == {
        "not an H100 or H200": 1,
        "prefill and decode on servers of their own": 1,
        "mixture of experts, or an llm that is not in the catalogue": 1,
        "another engine, data type, or a pipeline": 2,
    }


def test_a_damaged_file_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"give aiconfigurator-core's silicon_sample\.csv"):
        read_closed_loops(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SpecError, match=r"columns backend, .* are missing; give silicon_sample\.csv as published"):
        read_closed_loops(tmp_path / "other.csv")
    for damage in ({"osl": "1"}, {"silicon_ttft_ms": "nan"}, {"isl": ""}):
        with pytest.raises(SpecError, match=r"line 2: .*; give silicon_sample\.csv as published"):
            read_closed_loops(written(tmp_path / "rows.csv", [{**ROW, **damage}]))


def test_servers_whose_settings_are_published_are_foreseen_within_the_limits(loops: list[ClosedLoop]) -> None:
    from accuracy_closed_loops import TPOT_LIMIT, TTFT_LIMIT, errors

    known = [loop for loop in loops if loop.inferencemax and loop.engine == "vllm"]
    assert len(known) == 105
    ttft, tpot = np.abs(errors(known[::7])).mean(axis=0)
    assert ttft <= TTFT_LIMIT
    assert tpot <= TPOT_LIMIT
