"""Sample a workload from ServeGen's client data (github.com/alibaba/ServeGen): a folder or .tar.gz of two files per client.

``chunk-N-trace.csv`` has no header; its columns are the start of a window (s), the client's request rate in it (1/s), the
coefficient of variation of its gaps, the name of the gap distribution (Gamma or Weibull; empty: no requests) and that
distribution's shape and scale. ``chunk-N-dataset.json`` has, by the start of a stretch of the day, histograms of input and
output lengths, each a dictionary written as text.

Unlike the original generator, input and output lengths are drawn independently (it draws both from one random number, which
makes the longest prompts get the longest answers), and a window's requests number its rate times its length on average
(it rounds up and drops the last).

References
----------
Xiang et al., "ServeGen: Workload Characterization and Generation of Large Language Model Serving in Production", NSDI 2026.
"""

from __future__ import annotations

import ast
import csv
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64

from optsched.domain.workload import Workload
from optsched.errors import SpecError
from optsched.traces.archive import members
from optsched.traces.options import Advance, ImportOptions, silent
from optsched.traces.records import Record

Array = np.ndarray
_NAME = re.compile(r"chunk-(\d+)-(trace\.csv|dataset\.json)$")
_COLUMNS = ("start", "rate", "cv", "pattern", "shape", "scale")
_LAST_WINDOW_S = 600.0


@dataclass(frozen=True, slots=True)
class _Window:
    start_s: float
    end_s: float
    rate_per_s: float
    pattern: Literal["Gamma", "Weibull"]
    shape: float


@dataclass(frozen=True, slots=True)
class _Histogram:
    """Lengths and the cumulative shares of requests up to each."""

    tokens: Int64[Array, " B"]
    cumulative: Float64[Array, " B"]

    def sample(self, count: int, generator: np.random.Generator) -> Int64[Array, " N"]:
        index = np.searchsorted(self.cumulative, generator.random(count), side="right")
        return np.asarray(np.maximum(self.tokens[np.minimum(index, len(self.tokens) - 1)], 1))


@dataclass(slots=True)
class _Client:
    windows: list[_Window] = field(default_factory=list)
    lengths: dict[float, tuple[_Histogram, _Histogram]] = field(default_factory=dict)


def read_servegen(path: Path, options: ImportOptions, advance: Advance = silent) -> Workload:
    """Return requests of one stretch of the day, drawn client by client and window by window.

    Parameters
    ----------
    path
        The folder or archive.
    options
        `seed`, `window_s`, and `rate_per_s` (None: the published rates) of what is drawn.
    advance
        Told the bytes read.

    Raises
    ------
    SpecError
        If a file is damaged, a client lacks one of its two files, or no client sends anything in the window.
    """
    clients = _read_clients(path, advance)
    start, end = options.window_s
    expected = sum(
        w.rate_per_s * max(0.0, min(w.end_s, end) - max(w.start_s, start)) for c in clients.values() for w in c.windows
    )
    if not expected:
        raise SpecError(f"no client sends a request between {start:g} s and {end:g} s; choose another --window", file=path)
    scale = 1.0 if options.rate_per_s is None else options.rate_per_s * (end - start) / expected
    drawn = [_draw(client, number, options, scale) for number, client in sorted(clients.items())]
    times, new, output = (np.concatenate([part[column] for part in drawn]) for column in range(3))
    if not len(times):
        raise SpecError("the window is so short that no request was drawn; widen --window, or raise --rate", file=path)
    order = np.argsort(times, kind="stable")
    count = len(order)
    return Workload(
        conversation_id=np.arange(count),
        arrival_s=times[order] - times[order[0]],
        first_turn=np.arange(count + 1),
        new_tokens=new[order].astype(np.int64),
        output_tokens=output[order].astype(np.int64),
        gap_s=np.zeros(count),
    )


