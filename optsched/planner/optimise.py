"""Give a draft plan the best placement that can be found with all lengths and arrivals known (policy ``optimised``)."""

from __future__ import annotations

from optsched.domain.plan import Assignment, Plan
from optsched.domain.scenario import Objective
from optsched.domain.workload import Workload
from optsched.errors import NoPlanError
from optsched.placement.greedy import default_work
from optsched.placement.problem import PlacementPlan
from optsched.placement.solve import solve
from optsched.planner.certify import problem_of

EXACT_CONVERSATIONS = 10
"""Largest workload that is given to the exact method."""
EXACT_TIME_LIMIT_S = 10.0
"""Time to prove the placements of all candidate fleets together."""
TIME_LIMIT_S = 60.0
"""Time after which all candidate fleets together are taken as placed: a machine so slow may find other placements."""
WORK = 16_000_000
"""Turns that are timed again for all candidate fleets together, some sixteen seconds."""


def optimise(draft: Plan, workload: Workload, objective: Objective, candidates: int) -> tuple[Plan, float, str]:
    """Return the draft with its conversations placed, a proven bound for its fleet, and the solver.

    Parameters
    ----------
    draft, workload, objective
        What to place, and what to minimise.
    candidates
        Fleets that share the time limit.

    Raises
    ------
    NoPlanError
        If the time ran out before any placement was found.
    """
    exact = workload.num_conversations <= EXACT_CONVERSATIONS
    problem = problem_of(draft, workload, objective)
    solved = solve(
        problem,
        "exact" if exact else "greedy",
        time_limit_s=(EXACT_TIME_LIMIT_S if exact else TIME_LIMIT_S) / candidates,
        seed=draft.workload.seed,
        work=min(WORK // candidates, default_work(problem)),
    )
    if solved.plan is None:
        raise NoPlanError("No placement was found in time. Use fewer power caps or fix a [[fleet]].")
    return place(draft, solved.plan), solved.bound, solved.solver


def place(draft: Plan, placement: PlacementPlan) -> Plan:
    """Return the plan with its conversations assigned."""
    names = [replica.id for replica in draft.replicas]
    assignments = tuple(
        Assignment(conversation=index, prefill=names[prefill], decode=names[decode])
        for index, (prefill, decode) in enumerate(zip(placement.prefill.tolist(), placement.decode.tolist(), strict=True))
    )
    return draft.replace(placement=draft.placement.replace(assignments=assignments))
