"""Collect what a worker did until it is reported."""

from __future__ import annotations

import time

import numpy as np
from jaxtyping import Float64, Int64

from optsched.domain.journal import Entry
from optsched.domain.log import Steps
from optsched.runtime.messages import News, Report

Array = np.ndarray
_STEP_TYPES = {name: float if name in ("start_s", "end_s", "pairs") else np.int64 for name in Steps.__dataclass_fields__}


class Clock:
    """Seconds since the start of the workload, on the one monotonic clock that all processes of a machine share."""

    def __init__(self) -> None:
        self.zero_s = time.monotonic()

    def now(self) -> float:
        """Return the time."""
        return time.monotonic() - self.zero_s


def steps_from_rows(rows: list[tuple[float, ...]]) -> Steps:
    """Turn rows of the fields of `Steps` into its columns."""
    columns = zip(*rows, strict=True) if rows else [()] * len(_STEP_TYPES)
    return Steps(**{name: np.array(column, kind) for (name, kind), column in zip(_STEP_TYPES.items(), columns, strict=True)})


class Recorder:
    """Rows and arrays since the last report.

    Parameters
    ----------
    keep_journal
        Whether to report each event and decision of the replica too.
    """

    def __init__(self, *, keep_journal: bool = False) -> None:
        self.keeps_journal = keep_journal
        self.news: list[News] = []
        self._clear()

    def _clear(self) -> None:
        self.news = []
        self._journal: list[Entry] = []
        self._steps: list[tuple[float, ...]] = []
        self._started: list[tuple[int, float]] = []
        self._tokens: list[tuple[Int64[Array, " n"], Int64[Array, " n"], Int64[Array, " n"], float]] = []

    @property
    def empty(self) -> bool:
        """Whether there is nothing to report."""
        return not (self.news or self._steps or self._journal)

    def enter(self, entry: Entry) -> None:
        """Note an event or a decision, if a journal is kept."""
        if self.keeps_journal:
            self._journal.append(entry)

    def step(self, row: tuple[float, ...]) -> None:
        """Note a step: the fields of `optsched.domain.log.Steps` in their order."""
        self._steps.append(row)

    def started(self, turn: int, time_s: float) -> None:
        """Note that a turn is computed on for the first time."""
        self._started.append((turn, time_s))

    def tokens(self, turn: Int64[Array, " n"], number: Int64[Array, " n"], token: Int64[Array, " n"], time_s: float) -> None:
        """Note the output tokens of one step."""
        self._tokens.append((turn, number, token, time_s))

    def report(self) -> Report:
        """Return everything since the last report."""
        empty = np.zeros(0, np.int64)
        turn, number, token = (
            np.concatenate([group[column] for group in self._tokens]) if self._tokens else empty for column in range(3)
        )
        times: Float64[Array, " n"] = np.repeat([g[3] for g in self._tokens], [len(g[0]) for g in self._tokens])
        report = Report(
            tuple(self.news), steps_from_rows(self._steps),
            np.array([t for t, _ in self._started], np.int64), np.array([s for _, s in self._started], float),
            turn, number, token, times.astype(float), tuple(self._journal),
        )  # fmt: skip
        self._clear()
        return report
