"""Tell the formats of traces apart and read any of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from optsched.domain.workload import Workload
from optsched.errors import SpecError, UnknownNameError
from optsched.traces.azure import read_azure
from optsched.traces.burstgpt import read_burstgpt
from optsched.traces.conserve import read_conserve
from optsched.traces.llmservingsim import read_llmservingsim
from optsched.traces.mooncake import read_mooncake
from optsched.traces.openai import read_openai
from optsched.traces.options import Advance, ImportOptions, silent
from optsched.traces.servegen import read_servegen
from optsched.traces.sharegpt import read_sharegpt
from optsched.traces.streams import json_records, opening
from optsched.traces.table import read_parquet
from optsched.traces.vllm_log import read_vllm_log


class Importer(Protocol):
    """Read a trace of one format."""

    def __call__(self, path: Path, options: ImportOptions, advance: Advance = silent) -> Workload:
        """Return the trace's conversations, sorted by arrival from 0 on."""
        ...


def _read_own(path: Path, options: ImportOptions, advance: Advance = silent) -> Workload:
    return read_parquet(path)


FORMATS: Mapping[str, Importer] = {
    "azure": read_azure,
    "burstgpt": read_burstgpt,
    "conserve": read_conserve,
    "llmservingsim": read_llmservingsim,
    "mooncake": read_mooncake,
    "openai": read_openai,
    "parquet": _read_own,
    "servegen": read_servegen,
    "sharegpt": read_sharegpt,
    "vllm-log": read_vllm_log,
}

_ARCHIVES = (".tar", ".tar.gz", ".tgz")
_CSV_MARKS = {"ContextTokens": "azure", "appended_input": "conserve", "Request tokens": "burstgpt"}
_JSON_MARKS = {
    "hash_ids": "mooncake",
    "sub_requests": "llmservingsim",
    "arrival_time_ns": "llmservingsim",
    "input_toks": "vllm-log",
    "conversations": "sharegpt",
    "messages": "openai",
}


def detect_format(path: Path) -> str:
    """Return the format of a trace, told by its suffix or by its first record.

    Raises
    ------
    SpecError
        If it cannot be read or looks like none of the formats.
    """
    if path.suffix == ".parquet":
        return "parquet"
    if path.is_dir() or path.name.endswith(_ARCHIVES):
        return "servegen"
    head = opening(path)
    if head.startswith(("{", "[")):
        record = next(json_records(path), None)
        keys = record.values if record is not None else {}
        found = next((name for mark, name in _JSON_MARKS.items() if mark in keys), None)
    else:
        header = [name.strip() for name in head.split("\n", 1)[0].split(",")]
        found = next((name for mark, name in _CSV_MARKS.items() if mark in header), None)
    if found is None:
        raise SpecError(f"looks like none of the formats {', '.join(FORMATS)}; name one with --format", file=path)
    return found


def import_trace(
    path: Path | str, format: str | None = None, options: ImportOptions | None = None, advance: Advance = silent
) -> Workload:
    """Read a trace of any format.

    Parameters
    ----------
    path
        The file; a folder or archive for ``servegen``.
    format
        One of `FORMATS`; None: told by the file.
    options
        What the format needs to know besides.
    advance
        Told the bytes read.

    Returns
    -------
    Workload
        Sorted by arrival from 0 on; where the source has no arrivals, `Workload.arrivals_known` is false and all are 0.

    Raises
    ------
    UnknownNameError
        If there is no such format.
    SpecError
        If a line is damaged; the error names it.
    """
    path = Path(path)
    if format is not None and format not in FORMATS:
        raise UnknownNameError("trace format", format, FORMATS, "Leave --format out to have it told by the file.")
    name = detect_format(path) if format is None else format
    return FORMATS[name](path, options or ImportOptions(), advance)
