"""From a scenario to a plan: build the fleets worth trying, simulate each, keep the best, and prove how good it can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from optsched import catalog
from optsched.cost.rho import rho_s_per_block
from optsched.domain.accounting import measure_plan
from optsched.domain.llm import Llm
from optsched.domain.log import ExecutionLog
from optsched.domain.plan import Certificate, Plan, PlanBatching, PlanLlm, PlanPlacement, PlanSlo, PlanWorkload
from optsched.domain.results import Clock, Metrics, Normalised, Quantiles, Tokens
from optsched.domain.scenario import FleetEntry, Objective, PlacementPolicyName, Scenario
from optsched.domain.workload import Workload
from optsched.errors import InfeasibleError, OptschedError, PlanError, SpecError
from optsched.files import canonical_sha256
from optsched.placement.policies import CARRY_BACK, PER_TURN, parameter_names
from optsched.placement.problem import PlacementPlan, percentile_95
from optsched.planner.candidates import fleets
from optsched.planner.certify import bound_of, certify, uncertified
from optsched.planner.operating import best_fleet
from optsched.planner.optimise import optimise_all, place
from optsched.planner.replicas import make_links, make_replicas, standalone_reference
from optsched.planner.tune import tuned
from optsched.simulator.simulate import simulate
from optsched.traces.loading import describe_workload, load_workload

MAX_SIMULATED = 24
"""Fleets that are simulated when a scenario leaves roles or caps open; the most promising by their bounds."""

_NOTHING = Quantiles(mean=None, p50=None, p95=None, p99=None)
_UNKNOWN = Metrics(
    clock="true", ttft_s=_NOTHING, ttfet_s=_NOTHING, tbt_s=_NOTHING, tpot_s=_NOTHING, e2e_s=_NOTHING,
    normalised=Normalised(ttfet=_NOTHING, last_turn_tbt=_NOTHING, e2e=_NOTHING), slo_attainment=0, makespan_s=0,
    tokens=Tokens(prompt=0, output=0), tokens_per_s=0, energy_j=None, tokens_per_joule=None,
    context_tokens_per_joule=None, cost_usd_per_hour=None,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, the workload it was made for, the simulation that predicts it, and the alternatives that lost.

    Attributes
    ----------
    simulated
        The simulated value of the first objective, in the certificate's unit.
    considered
        Fleets that were simulated, the chosen one included.
    """

    plan: Plan
    workload: Workload
    log: ExecutionLog
    simulated: float
    considered: int


def plan_scenario(
    scenario: Scenario,
    *,
    base: Path | None = None,
    trace: Path | None = None,
    rate_per_s: float | None = None,
    seed: int | None = None,
    policy: PlacementPolicyName | None = None,
    clock: Clock = "true",
    progress: Callable[[float, float], None] | None = None,
) -> Planned:
    """Plan a scenario.

    Parameters
    ----------
    scenario
        What is asked.
    base
        Folder that relative trace paths start from.
    trace, rate_per_s, seed, policy
        Replace the scenario's source of conversations, arrival rate, seed and placement policy.
    clock
        Clock of the predicted figures.
    progress
        Called with the fleets (for policy ``adaptive`` the simulations of settings) simulated so far and their number.

    Raises
    ------
    OptschedError
        If the scenario is wrong or nothing can serve it.
    """
    llm, described, workload = _inputs(scenario, base, trace, rate_per_s, seed)
    name = policy or scenario.policy.placement
    parameter_names(name)
    drafts = drafts_of(scenario, llm, described, name)
    drafts, bounds = _most_promising(drafts, workload, scenario.objective.minimise[0])
    tried = min(len(drafts), MAX_SIMULATED)
    if name == "adaptive":
        drafts = tuned(drafts[:MAX_SIMULATED], lambda draft, metrics: rank(scenario, draft, metrics), progress)
        progress = None
    bound, solver = min(bounds), "policy"

    def draft_on(fleet: tuple[FleetEntry, ...]) -> Plan:
        fixed = drafts_of(scenario.replace(fleet=fleet), llm, described, name)[0]
        return fixed.replace(scenario_sha256=canonical_sha256(scenario))

    def judge(draft: Plan) -> tuple[float, ...]:
        try:
            log = simulate(draft, workload, seed=described.seed, record_steps=False)
        except InfeasibleError:
            return (float("inf"),)
        return rank(scenario, draft, measure_plan(draft, log, workload, clock))

    if name == "optimised":
        objective = scenario.objective.minimise[0]
        together = best_fleet(scenario, llm, drafts, workload, objective, draft_on)
        drafts, bound, solver = together or optimise_all(drafts[:MAX_SIMULATED], bounds, workload, objective, judge, progress)
        progress = None
    best: _Candidate | None = None
    failure: OptschedError | None = None
    for number, draft in enumerate(drafts[:MAX_SIMULATED]):
        try:
            log = simulate(draft, workload, seed=described.seed, record_steps=len(drafts) == 1)
        except InfeasibleError as error:
            failure = error
            continue
        finally:
            if progress is not None:
                progress(number + 1, min(len(drafts), MAX_SIMULATED))
        metrics = measure_plan(draft, log, workload, clock)
        candidate = _Candidate(rank(scenario, draft, metrics), draft, log, metrics)
        if best is None or candidate.rank < best.rank:
            best = candidate
    if best is None:
        raise failure or InfeasibleError("No fleet of the supply can serve this scenario. Raise a count in [supply].")
    objective = scenario.objective.minimise[0]
    plan = _finish(best, workload, objective, bound, solver)
    simulated = simulated_value(objective, measure_plan(plan, best.log, workload), workload, best.log)
    return Planned(plan, workload, best.log, simulated, tried)


