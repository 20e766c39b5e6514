"""Speed and memory of the simulator; run with ``make bench``, or as a script for the tables of docs/benchmarks.md.

The script times each run in CPU seconds beside a fixed loop of plain Python in the same process, since the machine's speed varies;
memory and the first answer are those of processes of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from optsched import catalog
from optsched.domain.plan import Plan
from optsched.domain.scenario import FleetEntry, Scenario
from optsched.domain.workload import Arrivals, Workload
from optsched.planner.plan import Planned, plan_scenario
from optsched.simulator.simulate import simulate
from optsched.traces.arrivals import arrival_times
from optsched.traces.loading import load_workload

REQUESTS = 10_000
FLEET_CONVERSATIONS = 10_000
RATES = {"vllm": (3.0, 4.0, 8.0), "vllm-chunked": (3.0, 4.0, 8.0), "apt-serve": (4.0, 8.0)}
SHORT = 4  # a replica that is short of memory has the fourth part
SHORT_OF_MEMORY = "apt-serve, a quarter of the cache"


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


@pytest.mark.parametrize(("policy", "rate_per_s"), [(policy, rate) for policy, rates in RATES.items() for rate in rates])
def test_simulate_10_000_requests(benchmark: BenchmarkFixture, policy: str, rate_per_s: float) -> None:
    plan, workload = collocated(REQUESTS)
    plan, workload = plan.replace(batching=plan.batching.replace(policy=policy)), at_rate(workload, rate_per_s)
    benchmark(simulate, plan, workload, record_steps=False, record_tokens=False, check=False)


def collocated(requests: int) -> tuple[Plan, Workload]:
    """Return Llama-2-7B on one A100 of 80 GB, and requests of the lengths of the Azure conversation trace."""
    scenario = Scenario(
        llm="llama-2-7b",
        workload={
            "source": "azure-conversation", "conversations": requests,
            "arrivals": {"process": "poisson", "rate_per_s": 4.0, "seed": 1},
        },
        supply={"a100-80gb": {"count": 1}},
        engine={"max_batched_tokens": 8192, "max_sequences": 256},
        policy={"batching": "vllm", "placement": "collocated", "placement_parameters": {"oracle": 0, "admission": 0}},
        objective={"minimise": "ttfet"},
    )  # fmt: skip
    planned = plan_scenario(scenario)
    return planned.plan, planned.workload


def at_rate(workload: Workload, rate_per_s: float) -> Workload:
    """Return the same requests at another rate."""
    arrivals = Arrivals(process="poisson", rate_per_s=rate_per_s, seed=1)
    return workload.with_arrivals(arrival_times(arrivals, workload.num_conversations))


def large_fleet(conversations: int = FLEET_CONVERSATIONS) -> tuple[Plan, Workload]:
    """Return agents' conversations of five turns under policy conserve, on 16 A40 that prefill and 48 that decode."""
    asked = catalog.scenario("swe-agent-a40-conserve")
    assert asked.workload is not None
    fleet = (FleetEntry(gpu="a40", role="prefill", count=16), FleetEntry(gpu="a40", role="decode", count=48))
    few = asked.workload.replace(conversations=8)
    asked = asked.replace(fleet=fleet, supply={"a40": asked.supply["a40"].replace(count=64)}, workload=few)
    plan = plan_scenario(asked, policy="conserve").plan
    arrivals = Arrivals(process="poisson", rate_per_s=20.0, seed=1)
    return plan, load_workload(plan.workload.replace(conversations=conversations, arrivals=arrivals))


def fleet_speed() -> None:
    """Print what running ahead gains in a large fleet, side by side."""
    plan, workload = large_fleet()
    log = simulate(plan, workload, record_tokens=False, check=False)
    execute = partial(simulate, plan, workload, record_steps=False, record_tokens=False, check=False)
    ahead_s, step_by_step_s = np.inf, np.inf
    for _ in range(3):
        ahead_s = min(ahead_s, cpu_s(execute, rounds=1))
        step_by_step_s = min(step_by_step_s, cpu_s(partial(execute, coast=False), rounds=1))
    loop = cpu_s(reference_loop)
    print(
        f"\n{workload.num_conversations:,} conversations ({workload.num_turns:,} requests) on {len(plan.replicas)} GPUs:"
        f" {log.iterations:,} iterations, mean decode batch {log.steps.decode_sequences[log.steps.decode_sequences > 0].mean():.1f};"
        f" {ahead_s:.1f} CPU s ({log.iterations / ahead_s:,.0f} iterations/s, {ahead_s / loop:.0f} loops),"
        f" step by step {step_by_step_s:.1f}, {step_by_step_s / ahead_s:.2f}x."
    )


