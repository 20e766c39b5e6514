"""The one Parquet schema of workloads: one row per turn.

==============  ============  ====================================================================
column          type          meaning
==============  ============  ====================================================================
conversation    int64         identifier of the conversation; its turns stand together, in order
turn            int32         0, 1, 2, ... within the conversation
arrival_s       float64       arrival of the conversation; null on later turns, and null everywhere
                              where the source has no arrivals
gap_s           float64       from the end of the turn before to this one; null on first turns
new_tokens      int64         tokens that the turn appends to the context
output_tokens   int64         tokens that it generates
prefix_blocks   list[int64]   shared-prefix blocks of its prompt, null where unknown
==============  ============  ====================================================================
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from optsched.domain.workload import Workload
from optsched.errors import SpecError
from optsched.files import write_atomically
from optsched.seal import opened, sealed

if TYPE_CHECKING:
    import polars

Array = np.ndarray
_INTEGERS = ("conversation", "turn", "new_tokens", "output_tokens")
_TIMES = ("arrival_s", "gap_s")
COLUMNS = ("conversation", "turn", "arrival_s", "gap_s", "new_tokens", "output_tokens", "prefix_blocks")


def write_parquet(workload: Workload, path: Path | str) -> None:
    """Write a workload, whole or not at all.

    Raises
    ------
    SpecError
        If the file cannot be written.
    """
    import polars as pl

    first = workload.turn_in_conversation == 0
    arrival = np.where(first, workload.arrival_s[workload.conversation_of_turn], np.nan)
    frame = pl.DataFrame(
        {
            "conversation": workload.conversation_id[workload.conversation_of_turn].astype(np.int64),
            "turn": workload.turn_in_conversation.astype(np.int32),
            "arrival_s": pl.Series(arrival, dtype=pl.Float64),
            "gap_s": pl.Series(np.where(first, np.nan, workload.gap_s), dtype=pl.Float64),
            "new_tokens": workload.new_tokens.astype(np.int64),
            "output_tokens": workload.output_tokens.astype(np.int64),
            "prefix_blocks": _prefix_lists(workload),
        }
    ).with_columns(pl.col("arrival_s", "gap_s").fill_nan(None))
    if not workload.arrivals_known:
        frame = frame.with_columns(pl.lit(None, pl.Float64).alias("arrival_s"))
    content = io.BytesIO()
    frame.select(COLUMNS).write_parquet(content, compression="zstd")
    write_atomically(path, sealed(content.getvalue()))


def _prefix_lists(workload: Workload) -> polars.Series:
    import polars as pl

    dtype = pl.List(pl.Int64)
    if workload.prefix_offset is None or workload.prefix_blocks is None:
        return pl.Series([None] * workload.num_turns, dtype=dtype)
    turn = np.repeat(np.arange(workload.num_turns), np.diff(workload.prefix_offset))
    grouped = pl.DataFrame({"turn": turn, "block": workload.prefix_blocks.astype(np.int64)})
    lists = grouped.group_by("turn", maintain_order=True).agg("block")
    every = pl.DataFrame({"turn": np.arange(workload.num_turns)}).join(lists, on="turn", how="left", maintain_order="left")
    return every["block"].fill_null([]).cast(dtype)


def read_parquet(path: Path | str) -> Workload:
    """Read a workload.

    A file written by `write_parquet` is sealed: any damage is noticed. A damaged file of another writer usually is too.

    Raises
    ------
    SpecError
        If the file is no Parquet file, damaged, or its columns are not those of the schema; with the first wrong row.
    """
    path = Path(path)
    frame = _frame(path)
    columns = {name: frame[name].to_numpy() for name in _INTEGERS}
    arrival, gap = (frame[name].to_numpy() for name in _TIMES)
    first = columns["turn"] == 0
    _check_rows(path, columns, first, arrival, gap)
    starts = np.flatnonzero(first)
    prefix_offset, prefix_blocks = _prefixes(path, frame)
    known = bool(np.isfinite(arrival[starts]).all())
    try:
        return Workload(
            conversation_id=columns["conversation"][starts].astype(np.int64),
            arrival_s=arrival[starts].copy() if known else np.zeros(len(starts)),
            first_turn=np.append(starts, len(first)).astype(np.int64),
            new_tokens=columns["new_tokens"].astype(np.int64),
            output_tokens=columns["output_tokens"].astype(np.int64),
            gap_s=np.where(first, 0.0, gap),
            prefix_offset=prefix_offset,
            prefix_blocks=prefix_blocks,
            arrivals_known=known,
        )
    except SpecError as error:
        raise SpecError(error.reason, file=path) from error


def _frame(path: Path) -> polars.DataFrame:
    """Return the file's columns in the schema's types, null times as NaN."""
    import polars as pl

    content = opened(path)
    try:
        frame = pl.read_parquet(io.BytesIO(content), use_statistics=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SpecError(f"not a readable Parquet file ({reason}); was it cut short?", file=path) from error
    missing = [name for name in COLUMNS[:-1] if name not in frame.columns]
    if missing:
        raise SpecError(f"no column {missing[0]!r}; a workload has {', '.join(COLUMNS)}", file=path)
    if extra := [name for name in frame.columns if name not in COLUMNS]:
        raise SpecError(f"unknown column {extra[0]!r}; a workload has {', '.join(COLUMNS)}", file=path)
    if not frame.height:
        raise SpecError("has no turns; was another file meant?", file=path)
    for name in _INTEGERS:
        if not frame.schema[name].is_integer() or frame[name].null_count():
            raise SpecError(f"{frame.schema[name]}: must be whole numbers without nulls", file=path, field=name)
    for name in _TIMES:
        if not (frame.schema[name].is_numeric() or frame.schema[name] == pl.Null):
            raise SpecError(f"{frame.schema[name]}: must be numbers of seconds", file=path, field=name)
    return frame.with_columns(pl.col(*_TIMES).cast(pl.Float64).fill_null(float("nan")))


def _check_rows(path: Path, columns: dict[str, Array], first: Array, arrival: Array, gap: Array) -> None:
    """Raise for the first row that breaks a rule."""
    turn, conversation = columns["turn"].astype(np.int64), columns["conversation"]
    follows = np.append(False, (turn[1:] == turn[:-1] + 1) & (conversation[1:] == conversation[:-1]))
    known = np.isfinite(arrival[first]).any()
    starts = np.flatnonzero(first)
    late = np.zeros(len(first), dtype=bool)
    if known:
        late[starts[1:]] = arrival[starts[1:]] < arrival[starts[:-1]]
    rules = (
        ("turn", ~(first | follows), "turns of a conversation must stand together and count 0, 1, 2, ..."),
        ("arrival_s", first & known & ~(arrival >= 0), "must be a time on every first turn, or on none"),
        ("arrival_s", late, "conversations must be sorted by arrival"),
        ("arrival_s", ~first & ~np.isnan(arrival), "must be null on later turns"),
        ("gap_s", first & ~np.isnan(gap), "must be null on first turns"),
        ("gap_s", ~first & ~((gap >= 0) & np.isfinite(gap)), "must be a non-negative time on later turns"),
        ("new_tokens", columns["new_tokens"] < first, "must be at least 1 on first turns and 0 on later ones"),
        ("output_tokens", columns["output_tokens"] < 1, "must be at least 1"),
    )
    for name, broken, rule in rules:
        if broken.any():
            row = int(np.argmax(broken))
            value = {**columns, "arrival_s": arrival, "gap_s": gap}[name][row]
            raise SpecError(f"{value:g}: {rule}", file=path, field=f"row {row}: {name}")


def _prefixes(path: Path, frame: polars.DataFrame) -> tuple[Array | None, Array | None]:
    import polars as pl

    if "prefix_blocks" not in frame.columns or frame["prefix_blocks"].null_count() == frame.height:
        return None, None
    column = frame["prefix_blocks"]
    dtype = column.dtype
    if not (isinstance(dtype, pl.List) and (dtype.inner == pl.Null or (dtype.inner is not None and dtype.inner.is_integer()))):
        raise SpecError(f"{dtype}: must be lists of whole numbers", file=path, field="prefix_blocks")
    lists = column.cast(pl.List(pl.Int64)).fill_null([])
    lengths = lists.list.len().to_numpy().astype(np.int64)
    blocks = lists.filter(lists.list.len() > 0).explode()
    if blocks.null_count():
        raise SpecError("null: a block must be a number", file=path, field="prefix_blocks")
    return np.concatenate([[0], np.cumsum(lengths)]), blocks.to_numpy().astype(np.int64)
