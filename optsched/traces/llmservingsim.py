"""Read LLMServingSim's workloads (JSONL; github.com/casys-kaist/LLMServingSim): requests, and agent sessions of several calls.

A request has ``input_toks``, ``output_toks`` and ``arrival_time_ns``. A session has ``arrival_time_ns`` and ``sub_requests``,
each with its whole prompt's ``input_toks``, ``output_toks`` and the ``tool_duration_ns`` before the next call. Both may stand
in one file. Token ids, where given, are not read.
"""

from __future__ import annotations

from pathlib import Path

from optsched.domain.workload import Workload
from optsched.traces.builder import Turn, WorkloadBuilder
from optsched.traces.options import Advance, ImportOptions, silent
from optsched.traces.records import Record
from optsched.traces.streams import json_records

_NS_PER_S = 1e9


def read_llmservingsim(path: Path, options: ImportOptions, advance: Advance = silent) -> Workload:
    """Return one conversation per line, numbered in the order of the file.

    Raises
    ------
    SpecError
        If a line is damaged.
    """
    builder = WorkloadBuilder(path, options)
    for index, record in enumerate(json_records(path, advance)):
        arrival_s = record.number("arrival_time_ns", 0) / _NS_PER_S
        if "sub_requests" not in record.values:
            builder.add_request(record, index, arrival_s, "input_toks", "output_toks")
            continue
        turns = _session(record)
        if turns:
            builder.add(index, arrival_s, turns)
        elif not options.drop_empty:
            raise record.error("sub_requests", "no calls; fix the record, or leave such sessions out with --drop-empty")
    return builder.build()


def _session(record: Record) -> list[Turn]:
    """Return a session's turns.

    A call's prompt is the whole context; what it appends is what exceeds the context so far. Agents that shorten their
    history send less than that: such a call appends one token, the least that makes it a call.
    """
    turns: list[Turn] = []
    context, gap_s = 0, 0.0
    for call in record.objects("sub_requests"):
        new = max(call.integer("input_toks", 1) - context, 1)
        output = call.integer("output_toks", 1)
        turns.append((new, output, gap_s))
        context += new + output
        gap_s = call.number("tool_duration_ns", 0) / _NS_PER_S if "tool_duration_ns" in call.values else 0.0
    return turns
