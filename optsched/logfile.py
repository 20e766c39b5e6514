"""Write an execution log as one Parquet file, and read it back.

One row per turn, step, transfer or event (column ``kind``); columns that do not apply are null. The file's metadata hold
the log's scalars and its plan.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optsched.domain.log import Event, ExecutionLog, Steps, Transfers
from optsched.domain.plan import Plan
from optsched.domain.workload import Workload
from optsched.errors import SpecError
from optsched.files import dump, open_envelope, validate, write_atomically
from optsched.seal import opened, sealed

if TYPE_CHECKING:
    import polars

SCHEMA = "optsched/log"
_TURN_FIELDS = (
    "arrival_s", "start_s", "first_token_s", "end_s", "prefill_replica", "decode_replica", "queue_s", "admission_s",
)  # fmt: skip
_STEP_FIELDS = tuple(Steps.__dataclass_fields__)
_TRANSFER_FIELDS = tuple(Transfers.__dataclass_fields__)


def save_log(log: ExecutionLog, workload: Workload, path: Path | str, plan: Plan | None = None) -> None:
    """Write a log, whole or not at all.

    Parameters
    ----------
    log, workload
        What happened, and what was to be executed.
    path
        A ``.parquet`` file.
    plan
        The plan that was executed, kept in the file's metadata.

    Raises
    ------
    SpecError
        If the file cannot be written, or the execution did not keep its tokens' times.
    """
    import polars as pl

    if log.token_s is None:
        raise SpecError("the execution kept no times of tokens, so that no log can be written; simulate it with record_tokens")
    tokens = np.split(log.token_s, np.cumsum(workload.output_tokens)[:-1])
    turns = pl.DataFrame(
        {
            "kind": "turn",
            "conversation": workload.conversation_of_turn,
            "turn": workload.turn_in_conversation,
            "new_tokens": workload.new_tokens,
            "output_tokens": workload.output_tokens,
            **{name: getattr(log, name) for name in _TURN_FIELDS},
            "token_s": pl.Series(tokens, dtype=pl.List(pl.Float64)),
        }
    )
    steps = pl.DataFrame({"kind": ["step"] * log.iterations, **{name: getattr(log.steps, name) for name in _STEP_FIELDS}})
    moves = {name: getattr(log.transfers, name) for name in _TRANSFER_FIELDS}
    transfers = pl.DataFrame({"kind": ["transfer"] * len(log.transfers.start_s), **moves})
    events = pl.DataFrame(
        {
            "kind": ["event"] * len(log.events),
            "start_s": pl.Series([event.time_s for event in log.events], dtype=pl.Float64),
            "event": pl.Series([event.kind for event in log.events], dtype=pl.String),
            "conversation": pl.Series([event.conversation for event in log.events], dtype=pl.Int64),
            "replica": pl.Series([event.replica for event in log.events], dtype=pl.Int64),
            "detail": pl.Series([event.detail for event in log.events], dtype=pl.String),
        }
    )
    frames = [turns, *(frame for frame in (steps, transfers, events) if frame.height)]
    facts: dict[str, Any] = {
        "schema": SCHEMA, "version": 1, "origin": log.origin, "preemptions": log.preemptions,
            "reused_tokens": log.reused_tokens, "seed": log.seed,
        "dynamic_j": None if log.dynamic_j is None else log.dynamic_j.tolist(), "metadata": log.metadata,
        "plan": None if plan is None else dump(plan, "plan"),
    }  # fmt: skip
    buffer = io.BytesIO()
    pl.concat(frames, how="diagonal").write_parquet(buffer, metadata={"optsched": json.dumps(facts)})
    write_atomically(path, sealed(buffer.getvalue()))


def load_log(path: Path | str) -> tuple[ExecutionLog, Plan | None]:
    """Read a log and the plan that was executed, if the file names it.

    Raises
    ------
    SpecError
        If the file is absent, damaged or no optsched log.
    """
    path = Path(path)
    table, facts = _read(path)
    return _log_of(table, _turns_of(table), facts), _plan_of(facts, path)


def load_logged(path: Path | str) -> tuple[ExecutionLog, Plan | None, Workload]:
    """Read a log, its plan, and the conversations that were executed, as the log's own turns tell them.

    Gaps are those that passed between a turn's end and the next one's arrival; prompts that shared blocks are not told. What
    never arrived since the execution was cut short counts as arriving with what came last.

    Raises
    ------
    SpecError
        If the file is absent, damaged or no optsched log.
    """
    path = Path(path)
    table, facts = _read(path)
    turns = _turns_of(table)
    log = _log_of(table, turns, facts)
    first = np.flatnonzero(turns["turn"].to_numpy() == 0)
    gap_s = np.zeros(turns.height)
    gap_s[1:] = log.arrival_s[1:] - log.end_s[:-1]
    gap_s[first] = 0.0
    workload = Workload(
        conversation_id=np.arange(len(first)),
        arrival_s=np.maximum.accumulate(np.nan_to_num(np.maximum(log.arrival_s[first], 0.0))),
        first_turn=np.append(first, turns.height).astype(np.int64),
        new_tokens=turns["new_tokens"].to_numpy().astype(np.int64),
        output_tokens=turns["output_tokens"].to_numpy().astype(np.int64),
        gap_s=np.nan_to_num(np.maximum(gap_s, 0.0)),
    )
    return log, _plan_of(facts, path), workload


def _read(path: Path) -> tuple[polars.DataFrame, dict[str, Any]]:
    import polars as pl

    content = opened(path)
    try:
        facts = json.loads(pl.read_parquet_metadata(io.BytesIO(content))["optsched"])
        return pl.read_parquet(io.BytesIO(content)), facts
    except (pl.exceptions.PolarsError, OSError) as error:
        raise SpecError("not a readable Parquet file; is it truncated?", file=path) from error
    except (KeyError, ValueError) as error:
        raise SpecError("a Parquet file, but no optsched log; was another file meant?", file=path) from error


def _turns_of(table: polars.DataFrame) -> polars.DataFrame:
    import polars as pl

    return table.filter(pl.col("kind") == "turn")


def _plan_of(facts: dict[str, Any], path: Path) -> Plan | None:
    return None if facts["plan"] is None else validate(Plan, open_envelope(facts["plan"], "plan", path), path)


def _log_of(table: polars.DataFrame, turns: polars.DataFrame, facts: dict[str, Any]) -> ExecutionLog:
    import polars as pl

    def rows(kind: str, names: tuple[str, ...], record: type[Any]) -> Any:
        part = table.filter(pl.col("kind") == kind)
        # A file without rows of a kind has no such columns, and one of an earlier version not all of them.
        types = record.__annotations__
        columns = {
            name: part[name].to_numpy().astype(np.float64 if "Float64" in str(types[name]) else np.int64)
            if name in part.columns
            else np.zeros(part.height, np.float64 if "Float64" in str(types[name]) else np.int64)
            for name in names
        }
        return record(**columns)

    integers = {"prefill_replica", "decode_replica"}
    fields: dict[str, Any] = {
        name: turns[name].to_numpy().astype(np.int64 if name in integers else np.float64) for name in _TURN_FIELDS
    }
    events = table.filter(pl.col("kind") == "event")
    found = () if not events.height else tuple(
        Event(row["start_s"], row["event"], row["conversation"], row["replica"], row["detail"])
        for row in events.iter_rows(named=True)
    )  # fmt: skip
    return ExecutionLog(
        origin=facts["origin"],
        **fields,
        token_s=turns["token_s"].explode().to_numpy().astype(np.float64),
        steps=rows("step", _STEP_FIELDS, Steps),
        transfers=rows("transfer", _TRANSFER_FIELDS, Transfers),
        dynamic_j=None if facts["dynamic_j"] is None else np.asarray(facts["dynamic_j"], float),
        events=found,
        preemptions=facts["preemptions"],
        reused_tokens=facts["reused_tokens"],
        seed=facts["seed"],
        metadata=facts["metadata"],
    )