def plan_draft(scenario: Scenario, draft: Plan, workload: Workload) -> Planned:
    """Return the plan that a draft makes as it stands, with its figures and certificate.

    Parameters
    ----------
    scenario
        What is asked.
    draft
        Replicas and policies, as of `drafts_of`.
    workload
        The conversations.

    Raises
    ------
    InfeasibleError
        If a conversation fits no replica.
    """
    log = simulate(draft, workload, seed=draft.workload.seed)
    metrics = measure_plan(draft, log, workload)
    objective = scenario.objective.minimise[0]
    chosen = _Candidate(rank(scenario, draft, metrics), draft, log, metrics)
    plan = _finish(chosen, workload, objective, bound_of(draft, workload, objective), "policy")
    return Planned(plan, workload, log, simulated_value(objective, metrics, workload, log), 1)


@dataclass(frozen=True, slots=True)
class _Candidate:
    rank: tuple[float, ...]
    draft: Plan
    log: ExecutionLog
    metrics: Metrics


def _inputs(
    scenario: Scenario, base: Path | None, trace: Path | None, rate_per_s: float | None, seed: int | None
) -> tuple[Llm, PlanWorkload, Workload]:
    if scenario.services or scenario.llm is None or scenario.workload is None:
        raise SpecError(
            f"a plan places the conversations of one service, this scenario has {len(scenario.services)}; "
            "give llm and [workload] of the one to place",
            field="service",
        )
    _refuse_what_is_not_planned(scenario)
    described = describe_workload(scenario.workload, base, trace=trace, rate_per_s=rate_per_s, seed=seed)
    return catalog.llm(scenario.llm), described, load_workload(described)


def _refuse_what_is_not_planned(scenario: Scenario) -> None:
    """Refuse keys that a plan would silently ignore."""
    unused = {
        "period": (bool(scenario.periods), "a plan serves one arrival rate; give it with --rate or workload.arrivals"),
        "current": (scenario.current is not None, "a plan does not weigh the cost of change"),
        "limits.survive": (
            scenario.limits.survive != "none",
            "a plan does not add spare replicas; size [supply] or [[fleet]] for it",
        ),
        "engine.chunked_prefill": (
            not scenario.engine.chunked_prefill and scenario.policy.batching == "vllm-chunked",
            "policy 'vllm-chunked' computes prompts in chunks; use batching policy 'apt-serve', or raise max_batched_tokens",
        ),
    }
    for field, (given, reason) in unused.items():
        if given:
            raise SpecError(f"{reason}; remove the key", field=field)


def drafts_of(scenario: Scenario, llm: Llm, described: PlanWorkload, policy: PlacementPolicyName) -> list[Plan]:
    """Return a plan, without a placement or figures yet, for every fleet that a placement policy may run on."""
    reference = standalone_reference(llm, scenario)
    parameters = dict(scenario.policy.batching_parameters)
    for key, target in (("ttft_slo_s", scenario.slo.ttft), ("tbt_slo_s", scenario.slo.tbt)):
        if target is not None and target.seconds is not None:
            parameters.setdefault(key, target.seconds)
    own = scenario.policy.placement_parameters if policy == scenario.policy.placement else {}
    made = []
    for fleet in fleets(scenario, llm, policy):
        replicas = make_replicas(llm, fleet, scenario.engine.block_tokens)
        draft = Plan(
            scenario_sha256=canonical_sha256(scenario),
            llms=(PlanLlm(name=llm.name, shape=llm),),
            slo=PlanSlo(**{name: getattr(scenario.slo, name) for name in type(scenario.slo).model_fields}, standalone=reference),
            workload=described,
            engine=scenario.engine,
            replicas=replicas,
            links=make_links(scenario, replicas, back=policy in CARRY_BACK),
            batching=PlanBatching(
                policy=scenario.policy.batching,
                rho_s_per_block=max(rho_s_per_block(r.coefficients, scenario.engine.block_tokens) for r in replicas),
                parameters=parameters,
            ),
            placement=PlanPlacement(policy=policy, parameters=own),
            predicted=_UNKNOWN,
            certificate=Certificate(evaluator="none", objective="none", value=0, bound=0, gap=0, status="NO_PLAN", solver="none"),
        )
        if broken := draft.violations():
            raise PlanError(broken)
        _refuse_over_limits(scenario, draft)
        made.append(draft)
    return made


