"""How busy this machine is with other work, which calibration and comparison both suffer from."""

from __future__ import annotations

import time
from pathlib import Path

_STAT = Path("/proc/stat")
_SAMPLE_S = 0.5
NOTICEABLE = 0.2
"""Busy cores above which a measurement deserves a warning."""


def busy_cores(stat: Path = _STAT, sample_s: float = _SAMPLE_S) -> float | None:
    """Return how many cores' worth of CPU is in use while this process sleeps; None where the system does not tell.

    Parameters
    ----------
    stat
        Linux's counter file; its first line sums all cores, in hundredths of a second.
    sample_s
        How long to look.
    """
    before = _used(stat)
    time.sleep(sample_s)
    after = _used(stat)
    return None if before is None or after is None else max(0.0, (after - before) / 100 / sample_s)


def warning() -> str | None:
    """Return one line if other work on this machine would blur a measurement, else None."""
    busy = busy_cores()
    if busy is None or busy < NOTICEABLE:
        return None
    return (
        f"Other work keeps {busy:.1f} cores of this machine busy; step times measured now will differ from those on a quiet one."
    )


def _used(stat: Path) -> int | None:
    try:
        name, *fields = stat.read_text(encoding="ascii").splitlines()[0].split()
    except (OSError, IndexError, ValueError):
        return None
    if name != "cpu" or len(fields) < 5:
        return None
    user, nice, system, _idle, _iowait, *rest = (int(field) for field in fields)
    return user + nice + system + sum(rest[:3])
