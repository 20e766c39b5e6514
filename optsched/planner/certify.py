"""Put a plan before the placement referee: the problem it solves, a proven bound, and the certificate."""

from __future__ import annotations

from optsched.domain.plan import Certificate, Plan
from optsched.domain.scenario import Objective
from optsched.domain.workload import Workload
from optsched.placement.bound import lower_bound
from optsched.placement.problem import GOALS, Goal, PlacementPlan, PlacementProblem
from optsched.placement.solved import certificate, is_proven, relative_gap

_GOAL: dict[Objective, Goal] = {
    "energy": "energy", "ttfet": "ttfet", "slo_misses": "slo_misses", "cost": "cost", "gpus": "cost",
}  # fmt: skip


def problem_of(plan: Plan, workload: Workload, objective: Objective) -> PlacementProblem:
    """Return the placement problem on a plan's replicas (their number is given, so ``gpus`` means their price)."""
    return PlacementProblem(
        workload=workload,
        replicas=plan.replicas,
        links=plan.links,
        kv_bytes_per_token=plan.llms[0].shape.kv_bytes_per_token,
        objective=_GOAL[objective],
        block_tokens=plan.engine.block_tokens,
        max_batched_tokens=plan.engine.max_batched_tokens,
        slo=plan.slo,
    )


def bound_of(plan: Plan, workload: Workload, objective: Objective) -> float:
    """Return a proven lower bound on the objective of every placement on a plan's replicas; 0 for a closed loop."""
    if workload.concurrency is not None:
        return 0.0
    return lower_bound(problem_of(plan, workload, objective)).value


def uncertified(evaluator: str, objective: Objective, value: float) -> Certificate:
    """Return what can be said where the referee does not reach: the simulated value, and no bound.

    It places whole conversations that arrive at known times; neither closed loops nor turns that move are of that kind.
    """
    return Certificate(
        evaluator=evaluator, objective=GOALS[_GOAL[objective]], value=value, bound=0.0,
        gap=relative_gap(value, 0.0), status="FEASIBLE", solver="policy",
    )  # fmt: skip


def certify(
    plan: Plan, workload: Workload, placement: PlacementPlan, objective: Objective, bound: float, solver: str
) -> Certificate:
    """Return the certificate of a placement.

    Parameters
    ----------
    plan, workload, objective
        The problem.
    placement
        Replica indices of every conversation.
    bound
        A lower bound over all fleets that were considered.
    solver
        What found the placement.
    """
    found = certificate(problem_of(plan, workload, objective), placement, solver=solver)
    proven = min(bound, found.value)
    done = is_proven(found.value, proven)
    return found.replace(bound=proven, gap=relative_gap(found.value, proven), status="OPTIMAL" if done else "FEASIBLE")