def _draw(
    client: _Client, number: int, options: ImportOptions, scale: float
) -> tuple[Float64[Array, " N"], Int64[Array, " N"], Int64[Array, " N"]]:
    # A stream of its own per client: leaving one out leaves the others' requests as they are.
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(options.seed, spawn_key=(number,))))
    times, new, output = [np.empty(0)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for window in client.windows:
        start, end = max(window.start_s, options.window_s[0]), min(window.end_s, options.window_s[1])
        if start >= end or not window.rate_per_s:
            continue
        # Rounding up with the chance of the remainder keeps the mean number exact.
        count = int(window.rate_per_s * scale * (end - start) + generator.random())
        shape = window.shape
        gaps = generator.gamma(shape, size=count + 1) if window.pattern == "Gamma" else generator.weibull(shape, size=count + 1)
        cumulative = np.cumsum(gaps)
        prompts, answers = client.lengths[max((t for t in client.lengths if t <= window.start_s), default=min(client.lengths))]
        times.append(start + (end - start) * cumulative[:-1] / max(cumulative[-1], np.finfo(float).tiny))
        new.append(prompts.sample(count, generator))
        output.append(answers.sample(count, generator))
    return np.concatenate(times), np.concatenate(new), np.concatenate(output)


def _read_clients(path: Path, advance: Advance) -> dict[int, _Client]:
    clients: dict[int, _Client] = {}
    for name, content in members(path, _NAME, advance):
        found = _NAME.search(name)
        if found is None:
            continue
        client = clients.setdefault(int(found[1]), _Client())
        if found[2] == "trace.csv":
            client.windows = _windows(path, found[0], content)
        else:
            client.lengths = _lengths(path, found[0], content)
    if not clients:
        raise SpecError("has no chunk-N-trace.csv and chunk-N-dataset.json; was another folder or archive meant?", file=path)
    for number, client in clients.items():
        if not client.windows:
            raise SpecError("missing or empty; is the archive complete?", file=path, field=f"chunk-{number}-trace.csv")
        if not client.lengths and any(window.rate_per_s for window in client.windows):
            reason = "missing or without histograms, but the client sends requests; is the archive complete?"
            raise SpecError(reason, file=path, field=f"chunk-{number}-dataset.json")
    return clients


def _windows(path: Path, name: str, content: str) -> list[_Window]:
    records = []
    for line, row in enumerate(csv.reader(content.splitlines()), start=1):
        if len(row) != len(_COLUMNS):
            raise SpecError(f"{len(row)} cells: must be {', '.join(_COLUMNS)}", file=path, field=f"{name}: line {line}")
        records.append(Record(path, f"{name}: line {line}", dict(zip(_COLUMNS, row, strict=True))))
    starts = [record.number("start", 0) for record in records]
    windows = []
    for index, record in enumerate(records):
        start = starts[index]
        if index and start <= starts[index - 1]:
            raise record.error("start", f"{start:g}: must come after the window before")
        end = starts[index + 1] if index + 1 < len(starts) else start + (start - starts[index - 1] if index else _LAST_WINDOW_S)
        windows.append(_window(record, start, end))
    return windows


def _window(record: Record, start_s: float, end_s: float) -> _Window:
    pattern = record.get("pattern")
    if not pattern:
        return _Window(start_s, end_s, 0.0, "Gamma", 1.0)
    if pattern not in ("Gamma", "Weibull"):
        raise record.error("pattern", f"{pattern!r}: must be Gamma, Weibull or empty")
    shape = record.number("shape", 0)
    if not shape:
        raise record.error("shape", "0: the shape of a gap distribution must be positive")
    return _Window(start_s, end_s, record.number("rate", 0), "Gamma" if pattern == "Gamma" else "Weibull", shape)


def _lengths(path: Path, name: str, content: str) -> dict[float, tuple[_Histogram, _Histogram]]:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"not valid JSON: {error}; is the archive truncated?", file=path, field=name) from error
    if not isinstance(data, dict):
        raise SpecError("must be an object of histograms by start time", file=path, field=name)
    lengths = {}
    for start, fields in data.items():
        if not start.isdecimal() or not isinstance(fields, dict):
            raise SpecError("must be the start of a stretch in seconds, with an object", file=path, field=f"{name}: {start}")
        record = Record(path, f"{name}: {start}", fields)
        prompts, answers = _histogram(record, "input_tokens"), _histogram(record, "output_tokens")
        if prompts is not None and answers is not None:
            lengths[float(start)] = (prompts, answers)
    return lengths


def _histogram(record: Record, name: str) -> _Histogram | None:
    text = record.get(name)
    try:
        shares = ast.literal_eval(str(text))
        items = sorted((int(tokens), float(share)) for tokens, share in shares.items())
    except (ValueError, TypeError, AttributeError, SyntaxError, MemoryError, RecursionError) as error:
        raise record.error(name, "must be a dictionary of token counts and shares, written as text") from error
    if not items:
        return None
    tokens, share = np.array([item[0] for item in items], np.int64), np.array([item[1] for item in items])
    if tokens[0] < 0 or not np.isfinite(share).all() or share.min() < 0 or not share.sum() > 0:
        raise record.error(name, "token counts and shares must not be negative, and not all shares 0")
    return _Histogram(tokens, np.cumsum(share) / share.sum())
