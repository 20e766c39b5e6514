"""Roles and caps of an open fleet decided together with the placement, where conversations are few enough to prove it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

from optsched.domain.llm import Llm
from optsched.domain.plan import Plan
from optsched.domain.scenario import FleetEntry, Objective, Role, Scenario
from optsched.domain.workload import Workload
from optsched.errors import ProblemError
from optsched.placement.evaluate import objective_of
from optsched.placement.greedy import greedy
from optsched.placement.operating.problem import OpenProblem
from optsched.placement.solved import is_proven
from optsched.planner.candidates import caps_of, dtype_of, replica_counts
from optsched.planner.certify import problem_of
from optsched.planner.optimise import place
from optsched.planner.replicas import make_links, make_replica

MOST_CONVERSATIONS = 10
"""Conversations up to which it is tried at all."""
MOST_PLACEMENTS = 3_000_000
"""Placements on all fleets together up to which the search for the best fleet is begun."""
TIME_LIMIT_S = 10.0
"""When it is given up."""
ROLES: tuple[Role, ...] = ("prefill", "decode", "mixed")
DraftOn = Callable[[tuple[FleetEntry, ...]], Plan]


def points_of(scenario: Scenario, llm: Llm) -> tuple[FleetEntry, ...]:
    """Return every operating point of the supply: a replica of each gpu, at each of its caps, in each role."""
    return tuple(
        FleetEntry(gpu=gpu, power_cap_w=cap, role=role, tp=tp, dtype=dtype_of(scenario, gpu))
        for gpu, (_, tp) in replica_counts(scenario, llm).items()
        for cap, role in product(caps_of(scenario, gpu), ROLES)
    )


def open_problem(scenario: Scenario, llm: Llm, draft: Plan, workload: Workload, objective: Objective) -> OpenProblem:
    """Return the problem of choosing a fleet and a placement together.

    Parameters
    ----------
    scenario, llm
        Supply and links.
    draft
        Any fleet of the scenario: engine and targets are taken from it.
    workload, objective
        What to place, and what to minimise.
    """
    fixed = problem_of(draft, workload, objective)
    entries = points_of(scenario, llm)
    points = tuple(make_replica(llm, entry, f"point-{k}", scenario.engine.block_tokens) for k, entry in enumerate(entries))
    # two replicas may work at one point, so a second one of each stands for the target
    twins = [point.replace(id=f"{point.id} again") for point in points]
    own = {point.id for point in points}
    links = [link for link in make_links(scenario, [*points, *twins]) if link.source in own and link.target not in own]
    return OpenProblem(
        workload=workload, points=points, supply={gpu: count for gpu, (count, _) in replica_counts(scenario, llm).items()},
        links=tuple(link.replace(target=link.target.removesuffix(" again")) for link in links),
        kv_bytes_per_token=fixed.kv_bytes_per_token, objective=fixed.objective, block_tokens=fixed.block_tokens,
        max_batched_tokens=fixed.max_batched_tokens, slo=fixed.slo,
        may_rest=all(supply.count is None for supply in scenario.supply.values()),
    )  # fmt: skip


def few_enough(problem: OpenProblem) -> bool:
    """Tell whether all placements on all fleets can be walked through."""
    from optsched.placement.exact import placements_at_most  # pulp is slow to import

    total = 0.0
    for counts in problem.fleets():
        try:
            total += placements_at_most(problem.fleet(counts))
        except ProblemError:  # nobody fits there
            continue
        if total > MOST_PLACEMENTS:
            return False
    return True


def best_fleet(
    scenario: Scenario, llm: Llm, drafts: Sequence[Plan], workload: Workload, objective: Objective, draft_on: DraftOn
) -> tuple[list[Plan], float, str] | None:
    """Choose fleet and placement together, where that can be proven in time.

    Parameters
    ----------
    scenario, llm, workload, objective
        What is asked.
    drafts
        The fleets that would be tried one by one: each is searched a little first, so that the proof has a value to beat.
    draft_on
        Makes a draft of a fleet.

    Returns
    -------
    tuple or None
        Placed drafts, the best of all fleets first unless one of `drafts` is; the proven bound over all fleets; and the solver.
    """
    if scenario.fleet or workload.concurrency is not None or workload.num_conversations > MOST_CONVERSATIONS:
        return None
    problem = open_problem(scenario, llm, drafts[0], workload, objective)
    if not few_enough(problem):
        return None
    fixed = [problem_of(draft, workload, objective) for draft in drafts]
    found = [greedy(one, seed=draft.workload.seed) for one, draft in zip(fixed, drafts, strict=True)]
    value = min(objective_of(one, plan) for one, plan in zip(fixed, found, strict=True))
    from optsched.placement.operating.exact import solve_open  # pulp is slow to import

    solved = solve_open(problem, time_limit_s=TIME_LIMIT_S, better_than=value)
    if not is_proven(solved.value, solved.bound):
        return None
    placed = [place(draft, plan) for draft, plan in zip(drafts, found, strict=True)]
    if solved.plan is not None:
        entries = points_of(scenario, llm)
        fleet = tuple(entries[k].replace(count=count) for k, count in solved.plan.counts.items())
        placed.insert(0, place(draft_on(fleet), solved.plan.placement))
    return placed, solved.bound, solved.solver
