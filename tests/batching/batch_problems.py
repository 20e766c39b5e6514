"""Random batch problems, and the optimum by looking at every plan."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import strategies as st

from optsched.batching.problem import BatchProblem


@st.composite
def problems(draw: st.DrawFn, max_requests: int = 7, rows: bool | None = False) -> BatchProblem:
    """Draw a small problem; `rows` says whether token and sequence limits are drawn (None: either)."""
    num = draw(st.integers(0, max_requests))
    seconds = st.one_of(st.integers(0, 24).map(lambda eighths: eighths / 8), st.floats(1e-3, 1e3))

    def listed(values: st.SearchStrategy[float]) -> list[float]:
        return draw(st.lists(values, min_size=num, max_size=num))

    kv = listed(st.integers(0, 12))
    half = draw(st.booleans())
    hidden = [-(-m // 2) for m in kv] if half else listed(st.integers(0, 14))
    has_rows = draw(st.booleans()) if rows is None else rows
    with_tokens = has_rows and draw(st.booleans())
    with_sequences = has_rows and (not with_tokens or draw(st.booleans()))
    return BatchProblem(
        pending_s=listed(seconds),
        kv_blocks=kv,
        hidden_blocks=hidden,
        hidden_penalty_s=listed(seconds.map(lambda value: value / 4)),
        memory_blocks=draw(st.integers(0, 40)),
        tokens=listed(st.integers(0, 9)) if with_tokens else None,
        token_budget=draw(st.integers(0, 25)) if with_tokens else None,
        max_sequences=draw(st.integers(0, 6)) if with_sequences else None,
    )


def best_by_enumeration(problem: BatchProblem) -> float:
    """Return the value of the best of all 3^n plans."""
    num = problem.num_requests
    plans = np.array(list(itertools.product(range(3), repeat=num)), np.int64).reshape(3**num, num)
    hidden, kv = plans == 1, plans == 2
    fits = hidden @ problem.hidden_blocks + kv @ problem.kv_blocks <= problem.memory_blocks
    if problem.tokens is not None and problem.token_budget is not None:
        fits &= (plans > 0) @ problem.tokens <= problem.token_budget
    if problem.max_sequences is not None:
        fits &= (plans > 0).sum(axis=1) <= problem.max_sequences
    value = hidden @ (problem.pending_s - problem.hidden_penalty_s) + kv @ problem.pending_s
    return float(value[fits].max())
