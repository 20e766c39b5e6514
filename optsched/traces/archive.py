"""Read the text files of a folder or of a compressed tar archive one after another, without unpacking it to disk."""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from optsched.errors import SpecError
from optsched.files import read_text
from optsched.traces.options import Advance, silent

_MAX_MEMBER_BYTES = 1 << 28


def members(path: Path, pattern: re.Pattern[str], advance: Advance = silent) -> Iterator[tuple[str, str]]:
    """Yield name and text of the files whose name fits.

    Parameters
    ----------
    path
        A folder, searched with its subfolders, or a ``.tar``, ``.tar.gz`` or ``.tgz``.
    pattern
        Searched in each file's name.
    advance
        Told the bytes of the archive, or of the folder's files, that have been read.

    Raises
    ------
    SpecError
        If the archive is damaged, or a file is not UTF-8 or larger than 256 MiB.
    """
    if path.is_dir():
        done = 0
        for file in sorted(path.rglob("*")):
            if file.is_file() and pattern.search(file.name):
                done += file.stat().st_size
                yield file.name, read_text(file)
                advance(done)
        return
    try:
        with path.open("rb") as raw, tarfile.open(fileobj=raw, mode="r|*") as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.isfile() and pattern.search(member.name) else None
                if stream is None:
                    continue
                if member.size > _MAX_MEMBER_BYTES:
                    raise SpecError(f"{member.size} bytes: larger than 256 MiB", file=path, field=member.name)
                yield member.name, stream.read().decode("utf-8")
                advance(raw.tell())
    except FileNotFoundError as error:
        raise SpecError("no such file; check the path", file=path) from error
    except UnicodeDecodeError as error:
        raise SpecError("not UTF-8 text", file=path, field=member.name) from error
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise SpecError(f"not a readable archive: {error}; is it truncated?", file=path) from error
