"""Write a folder of files, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from optsched.errors import SpecError


def check_folder(path: Path) -> None:
    """Refuse a place that is taken, before anything is computed.

    Raises
    ------
    SpecError
        If there is a file, or a folder with something in it, or nowhere to put it.
    """
    if path.is_dir() and any(path.iterdir()):
        raise SpecError("the folder is not empty, and nothing of it is overwritten; empty it or choose another --out", file=path)
    if path.exists() and not path.is_dir():
        raise SpecError("there is a file of this name; choose another --out", file=path)
    if not path.absolute().parent.is_dir():
        raise SpecError("the folder that it is to be in does not exist; make it, or choose another --out", file=path)


def write_folder(path: Path, contents: Mapping[str, str]) -> None:
    """Write files into a new folder; scripts may be executed.

    Parameters
    ----------
    path
        Absent, or an empty folder.
    contents
        Text by relative path.

    Raises
    ------
    SpecError
        If the place is taken or cannot be written; nothing is left behind then.
    """
    check_folder(path)
    try:
        temporary = Path(tempfile.mkdtemp(dir=path.absolute().parent, prefix=f".{path.name}."))
        try:
            os.umask(mask := os.umask(0))
            temporary.chmod(0o777 & ~mask)  # mkdtemp's own mode is for its owner alone
            for name, content in contents.items():
                file = temporary / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(content, encoding="utf-8")
                if name.endswith(".sh"):
                    file.chmod(0o777 & ~mask)
            temporary.replace(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise SpecError(f"cannot be written: {error.strerror}; choose another --out", file=path) from error
