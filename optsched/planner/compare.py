"""The same workload under the rival placement policies, on the GPUs and power caps of a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from optsched.domain.accounting import measure_plan
from optsched.domain.plan import Plan, PlanPlacement, PlanReplica
from optsched.domain.results import Clock, Metrics
from optsched.domain.scenario import PlacementPolicyName, Role, Scenario
from optsched.domain.workload import Workload
from optsched.errors import SolveError, SpecError
from optsched.placement.policies import ALL_MIXED, CARRY_BACK, PER_TURN
from optsched.planner.certify import bound_of
from optsched.planner.plan import Planned, rank, simulated_value
from optsched.planner.replicas import make_links
from optsched.simulator.simulate import simulate

RIVALS: tuple[PlacementPolicyName, ...] = ("collocated", "full-disaggregation", "per-turn", "conserve")
MAX_SPLITS = 6
"""Ways to divide a plan's mixed replicas into roles that are simulated for a policy that needs two."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What the workload experiences under one policy.

    Attributes
    ----------
    policy
        The placement policy.
    chosen
        Whether this is the plan itself.
    roles
        Replicas of each role.
    metrics, transfers
        The figures, and the caches that moved; None where the policy cannot serve.
    value, bound
        Simulated value of the first objective, in the certificate's unit; and what no placement of whole conversations on
        these replicas can undercut, None where turns move or arrivals depend on the plan.
    usd
        Price of the replicas over the makespan.
    refusal
        Why the policy cannot serve; empty if it can.
    """

    policy: PlacementPolicyName
    chosen: bool
    roles: dict[Role, int]
    metrics: Metrics | None = None
    transfers: int | None = None
    value: float | None = None
    bound: float | None = None
    usd: float | None = None
    refusal: str = ""


def compare(
    scenario: Scenario, planned: Planned, *, clock: Clock = "true", progress: Callable[[float, float], None] | None = None
) -> list[Compared]:
    """Simulate a plan's workload under the rival policies too.

    Every policy gets the plan's GPUs, power caps, engine and batching policy, and the roles that it needs: the plan's or the
    scenario's own where they fit; else the best, by the scenario's targets and objectives, of at most `MAX_SPLITS` divisions.

    Parameters
    ----------
    scenario
        What was planned.
    planned
        The plan, its workload and its simulation.
    clock
        Clock of the figures.
    progress
        Called with the policies simulated so far and their number.

    Returns
    -------
    list of Compared
        The plan first, then its rivals; a rival that is the plan is not repeated.
    """
    plan = planned.plan
    own = plan.placement
    rivals = [name for name in RIVALS if name != own.policy or own.parameters != _parameters(scenario, name)]
    rows = [_of_plan(scenario, planned, clock)]
    for number, name in enumerate(rivals):
        rows.append(_of_rival(scenario, planned, name, clock))
        if progress is not None:
            progress(number + 1, len(rivals))
    return rows


def _parameters(scenario: Scenario, policy: PlacementPolicyName) -> dict[str, float]:
    return scenario.policy.placement_parameters if policy == scenario.policy.placement else {}


def _usd(plan: Plan, metrics: Metrics) -> float:
    return sum(replica.usd_per_hour for replica in plan.replicas) * metrics.makespan_s / 3600


def _roles(replicas: Sequence[PlanReplica]) -> dict[Role, int]:
    return dict(Counter(replica.role for replica in replicas))


def _bounded(plan: Plan, workload: Workload) -> bool:
    """Tell whether placements of whole conversations, which bounds speak of, are all that the policy can do."""
    return plan.placement.policy not in PER_TURN and workload.concurrency is None


def _of_plan(scenario: Scenario, planned: Planned, clock: Clock) -> Compared:
    plan, workload, log = planned.plan, planned.workload, planned.log
    metrics = measure_plan(plan, log, workload, clock)
    return Compared(
        plan.placement.policy, True, _roles(plan.replicas), metrics, len(log.transfers.start_s), planned.simulated,
        plan.certificate.bound if _bounded(plan, workload) else None, _usd(plan, metrics),
    )  # fmt: skip


def _of_rival(scenario: Scenario, planned: Planned, policy: PlacementPolicyName, clock: Clock) -> Compared:
    objective, workload = scenario.objective.minimise[0], planned.workload
    best: tuple[tuple[float, ...], Compared, Plan] | None = None
    roles: dict[Role, int] = {}
    refusal = "it needs a replica to prefill and another to decode"
    for replicas in divisions(scenario, planned.plan, policy):
        draft = planned.plan.replace(
            replicas=replicas,
            links=make_links(scenario, replicas, back=policy in CARRY_BACK),
            placement=PlanPlacement(policy=policy, parameters=_parameters(scenario, policy)),
        )
        try:
            log = simulate(draft, workload, seed=draft.workload.seed, record_steps=False)
        except (SolveError, SpecError) as error:
            roles, refusal = _roles(replicas), str(error)
            continue
        metrics = measure_plan(draft, log, workload, clock)
        value = simulated_value(objective, measure_plan(draft, log, workload), workload, log)
        moved, usd = len(log.transfers.start_s), _usd(draft, metrics)
        row = Compared(policy, False, _roles(replicas), metrics, moved, value, None, usd)
        key = rank(scenario, draft, metrics)
        if best is None or key < best[0]:
            best = key, row, draft
    if best is None:
        return Compared(policy, False, roles, refusal=refusal)
    _, row, draft = best
    if not _bounded(draft, workload):
        return row
    return replace(row, bound=bound_of(draft, workload, objective))


def divisions(scenario: Scenario, plan: Plan, policy: PlacementPolicyName) -> Iterator[tuple[PlanReplica, ...]]:
    """Yield a plan's replicas in the roles that a policy needs."""
    replicas = plan.replicas
    if policy in ALL_MIXED:
        yield _named([replica.replace(role="mixed", max_batched_tokens=None) for replica in replicas])
        return
    if {replica.role for replica in replicas} == {"prefill", "decode"}:
        yield replicas
        return
    wanted = [entry for entry in scenario.fleet for _ in range(entry.count)]
    if len(wanted) == len(replicas) and {entry.role for entry in wanted} == {"prefill", "decode"}:
        yield _named(
            [r.replace(role=e.role, max_batched_tokens=e.max_batched_tokens) for r, e in zip(replicas, wanted, strict=True)]
        )
        return
    # Those that compute fastest prefill: decoding is bound by memory, which caps and tiers change less.
    chunk = plan.engine.max_batched_tokens
    order = sorted(range(len(replicas)), key=lambda index: replicas[index].coefficients.prefill_s(chunk, 0, chunk))
    for number in _numbers(len(replicas)):
        prefillers = set(order[:number])
        yield _named(
            [
                replica.replace(role="prefill" if index in prefillers else "decode", max_batched_tokens=None)
                for index, replica in enumerate(replicas)
            ]
        )


def _numbers(replicas: int) -> list[int]:
    """Return how many of the replicas may prefill: all numbers of a few, and of many those that differ most in proportion."""
    if replicas < 2:
        return []
    if replicas - 1 <= MAX_SPLITS:
        return list(range(1, replicas))
    return sorted({round(number) for number in np.geomspace(1, replicas - 1, MAX_SPLITS).tolist()})


def _named(replicas: Sequence[PlanReplica]) -> tuple[PlanReplica, ...]:
    seen: Counter[Role] = Counter()
    named = []
    for replica in replicas:
        named.append(replica.replace(id=f"{replica.role}-{seen[replica.role]}"))
        seen[replica.role] += 1
    return tuple(named)
