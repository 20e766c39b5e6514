"""Read the BurstGPT traces (CSV; github.com/HPMLL/BurstGPT), releases 1 and 2.

Failed requests have no response tokens; leave them out with ``drop_empty``, or use the published files without them. Session
ids, where present, are not used: the files do not say whether a request's tokens contain the session's earlier ones, so
that every request stands for itself, as it was billed.

References
----------
Wang et al., "BurstGPT: A Real-world Workload Dataset to Optimize LLM Serving Systems", arXiv 2401.17644.
"""

from __future__ import annotations

from pathlib import Path

from optsched.domain.workload import Workload
from optsched.traces.builder import WorkloadBuilder
from optsched.traces.options import Advance, ImportOptions, silent
from optsched.traces.streams import csv_records

COLUMNS = ("Timestamp", "Model", "Request tokens", "Response tokens")


def read_burstgpt(path: Path, options: ImportOptions, advance: Advance = silent) -> Workload:
    """Return one conversation of one turn per request, numbered in the order of the file.

    Raises
    ------
    SpecError
        If a line is damaged, or a request failed and such ones are not left out.
    """
    builder = WorkloadBuilder(path, options)
    for index, record in enumerate(csv_records(path, COLUMNS, advance)):
        builder.add_request(record, index, record.number("Timestamp", 0), "Request tokens", "Response tokens")
    return builder.build()
