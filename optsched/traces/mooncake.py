"""Read the Mooncake traces (JSONL; github.com/kvcache-ai/Mooncake, FAST 2025): arrivals, lengths and shared prefixes.

``hash_ids`` name blocks of 512 prompt tokens; equal leading blocks of two requests are equal text. They are kept as prefix
blocks.

References
----------
Qin et al., "Mooncake: Trading More Storage for Less Computation", FAST 2025; arXiv 2407.00079.
"""

from __future__ import annotations

from pathlib import Path

from optsched.domain.workload import Workload
from optsched.traces.builder import WorkloadBuilder
from optsched.traces.options import Advance, ImportOptions, silent
from optsched.traces.streams import json_records

BLOCK_TOKENS = 512
_MS_PER_S = 1e3


def read_mooncake(path: Path, options: ImportOptions, advance: Advance = silent) -> Workload:
    """Return one conversation of one turn per request, numbered in the order of the file, with its prefix blocks.

    Raises
    ------
    SpecError
        If a line is damaged, or has more or fewer blocks than its prompt fills.
    """
    builder = WorkloadBuilder(path, options, prefixes=True)
    for index, record in enumerate(json_records(path, advance)):
        arrival_s = record.number("timestamp", 0) / _MS_PER_S
        blocks = record.integers("hash_ids")
        needed = -(-record.integer("input_length") // BLOCK_TOKENS)
        if len(blocks) != needed:
            raise record.error("hash_ids", f"{len(blocks)} blocks: a prompt of this input_length has {needed} of 512 tokens")
        builder.add_request(record, index, arrival_s, "input_length", "output_length", blocks)
    return builder.build()
