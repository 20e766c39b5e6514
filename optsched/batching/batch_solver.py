"""The exact solver for engines: buffers allocated once, the GIL released while it works, safe to call from threads."""

from __future__ import annotations

from functools import lru_cache, partial
from threading import Lock
from time import perf_counter
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float64, Int8, Int64

from optsched.batching.core_frame import DONE, FULL, PAUSED, TIES_OPEN
from optsched.batching.greedy import NO_LIMIT, select
from optsched.batching.memory_solver import INVALID, go_on, solve_in, with_more_room
from optsched.batching.problem import BatchProblem
from optsched.batching.rows import MEMORY_FIRST, ROWS_WORK_LIMIT, breaks, empty_rows_space, solve_rows
from optsched.batching.rows import NODES as ROWS_NODES
from optsched.batching.solved import Composition, Status
from optsched.batching.vertices import Rows
from optsched.batching.workspace import empty_buffer, view
from optsched.compiled import compile_for
from optsched.errors import ProblemError, UnknownNameError

Array = np.ndarray
Ties = Literal["free-largest", "any"]

STATES, NODES = 1 << 16, 1 << 17  # room at first; a hard problem makes it grow
WORK_LIMIT = 50_000_000  # states; about half a second
PAUSE = 1_000_000  # states between readings of the clock


