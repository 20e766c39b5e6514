"""The rivals of a plan: the same GPUs and conversations, the roles that each policy needs, figures of honest simulations."""

from __future__ import annotations

import pytest

from optsched import catalog
from optsched.domain.accounting import measure_plan
from optsched.domain.plan import Plan
from optsched.domain.scenario import Scenario
from optsched.planner.compare import MAX_SPLITS, RIVALS, compare, divisions
from optsched.planner.plan import plan_scenario, rank
from optsched.planner.replan import with_policy
from optsched.simulator.simulate import simulate


def small(name: str, conversations: int = 8) -> Scenario:
    scenario = catalog.scenario(name)
    return scenario.replace(workload=scenario.workload.replace(conversations=conversations))


def tiers(plan: Plan) -> list[tuple[str, float]]:
    return sorted((replica.gpu, replica.power_cap_w) for replica in plan.replicas)


def test_the_plan_comes_first_and_every_rival_once() -> None:
    scenario = small("swe-agent-a40-conserve")
    seen: list[tuple[float, float]] = []
    planned = plan_scenario(scenario)
    rows = compare(scenario, planned, progress=lambda done, total: seen.append((done, total)))
    assert [row.policy for row in rows] == ["conserve", "collocated", "full-disaggregation", "per-turn"]
    assert [row.chosen for row in rows] == [True, False, False, False]
    assert rows[0].metrics == planned.plan.predicted
    assert rows[0].transfers == 8
    assert rows[0].bound == planned.plan.certificate.bound
    assert rows[1].roles == {"mixed": 4}
    assert all(row.roles == {"prefill": 1, "decode": 3} for row in rows[2:])
    assert rows[1].transfers == 0
    assert rows[2].transfers == planned.workload.num_turns
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_rival_s_figures_are_those_of_the_plan_under_its_policy() -> None:
    scenario = small("swe-agent-a40-conserve")
    planned = plan_scenario(scenario)
    for row in compare(scenario, planned)[1:3]:
        plan = with_policy(planned.plan, row.policy)
        log = simulate(plan, planned.workload, seed=plan.workload.seed)
        assert row.metrics == measure_plan(plan, log, planned.workload)


def test_a_bound_lies_below_the_simulated_value_and_is_told_only_where_conversations_stay_whole() -> None:
    scenario = small("swe-agent-a40-conserve")
    for row in compare(scenario, plan_scenario(scenario)):
        assert row.value is not None
        if row.policy in ("full-disaggregation", "per-turn"):
            assert row.bound is None
        else:
            assert row.bound is not None
            assert 0 < row.bound <= row.value * 1.02  # the referee's evaluator is not the simulator


def test_a_mixed_plan_is_divided_as_suits_each_rival_best() -> None:
    scenario = small("swe-agent-a40").replace(supply={"a40": {"count": 4, "power_caps_w": [300]}})
    planned = plan_scenario(scenario, policy="collocated")
    rows = {row.policy: row for row in compare(scenario, planned)}
    assert set(rows) == set(RIVALS)
    assert rows["collocated"].chosen
    best = min(
        (
            plan_scenario(scenario.replace(fleet=_fleet(prefillers)), policy="conserve").plan
            for prefillers in (1, 2, 3)
        ),
        key=lambda plan: rank(scenario, plan, plan.predicted),
    )  # fmt: skip
    assert rows["conserve"].metrics == best.predicted


def _fleet(prefillers: int) -> list[dict[str, object]]:
    return [
        {"gpu": "a40", "power_cap_w": 300, "role": "prefill", "count": prefillers},
        {"gpu": "a40", "power_cap_w": 300, "role": "decode", "count": 4 - prefillers},
    ]


def test_a_mixed_plan_of_a_fixed_fleet_gives_its_rivals_the_fleet_s_roles() -> None:
    scenario = small("swe-agent-a40-conserve")
    planned = plan_scenario(scenario, policy="collocated")
    for row in compare(scenario, planned):
        assert row.roles == ({"mixed": 4} if row.policy == "collocated" else {"prefill": 1, "decode": 3})
        for replicas in divisions(scenario, planned.plan, row.policy):
            assert tiers(planned.plan.replace(replicas=replicas)) == tiers(planned.plan)


@pytest.mark.parametrize("count", [2, 7, 8, 40])
def test_fewdivisions_are_tried_and_both_roles_are_always_there(count: int) -> None:
    scenario = small("swe-agent-a40", 2).replace(supply={"a40": {"count": count, "power_caps_w": [300]}})
    plan = plan_scenario(scenario, policy="collocated").plan
    numbers = [sum(replica.role == "prefill" for replica in replicas) for replicas in divisions(scenario, plan, "conserve")]
    assert numbers == sorted(set(numbers))
    assert len(numbers) <= MAX_SPLITS
    assert (numbers[0], numbers[-1]) == (1, count - 1)
    if count <= MAX_SPLITS + 1:
        assert numbers == list(range(1, count))


def test_a_single_replica_has_one_rival_that_can_serve() -> None:
    scenario = small("swe-agent-a40", 2).replace(supply={"a40": {"count": 1, "power_caps_w": [300]}})
    rows = compare(scenario, plan_scenario(scenario, policy="collocated"))
    assert [row.metrics is None for row in rows] == [False, True, True, True]
    assert {row.refusal for row in rows[1:]} == {"it needs a replica to prefill and another to decode"}