def reference_loop() -> None:
    """Do a million steps of plain Python: the yardstick of this machine at this moment."""
    total = 0
    for number in range(1_000_000):
        total += number & 7


def cpu_s(work: Callable[[], object], rounds: int = 5) -> float:
    """Return the least CPU time of some rounds."""
    found = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found)


def speeds() -> None:
    """Print the table of iterations and requests per CPU second."""
    plan, workload = collocated(REQUESTS)
    small = tuple(replica.replace(kv_blocks=replica.kv_blocks // SHORT) for replica in plan.replicas)
    print("| policy | req/s | mean decode batch | iterations | iterations / CPU s | requests / CPU s | loops / 10,000 requests |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for policy, rates in {**RATES, SHORT_OF_MEMORY: (4.0, 8.0)}.items():
        chosen = plan.replace(batching=plan.batching.replace(policy=policy.partition(",")[0]))
        chosen = chosen.replace(replicas=small) if policy == SHORT_OF_MEMORY else chosen
        for rate_per_s in rates:
            arriving = at_rate(workload, rate_per_s)
            log = simulate(chosen, arriving, record_tokens=False, check=False)
            batch = log.steps.decode_sequences[log.steps.decode_sequences > 0].mean()
            spent = cpu_s(lambda: simulate(chosen, arriving, record_steps=False, record_tokens=False, check=False))  # noqa: B023
            loop = cpu_s(reference_loop)
            print(
                f"| {policy} | {rate_per_s:g} | {batch:.0f} | {log.iterations:,} | {log.iterations / spent:,.0f} |"
                f" {REQUESTS / spent:,.0f} | {spent / loop:.1f} |"
            )


def memory_mb(requests: int) -> float:
    """Return the largest resident size (MiB; Linux) of a process that simulates so many requests and nothing else."""
    plan, workload = collocated(REQUESTS)
    code = rf"""
import re, sys
import numpy as np
from optsched.domain.plan import Plan
from optsched.simulator.simulate import simulate
from optsched.domain.workload import Workload
plan = Plan.model_validate_json(sys.stdin.read())
generator = np.random.default_rng(1)
lengths = np.array({workload.new_tokens.tolist()}), np.array({workload.output_tokens.tolist()})
count = {requests}
chosen = generator.integers(len(lengths[0]), size=count)
arrivals = np.cumsum(generator.exponential(1 / 4.0, count))
workload = Workload(
    np.arange(count), arrivals, np.arange(count + 1), lengths[0][chosen], lengths[1][chosen], np.zeros(count)
)
log = simulate(plan, workload, record_steps=False, record_tokens=False, check=False)
assert np.isfinite(log.end_s).all()
print(int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read()).group(1)) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], input=plan.model_dump_json(), capture_output=True, text=True, check=True)
    return float(done.stdout)


def first_answer_s(path: str) -> float:
    """Return the wall time of ``optsched simulate`` on a plan file, from nothing to its answer."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "optsched.cli", "simulate", path, "--json"], capture_output=True, text=True, check=True
    )
    assert np.isfinite(json.loads(done.stdout)["metrics"]["makespan_s"])
    return time.perf_counter() - started


def main() -> None:
    """Print the figures of docs/benchmarks.md."""
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from optsched.files import save

    speeds()
    fleet_speed()
    print(f"\n100,000 requests: {memory_mb(100_000):.0f} MB resident at most; 10,000: {memory_mb(10_000):.0f} MB.")
    with TemporaryDirectory() as folder:
        path = str(Path(folder) / "plan.json")
        save(collocated(1_000)[0], "plan", Path(path))
        print(f"First answer of 1,000 requests, compiled before: {min(first_answer_s(path) for _ in range(3)):.2f} s.")


if __name__ == "__main__":
    main()