class BatchSolver:
    """Solve one iteration's batch problem after another without allocating.

    Parameters
    ----------
    capacity
        The most requests of a problem.
    ties
        Among plans of the same value: ``free-largest`` leaves out the largest contexts (the fewest KV blocks over the
        selected requests, whichever cache they get); ``any`` takes the first found. Values count as the same where
        they are: round pending times first (to a millisecond, say) where near-ties should be ties. With token or
        sequence rows the criterion chooses among the optima that the search meets.

    Raises
    ------
    ProblemError
        If the capacity is negative.
    UnknownNameError
        If there is no such criterion.

    Notes
    -----
    The work runs in compiled code without the GIL. Calls on one instance from several threads take turns; give each thread
    its own instance to run them at once. The buffers take about 300 bytes per request and 20 MB; hard problems make them
    grow.

    Examples
    --------
    >>> solver = BatchSolver(1000)
    >>> p, u = np.array([3.0, 2.0]), np.array([0.5, 0.1])
    >>> m, s = np.array([4, 4]), np.array([2, 2])
    >>> found = solver.solve(p, m, s, u, 6)
    >>> found.choice.tolist(), found.value
    ([2, 1], 4.9)
    """

    def __init__(self, capacity: int, ties: Ties = "free-largest") -> None:
        if capacity < 0:
            raise ProblemError(f"capacity is {capacity}; it must not be negative. Give the most requests of a problem.")
        if ties not in get_args(Ties):
            raise UnknownNameError("ties", ties, get_args(Ties))
        self.capacity = capacity
        self._ties = ties == "free-largest"
        self._buffer = empty_buffer(capacity, STATES, NODES)
        self._buffer[3] = self._ties
        with _COMPILING:
            _compile()
        self._rows_space = empty_rows_space(capacity, ROWS_NODES)
        self._no_tokens = np.zeros(capacity, np.int64)
        self._lock = Lock()

    def solve(
        self,
        pending_s: Float64[Array, " n"],
        kv_blocks: Int64[Array, " n"],
        hidden_blocks: Int64[Array, " n"],
        hidden_penalty_s: Float64[Array, " n"],
        memory_blocks: int,
        *,
        tokens: Int64[Array, " n"] | None = None,
        token_budget: int | None = None,
        max_sequences: int | None = None,
        time_limit_s: float | None = None,
        work_limit: int | None = None,
        choice: Int8[Array, " n"] | None = None,
    ) -> Composition:
        """Choose the batch of largest value; see `optsched.batching.problem.BatchProblem` for the data.

        Parameters
        ----------
        pending_s, kv_blocks, hidden_blocks, hidden_penalty_s, tokens
            Contiguous, writable float64 and int64 arrays are used as they are, and not changed; others are copied.
        time_limit_s, work_limit
            When to stop without a proof: seconds, read every few hundredths of one, and sets of deviations looked at; by
            default about half a second with the memory row, a few milliseconds with more rows.
        choice
            Where to write the choice; None allocates it.

        Returns
        -------
        Composition
            Optimal up to rounding of 1e-12, relatively, or FEASIBLE with a bound.

        Raises
        ------
        ProblemError
            If there are more requests than the capacity, or the data contradict each other.
        """
        if tokens is None and max_sequences is None and token_budget is None and time_limit_s is None and work_limit is None:
            out = np.empty(len(pending_s), np.int8) if choice is None else choice
            with self._lock:
                try:
                    code, value, _, _ = solve_in(
                        self._buffer, pending_s, kv_blocks, hidden_blocks, hidden_penalty_s, memory_blocks, PAUSE, out
                    )
                except TypeError:  # arrays of other kinds: they are copied below
                    code = INVALID
            if code == DONE:
                return _composition((_OPTIMAL, value, value, None, out))
            if code == TIES_OPEN:
                return _composition((_OPTIMAL, value, value, "ties", out))
        return self._solve(
            pending_s, kv_blocks, hidden_blocks, hidden_penalty_s, memory_blocks, tokens, token_budget, max_sequences,
            time_limit_s, work_limit, choice,
        )  # fmt: skip

    def _solve(
        self,
        pending_s: Float64[Array, " n"],
        kv_blocks: Int64[Array, " n"],
        hidden_blocks: Int64[Array, " n"],
        hidden_penalty_s: Float64[Array, " n"],
        memory_blocks: int,
        tokens: Int64[Array, " n"] | None,
        token_budget: int | None,
        max_sequences: int | None,
        time_limit_s: float | None,
        work_limit: int | None,
        choice: Int8[Array, " n"] | None,
    ) -> Composition:
        """Solve any problem: with rows, with limits, and of arrays that have to be copied."""
        num = len(pending_s)
        if num > self.capacity:
            raise ProblemError(
                f"The problem has {num} requests; this solver has room for {self.capacity}. Make one with a larger capacity."
            )
        p, u = _writable(pending_s, np.float64), _writable(hidden_penalty_s, np.float64)
        m, s = _writable(kv_blocks, np.int64), _writable(hidden_blocks, np.int64)
        token = self._no_tokens[:num] if tokens is None else _writable(tokens, np.int64)
        out = np.empty(num, np.int8) if choice is None else choice
        if out.dtype != np.int8 or not out.flags.carray:
            raise ProblemError(f"choice is an array of {out.dtype}; it must be a contiguous, writable array of int8, or None.")
        if not len(m) == len(s) == len(u) == len(token) == len(out) or (tokens is None) != (token_budget is None):
            BatchProblem(p, m, s, u, memory_blocks, tokens, token_budget, max_sequences)
            raise ProblemError(f"choice has {len(out)} entries, pending_s {num}; there must be one per request.")
        budget = NO_LIMIT if token_budget is None else token_budget
        sequences = NO_LIMIT if max_sequences is None else max_sequences
        with self._lock:
            rowed = tokens is not None or max_sequences is not None
            first = min(MEMORY_FIRST, ROWS_WORK_LIMIT if work_limit is None else work_limit) if rowed else work_limit
            limit, bound, value, valid = self._memory_row(p, m, s, u, int(memory_blocks), out, time_limit_s, first)
            if not valid or budget < 0 or sequences < 0:
                BatchProblem(p, m, s, u, memory_blocks, tokens, token_budget, max_sequences)
            broken = rowed and breaks(out, token, budget, sequences)
            if broken or (rowed and limit in ("work", "time")):
                if broken:
                    select(p, m, s, u, token, memory_blocks, budget, sequences, False, True, out)
                rows = Rows(m, s, token, memory_blocks, min(budget, int(token.sum())), min(sequences, num))
                limit, above, value = self._rows(p, u, rows, out, time_limit_s, work_limit)
                bound = min(bound, above)
        if limit is None or limit == "ties":
            return Composition(Status.OPTIMAL, value, value, limit, out)
        return Composition(Status.FEASIBLE, value, max(value, bound), limit, out)

    def _memory_row(
        self,
        p: Float64[Array, " n"],
        m: Int64[Array, " n"],
        s: Int64[Array, " n"],
        u: Float64[Array, " n"],
        memory: int,
        out: Int8[Array, " n"],
        time_limit_s: float | None,
        work_limit: int | None,
    ) -> tuple[str | None, float, float, bool]:
        """Solve the memory row; return what stopped it, the bound, the value, and whether the data are valid."""
        started, most = perf_counter(), WORK_LIMIT if work_limit is None else work_limit
        code, value, bound, work = solve_in(self._buffer, p, m, s, u, memory, min(most, PAUSE), out)
        while code in (FULL, PAUSED):
            if code == FULL:
                self._buffer = with_more_room(self._buffer)
            elif work >= most:
                return "work", bound, value, True
            elif time_limit_s is not None and perf_counter() - started >= time_limit_s:
                return "time", bound, value, True
            code, value, bound, work = go_on(self._buffer, p, m, s, u, memory, min(most, work + PAUSE), out)
        return "ties" if code == TIES_OPEN else None, bound, value, code != INVALID

    def _rows(
        self,
        p: Float64[Array, " n"],
        u: Float64[Array, " n"],
        rows: Rows,
        out: Int8[Array, " n"],
        time_limit_s: float | None,
        work_limit: int | None,
    ) -> tuple[str | None, float, float]:
        """Solve with all rows, from the plan in `out`; return what stopped it, the bound, and the value."""
        started, most = perf_counter(), ROWS_WORK_LIMIT if work_limit is None else work_limit
        allowed = min(most, ROWS_WORK_LIMIT)
        while True:  # each attempt starts from the plan of the one before
            proven, value, bound = solve_rows(view(self._buffer), self._rows_space, p, u, rows, allowed, out)
            if proven or allowed >= most:
                return None if proven else "work", bound, value
            if time_limit_s is not None and perf_counter() - started >= time_limit_s:
                return "time", bound, value
            allowed = min(most, 4 * allowed)


_OPTIMAL, _composition = Status.OPTIMAL, partial(tuple.__new__, Composition)
_COMPILING = Lock()


@lru_cache(maxsize=1)
def _compile() -> None:
    """Compile the kernels for the arrays that they take as they are; for others they raise TypeError."""
    reals, wholes = np.zeros(1), np.zeros(1, np.int64)
    for kernel in (solve_in, go_on):
        compile_for(kernel, (empty_buffer(1, 1, 1), reals, wholes, wholes, reals, 0, 0, np.zeros(1, np.int8)))


def _writable(values: Array, dtype: type[np.generic]) -> Array:
    """Return the array itself if compiled code can take it: for read-only arrays it would be compiled once more."""
    array = np.ascontiguousarray(values, dtype)
    return array if array.flags.writeable else array.copy()