def _refuse_over_limits(scenario: Scenario, draft: Plan) -> None:
    power_w = sum(replica.power_cap_w * replica.tp * replica.pp for replica in draft.replicas)
    usd = sum(replica.usd_per_hour for replica in draft.replicas)
    for name, used, limit, unit in (
        ("power_w", power_w, scenario.limits.power_w, "W"), ("usd_per_hour", usd, scenario.limits.usd_per_hour, "USD/h"),
    ):  # fmt: skip
        if limit is not None and used > limit:
            raise InfeasibleError(
                f"The fleet comes to {used:g} {unit}, limits.{name} allows {limit:g}. Raise it, or lower counts or power caps."
            )


def _most_promising(drafts: Sequence[Plan], workload: Workload, objective: Objective) -> tuple[list[Plan], list[float]]:
    """Return the drafts in order of their bounds, and the bounds."""
    bounds = [bound_of(draft, workload, objective) for draft in drafts]
    order = np.argsort(bounds, kind="stable")
    return [drafts[index] for index in order], [bounds[index] for index in order]


def objective_value(objective: Objective, draft: Plan, metrics: Metrics) -> float:
    """Return a plan's simulated value of one objective."""
    values: dict[Objective, float | None] = {
        "energy": metrics.energy_j,
        "cost": metrics.cost_usd_per_hour,
        "gpus": float(sum(replica.tp * replica.pp for replica in draft.replicas)),
        "ttfet": metrics.ttfet_s.p95,
        "slo_misses": 1 - metrics.slo_attainment,
    }
    value = values[objective]
    return float("inf") if value is None else value


def simulated_value(objective: Objective, metrics: Metrics, workload: Workload, log: ExecutionLog) -> float:
    """Return the simulated counterpart of a certificate's value, in its unit (J, s, conversations or USD)."""
    if objective == "energy":
        return metrics.energy_j or 0.0
    if objective == "ttfet":
        # The placement layer's percentile does not interpolate, the figures' does.
        return percentile_95(log.first_token_s[workload.first_turn[1:] - 1] - log.arrival_s[workload.first_turn[:-1]])
    if objective == "slo_misses":
        return (1 - metrics.slo_attainment) * workload.num_conversations
    return (metrics.cost_usd_per_hour or 0.0) * metrics.makespan_s / 3600


def rank(scenario: Scenario, draft: Plan, metrics: Metrics) -> tuple[float, ...]:
    """Order plans: by how far they miss the targets' percentiles first, then by the objectives."""
    excess = 0.0
    for name in ("ttft", "tpot", "tbt", "ttfet", "e2e"):
        target = getattr(scenario.slo, name)
        if target is not None:
            excess += max(0.0, metrics.slo_violations[name] - (1 - target.percentile / 100) - 1e-12)
    return (excess, *(objective_value(objective, draft, metrics) for objective in scenario.objective.minimise))


def _finish(chosen: _Candidate, workload: Workload, objective: Objective, bound: float, solver: str) -> Plan:
    draft, first = chosen.draft, workload.first_turn[:-1]
    prefill, decode = chosen.log.prefill_replica[first], chosen.log.decode_replica[first]
    # A conversation of a single token ends on its prefiller; any decoder is as good.
    prefillers = np.array([replica.role == "prefill" for replica in draft.replicas])
    placement = PlacementPlan.of(prefill, np.where(prefillers[decode], int(np.argmin(prefillers)), decode))
    if draft.placement.policy != "optimised":
        draft = place(draft, placement)
    simulated = simulated_value(objective, chosen.metrics, workload, chosen.log)
    if workload.concurrency is not None:
        certificate = uncertified("simulation of a closed loop", objective, simulated)
    elif draft.placement.policy in PER_TURN:
        certificate = uncertified("simulation of turns that move", objective, simulated)
    else:
        certificate = certify(draft, workload, placement, objective, bound, solver)
    plan = draft.replace(predicted=chosen.metrics, certificate=certificate)
    if broken := plan.violations():
        raise PlanError(broken)
    return plan
