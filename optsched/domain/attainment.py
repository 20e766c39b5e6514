"""Which requests met their targets, read three ways: as Apt-Serve reads it, strictly, and with nothing deferred.

References
----------
Apt-Serve, arXiv 2504.07494; its client at github.com/eddiegaoo/Apt-Serve: a request attains if its TTFT and the 99th percentile
of the gaps between its own tokens are below the targets. Interpolated, that percentile forgives one long stall in every
hundred gaps; the other two readings do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from optsched.domain.gaps import Gaps
from optsched.domain.log import ExecutionLog
from optsched.domain.workload import Workload
from optsched.errors import ProblemError

Array = np.ndarray
SUSTAINED_S = 10.0
"""Requests that end later than this after the last arrival were deferred, not served at that rate."""


@dataclass(frozen=True, slots=True)
class Attained:
    """Per turn (T of them), whether it met its targets.

    Attributes
    ----------
    paper
        TTFT and the interpolated 99th percentile of its gaps lie below the targets; at most one gap counts as 0.
    strict
        TTFT and every gap do.
    sustained
        As `paper`, and the last token came within `SUSTAINED_S` of the workload's last arrival.
    ttft, tbt
        The two halves of `paper`: the first token came in time, and so did the 99th percentile of the gaps.
    """

    paper: Bool[Array, " T"]
    strict: Bool[Array, " T"]
    sustained: Bool[Array, " T"]
    ttft: Bool[Array, " T"]
    tbt: Bool[Array, " T"]

    @property
    def shares(self) -> dict[str, float]:
        """Share of the turns that attain, by reading."""
        return {name: float(getattr(self, name).mean()) for name in ("paper", "strict", "sustained")}


def attained(log: ExecutionLog, workload: Workload, ttft_s: float, tbt_s: float) -> Attained:
    """Tell which turns of an execution met their targets.

    Parameters
    ----------
    log, workload
        The execution, and what was executed.
    ttft_s, tbt_s
        The targets in seconds: of the first token, from the turn's arrival, and of the gaps after it.

    Raises
    ------
    ProblemError
        If a target is not positive.
    """
    if not (ttft_s > 0 and tbt_s > 0):
        raise ProblemError(f"targets must be positive seconds, not TTFT {ttft_s!r} and TBT {tbt_s!r}; 1 and 1 are Apt-Serve's")
    gaps = Gaps.of(log, workload)
    with np.errstate(invalid="ignore"):
        prompt = log.first_token_s - log.arrival_s < ttft_s
        in_time = log.end_s <= log.arrival_s[workload.first_turn[:-1]].max() + SUSTAINED_S
    smooth = gaps.p99_s < tbt_s
    paper = prompt & smooth
    return Attained(paper, prompt & (gaps.max_s < tbt_s), paper & in_time, prompt, smooth)
