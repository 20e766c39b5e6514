"""What made the tables of a results folder: ``stamp.json``."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from optsched import __version__
from optsched.files import sha256_of, write_atomically

LIBRARIES = ("numpy", "numba", "scipy", "jax")


def stamp(
    folder: Path,
    paper: Path,
    facts: Mapping[str, str | float | Sequence[int] | None],
    *,
    wall_s: float,
    cpu_s: float,
    smoke: bool,
) -> None:
    """Write commit, versions, the configuration's hashes, a paper's own facts and the time taken.

    Parameters
    ----------
    folder
        Where the tables are.
    paper
        Folder of ``config.toml`` and ``expected.toml``.
    facts
        What else the figures depend on: seeds, sizes, sources.
    wall_s, cpu_s
        Time taken.
    smoke
        Whether the figures mean nothing.
    """
    content = {
        "optsched": __version__,
        "commit": _commit(paper),
        "config_sha256": sha256_of(paper / "config.toml"),
        "expected_sha256": sha256_of(paper / "expected.toml"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
        **facts,
        "smoke": smoke,
        "wall_s": round(wall_s, 1),
        "cpu_s": round(cpu_s, 1),
    }
    write_atomically(folder / "stamp.json", (json.dumps(content, indent=1) + "\n").encode())


def _commit(folder: Path) -> str:
    """Return the checkout's commit, marked if it has changes; ``installed`` outside a checkout."""
    if not (folder.parents[1] / ".git").exists():
        return "installed"
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "installed"
    return done.stdout.strip() or "installed"
