"""Read CSV and JSON records one by one, so that a file of any size needs little memory and an error names its line."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NoReturn

from optsched.errors import SpecError
from optsched.traces.options import Advance, silent
from optsched.traces.records import Record, short

_MAX_RECORD_BYTES = 1 << 26
_CHUNK_BYTES = 1 << 20
_OPENING_BYTES = 1 << 12
_REPORT_EVERY = 4096


def opening(path: Path) -> str:
    """Return the first characters of a file, without leading white space.

    Raises
    ------
    SpecError
        If the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return stream.read(_OPENING_BYTES).decode("utf-8-sig", errors="replace").lstrip()
    except FileNotFoundError as error:
        raise SpecError("no such file; check the path", file=path) from error
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror}", file=path) from error


def lines(path: Path, advance: Advance = silent) -> Generator[tuple[int, str], None, None]:
    """Yield the number and the text of each line, without its end.

    Raises
    ------
    SpecError
        If the file cannot be read, is not UTF-8, or has a line of more than 64 MiB.
    """
    try:
        with path.open("rb") as stream:
            number, done = 0, 0
            while raw := stream.readline(_MAX_RECORD_BYTES):
                number += 1
                done += len(raw)
                if len(raw) == _MAX_RECORD_BYTES:
                    raise SpecError("longer than 64 MiB; was another file meant?", file=path, field=f"line {number}")
                if number % _REPORT_EVERY == 0:
                    advance(done)
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            advance(done)
    except FileNotFoundError as error:
        raise SpecError("no such file; check the path", file=path) from error
    except UnicodeDecodeError as error:
        raise SpecError("not UTF-8 text; was another file meant?", file=path, field=f"line {number}") from error
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror}", file=path) from error


def csv_records(path: Path, columns: Sequence[str], advance: Advance = silent) -> Iterator[Record]:
    """Yield the rows of a CSV file with a header.

    Parameters
    ----------
    path
        The file.
    columns
        Columns that the header must have; others are kept too.
    advance
        Told the bytes read.

    Raises
    ------
    SpecError
        If the header lacks a column, or a row has another number of cells.
    """
    with closing(lines(path, advance)) as source:
        reader = csv.reader(text for _, text in source)
        try:
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in columns if name not in header]
            if missing:
                raise SpecError(f"no column {missing[0]!r}; this format has {', '.join(columns)}", file=path, field="line 1")
            for row in reader:
                place = f"line {reader.line_num}"
                if not row:
                    continue
                if len(row) != len(header):
                    reason = f"{len(row)} cells where the header has {len(header)}; is the file truncated?"
                    raise SpecError(reason, file=path, field=place)
                yield Record(path, place, dict(zip(header, row, strict=True)))
        except csv.Error as error:
            raise SpecError(f"not valid CSV: {error}", file=path, field=f"line {reader.line_num}") from error


def json_records(path: Path, advance: Advance = silent) -> Iterator[Record]:
    """Yield the objects of a file: one JSON object per line, or one JSON array of objects.

    Raises
    ------
    SpecError
        If a line or an entry is no JSON object.
    """
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    if opening(path).startswith("["):
        yield from _array_records(path, decoder, advance)
        return
    with closing(lines(path, advance)) as source:
        for number, text in source:
            if not text.strip():
                continue
            place = f"line {number}"
            try:
                value = decoder.decode(text)
            except (ValueError, RecursionError) as error:
                raise _json_error(error, path, place) from error
            yield _object(path, place, value)


def _array_records(path: Path, decoder: json.JSONDecoder, advance: Advance) -> Iterator[Record]:
    """Yield the entries of one JSON array, reading only as far ahead as the entry at hand needs."""
    chunks = _Chunks(path, advance)
    buffer, count = chunks.more().lstrip()[1:].lstrip(), 0
    while True:
        place = f"record {count + 1}"
        if buffer.startswith("]"):
            if (buffer[1:] + chunks.more()).strip():
                raise SpecError("text after the end of the array; was another file meant?", file=path, field=place)
            return
        try:
            value, end = decoder.raw_decode(buffer)
        except (ValueError, RecursionError) as error:
            more = "" if len(buffer) > _MAX_RECORD_BYTES else chunks.more(len(buffer))
            if not more:
                raise _json_error(error, path, place) from error
            buffer = (buffer + more).lstrip()
            continue
        count += 1
        yield _object(path, place, value)
        buffer = buffer[end:].lstrip() or chunks.more().lstrip()
        if buffer.startswith(","):
            buffer = buffer[1:].lstrip()
        elif not buffer.startswith("]"):
            raise SpecError("no ',' or ']' after the entry; is the file truncated?", file=path, field=place)


class _Chunks:
    """The text of a file, piece by piece."""

    def __init__(self, path: Path, advance: Advance) -> None:
        self._path, self._advance, self._done = path, advance, 0
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()

    def more(self, at_least: int = 0) -> str:
        """Return the next piece, empty at the end of the file."""
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._done)
                raw = stream.read(max(_CHUNK_BYTES, at_least))
        except OSError as error:
            raise SpecError(f"cannot be read: {error.strerror}", file=self._path) from error
        self._done += len(raw)
        self._advance(self._done)
        try:
            return self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            raise SpecError("not UTF-8 text; was another file meant?", file=self._path) from error


def _object(path: Path, place: str, value: object) -> Record:
    if not isinstance(value, dict):
        raise SpecError(f"{short(value)}: must be a JSON object", file=path, field=place)
    return Record(path, place, value)


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")


def _json_error(error: Exception, path: Path, place: str) -> SpecError:
    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    return SpecError(f"not valid JSON: {reason}; is the file truncated?", file=path, field=place)
