"""Read ShareGPT-style dialogues, JSON array or JSONL: ``conversations`` is a list of ``{"from": ..., "value": ...}``."""

from __future__ import annotations

from pathlib import Path

from optsched.domain.workload import Workload
from optsched.traces.builder import WorkloadBuilder
from optsched.traces.options import Advance, ImportOptions, silent
from optsched.traces.records import Record
from optsched.traces.streams import json_records
from optsched.traces.tokens import ROLES, dialogue_turns, is_known_role, token_counter


def read_sharegpt(path: Path, options: ImportOptions, advance: Advance = silent) -> Workload:
    """Return one conversation per dialogue, numbered in the order of the file; there are no arrivals.

    Raises
    ------
    SpecError
        If a dialogue is damaged, or nothing says how to count tokens.
    """
    count = token_counter(options, path)
    builder = WorkloadBuilder(path, options, arrivals_known=False)
    for index, record in enumerate(json_records(path, advance)):
        messages = [_message(message) for message in record.objects("conversations")]
        builder.add_dialogue(record, index, dialogue_turns(messages, count))
    return builder.build()


def _message(message: Record) -> tuple[str, str]:
    role, text = message.get("from"), message.get("value")
    if not is_known_role(role):
        raise message.error("from", f"{role!r}: unknown speaker; there are {', '.join(ROLES)}")
    if not isinstance(text, str):
        raise message.error("value", f"{type(text).__name__}: must be a text")
    return str(role), text
