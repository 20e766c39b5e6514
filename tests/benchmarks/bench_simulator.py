"""Speed of the simulator and of a whole plan on the packaged agent workload; run with ``make bench``."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from optsched import catalog
from optsched.planner.plan import Planned, plan_scenario
from optsched.simulator.simulate import simulate


@pytest.fixture(scope="module")
def planned() -> Planned:
    return plan_scenario(catalog.scenario("swe-agent-a40-conserve"))


def test_simulate_255_conversations(benchmark: BenchmarkFixture, planned: Planned) -> None:
    log = benchmark(simulate, planned.plan, planned.workload, record_steps=False, check=False)
    benchmark.extra_info["iterations_per_s"] = planned.log.iterations / benchmark.stats["min"]
    assert log.makespan_s == planned.log.makespan_s


def test_plan_255_conversations(benchmark: BenchmarkFixture, planned: Planned) -> None:
    again = benchmark.pedantic(plan_scenario, args=(catalog.scenario("swe-agent-a40-conserve"),), rounds=3)
    assert again.plan == planned.plan
