"""Scenarios become plans that the referees accept, with a bound below their value."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from optsched import catalog, files
from optsched.domain.plan import Plan
from optsched.domain.scenario import FleetEntry, LatencyTarget, Scenario
from optsched.errors import InfeasibleError, SpecError
from optsched.files import validate
from optsched.planner.candidates import fleets
from optsched.planner.plan import plan_scenario
from optsched.planner.replan import with_policy
from optsched.simulator.simulate import simulate


def small(name: str, conversations: int = 8):
    scenario = catalog.scenario(name)
    return scenario.replace(workload=scenario.workload.replace(conversations=conversations))


@pytest.mark.parametrize("policy", ["conserve", "collocated", "optimised"])
def test_a_plan_passes_its_referees_and_its_bound_is_below_its_value(policy):
    planned = plan_scenario(small("swe-agent-a40"), policy=policy)
    assert planned.plan.violations() == []
    assert planned.log.violations(planned.workload) == []
    certificate = planned.plan.certificate
    assert certificate.bound <= certificate.value * (1 + 1e-9)
    assert certificate.gap == pytest.approx(1 - certificate.bound / certificate.value, abs=1e-9)
    assert len(planned.plan.placement.assignments) == 8
    roles = {replica.role for replica in planned.plan.replicas}
    if policy != "optimised":  # which decides the roles too
        assert roles == ({"mixed"} if policy == "collocated" else {"prefill", "decode"})


def test_the_optimised_placement_is_never_worse_than_the_policies_under_the_evaluator():
    scenario = small("swe-agent-a40-conserve").replace(objective={"minimise": "ttfet"})
    conserve, optimised = (plan_scenario(scenario, policy=policy).plan.certificate for policy in ("conserve", "optimised"))
    assert optimised.evaluator == conserve.evaluator
    assert conserve.bound <= optimised.value <= conserve.value * (1 + 1e-9)
    assert optimised.solver != "policy"


def test_a_plan_read_back_from_its_file_simulates_to_its_own_prediction(tmp_path):
    from optsched.domain.accounting import measure_plan
    from optsched.traces.loading import load_workload

    planned = plan_scenario(catalog.scenario("quickstart"))
    files.save(planned.plan, "plan", tmp_path / "plan.json")
    plan = files.load(Plan, "plan", tmp_path / "plan.json")
    assert plan == planned.plan
    workload = load_workload(plan.workload)
    assert measure_plan(plan, simulate(plan, workload), workload) == plan.predicted


def test_open_roles_and_caps_are_decided_and_no_fixed_candidate_beats_the_choice():
    scenario = small("swe-agent-a40")
    chosen = plan_scenario(scenario, policy="conserve")
    options = fleets(scenario, catalog.llm(scenario.llm), "conserve")
    assert chosen.considered == len(options) == 12  # 3 splits x 2 caps for prefill x 2 caps for decode
    met = chosen.plan.predicted.slo_attainment
    for fleet in options:
        other = plan_scenario(scenario.replace(fleet=fleet), policy="conserve")
        if other.plan.predicted.slo_attainment >= met:
            assert other.plan.predicted.energy_j >= chosen.plan.predicted.energy_j - 1e-6


def test_a_fixed_fleet_is_kept_and_mixed_only_for_the_policies_that_mix():
    scenario = small("swe-agent-a40-conserve")
    kept = plan_scenario(scenario)
    assert [replica.role for replica in kept.plan.replicas] == ["prefill", "decode", "decode", "decode"]
    assert [replica.power_cap_w for replica in kept.plan.replicas] == [300, 200, 200, 200]
    mixed = plan_scenario(scenario, policy="collocated")
    assert {replica.role for replica in mixed.plan.replicas} == {"mixed"}
    assert [replica.power_cap_w for replica in mixed.plan.replicas] == [300, 200, 200, 200]


def test_the_same_seed_gives_the_same_plan_and_another_seed_another():
    scenario = small("swe-agent-a40-conserve")
    first, again, other = (plan_scenario(scenario, seed=seed).plan for seed in (5, 5, 6))
    assert first == again
    assert first.predicted != other.predicted


def test_arrivals_years_apart_do_not_let_rounding_break_the_certificate():
    scenario = catalog.scenario("quickstart")
    for seed in (4, 6, 7):
        proof = plan_scenario(scenario, rate_per_s=3e-7, seed=seed).plan.certificate
        assert proof.bound <= proof.value
        assert proof.value == pytest.approx(proof.bound, rel=1e-6)


def test_the_simulated_ttfet_is_the_percentile_of_its_certificate():
    scenario = catalog.scenario("quickstart")
    for seed in (1, 2, 3):
        planned = plan_scenario(scenario, rate_per_s=0.01, seed=seed)
        assert planned.simulated >= planned.plan.certificate.bound * (1 - 1e-9)


def test_a_lightly_loaded_chat_service_misses_nothing_in_evaluator_and_simulator():
    planned = plan_scenario(small("chat-l4", conversations=20))
    assert planned.plan.certificate.value == 0
    assert planned.plan.certificate.status == "OPTIMAL"
    assert planned.simulated == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"period": [{"name": "day", "hours": 24, "rate_per_s": 1}]}, "period: a plan serves one arrival rate"),
        ({"current": {"fleet": []}}, "current: a plan does not weigh"),
        ({"limits": {"survive": "node"}}, "limits.survive: a plan does not add spare replicas"),
        ({"engine": {"chunked_prefill": False}}, "engine.chunked_prefill: policy 'vllm-chunked' computes prompts in chunks"),
    ],
)
def test_what_a_plan_would_ignore_is_refused(change, says):
    base = small("quickstart").model_dump(by_alias=True)
    with pytest.raises(SpecError, match=says):
        plan_scenario(validate(Scenario, {**base, **change}))


def test_limits_of_the_fleet_bind():
    scenario = small("swe-agent-a40-conserve")
    with pytest.raises(InfeasibleError, match=r"comes to 900 W, limits.power_w allows 500"):
        plan_scenario(scenario.replace(limits={"power_w": 500}))
    with pytest.raises(InfeasibleError, match=r"USD/h, limits.usd_per_hour allows 0.1"):
        plan_scenario(scenario.replace(limits={"usd_per_hour": 0.1}))


def test_one_replica_cannot_be_split_into_roles():
    scenario = small("swe-agent-a40").replace(supply={"a40": {"count": 1}})
    with pytest.raises(InfeasibleError, match="needs a replica to prefill and another to decode"):
        plan_scenario(scenario, policy="conserve")
    assert len(plan_scenario(scenario, policy="collocated").plan.replicas) == 1


def test_an_llm_that_needs_two_gpus_gets_tensor_parallelism():
    scenario = small("swe-agent-a40").replace(llm="qwen3-32b", supply={"a40": {"count": 4}})
    plan = plan_scenario(scenario, policy="conserve").plan
    assert {replica.tp for replica in plan.replicas} == {2}
    assert len(plan.replicas) == 2


def test_several_services_are_refused_with_the_reason():
    scenario = small("quickstart")
    service = {"name": "a", "llm": scenario.llm, "workload": scenario.workload}
    several = scenario.replace(llm=None, workload=None, services=(service, {**service, "name": "b"}))
    with pytest.raises(SpecError, match="one service, this scenario has 2"):
        plan_scenario(several)


def test_a_plan_takes_another_policy_on_its_replicas():
    plan = plan_scenario(small("swe-agent-a40-conserve")).plan
    assert {replica.role for replica in with_policy(plan, "collocated").replicas} == {"mixed"}


def test_meeting_the_targets_comes_before_the_objective():
    loose = small("swe-agent-a40").replace(slo={"ttfet": LatencyTarget(standalone_factor=1000)})
    tight = loose.replace(slo={"ttfet": LatencyTarget(percentile=95, standalone_factor=1.15)})
    cheap, fast = (plan_scenario(scenario, policy="conserve").plan.predicted for scenario in (loose, tight))
    assert cheap.energy_j <= fast.energy_j
    assert fast.slo_violations["ttfet"] <= 0.15


def test_the_placement_on_an_open_fleet_is_the_one_that_the_same_fleet_gets_when_it_is_fixed():
    scenario = small("swe-agent-a40", 14).replace(
        supply={"a40": {"count": 2, "power_caps_w": (200, 300)}}, objective={"minimise": "ttfet"}
    )
    chosen = plan_scenario(validate(Scenario, scenario.model_dump()), policy="optimised").plan
    alike = Counter((replica.gpu, replica.power_cap_w, replica.role) for replica in chosen.replicas)
    fleet = tuple(FleetEntry(gpu=gpu, power_cap_w=cap, role=role, count=count) for (gpu, cap, role), count in alike.items())
    fixed = plan_scenario(validate(Scenario, scenario.model_dump()).replace(fleet=fleet), policy="optimised").plan
    assert chosen.certificate.value == fixed.certificate.value
    assert chosen.placement.assignments == fixed.placement.assignments
    assert chosen.certificate.bound <= fixed.certificate.bound


def test_large_supplies_are_split_in_a_few_ways_only():
    scenario = small("swe-agent-a40").replace(supply={"a40": {"count": 64, "power_caps_w": (300,)}})
    options = fleets(validate(Scenario, scenario.model_dump()), catalog.llm("qwen3-0.6b"), "optimised")
    prefillers = [sum(entry.count for entry in fleet if entry.role == "prefill") for fleet in options]
    assert prefillers == [0, 8, 16, 24, 32, 40, 48, 56]


@pytest.mark.parametrize("objective", ["ttfet", "energy"])
def test_roles_caps_and_placement_of_a_small_open_fleet_are_proven_together(objective):
    data = small("swe-agent-a40", 4).replace(
        supply={"a40": {"count": 2, "power_caps_w": (200, 300)}}, objective={"minimise": objective}
    )
    scenario = validate(Scenario, data.model_dump())
    planned = plan_scenario(scenario, policy="optimised")
    certificate = planned.plan.certificate
    assert certificate.solver == "operating-walk"
    assert planned.plan.violations() == []
    caps = [FleetEntry(gpu="a40", power_cap_w=cap, role=role) for cap in (200, 300) for role in ("prefill", "decode", "mixed")]
    values = []
    for fleet in itertools.combinations_with_replacement(caps, 2):
        if {entry.role for entry in fleet} not in ({"prefill"}, {"decode"}):
            values.append(plan_scenario(scenario.replace(fleet=fleet), policy="optimised").plan.certificate.value)
    assert len(values) == 15
    assert certificate.bound == pytest.approx(min(values), rel=1e-6)
    assert certificate.value >= certificate.bound
