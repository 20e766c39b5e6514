"""Read the requests of a real vLLM run as LLMServingSim's ``bench`` logs them (``requests.jsonl``)."""

from __future__ import annotations

from pathlib import Path

from optsched.domain.workload import Workload
from optsched.traces.builder import WorkloadBuilder
from optsched.traces.options import Advance, ImportOptions, silent
from optsched.traces.streams import json_records


def read_vllm_log(path: Path, options: ImportOptions, advance: Advance = silent) -> Workload:
    """Return one conversation of one turn per request, numbered in the order of the file.

    Raises
    ------
    SpecError
        If a line is damaged.
    """
    builder = WorkloadBuilder(path, options)
    for index, record in enumerate(json_records(path, advance)):
        builder.add_request(record, index, record.number("arrival_time", 0), "input_toks", "output_toks")
    return builder.build()
