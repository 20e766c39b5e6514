"""Read and write the project's files: TOML for people, JSON envelopes for machines; errors name file and field."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from optsched.domain.plan import Plan, PlanSet
from optsched.errors import PlanError, SpecError, UnknownNameError

VERSION = 1
RecordT = TypeVar("RecordT", bound=BaseModel)


def read_text(path: Path | str) -> str:
    """Return a file's text.

    Raises
    ------
    SpecError
        If the file is absent, a folder, unreadable or not UTF-8.
    """
    path = Path(path)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SpecError("no such file; check the path", file=path) from error
    except UnicodeDecodeError as error:
        raise SpecError(f"not a UTF-8 text file (byte {error.start}); was another file meant?", file=path) from error
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror}", file=path) from error


def validate(record: type[RecordT], data: object, file: Path | str | None = None) -> RecordT:
    """Turn plain data into a record.

    Raises
    ------
    SpecError
        With the first offending field's dotted path, value and rule.
    """
    try:
        return record.model_validate(data)
    except ValidationError as error:
        raise spec_error(error, file) from error


def spec_error(error: ValidationError, file: Path | str | None = None) -> SpecError:
    """Turn pydantic's report into one line about its first finding."""
    details = error.errors(include_url=False)
    # A misspelt key is also a missing one; name the spelling first.
    first = min(details, key=lambda detail: detail["type"] != "extra_forbidden")
    field = ".".join(str(part) for part in first["loc"]) or None
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        missing = [str(detail["loc"][-1]) for detail in details if detail["type"] == "missing"]
        near = get_close_matches(str(first["loc"][-1]), missing, n=1)
        reason = f"unknown key; did you mean {near[0]!r}?" if near else "unknown key; check its spelling, or remove it"
    elif first["type"] == "missing":
        reason = "missing; add it"
    elif not isinstance(first["input"], (dict, list)) and not reason.startswith(repr(first["input"])):
        reason = f"{first['input']!r}: {reason[0].lower()}{reason[1:]}"
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return SpecError(f"{reason}{more}", file=file, field=field)


def read_toml(path: Path | str) -> dict[str, Any]:
    """Parse a TOML file.

    Raises
    ------
    SpecError
        If it is unreadable or not TOML.
    """
    try:
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"not valid TOML: {error}", file=path) from error


def read_json(path: Path | str) -> Any:
    """Parse a JSON file; NaN and infinities are refused.

    Raises
    ------
    SpecError
        If it is unreadable, truncated or not JSON.
    """

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not a number")

    try:
        return json.loads(read_text(path), parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise SpecError(
            f"not valid JSON: {error.msg} at column {error.colno}; is the file truncated?",
            file=path,
            field=f"line {error.lineno}",
        ) from error
    except ValueError as error:
        raise SpecError(f"not valid JSON: {error}", file=path) from error


def open_envelope(data: object, kind: str, file: Path | str | None = None) -> dict[str, Any]:
    """Check ``schema`` and ``version`` of a file's data and return the rest.

    Raises
    ------
    SpecError
        If the data are not a table, of another kind, or of another version.
    """
    if not isinstance(data, dict):
        raise SpecError(f"expected an object with schema 'optsched/{kind}', got {type(data).__name__}", file=file)
    schema, version = data.get("schema"), data.get("version")
    if schema != f"optsched/{kind}":
        raise SpecError(f"{schema!r}: expected 'optsched/{kind}'; was another file meant?", file=file, field="schema")
    if version != VERSION:
        raise SpecError(f"{version!r}: this optsched reads version {VERSION}", file=file, field="version")
    return {key: value for key, value in data.items() if key not in ("schema", "version")}


def load(record: type[RecordT], kind: str, path: Path | str) -> RecordT:
    """Read a TOML or JSON file (by its suffix) of one kind into a record.

    Raises
    ------
    SpecError
        If anything about the file is wrong.
    """
    path = Path(path)
    data = read_json(path) if path.suffix == ".json" else read_toml(path)
    return validate(record, open_envelope(data, kind, path), path)


def load_plan(path: Path | str) -> Plan:
    """Read a plan file and have it refereed; ``FILE#NAME`` is one of the plans of a set.

    Raises
    ------
    SpecError
        If anything about the file is wrong, or it holds several plans and none is named.
    UnknownNameError
        If it holds no plan of that name.
    PlanError
        If the plan contradicts itself.
    """
    file, _, name = str(path).partition("#")
    plans = load_plans(file)
    if name and name not in plans:
        raise UnknownNameError("plan", name, [each for each in plans if each], f"Plans of {file}.")
    if len(plans) > 1 and not name:
        first = next(iter(plans))
        raise SpecError(f"holds the plans {', '.join(plans)}; name one, as in '{file}#{first}'", file=file)
    return plans[name or next(iter(plans))]


def load_plans(path: Path | str) -> dict[str, Plan]:
    """Read the plans of a plan file (its one plan under an empty name) or of a set, and have them refereed.

    Raises
    ------
    SpecError
        If anything about the file is wrong.
    PlanError
        If a plan contradicts itself.
    """
    data = read_json(path)
    if isinstance(data, dict) and data.get("schema") == "optsched/plan-set":
        plans = {each.name: each.plan for each in validate(PlanSet, open_envelope(data, "plan-set", path), path).plans}
    else:
        plans = {"": validate(Plan, open_envelope(data, "plan", path), path)}
    for plan in plans.values():
        if broken := plan.violations():
            raise PlanError(broken)
    return plans


def dump(record: BaseModel, kind: str) -> dict[str, Any]:
    """Return a record as plain data in its envelope."""
    body = record.model_dump(mode="json", by_alias=True, exclude_none=False)
    return {"schema": f"optsched/{kind}", "version": VERSION, **body}


def save(record: BaseModel, kind: str, path: Path | str) -> None:
    """Write a record as a JSON file, whole or not at all."""
    write_atomically(path, (json.dumps(dump(record, kind), indent=1) + "\n").encode())


def write_atomically(path: Path | str, content: bytes) -> None:
    """Write a file so that readers see the old content or the new, never half of it.

    Raises
    ------
    SpecError
        If the folder does not exist or cannot be written.
    """
    path = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
            os.umask(mask := os.umask(0))
            Path(temporary).chmod(0o666 & ~mask)  # mkstemp's own mode is for its owner alone
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise SpecError(f"cannot be written: {error.strerror}; choose another --out", file=path) from error


def sha256_of(path: Path | str) -> str:
    """Return the SHA-256 of a file's bytes.

    Raises
    ------
    SpecError
        If it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    except FileNotFoundError as error:
        raise SpecError("no such file; check the path", file=path) from error
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror}", file=path) from error
    return digest.hexdigest()


def canonical_sha256(record: BaseModel) -> str:
    """Return the SHA-256 of a record's canonical JSON (sorted keys, no spaces)."""
    data = record.model_dump(mode="json", by_alias=True)
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
