"""What a solver of a batch problem answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int8

from optsched.batching.problem import BatchPlan

Array = np.ndarray
SolverName = Literal["highs", "cbc"]


class Status(StrEnum):
    """What is known about the answer: FEASIBLE has a plan that a limit or a heuristic left unproven."""

    OPTIMAL = "OPTIMAL"
    FEASIBLE = "FEASIBLE"
    NO_PLAN = "NO_PLAN"
    INFEASIBLE = "INFEASIBLE"


@dataclass(frozen=True, slots=True, eq=False)
class Solved:
    """A plan, what it is worth, and how much better any other could be.

    Attributes
    ----------
    plan
        None with NO_PLAN and INFEASIBLE.
    value
        Seconds of pending time served less penalties; None without a plan.
    bound
        No plan is worth more, seconds.
    gap
        ``(bound - value) / value``; 0 where they agree, None without a plan or where only the value is 0.
    limit
        What stopped the solver early (``time``, ``work``), or None.
    solver
        Which algorithm or program answered.
    seed
        Seed of its randomness; None: it has none.
    """

    plan: BatchPlan | None
    status: Status
    value: float | None
    bound: float
    gap: float | None
    limit: str | None
    solver: str
    runtime_s: float
    seed: int | None = None


def relative_gap(value: float | None, bound: float) -> float | None:
    """Return how much better than `value` a plan could be, relative to it.

    Returns
    -------
    float or None
        0 where bound and value agree; None without a value, or where a zero value leaves nothing to compare with.
    """
    if value is None:
        return None
    if bound <= value:
        return 0.0
    return (bound - value) / value if value > 0 else None


class Composition(NamedTuple):
    """Which requests go into the batch, and the proof.

    Attributes
    ----------
    status
        OPTIMAL, or FEASIBLE where a limit was hit.
    value, bound
        Seconds: of the plan, and no plan is worth more.
    limit
        What stopped the search: ``time``, ``work``, or ``ties``: the value is proven, the choice among equals is not.
    choice
        Per request: 0 skip, 1 hidden, 2 KV.
    """

    status: Status
    value: float
    bound: float
    limit: str | None
    choice: Int8[Array, " n"]
