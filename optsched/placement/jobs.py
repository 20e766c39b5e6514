"""How many jobs must be late on so many machines, whoever schedules them: a relaxation to one fast machine."""

from __future__ import annotations

import heapq

import numpy as np
from jaxtyping import Float64

from optsched.compiled import kernel

Array = np.ndarray
SLACK = 1e-9
"""Relative slack on due dates: rounding must never make a job late that is on time."""


@kernel
def _late_from(
    start_s: float, release: Float64[Array, " n"], due: Float64[Array, " n"], work: Float64[Array, " n"],
    later: Float64[Array, " n"], unfinished: int, speed: float,
) -> int:  # fmt: skip
    kept, open_work = [0.0], [0.0]
    kept.pop()
    open_work.pop()
    load, credit, late = 0.0, 0.0, 0
    for job in range(len(due)):
        if release[job] < start_s:
            continue
        heapq.heappush(kept, -(work[job] + later[job]))
        load += work[job] + later[job]
        heapq.heappush(open_work, later[job])
        credit += later[job]
        if len(open_work) > unfinished:
            credit -= heapq.heappop(open_work)
        if start_s + (load - credit) / speed > due[job] + SLACK * (1.0 + abs(due[job])):
            load += heapq.heappop(kept)
            late += 1
    return late


@kernel
def _most_late(
    starts_s: Float64[Array, " m"], release: Float64[Array, " n"], due: Float64[Array, " n"], work: Float64[Array, " n"],
    later: Float64[Array, " n"], unfinished: int, speed: float,
) -> int:  # fmt: skip
    most = 0
    for start_s in starts_s:
        most = max(most, _late_from(start_s, release, due, work, later, unfinished, speed))
    return most


def least_late(
    release: Float64[Array, " n"],
    due: Float64[Array, " n"],
    work: Float64[Array, " n"],
    speed: float,
    *,
    later: Float64[Array, " n"] | None = None,
    unfinished: int = 0,
    starts: int = 64,
) -> int:
    """Return a lower bound on the number of jobs that reach their goal after it is due.

    Parameters
    ----------
    release, due
        Earliest start and due date of each job, in seconds.
    work
        Least machine time (or other resource) of each job up to its goal.
    speed
        Machines together (or other resource per second).
    later, unfinished
        Further work of each job once it reached its goal; at any time at most `unfinished` jobs are past their goal and
        not through with it.
    starts
        Moments that are tried as the start of a crowded stretch.

    Notes
    -----
    For any moment a, the jobs released from a on share at most `speed` machines. By the time b that some of them are due,
    those on time took all their work but the `later` of at most `unfinished` of them, so that

        sum of (work + later) over jobs on time by b  <=  speed (b - a) + the largest `unfinished` of the `later`.

    The right side grows with b. The least number of jobs that must be left out to keep all these rows is found by the
    Moore-Hodgson rule (J. M. Moore, Management Science 15(1), 1968): go by due date, and whenever a row breaks take out
    the longest so far. Its exchange argument needs nothing of the rows but that they are nested and grow.
    """
    if not len(release):
        return 0
    order = np.argsort(due, kind="stable")
    moments = np.unique(release)
    if len(moments) > starts:
        moments = moments[np.linspace(0, len(moments) - 1, starts).astype(int)]
    further = np.zeros(len(release)) if later is None else later[order]
    return int(_most_late(moments, release[order], due[order], work[order], further, unfinished, float(speed)))


def least_finish_s(release: Float64[Array, " n"], work: Float64[Array, " n"], speed: float) -> float:
    """Return a lower bound on the time at which the last of the jobs is done: ``max over a of a + work from a on / speed``."""
    order = np.argsort(release, kind="stable")
    after = np.cumsum(work[order][::-1])[::-1]
    return float((release[order] + after / speed).max())
