"""Where placing whole conversations gets hard: ``python tests/benchmarks/bench_adaptive_stress.py [CASE ...]`` prints the table.

Conversations are synthetic, policies have their default parameters; "adaptive, tuned" has the setting of `optsched.planner.tune`
that missed the fewest targets, and then had the least p95 TTFET, on other conversations of the same kind. ``adaptive`` runs with
batching policy ``paced``, the others with ``vllm-chunked``. ``collocated`` reserves each conversation's peak, which nobody knows.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from time import process_time

import numpy as np
from jaxtyping import Float64

from optsched import catalog
from optsched.domain.accounting import measure_plan
from optsched.domain.plan import Plan
from optsched.domain.scenario import FleetEntry, LatencyTarget, PlacementPolicyName, Slo, Supply
from optsched.domain.workload import Workload
from optsched.placement.policies import ALL_MIXED
from optsched.planner.plan import plan_scenario
from optsched.planner.replan import with_batching
from optsched.planner.tune import settings
from optsched.simulator.simulate import simulate

POLICIES: tuple[PlacementPolicyName, ...] = ("adaptive", "conserve", "collocated", "per-turn")
SEED = 7
MOST_TUNED = 500
"""Conversations of the largest case that is tuned."""


@dataclass(frozen=True, slots=True)
class Case:
    """A fleet and conversations: medians of lognormal sizes, mean gap between turns, arrivals singly or by `burst` at once."""

    fleet: tuple[tuple[str, str, int], ...]
    conversations: int
    rate_per_s: float
    turns: int = 5
    append: int = 67
    output: int = 80
    gap_s: float = 0.0
    burst: int = 1


FOUR = (("a40", "prefill", 1), ("a40", "decode", 3))
CASES = {
    "agents, five turns": Case(FOUR, 255, 1.0),
    "long tool outputs (6.5 k tokens a step)": Case(FOUR, 60, 0.05, turns=8, append=6500, output=500),
    "40 turns": Case(FOUR, 200, 0.5, turns=40, output=60),
    "tool gaps of 40 s on average": Case(FOUR, 200, 0.5, turns=10, gap_s=40.0),
    "bursts of 25": Case(FOUR, 250, 1.0, burst=25),
    "h100 prefills, l40s and a40 decode": Case(
        (("h100-sxm", "prefill", 1), ("l40s", "decode", 2), ("a40", "decode", 1)), 400, 2.5
    ),
    "10,000 on 64 a40": Case((("a40", "prefill", 16), ("a40", "decode", 48)), 10_000, 16.0),
}


def conversations(case: Case, seed: int = SEED) -> Workload:
    """Draw the conversations of a case."""
    draw = np.random.default_rng(seed)
    count, turns = case.conversations, case.turns
    arrival_s = np.repeat(np.cumsum(draw.exponential(case.burst / case.rate_per_s, -(-count // case.burst))), case.burst)[:count]

    def sizes(median: int, sigma: float) -> Float64[np.ndarray, "count turns"]:
        return median * np.exp(sigma * draw.standard_normal((count, turns)))

    new, gap_s = sizes(case.append, 0.3), draw.exponential(max(case.gap_s, 1e-9), (count, turns)) * (case.gap_s > 0)
    new[:, 0], gap_s[:, 0] = np.clip(sizes(15_000, 0.15)[:, 0], 8000, 21_000), 0
    output = np.clip(sizes(case.output, 0.9), 16, 8000)
    return Workload(
        np.arange(count), arrival_s, np.arange(count + 1) * turns, np.rint(new).astype(np.int64).ravel(),
        np.rint(output).astype(np.int64).ravel(), gap_s.ravel(),
    )  # fmt: skip


def plan_of(case: Case, policy: PlacementPolicyName) -> Plan:
    """Return the plan of a policy on a case's fleet."""
    five, asked = LatencyTarget(percentile=95, standalone_factor=5), catalog.scenario("swe-agent-a40-conserve")
    assert asked.workload is not None
    fleet = tuple(FleetEntry(gpu=gpu, role=role, count=count) for gpu, role, count in case.fleet)  # type: ignore[arg-type]
    supply = {gpu: Supply(count=sum(n for name, _, n in case.fleet if name == gpu)) for gpu, _, _ in case.fleet}
    asked = asked.replace(
        fleet=fleet, supply=supply, slo=Slo(ttfet=five, tbt=five, e2e=five), transfer_link="pcie4-x16",
        workload=asked.workload.replace(conversations=8), policy=asked.policy.replace(placement="collocated"),
    )  # fmt: skip
    # Policies that mix roles are planned as one that does so without a search.
    made = plan_scenario(asked, policy="collocated" if policy in ALL_MIXED else policy).plan
    made = made.replace(placement=made.placement.replace(policy=policy, assignments=()))
    return with_batching(made, "paced") if policy == "adaptive" else made


def best_setting(case: Case, plan: Plan) -> Plan:
    """Return the setting of ``adaptive`` that did best on other conversations."""
    other = conversations(case, SEED + 1)

    def order(option: Plan) -> tuple[float, float]:
        m = measure_plan(option, simulate(option, other, record_steps=False), other)
        return sum(m.slo_violations.values()), m.normalised.ttfet.p95 or 0.0

    return min(settings(plan, other), key=order)


def row(case: Case, plan: Plan) -> str:
    """Simulate a plan on a case and return its figures."""
    workload = conversations(case)
    started = process_time()
    log = simulate(plan, workload, record_steps=False)
    m, spent_s = measure_plan(plan, log, workload), process_time() - started
    n, dropped = m.normalised, sum(event.kind in ("evicted", "dropped") for event in log.events)
    missed = " / ".join(f"{100 * m.slo_violations[name]:.1f}" for name in ("ttfet", "tbt", "e2e"))
    return (
        f"{n.ttfet.p95:.2f} | {n.ttfet.p99:.2f} | {n.e2e.p95:.2f} | {n.last_turn_tbt.p95:.2f} | {missed} | "
        f"{(m.energy_j or 0) / 1e3:,.0f} | {m.makespan_s:,.0f} | {len(log.transfers.conversation):,} | {log.preemptions:,} | "
        f"{dropped:,} | {spent_s:.1f}"
    )


def described(plan: Plan) -> str:
    """Return what was tuned."""
    chosen = {**plan.placement.parameters, **plan.batching.parameters}
    return ", ".join(f"`{name}` {value:.3g}" for name, value in chosen.items())


def main() -> None:
    """Measure the cases named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    print(
        "| case | policy | TTFET p95 | p99 | E2E p95 | TBT p95 | missed TTFET / TBT / E2E % | kJ | makespan s | transfers | preempted "
        "| caches dropped | CPU s |"
    )
    print("|" + "---|" * 13)
    for name in parser.parse_args().cases:
        case = CASES[name]
        for policy in POLICIES:
            plan = plan_of(case, policy)
            print(f"| {name} | {policy} | {row(case, plan)} |", flush=True)
            if policy == "adaptive" and case.conversations <= MOST_TUNED:
                tuned = best_setting(case, plan)
                print(f"| {name} | adaptive, tuned: {described(tuned)} | {row(case, tuned)} |", flush=True)


if __name__ == "__main__":
    main()
