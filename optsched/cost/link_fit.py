"""Fit a link's latency and rate to measured hand-overs of cache."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from scipy.optimize import nnls

from optsched.domain.hardware import Gpu
from optsched.domain.log import ExecutionLog
from optsched.domain.plan import Plan
from optsched.domain.slowdown import slowdown_of
from optsched.errors import ProblemError

Array = np.ndarray
FEWEST_HANDOVERS = 5
"""Of fewer hand-overs than this no link is learned."""


@dataclass(frozen=True, slots=True)
class LinkFit:
    """``seconds = (latency_s + bytes / bytes_per_s) busy_slowdown[k]`` with k replicas busy, and how many it was fitted to."""

    latency_s: float
    bytes_per_s: float
    busy_slowdown: tuple[float, ...]
    num_handovers: int


def fit_link(num_bytes: Float64[Array, " X"], seconds: Float64[Array, " X"], busy: Int64[Array, " X"] | None = None) -> LinkFit:
    """Fit a link to hand-overs by non-negative least squares on relative error, then set its level.

    Parameters
    ----------
    num_bytes, seconds
        Size and duration of each.
    busy
        Replicas of the host that were in a step when each began; None: nobody counted. Of a number that occurs fewer than
        `FEWEST_HANDOVERS` times nothing is learned.

    Raises
    ------
    ProblemError
        If there is none, or one took no time.

    Notes
    -----
    Relative error finds the shape, but it follows quick hand-overs. So latency, rate and slow-downs are set to the geometric mean
    of measured over foreseen at each number of busy replicas. Steps are set by their total time
    (`optsched.cost.calibrate.fit_step_law`), but of hand-overs there are dozens, not a thousand, and a single one that waited
    for a core as long as six others took would decide.
    """
    if not len(seconds) or not np.all(seconds > 0):
        raise ProblemError("every hand-over must take some time, and there must be one; measure with two workers at least")
    columns = np.stack([np.ones_like(seconds), num_bytes], axis=1) / seconds[:, None]
    scale = columns.max(axis=0)
    latency_s, per_byte = nnls(columns / scale, np.ones_like(seconds))[0] / scale
    if per_byte <= 0:  # too few bytes to tell: all of it is latency, at a rate that no hand-over was faster than
        return LinkFit(float(seconds.mean()), float((num_bytes / seconds).max()), (1.0,), len(seconds))
    foreseen = latency_s + num_bytes * per_byte
    level, slowdown = _slowdowns(seconds, foreseen, np.zeros(len(seconds), np.int64) if busy is None else busy)
    return LinkFit(level * float(latency_s), 1.0 / (level * float(per_byte)), slowdown, len(seconds))


def _slowdowns(
    seconds: Float64[Array, " X"], foreseen: Float64[Array, " X"], busy: Int64[Array, " X"]
) -> tuple[float, tuple[float, ...]]:
    often = [number for number in range(int(busy.max()) + 1) if (busy == number).sum() >= FEWEST_HANDOVERS]
    ratio = np.log(seconds / foreseen)
    if not often:
        return float(np.exp(ratio.mean())), (1.0,)
    levels = range(often[-1] + 1)
    return slowdown_of([(float(np.exp(ratio[busy == k].mean())), 1.0) if k in often else (0.0, 0.0) for k in levels])


def fit_logged_link(log: ExecutionLog, plan: Plan, gpu: Gpu) -> LinkFit | None:
    """Fit the link between workers of one machine to a log's hand-overs; None where there are too few to learn from.

    Parameters
    ----------
    log, plan
        What workers did, and the plan that they executed.
    gpu
        The tier that stands for the machine; those of other tiers hand over across links that a log does not name.
    """
    if not gpu.shared_host:
        return None
    mine = np.array([replica.gpu == gpu.name for replica in plan.replicas])
    moves = log.transfers
    chosen = mine[moves.source] & mine[moves.target] & np.isfinite(moves.start_s) & (moves.end_s > moves.start_s)
    if chosen.sum() < FEWEST_HANDOVERS:
        return None
    busy = log.steps.busy_at(moves.start_s[chosen], np.flatnonzero(mine).tolist())
    return fit_link(moves.bytes[chosen], (moves.end_s - moves.start_s)[chosen], busy)
