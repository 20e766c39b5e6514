"""Read OpenAI-style dialogues: one object per line with ``messages``, a list of ``{"role": ..., "content": ...}``.

Content is a text, a list of parts of which the texts count, or null where the llm calls tools: then the names and arguments
of its ``tool_calls`` are what it wrote.
"""

from __future__ import annotations

from pathlib import Path

from optsched.domain.workload import Workload
from optsched.traces.builder import WorkloadBuilder
from optsched.traces.options import Advance, ImportOptions, silent
from optsched.traces.records import Record
from optsched.traces.streams import json_records
from optsched.traces.tokens import ROLES, dialogue_turns, is_known_role, token_counter


def read_openai(path: Path, options: ImportOptions, advance: Advance = silent) -> Workload:
    """Return one conversation per dialogue, numbered in the order of the file; there are no arrivals.

    Raises
    ------
    SpecError
        If a dialogue is damaged, or nothing says how to count tokens.
    """
    count = token_counter(options, path)
    builder = WorkloadBuilder(path, options, arrivals_known=False)
    for index, record in enumerate(json_records(path, advance)):
        messages = [_message(message) for message in record.objects("messages")]
        builder.add_dialogue(record, index, dialogue_turns(messages, count))
    return builder.build()


def _message(message: Record) -> tuple[str, str]:
    role = message.get("role")
    if not is_known_role(role):
        raise message.error("role", f"{role!r}: unknown role; there are {', '.join(ROLES)}")
    return str(role), _content(message) + _tool_calls(message)


def _content(message: Record) -> str:
    content = message.values.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise message.error("content", f"{type(content).__name__}: must be a text, a list of parts, or null")
    parts = (part.values.get("text", "") for part in message.objects("content"))
    return "".join(text for text in parts if isinstance(text, str))


def _tool_calls(message: Record) -> str:
    if message.values.get("tool_calls") is None:
        return ""
    texts: list[str] = []
    for call in message.objects("tool_calls"):
        function = call.values.get("function")
        if not isinstance(function, dict):
            raise call.error("function", "missing; a tool call names a function and its arguments")
        texts.extend(str(function.get(key, "")) for key in ("name", "arguments"))
    return "".join(texts)
