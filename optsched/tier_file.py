"""Replace tables of a gpu's TOML file and keep all else as people wrote it, comments included."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping

from pydantic import BaseModel

from optsched.errors import SpecError

_HEADER = re.compile(r"^\s*\[\[?\s*([^\[\]]+?)\s*\]\]?\s*(#.*)?$")
_BARE = re.compile(r"^[A-Za-z0-9_-]+$")
_DIGITS = 6  # of a fitted number: far more than its error


def with_tables(text: str, tables: Mapping[str, BaseModel]) -> str:
    """Return the text of a TOML file with some tables replaced or added.

    Parameters
    ----------
    text
        The file as it stands.
    tables
        Record by dotted name of its table, for example ``efficiency.gemm.bf16``. What the file has in that table and in those
        below it goes; a table that is new stands after the last one that shares its first part.

    Raises
    ------
    SpecError
        If the text is not TOML, or writes one of the tables inline so that no header marks it.
    """
    for name, record in tables.items():
        text = _with_table(text, name, record)
    return text


def _with_table(text: str, name: str, record: BaseModel) -> str:
    lines = text.splitlines()
    headers = _headers(text, lines)
    owned = {line for line, title in headers.items() if title == name or title.startswith(f"{name}.")}
    if not owned and _has(tomllib.loads(text), name):
        raise SpecError(f"[{name}] is written without a header of its own; write it as a table, or remove it", field=name)
    kept: list[str] = []
    place: int | None = None
    for start, end in _sections(headers, lines):
        header = next((line for line in range(start, end) if line in headers), start)
        if header in owned:
            kept += lines[start:header]
            place = len(kept) if place is None else place
            continue
        kept += lines[start:end]
        if not owned and headers.get(header, "").partition(".")[0] == name.partition(".")[0]:
            place = len(kept)
    new = table_text(name, record)
    if place is None:
        place = len(kept)
    before, after = _stripped(kept[:place]), kept[place:]
    while after and not after[0].strip():
        after = after[1:]
    # A comment directly above a replaced table stays directly above it.
    gap = [""] if before and not (place and kept[place - 1].startswith("#")) else []
    return "\n".join([*before, *gap, new, *(["", *after] if after else [])]) + "\n"


def _headers(text: str, lines: list[str]) -> dict[int, str]:
    """Return the name of each table by the number of its header's line.

    Raises
    ------
    SpecError
        If the text is not TOML.
    """
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"not valid TOML: {error}") from error
    found: dict[int, str] = {}
    for number, line in enumerate(lines):
        match = _HEADER.match(line)
        # A line within a multi-line string or array may look like a header; the text before it then does not parse alone.
        if match and _parses("\n".join(lines[:number])):
            found[number] = ".".join(part.strip().strip("\"'") for part in match.group(1).split("."))
    return found


def _parses(text: str) -> bool:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    return True


def _sections(headers: Mapping[int, str], lines: list[str]) -> list[tuple[int, int]]:
    """Return the lines of each table, the comment lines directly above its header included."""
    starts = {0}
    for header in headers:
        start = header
        while start and lines[start - 1].startswith("#"):
            start -= 1
        starts.add(start)
    ordered = sorted(starts)
    return list(zip(ordered, [*ordered[1:], len(lines)], strict=True))


def _stripped(lines: list[str]) -> list[str]:
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    return lines


def _has(data: Mapping[str, object], name: str) -> bool:
    value: object = data
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    return True


def table_text(name: str, record: BaseModel) -> str:
    """Return a record as a TOML table, the records in it as tables below; what is None is left out.

    Parameters
    ----------
    name
        Dotted name of the table.
    record
        Numbers are rounded to six digits.
    """
    data = record.model_dump(mode="json", by_alias=True, exclude_none=True)
    parts = [f"[{name}]", *(f"{_key(key)} = {_value(value)}" for key, value in data.items() if not _is_record(record, key))]
    below = [
        table_text(f"{name}.{_key(key)}", getattr(record, key)) for key in type(record).model_fields if _is_record(record, key)
    ]
    return "\n\n".join(["\n".join(parts), *below])


def _is_record(record: BaseModel, key: str) -> bool:
    return isinstance(getattr(record, key, None), BaseModel)


def _key(key: str) -> str:
    return key if _BARE.match(key) else json.dumps(key, ensure_ascii=False)


def _value(value: object) -> str:
    if isinstance(value, (bool, int)):
        return json.dumps(value)
    if isinstance(value, float):
        return repr(float(f"{value:.{_DIGITS}g}"))
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(str(key))} = {_value(inner)}" for key, inner in value.items()) + " }" if value else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(inner) for inner in value) + "]"
    raise SpecError(f"{value!r} cannot be written to a TOML file")
