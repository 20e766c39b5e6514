"""Parameters of policy adaptive are set on other arrivals than the plan's own, and what a scenario gives stays."""

from __future__ import annotations

import pytest

from optsched import catalog
from optsched.domain.plan import Plan
from optsched.domain.results import Metrics
from optsched.domain.scenario import LatencyTarget, Scenario, Slo
from optsched.domain.workload import Workload
from optsched.errors import InfeasibleError
from optsched.planner.plan import Planned, plan_scenario
from optsched.planner.replan import with_batching, with_policy
from optsched.planner.tune import ABOVE, CHUNKS, HOLDS, KEPT, PACES, SEEDS, other_arrivals, settings, tbt_target_s, tuned
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


def test_the_grid_is_every_pace_and_chunk_with_and_without_holding_and_gathering(plain: tuple[Plan, Workload]) -> None:
    draft, workload = plain
    found = list(settings(draft, workload))
    assert len(found) == 2 * (1 + len(HOLDS)) * (1 + len(PACES) * len(ABOVE)) * (1 + len(CHUNKS))
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
    assert len(found) == 2 * (1 + len(ABOVE)) * (1 + len(CHUNKS))
    assert len(list(settings(with_batching(draft, "vllm-chunked"), workload))) == 2 * (1 + len(HOLDS))
    apart = draft.replace(replicas=tuple(replica.replace(role="decode") for replica in draft.replicas))
    assert not any("chunk_tokens" in plan.batching.parameters for plan in settings(apart, workload))
    loose = draft.replace(slo=draft.slo.replace(tbt=None))
    assert tbt_target_s(loose, workload) == 0
    assert all(set(plan.placement.parameters) <= {"start_s"} for plan in settings(loose, workload))
    assert tbt_target_s(draft.replace(slo=draft.slo.replace(tbt=LatencyTarget(seconds=0.3))), workload) == 0.3


def test_it_is_tuned_on_other_arrivals_and_keeps_what_ranks_best(plain: tuple[Plan, Workload]) -> None:
    draft, workload = plain
    others = [other_arrivals(draft, number) for number in range(1, SEEDS + 1)]
    assert all((other.arrival_s != workload.arrival_s).any() for other in others)
    calls: list[tuple[float, float]] = []
    narrowed = draft.replace(batching=draft.batching.replace(parameters={"chunk_tokens": 512.0, "above_share": 0.25}))
    best = tuned([narrowed], lambda plan, _: (plan.batching.parameters["pace_s"],), lambda *done: calls.append(done))
    assert [plan.batching.parameters["pace_s"] for plan in best] == [0.0]
    assert "longest_step_s" not in best[0].placement.parameters  # the plainest of equals
    grid, kept = len(list(settings(narrowed, workload))), len(list(settings(narrowed, workload))) // KEPT
    assert [done for done, _ in calls[:-1]] == list(range(1, grid + kept * (SEEDS - 1) + 1))
    assert all(done <= total for done, total in calls)
    assert calls[-1] == (grid + kept * (SEEDS - 1), grid + kept * (SEEDS - 1))


def test_of_many_fleets_those_that_do_best_with_pacing_alone_have_their_whole_grid_tried(plain: tuple[Plan, Workload]) -> None:
    draft, _ = plain
    given = draft.replace(
        batching=draft.batching.replace(parameters={"chunk_tokens": 512.0, "pace_s": 0.02, "above_share": 0.25})
    )

    def of(count: int) -> Plan:
        replicas = given.replicas[:count]
        names = {replica.id for replica in replicas}
        return given.replace(replicas=replicas, links=tuple(link for link in given.links if {link.source, link.target} <= names))

    fleets = [of(count) for count in (2, 4, 1, 3)]
    tried: list[tuple[int, int]] = []

    def rank(plan: Plan, _: Metrics) -> tuple[float, ...]:
        tried.append((len(plan.replicas), len(plan.placement.parameters)))
        return (-float(len(plan.replicas)), -float(len(plan.placement.parameters)))

    best = tuned(fleets, rank)
    assert len(best[0].replicas) == 4
    assert set(best[0].placement.parameters) == {"start_s", "longest_step_s"}  # a setting beyond the sketch
    assert {count for count, parameters in tried if parameters} == {4, 3, 2}
    assert (1, 0) in tried


def test_a_fleet_that_cannot_serve_is_said_so(plain: tuple[Plan, Workload]) -> None:
    draft, _ = plain
    small = draft.replace(replicas=tuple(replica.replace(kv_blocks=3) for replica in draft.replicas))
    with pytest.raises(InfeasibleError, match=r"the largest decoder has KV cache for 48\. Use a larger tier"):
        tuned([small], lambda *_: (0.0,))


def test_a_plan_of_policy_adaptive_is_deterministic_and_passes_the_referees() -> None:
    slo = Slo(ttfet=LatencyTarget(standalone_factor=5), tbt=LatencyTarget(standalone_factor=5))
    supply = {"a40": scenario().supply["a40"].replace(power_caps_w=(200.0,))}
    told = {"pace_s": 0.02, "above_share": 0.25, "chunk_tokens": 512.0}
    asked = scenario(batching_parameters=told).replace(slo=slo, supply=supply)

    def plan() -> Planned:
        return plan_scenario(asked, policy="adaptive")

    planned, again = plan(), plan()
    assert planned.plan == again.plan
    assert planned.plan.violations() == []
    assert planned.log.violations(planned.workload) == []
    assert planned.plan.placement.policy == "adaptive"
    assert planned.plan.batching.parameters["pace_s"] == 0.02
    assert planned.considered == 4  # all mixed, and every split into roles
    certificate = planned.plan.certificate
    assert certificate.bound <= certificate.value * (1 + 1e-9)
    assert load_workload(planned.plan.workload) == planned.workload
