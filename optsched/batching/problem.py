"""Apt-Serve's per-iteration question: which requests go into the batch, each as KV or as hidden cache.

Notes
-----
With x_i = 1 for a selected request and y_i = 1 for one held as hidden cache,

    max  sum_i p_i x_i - u_i y_i     s.t.  sum_i m_i x_i - (m_i - s_i) y_i <= M,   y_i <= x_i,   x, y in {0, 1}
    optional rows:  sum_i tokens_i x_i <= token budget,   sum_i x_i <= max sequences

References
----------
Gao et al., "Apt-Serve", PACMMOD 3(3) 130, 2025, arXiv 2504.07494, Definition 1, with any sizes instead of s = m / 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from numbers import Real
from typing import TypeAlias

import numpy as np
from jaxtyping import Float64, Int8, Int64

from optsched.errors import ProblemError

Array = np.ndarray
Seconds: TypeAlias = Float64[Array, " n"] | Sequence[float]
Counts: TypeAlias = Int64[Array, " n"] | Sequence[int]

SKIP, TAKE_HIDDEN, TAKE_KV = 0, 1, 2
LARGEST = 2**53  # counts beyond it are no longer exact in float64


@dataclass(frozen=True, slots=True, init=False, eq=False)
class BatchProblem:
    """One iteration's candidates and limits.

    Parameters
    ----------
    pending_s
        p: seconds since each request's last token, or its arrival; what selecting it is worth.
    kv_blocks, hidden_blocks
        m and s: blocks that it takes as KV and as hidden cache.
    hidden_penalty_s
        u: seconds that holding it as hidden cache costs all others.
    memory_blocks
        M: blocks there are.
    tokens
        Tokens it takes from `token_budget`; both or neither.
    token_budget, max_sequences
        Further limits; None: unlimited.

    Raises
    ------
    ProblemError
        If lengths differ, or a value is not a number, negative or not whole.
    """

    pending_s: Float64[Array, " n"]
    kv_blocks: Int64[Array, " n"]
    hidden_blocks: Int64[Array, " n"]
    hidden_penalty_s: Float64[Array, " n"]
    memory_blocks: int
    tokens: Int64[Array, " n"] | None
    token_budget: int | None
    max_sequences: int | None

    def __init__(
        self,
        pending_s: Seconds,
        kv_blocks: Counts,
        hidden_blocks: Counts,
        hidden_penalty_s: Seconds,
        memory_blocks: int,
        tokens: Counts | None = None,
        token_budget: int | None = None,
        max_sequences: int | None = None,
    ) -> None:
        seconds = {"pending_s": pending_s, "hidden_penalty_s": hidden_penalty_s}
        counts = {"kv_blocks": kv_blocks, "hidden_blocks": hidden_blocks}
        if tokens is not None:
            counts["tokens"] = tokens
        fields: dict[str, Array | int | None] = {name: _seconds(name, given) for name, given in seconds.items()}
        fields |= {name: _counts(name, given) for name, given in counts.items()}
        _check_lengths({name: given for name, given in fields.items() if isinstance(given, np.ndarray)})
        if (tokens is None) != (token_budget is None):
            absent, given = ("tokens", "token_budget") if tokens is None else ("token_budget", "tokens")
            raise ProblemError(f"{given} is given without {absent}; the row needs both. Give both, or neither.")
        fields["memory_blocks"] = _limit("memory_blocks", memory_blocks)
        fields.setdefault("tokens", None)
        fields["token_budget"] = None if token_budget is None else _limit("token_budget", token_budget)
        fields["max_sequences"] = None if max_sequences is None else _limit("max_sequences", max_sequences)
        for name, field in fields.items():
            object.__setattr__(self, name, field)

    @property
    def num_requests(self) -> int:
        """Number of candidates."""
        return len(self.pending_s)

    @property
    def tokens_taken(self) -> Int64[Array, " n"]:
        """Tokens that each request takes; zeros without a budget."""
        return _frozen(np.zeros(self.num_requests, np.int64)) if self.tokens is None else self.tokens

    @property
    def has_rows(self) -> bool:
        """Whether there are limits besides memory."""
        return self.token_budget is not None or self.max_sequences is not None


@dataclass(frozen=True, slots=True, eq=False)
class BatchPlan:
    """What each request does: 0 skip, 1 hidden, 2 KV."""

    choice: Int8[Array, " n"]

    def value(self, problem: BatchProblem) -> float:
        """Return the plan's value in seconds: pending times of the selected less penalties of the hidden."""
        return fsum(
            (pending if chosen else 0.0) - (penalty if chosen == TAKE_HIDDEN else 0.0)
            for chosen, pending, penalty in zip(
                self.choice.tolist(), problem.pending_s.tolist(), problem.hidden_penalty_s.tolist(), strict=True
            )
        )

    def violations(self, problem: BatchProblem) -> list[str]:
        """List every rule of the problem that the plan breaks, in plain sentences."""
        broken: list[str] = []
        if len(self.choice) != problem.num_requests:
            return [f"The plan chooses for {len(self.choice)} requests; the problem has {problem.num_requests}."]
        blocks = tokens = sequences = 0
        for index, chosen in enumerate(self.choice.tolist()):
            if chosen not in (0, 1, 2):
                broken.append(f"Request {index} has choice {chosen}; it must be 0 (skip), 1 (hidden) or 2 (KV).")
                continue
            if chosen == 0:
                continue
            sequences += 1
            blocks += int((problem.hidden_blocks if chosen == 1 else problem.kv_blocks)[index])
            tokens += 0 if problem.tokens is None else int(problem.tokens[index])
        if blocks > problem.memory_blocks:
            broken.append(f"The plan takes {blocks} blocks; memory_blocks is {problem.memory_blocks}.")
        if problem.token_budget is not None and tokens > problem.token_budget:
            broken.append(f"The plan takes {tokens} tokens; token_budget is {problem.token_budget}.")
        if problem.max_sequences is not None and sequences > problem.max_sequences:
            broken.append(f"The plan takes {sequences} requests; max_sequences is {problem.max_sequences}.")
        return broken


