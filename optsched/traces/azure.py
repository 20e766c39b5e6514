"""Read the Azure LLM inference traces of 2023 and 2024 (CSV; github.com/Azure/AzurePublicDataset).

References
----------
Patel et al., "Splitwise", arXiv 2311.18677 (2023 traces); Stojkovic et al., "DynamoLLM", arXiv 2408.00741 (2024 traces).
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from optsched.domain.workload import Workload
from optsched.traces.builder import WorkloadBuilder
from optsched.traces.options import Advance, ImportOptions, silent
from optsched.traces.records import Record
from optsched.traces.streams import csv_records

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read_azure(path: Path, options: ImportOptions, advance: Advance = silent) -> Workload:
    """Return one conversation of one turn per request, numbered in the order of the file.

    Raises
    ------
    SpecError
        If a line is damaged.
    """
    builder = WorkloadBuilder(path, options)
    origin: datetime | None = None
    for index, record in enumerate(csv_records(path, COLUMNS, advance)):
        time = _timestamp(record)
        origin = origin or time
        builder.add_request(record, index, (time - origin).total_seconds(), "ContextTokens", "GeneratedTokens")
    return builder.build()


def _timestamp(record: Record) -> datetime:
    text = str(record.get("TIMESTAMP"))
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise record.error("TIMESTAMP", f"{text!r}: must be a time like 2023-11-16 18:17:03.979; fix the record") from error
    # The 2023 files name no zone and the 2024 ones +00:00.
    return time if time.tzinfo else time.replace(tzinfo=UTC)
