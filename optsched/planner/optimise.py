"""Give draft plans the best placement that can be found with all lengths and arrivals known (policy ``optimised``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optsched.domain.plan import Assignment, Plan
from optsched.domain.scenario import Objective
from optsched.domain.workload import Workload
from optsched.errors import NoPlanError, SpecError
from optsched.placement.evaluate import evaluate, misses_of
from optsched.placement.greedy import greedy
from optsched.placement.problem import PlacementPlan, PlacementProblem
from optsched.placement.solve import solve
from optsched.planner.certify import problem_of

EXACT_CONVERSATIONS = 10
"""Largest workload that is given to the exact method."""
EXACT_TIME_LIMIT_S = 10.0
"""Time to prove the placements of all candidate fleets together."""
TIME_LIMIT_S = 60.0
"""Time after which all candidate fleets together are taken as placed: a machine so slow may find other placements."""
GLANCE_WORK = 30_000
"""Turns that are timed again for every candidate fleet, from the rule's placement on."""
LOOK_WORK = 320_000
"""Turns for each of the few that are best after that."""
LOOKED_AT = (2, 1)
"""How many of those there are by each way of comparing: targets first, and the objective alone."""


FEWEST_ROUNDS = 20
"""How often each turn must be timed again for a search to be worth it; below that the rule's placement is taken."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A draft with its conversations placed, a proven bound for its fleet, and the solver."""

    draft: Plan
    bound: float
    solver: str


def optimise_all(
    drafts: Sequence[Plan], bounds: Sequence[float], workload: Workload, objective: Objective,
    judge: Callable[[Plan], tuple[float, ...]], progress: Callable[[float, float], None] | None = None,
) -> tuple[list[Plan], float, str]:  # fmt: skip
    """Place the conversations on the fleets that are worth it.

    Parameters
    ----------
    drafts, bounds
        Candidate fleets, and a bound for each of them (and maybe for further ones that are not tried, behind those).
    workload, objective
        What to place, and what to minimise.
    judge
        Rank of a placed draft, the smaller the better: what it comes to when it is simulated.
    progress
        Called with the fleets that were looked at so far and their number.

    Returns
    -------
    tuple
        The placed drafts, to be simulated; a bound over all candidate fleets; and the solver.

    Raises
    ------
    SpecError
        If the workload is a closed loop, whose arrivals no placement can know.
    NoPlanError
        If the time ran out before any placement was found.
    """
    if workload.concurrency is not None:
        raise SpecError(
            "'closed': policy 'optimised' places known arrivals, these depend on the plan; use another policy or process",
            field="workload.arrivals.process",
        )
    few = len(drafts) == 1 or workload.num_conversations <= EXACT_CONVERSATIONS
    placed = _each(drafts, workload, objective, progress) if few else optimise_best(drafts, workload, objective, judge, progress)
    known = dict(enumerate(bounds))
    for number, one in placed.items():
        known[number] = max(known[number], one.bound)
    found = list(placed.values())
    return [one.draft for one in found], min(known.values()), found[0].solver


def _each(
    drafts: Sequence[Plan], workload: Workload, objective: Objective, progress: Callable[[float, float], None] | None
) -> dict[int, Placed]:
    placed = {}
    for number, draft in enumerate(drafts):
        placed[number] = optimise(draft, workload, objective, len(drafts))
        if progress is not None:
            progress(number + 1, len(drafts))
    return placed


def optimise(draft: Plan, workload: Workload, objective: Objective, candidates: int = 1) -> Placed:
    """Place the conversations of one draft with all the effort there is.

    Parameters
    ----------
    draft, workload, objective
        What to place, and what to minimise.
    candidates
        Fleets that share the time to prove.

    Raises
    ------
    NoPlanError
        If the time ran out before any placement was found.
    """
    exact = workload.num_conversations <= EXACT_CONVERSATIONS
    problem = problem_of(draft, workload, objective)
    limit_s = EXACT_TIME_LIMIT_S / candidates if exact else TIME_LIMIT_S
    solved = solve(problem, "exact" if exact else "greedy", time_limit_s=limit_s, seed=draft.workload.seed)
    if solved.plan is None:
        raise NoPlanError("No placement was found in time. Use fewer power caps or fix a [[fleet]].")
    return Placed(place(draft, solved.plan), solved.bound, solved.solver)


def optimise_best(
    drafts: Sequence[Plan], workload: Workload, objective: Objective, judge: Callable[[Plan], tuple[float, ...]],
    progress: Callable[[float, float], None] | None = None,
) -> dict[int, Placed]:  # fmt: skip
    """Place many conversations on the best of several fleets: a glance at each, a look at a few, then all effort on one.

    Parameters
    ----------
    drafts, workload, objective
        Fleets, and what to minimise on them.
    judge
        As for `optimise_all`.
    progress
        Called with the fleets glanced at so far and their number.

    Returns
    -------
    dict
        The number of the best draft: it is placed as if its fleet had been the only one.
    """
    problems = [problem_of(draft, workload, objective) for draft in drafts]
    ranks = []
    for number, (draft, problem) in enumerate(zip(drafts, problems, strict=True)):
        ranks.append(_rank(problem, _search(problem, draft, GLANCE_WORK)))
        if progress is not None:
            progress(number + 1, len(drafts))
    numbers = range(len(drafts))
    by_targets, by_value = sorted(numbers, key=ranks.__getitem__), sorted(numbers, key=lambda k: ranks[k][1])
    looked = {}
    for k in sorted({*by_targets[: LOOKED_AT[0]], *by_value[: LOOKED_AT[1]]}):
        looked[k] = judge(place(drafts[k], _search(problems[k], drafts[k], LOOK_WORK)))
    best = min(looked, key=looked.__getitem__)
    return {best: optimise(drafts[best], workload, objective)}


def _search(problem: PlacementProblem, draft: Plan, work: int) -> PlacementPlan:
    worth = work >= FEWEST_ROUNDS * problem.workload.num_turns
    return greedy(problem, seed=draft.workload.seed, work=work if worth else 0)


def _rank(problem: PlacementProblem, plan: PlacementPlan) -> tuple[float, float]:
    """Order placements by how far they miss the targets' percentiles, then by the objective, both by the evaluator."""
    found, excess = evaluate(problem, plan), 0.0
    for name, missed in misses_of(problem, found.schedule, found.ttfet_s).items():
        allowed = 1 - getattr(problem.slo, name).percentile / 100
        excess += max(0.0, float(missed.mean()) - allowed - 1e-12)
    return excess, found.value(problem.objective)


def place(draft: Plan, placement: PlacementPlan) -> Plan:
    """Return the plan with its conversations assigned."""
    names = [replica.id for replica in draft.replicas]
    assignments = tuple(
        Assignment(conversation=index, prefill=names[prefill], decode=names[decode])
        for index, (prefill, decode) in enumerate(zip(placement.prefill.tolist(), placement.decode.tolist(), strict=True))
    )
    return draft.replace(placement=draft.placement.replace(assignments=assignments))
