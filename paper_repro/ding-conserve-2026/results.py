"""Tables of figures as CSV files, and the stamp that says what made them."""

from __future__ import annotations

import csv
import io
import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from optsched import __version__
from optsched.files import sha256_of, write_atomically

from .measure import Row, Tables
from .settings import HERE, Settings


def save(tables: Tables, folder: Path) -> None:
    """Write each table to ``NAME.csv``; figures are rounded to five digits, columns are those of all rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        if not rows:
            continue
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{x:.5g}" if isinstance(x, float) else x for key, x in row.items()} for row in rows)
        write_atomically(folder / f"{name}.csv", text.getvalue().encode())


def load(folder: Path) -> Tables:
    """Read the tables of a folder; figures become floats."""

    def value(text: str) -> str | float:
        try:
            return float(text)
        except ValueError:
            return text

    tables: Tables = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            rows: list[Row] = [{key: value(text) for key, text in row.items()} for row in csv.DictReader(file)]
        tables[path.stem] = rows
    return tables


def stamp(folder: Path, settings: Settings, wall_s: float, cpu_s: float, smoke: bool) -> None:
    """Write ``stamp.json``: commit, versions, source of the conversations, seeds, the configuration's hash and the time taken."""
    content = {
        "optsched": __version__,
        "commit": _commit(),
        "config_sha256": sha256_of(HERE / "config.toml"),
        "expected_sha256": sha256_of(HERE / "expected.toml"),
        "source": settings.recipe if settings.trace is None else Path(settings.trace).name,
        "source_sha256": None if settings.trace is None else sha256_of(Path(settings.trace)),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numpy", "numba", "scipy", "jax")},
        "seeds": list(settings.seeds),
        "conversations": settings.conversations,
        "smoke": smoke,
        "wall_s": round(wall_s, 1),
        "cpu_s": round(cpu_s, 1),
    }
    write_atomically(folder / "stamp.json", (json.dumps(content, indent=1) + "\n").encode())


def _commit() -> str:
    """Return the checkout's commit, marked if it has changes; ``installed`` outside a checkout."""
    if not (HERE.parents[1] / ".git").exists():
        return "installed"
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "installed"
    return done.stdout.strip() or "installed"