def _frozen(values: Array) -> Array:
    values = values.copy()
    values.setflags(write=False)
    return values


def _numbers(name: str, given: Seconds | Counts) -> Array:
    try:
        values = np.asarray(given, dtype=np.float64) if len(given) else np.zeros(0)
    except (TypeError, ValueError, OverflowError) as error:
        raise ProblemError(f"{name} holds values that are not numbers; give one number per request.") from error
    if values.ndim != 1:
        raise ProblemError(f"{name} has {values.ndim} dimensions; give one number per request.")
    _refuse(name, values, ~np.isfinite(values), "must be finite")
    _refuse(name, values, values < 0, "must not be negative")
    return values


def _seconds(name: str, given: Seconds) -> Float64[Array, " n"]:
    return _frozen(_numbers(name, given))


def _counts(name: str, given: Counts) -> Int64[Array, " n"]:
    values = _numbers(name, given)
    _refuse(name, values, values != np.floor(values), "must be a whole number")
    _refuse(name, values, values > LARGEST / max(1, len(values)), "is too large to be counted exactly")
    return _frozen(values.astype(np.int64))


def _refuse(name: str, values: Array, wrong: Array, rule: str) -> None:
    if wrong.any():
        index = int(np.argmax(wrong))
        raise ProblemError(f"Request {index} has {name} {values[index]:g}; it {rule}. Correct {name}[{index}].")


def _check_lengths(arrays: dict[str, Array]) -> None:
    num = len(arrays["pending_s"])
    for name, values in arrays.items():
        if len(values) != num:
            raise ProblemError(
                f"{name} has {len(values)} entries, pending_s {num}; there must be one per request. "
                f"Request {min(num, len(values))} is the first without its partner."
            )


def _limit(name: str, given: object) -> int:
    number = float(given) if isinstance(given, Real) and not isinstance(given, bool) else np.nan
    if not (0 <= number <= LARGEST and number == np.floor(number)):
        raise ProblemError(f"{name} is {given}; it must be a whole number from 0 to {LARGEST}. Correct {name}.")
    return int(number)
