"""Seal Parquet files with their own hash, so that a damaged one is refused before it is decoded.

The Parquet reader of polars trusts the sizes that it finds in page headers: one flipped bit may have it ask for 2**61 bytes,
and the process ends without an exception that could be caught. A seal stands between the last page and the footer, where no
offset of the format points to, so that every Parquet reader still reads a sealed file.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from optsched.errors import SpecError

_MAGIC = b"PAR1"
_MARK = b"optsched-sha256:"
_SEAL_BYTES = len(_MARK) + hashlib.sha256().digest_size


def sealed(content: bytes) -> bytes:
    """Return a Parquet file's bytes with a seal over them.

    Parameters
    ----------
    content
        A whole and undamaged Parquet file.
    """
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    return content[:footer] + _MARK + hashlib.sha256(content).digest() + content[footer:]


def opened(path: Path) -> bytes:
    """Return the bytes of a Parquet file whose seal is whole; files of other writers need none.

    Raises
    ------
    SpecError
        If it cannot be read, is no Parquet file or was cut short, or its content is not the one that was sealed.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise SpecError("no such file; check the path", file=path) from error
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror}", file=path) from error
    if not (content.startswith(_MAGIC) and content.endswith(_MAGIC) and len(content) > 2 * len(_MAGIC)):
        raise SpecError("not a whole Parquet file; was it cut short?", file=path)
    place = content.rfind(_MARK)
    if place >= 0:
        view = memoryview(content)
        digest = hashlib.sha256(view[:place])
        digest.update(view[place + _SEAL_BYTES :])
        if digest.digest() != content[place + len(_MARK) : place + _SEAL_BYTES]:
            raise SpecError("damaged: its content is not what was written; write or copy it again", file=path)
    return content
