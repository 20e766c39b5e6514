from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import workloads

from optsched.domain.workload import Workload
from optsched.errors import SpecError
from optsched.traces.table import read_parquet, write_parquet

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
    with pytest.raises(SpecError, match=r"not a whole Parquet file; was it cut short"):
        read_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nothing of the kind PAR1")
    with pytest.raises(SpecError, match=r"not a readable Parquet file"):
        read_parquet(tmp_path / "t.parquet")
    with pytest.raises(SpecError, match=r"cannot be read: Is a directory"):
        read_parquet(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(share=st.floats(0, 0.999), flips=st.lists(st.tuples(st.floats(0, 0.9999), st.integers(1, 255)), min_size=1, max_size=3))
def test_a_damaged_file_is_refused_in_one_line_or_reads_as_it_was(
    share: float, flips: list[tuple[float, int]], tmp_path: Path
) -> None:
    path = _file(tmp_path / "w.parquet")
    workload = read_parquet(path)
    write_parquet(workload, path)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    for share_of_place, mask in flips:
        place = int(share_of_place * len(whole))
        # Without its mark a seal protects nothing, and decoding a damaged page may end the process.
        damaged[place] ^= 0 if 0 <= place - whole.find(b"optsched-sha256:") < 16 else mask
    for content in (whole[: int(share * len(whole))], bytes(damaged)):
        path.write_bytes(content)
        try:
            found = read_parquet(path)
        except SpecError as error:
            found, lines = workload, str(error).count("\n")
            assert lines == 0
        assert found == workload


def test_every_single_flipped_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = _file(tmp_path / "w.parquet")
    workload = read_parquet(path)
    write_parquet(workload, path)
    whole = path.read_bytes()
    harmless = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            assert read_parquet(path) == workload
            harmless += 1
        except SpecError:
            pass
    assert harmless == len(b"optsched-sha256:")  # a seal that is not recognised leaves the rest as it was


def test_sealed_files_are_ordinary_parquet_to_other_readers(tmp_path: Path) -> None:
    write_parquet(read_parquet(_file(tmp_path / "w.parquet")), tmp_path / "v.parquet")
    assert pl.read_parquet(tmp_path / "v.parquet")["new_tokens"].to_list() == [100, 0, 50]
    pyarrow = pytest.importorskip("pyarrow.parquet")
    assert pyarrow.read_table(tmp_path / "v.parquet").column("new_tokens").to_pylist() == [100, 0, 50]


def test_writing_into_a_missing_folder_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    workload = read_parquet(_file(tmp_path / "w.parquet"))
    with pytest.raises(SpecError, match=r"cannot be written"):
        write_parquet(workload, tmp_path / "nowhere" / "w.parquet")
    assert [file.name for file in tmp_path.iterdir()] == ["w.parquet"]
