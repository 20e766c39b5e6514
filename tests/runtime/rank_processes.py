"""The processes of a replica's other ranks; import as ``from rank_processes import ...``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path


def ranks_of(worker: int) -> list[int]:
    """Return the processes that a worker started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == worker:
            found.append(int(status.parent.name))
    return found


def ended(processes: Sequence[int], patience_s: float) -> bool:
    """Tell whether processes end within so long; one whose end nobody has asked for yet has ended, too."""
    deadline_s = time.monotonic() + patience_s
    while any(_state(process) not in ("", "Z") for process in processes):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    return True


def _state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
