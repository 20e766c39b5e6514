"""Several objectives at once on few conversations: one after the other, or the front between two of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from optsched.errors import InfeasibleError, ProblemError
from optsched.placement.evaluate import evaluate
from optsched.placement.partition.columns import MOST_CONVERSATIONS, ColumnTable, column_table, independent
from optsched.placement.partition.milp import PartitionFormulation
from optsched.placement.problem import Goal, PlacementPlan, PlacementProblem

ROUNDING = 1e-6
"""Share by which a limit gives way, so that the placement it was taken from stays within it."""


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """A placement, and its values of the objectives that were asked for, in their order."""

    plan: PlacementPlan
    values: tuple[float, ...]


def lexicographic(problem: PlacementProblem, goals: Sequence[Goal], *, time_limit_s: float = 60.0) -> FrontPoint:
    """Return the placement that is best by the first objective, among those by the second, and so on.

    Parameters
    ----------
    goals
        The objectives, the most important first; a value within a millionth counts as equal.
    time_limit_s
        For each of them.

    Raises
    ------
    ProblemError
        If the replicas are not independent, or the conversations too many.
    InfeasibleError
        If the time runs out before an objective's optimum is proven.
    """
    return _in_turn(problem, _table(problem), goals, {}, time_limit_s)


def pareto(
    problem: PlacementProblem, first: Goal, second: Goal, *, points: int = 5, time_limit_s: float = 60.0
) -> tuple[FrontPoint, ...]:
    """Return placements between the best by one objective and the best by another, none of them better by both.

    Parameters
    ----------
    first, second
        The objectives.
    points
        Limits on the second objective, evenly spaced from its value at the best by the first down to its best.
    time_limit_s
        For each program.

    Raises
    ------
    ProblemError
        If the replicas are not independent, or the conversations too many.
    InfeasibleError
        If the time runs out before an optimum is proven.

    Notes
    -----
    Epsilon constraint: the least first objective with the second within a limit, then the least second one with that first.
    """
    table = _table(problem)
    front = [_in_turn(problem, table, (first, second), {}, time_limit_s)]
    least = _in_turn(problem, table, (second, first), {}, time_limit_s)
    for limit in np.linspace(front[0].values[1], least.values[0], points)[1:].tolist():
        if limit < front[-1].values[1] * (1 - ROUNDING):
            front.append(_in_turn(problem, table, (first, second), {second: _given_way(second, limit)}, time_limit_s))
    return tuple(front)


def _table(problem: PlacementProblem) -> ColumnTable:
    count = problem.workload.num_conversations
    if not independent(problem) or count > MOST_CONVERSATIONS:
        raise ProblemError(
            f"{count} conversations on these replicas have no partition program: it needs at most {MOST_CONVERSATIONS}, and "
            "replicas that do not feed each other (mixed ones without links, or one prefiller for all); use solve"
        )
    return column_table(problem)


def _given_way(goal: Goal, limit: float) -> float:
    return limit + 0.5 if goal == "slo_misses" else limit * (1 + ROUNDING)


def _in_turn(
    problem: PlacementProblem, table: ColumnTable, goals: Sequence[Goal], limits: dict[Goal, float], time_limit_s: float
) -> FrontPoint:
    kept, plan = dict(limits), None
    for goal in goals:
        answer = PartitionFormulation(problem.with_objective(goal), limits=kept, table=table).solve("highs", time_limit_s)
        if answer.plan is None or answer.bound is None:
            raise InfeasibleError(f"{goal!r} was not proven within {time_limit_s:g} s; raise time_limit_s")
        plan = answer.plan
        value = evaluate(problem, plan).value(goal)
        kept[goal] = min(kept.get(goal, np.inf), _given_way(goal, value))
    if plan is None:
        raise ProblemError("no objective was given; name at least one")
    found = evaluate(problem, plan)
    return FrontPoint(plan, tuple(found.value(goal) for goal in goals))
