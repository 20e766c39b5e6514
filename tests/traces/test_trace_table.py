from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import workloads

from optsched.domain.workload import Workload
from optsched.errors import SpecError
from optsched.traces.table import COLUMNS, read_parquet, write_parquet

ROWS = {
    "conversation": [7, 7, 3],
    "turn": [0, 1, 0],
    "arrival_s": [0.0, None, 1.5],
    "gap_s": [None, 0.25, None],
    "new_tokens": [100, 0, 50],
    "output_tokens": [10, 20, 30],
    "prefix_blocks": [[1, 2], [], None],
}


def _file(path: Path, **columns: object) -> Path:
    frame = pl.DataFrame({name: values for name, values in {**ROWS, **columns}.items() if values is not None}, strict=False)
    frame.write_parquet(path)
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(workload=workloads())
def test_reading_what_was_written_gives_the_same_workload(workload: Workload, tmp_path: Path) -> None:
    write_parquet(workload, tmp_path / "w.parquet")
    assert read_parquet(tmp_path / "w.parquet") == workload


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(workload=workloads())
def test_a_workload_without_arrivals_stays_without(workload: Workload, tmp_path: Path) -> None:
    silent = Workload(
        workload.conversation_id, np.zeros(workload.num_conversations), workload.first_turn, workload.new_tokens,
        workload.output_tokens, workload.gap_s, workload.prefix_offset, workload.prefix_blocks, arrivals_known=False,
    )  # fmt: skip
    write_parquet(silent, tmp_path / "w.parquet")
    assert pl.read_parquet(tmp_path / "w.parquet")["arrival_s"].null_count() == silent.num_turns
    assert read_parquet(tmp_path / "w.parquet") == silent


def test_the_columns_have_the_documented_types(tmp_path: Path) -> None:
    write_parquet(read_parquet(_file(tmp_path / "w.parquet")), tmp_path / "v.parquet")
    assert dict(pl.read_parquet_schema(tmp_path / "v.parquet")) == {
        "conversation": pl.Int64,
        "turn": pl.Int32,
        "arrival_s": pl.Float64,
        "gap_s": pl.Float64,
        "new_tokens": pl.Int64,
        "output_tokens": pl.Int64,
        "prefix_blocks": pl.List(pl.Int64),
    }


def test_files_of_other_writers_may_leave_prefixes_out_and_use_other_integer_widths(tmp_path: Path) -> None:
    path = _file(tmp_path / "w.parquet", prefix_blocks=None)
    pl.read_parquet(path).with_columns(pl.col("turn").cast(pl.UInt8)).write_parquet(path)
    workload = read_parquet(path)
    assert workload.prefix_blocks is None
    assert workload.first_turn.tolist() == [0, 2, 3]
    assert workload.conversation_id.tolist() == [7, 3]
    assert workload.gap_s.tolist() == [0.0, 0.25, 0.0]


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"turn": None}, r"no column 'turn'; a workload has conversation, turn"),
        ({"extra": [1, 2, 3]}, r"unknown column 'extra'"),
        ({"turn": [0, 2, 0]}, r"row 1: turn: 2: turns of a conversation must stand together"),
        ({"turn": [1, 2, 0]}, r"row 0: turn"),
        ({"conversation": [7, 8, 3]}, r"row 1: turn: 1: turns of a conversation"),
        ({"turn": ["a", "b", "c"]}, r"turn: String: must be whole numbers"),
        ({"new_tokens": [1, None, 2]}, r"new_tokens: Int64: must be whole numbers without nulls"),
        ({"new_tokens": [0, 1, 2]}, r"row 0: new_tokens: 0: must be at least 1 on first turns"),
        ({"new_tokens": [1, -1, 2]}, r"row 1: new_tokens: -1"),
        ({"output_tokens": [1, 1, 0]}, r"row 2: output_tokens: 0: must be at least 1"),
        ({"arrival_s": [0.0, 0.5, 1.5]}, r"row 1: arrival_s: 0.5: must be null on later turns"),
        ({"arrival_s": [0.0, None, None]}, r"row 2: arrival_s: nan: must be a time on every first turn, or on none"),
        ({"arrival_s": [2.0, None, 1.0]}, r"row 2: arrival_s: 1: conversations must be sorted by arrival"),
        ({"arrival_s": [-1.0, None, 1.0]}, r"row 0: arrival_s: -1: must be a time"),
        ({"arrival_s": [float("inf"), None, 1.0]}, r"arrival"),
        ({"gap_s": [0.0, 0.25, None]}, r"row 0: gap_s: 0: must be null on first turns"),
        ({"gap_s": [None, None, None]}, r"row 1: gap_s: nan: must be a non-negative time on later turns"),
        ({"gap_s": [None, -1.0, None]}, r"row 1: gap_s: -1"),
        ({"gap_s": ["a", "b", "c"]}, r"gap_s: String: must be numbers of seconds"),
        ({"prefix_blocks": [["a"], [], []]}, r"prefix_blocks: List\(String\): must be lists of whole numbers"),
        ({"prefix_blocks": [[1, None], [], []]}, r"prefix_blocks: null: a block must be a number"),
    ],
)
def test_a_wrong_column_or_row_is_named(columns: dict[str, object], match: str, tmp_path: Path) -> None:
    path = _file(tmp_path / "w.parquet", **columns)
    with pytest.raises(SpecError, match=match) as caught:
        read_parquet(path)
    assert str(path) in str(caught.value)


def test_a_missing_or_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no such file"):
        read_parquet(tmp_path / "w.parquet")
    path = _file(tmp_path / "w.parquet")
    pl.read_parquet(path).head(0).write_parquet(path)
    with pytest.raises(SpecError, match=r"has no turns"):
        read_parquet(path)
    (tmp_path / "t.parquet").write_text("a,b\n1,2\n")
    with pytest.raises(SpecError, match=r"not a readable Parquet file"):
        read_parquet(tmp_path / "t.parquet")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(share=st.floats(0, 0.999), data=st.data())
def test_a_file_cut_short_or_with_a_flipped_byte_never_ends_in_a_traceback(
    share: float, data: st.DataObject, tmp_path: Path
) -> None:
    content = io.BytesIO()
    pl.DataFrame(ROWS, strict=False).select(COLUMNS).write_parquet(content)
    whole = content.getvalue()
    path = tmp_path / "w.parquet"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(SpecError) as caught:
        read_parquet(path)
    assert "\n" not in str(caught.value)
    place = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :])
    with suppress(SpecError):
        assert read_parquet(path).num_turns > 0


def test_writing_into_a_missing_folder_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    workload = read_parquet(_file(tmp_path / "w.parquet"))
    with pytest.raises(SpecError, match=r"cannot be written"):
        write_parquet(workload, tmp_path / "nowhere" / "w.parquet")
    assert [file.name for file in tmp_path.iterdir()] == ["w.parquet"]
