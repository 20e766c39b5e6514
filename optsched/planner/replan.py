"""Change one thing of a plan and keep the rest."""

from __future__ import annotations

from pathlib import Path

from optsched.batching.policies import TARGETS, check_policy
from optsched.domain.plan import Plan, PlanBatching, PlanPlacement
from optsched.domain.scenario import PlacementPolicyName, Scenario, WorkloadSpec
from optsched.errors import PlanError, SpecError
from optsched.placement.policies import ALL_MIXED, CARRY_BACK, parameter_names
from optsched.traces.loading import describe_workload


def with_policy(plan: Plan, policy: PlacementPolicyName) -> Plan:
    """Return the plan under another placement policy, with default parameters and the roles that it needs.

    Raises
    ------
    PlanError
        If the plan's replicas do not have the roles that the policy needs.
    """
    parameter_names(policy)
    if policy == plan.placement.policy:
        return plan
    if policy == "optimised":
        raise SpecError("'optimised' follows the placement of its own plan; make one with: optsched plan --policy optimised")
    replicas = plan.replicas
    if policy in ALL_MIXED:
        replicas = tuple(replica.replace(role="mixed", max_batched_tokens=None) for replica in replicas)
    elif len({replica.role for replica in replicas}) == 1 and len(replicas) > 1:
        raise PlanError(
            [f"policy {policy!r} needs prefill and decode replicas, all {len(replicas)} are mixed; plan the scenario with it"]
        )
    links = plan.links
    if policy in CARRY_BACK:
        joined = {(link.source, link.target) for link in links}
        back = (link.replace(source=link.target, target=link.source) for link in links)
        links = (*links, *(link for link in back if (link.source, link.target) not in joined))
    return plan.replace(replicas=replicas, links=links, placement=PlanPlacement(policy=policy))


def with_batching(plan: Plan, policy: str) -> Plan:
    """Return the plan under another batching policy: the targets it was told stay, its own parameters are the defaults.

    Raises
    ------
    UnknownNameError
        If there is no such policy.
    """
    check_policy(policy)
    if policy == plan.batching.policy:
        return plan
    targets = {name: value for name, value in plan.batching.parameters.items() if name in TARGETS}
    batching = PlanBatching(policy=policy, rho_s_per_block=plan.batching.rho_s_per_block, parameters=targets)
    return plan.replace(batching=batching)


def scenario_with_batching(scenario: Scenario, policy: str) -> Scenario:
    """Return the scenario under another batching policy, with parameters as in `with_batching`.

    Raises
    ------
    UnknownNameError
        If there is no such policy.
    """
    check_policy(policy)
    named = scenario.policy
    if policy == named.batching:
        return scenario
    targets = {name: value for name, value in named.batching_parameters.items() if name in TARGETS}
    return scenario.replace(policy=named.replace(batching=policy, batching_parameters=targets))


def with_workload(plan: Plan, trace: Path | None, rate_per_s: float | None, seed: int | None) -> Plan:
    """Return the plan with other conversations, arrival rate or seed.

    Raises
    ------
    SpecError
        If the trace is wrong, or the arrivals have no rate to change.
    """
    now = plan.workload
    if trace is None and now.recipe is not None:
        arrivals = now.arrivals
        if rate_per_s is not None:
            arrivals = arrivals.replace(rate_per_s=rate_per_s)
        if seed is not None:
            arrivals = arrivals.replace(seed=seed)
        return plan.replace(workload=now.replace(arrivals=arrivals, seed=arrivals.seed))
    spec = WorkloadSpec(source=now.trace or "", conversations=now.conversations, turns=now.turns, arrivals=now.arrivals)
    return plan.replace(workload=describe_workload(spec, None, trace=trace, rate_per_s=rate_per_s, seed=seed))
