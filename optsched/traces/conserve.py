"""Read ConServe's per-turn token trace of SWE-bench agent conversations (CSV; github.com/jerryding95/conserve).

References
----------
ConServe, arXiv 2606.01839; the file is ``paper/figures/section3/output/trace_profile_summary.csv`` of its artifact.
"""

from __future__ import annotations

from pathlib import Path

from optsched.domain.workload import Workload
from optsched.traces.builder import Turn, WorkloadBuilder
from optsched.traces.options import Advance, ImportOptions, silent
from optsched.traces.records import Record
from optsched.traces.streams import csv_records

COLUMNS = ("conv_id", "iter_id", "appended_input", "total_input", "out_token_size", "carried_over")


def read_conserve(path: Path, options: ImportOptions, advance: Advance = silent) -> Workload:
    """Return the conversations under their own numbers, turn by turn; the trace has neither arrivals nor tool times.

    Raises
    ------
    SpecError
        If a line is damaged, turns are not in order, or the carried-over context is not what the turns before left.
    """
    builder = WorkloadBuilder(path, options, arrivals_known=False)
    conversation, context = -1, 0
    turns: list[Turn] = []
    seen: set[int] = set()
    for record in csv_records(path, COLUMNS, advance):
        current = record.integer("conv_id")
        if current != conversation:
            if current in seen:
                raise record.error("conv_id", f"{current}: the turns of a conversation must stand together; sort the file")
            if turns:
                builder.add(conversation, 0.0, turns)
            conversation, context, turns = current, 0, []
            seen.add(current)
        turn = _turn(record, len(turns), context)
        context += turn[0] + turn[1]
        turns.append(turn)
    if turns:
        builder.add(conversation, 0.0, turns)
    return builder.build()


def _turn(record: Record, index: int, context: int) -> Turn:
    expected = (("iter_id", index, "turns count from 0"), ("carried_over", context, "that is what the turns before left"))
    for field, value, why in expected:
        if record.integer(field) != value:
            raise record.error(field, f"{record.integer(field)}: must be {value}; {why}")
    new = record.integer("appended_input", 0 if index else 1)
    if record.integer("total_input") != context + new:
        raise record.error(
            "total_input", f"{record.integer('total_input')}: must be carried_over + appended_input, {context + new}"
        )
    return new, record.integer("out_token_size", 1), 0.0
