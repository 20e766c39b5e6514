"""Parameters of policy adaptive are set on other arrivals than the plan's own, and what a scenario gives stays."""

from __future__ import annotations

import pytest

from optsched import catalog
from optsched.domain.plan import Plan
from optsched.domain.scenario import LatencyTarget, Scenario, Slo
from optsched.domain.workload import Workload
from optsched.errors import InfeasibleError
from optsched.planner.plan import Planned, plan_scenario
from optsched.planner.replan import with_batching, with_policy
from optsched.planner.tune import ABOVE, HOLDS, PACES, SEEDS, other_arrivals, settings, tbt_target_s, tuned
from optsched.traces.loading import load_workload


def scenario(batching: str = "paced", **policy: dict[str, float]) -> Scenario:
    asked = catalog.scenario("swe-agent-a40")
    assert asked.workload is not None
    return asked.replace(
        workload=asked.workload.replace(conversations=8), policy=asked.policy.replace(batching=batching, **policy)
    )


@pytest.fixture(scope="module")
def plain() -> tuple[Plan, Workload]:
    planned = plan_scenario(scenario(), policy="collocated")
    return with_policy(planned.plan, "adaptive"), planned.workload


def test_the_grid_is_every_pace_with_and_without_holding_and_gathering(plain: tuple[Plan, Workload]) -> None:
    draft, workload = plain
    found = list(settings(draft, workload))
    assert len(found) == 2 * (1 + len(HOLDS)) * (1 + len(PACES) * len(ABOVE))
    assert len({str((plan.placement.parameters, plan.batching.parameters)) for plan in found}) == len(found)
    target_s = tbt_target_s(draft, workload)
    assert 0.05 < target_s < 0.1  # five times some 14 ms
    assert {plan.placement.parameters.get("longest_step_s") for plan in found} == {None, *(share * target_s for share in HOLDS)}
    assert {plan.batching.parameters["pace_s"] for plan in found} == {0.0, *(share * target_s for share in PACES)}


def test_what_is_given_stays_and_what_cannot_be_paced_is_not(plain: tuple[Plan, Workload]) -> None:
    draft, workload = plain
    given = draft.replace(
        placement=draft.placement.replace(parameters={"longest_step_s": 0.2}),
        batching=draft.batching.replace(parameters={"pace_s": 0.5}),
    )
    found = list(settings(given, workload))
    assert {plan.batching.parameters["pace_s"] for plan in found} == {0.5}
    assert {plan.placement.parameters["longest_step_s"] for plan in found} == {0.2}
    assert len(found) == 2 * (1 + len(ABOVE))
    assert len(list(settings(with_batching(draft, "vllm-chunked"), workload))) == 2 * (1 + len(HOLDS))
    loose = draft.replace(slo=draft.slo.replace(tbt=None))
    assert tbt_target_s(loose, workload) == 0
    assert all(set(plan.placement.parameters) <= {"start_s"} for plan in settings(loose, workload))
    assert tbt_target_s(draft.replace(slo=draft.slo.replace(tbt=LatencyTarget(seconds=0.3))), workload) == 0.3


def test_it_is_tuned_on_other_arrivals_and_keeps_what_ranks_best(plain: tuple[Plan, Workload]) -> None:
    draft, workload = plain
    others = [other_arrivals(draft, number) for number in range(1, SEEDS + 1)]
    assert all((other.arrival_s != workload.arrival_s).any() for other in others)
    calls: list[tuple[float, float]] = []
    best = tuned([draft], workload, lambda plan, _: (plan.batching.parameters["pace_s"],), lambda *done: calls.append(done))
    assert [plan.batching.parameters["pace_s"] for plan in best] == [0.0]
    assert "longest_step_s" not in best[0].placement.parameters  # the plainest of equals
    total = len(list(settings(draft, workload)))
    assert calls == [(number, total) for number in range(1, total + 1)]


def test_a_fleet_that_cannot_serve_is_said_so(plain: tuple[Plan, Workload]) -> None:
    draft, workload = plain
    small = draft.replace(replicas=tuple(replica.replace(kv_blocks=3) for replica in draft.replicas))
    with pytest.raises(InfeasibleError, match=r"the largest decoder has KV cache for 48\. Use a larger tier"):
        tuned([small], workload, lambda *_: (0.0,))


def test_a_plan_of_policy_adaptive_is_deterministic_and_passes_the_referees() -> None:
    slo = Slo(ttfet=LatencyTarget(standalone_factor=5), tbt=LatencyTarget(standalone_factor=5))
    supply = {"a40": scenario().supply["a40"].replace(power_caps_w=(200.0,))}
    asked = scenario().replace(slo=slo, supply=supply)

    def plan() -> Planned:
        return plan_scenario(asked, policy="adaptive")

    planned, again = plan(), plan()
    assert planned.plan == again.plan
    assert planned.plan.violations() == []
    assert planned.log.violations(planned.workload) == []
    assert planned.plan.placement.policy == "adaptive"
    assert planned.plan.batching.parameters["pace_s"] >= 0
    assert planned.considered == 1
    certificate = planned.plan.certificate
    assert certificate.bound <= certificate.value * (1 + 1e-9)
    assert load_workload(planned.plan.workload) == planned.workload
