"""Policy ``adaptive`` against its rivals, true clock: ``python tests/benchmarks/bench_adaptive.py`` prints the tables.

The conversations of ConServe's evaluation (arXiv 2606.01839) on four A40, each of six offered rates. Per rate and rival, a setting
of ``adaptive`` with ``paced`` (`optsched.planner.tune`, caps 200, 250 and 300 W) is chosen on `TUNING` arrivals, and both are run
on the `UNSEEN` ones. The trace is ``$OPTSCHED_DATA/conserve/trace_profile_summary.csv``; without it, the packaged recipe.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from scipy.stats import t as student

from optsched import catalog
from optsched.domain.accounting import measure_plan
from optsched.domain.plan import Plan
from optsched.domain.scenario import FleetEntry, LatencyTarget, PlacementPolicyName, Role, Scenario, Slo
from optsched.domain.standalone import standalone_latency
from optsched.planner.plan import plan_scenario
from optsched.planner.replan import with_batching, with_policy, with_workload
from optsched.planner.tune import settings
from optsched.simulator.simulate import simulate
from optsched.traces.loading import load_workload

RATES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
LOW_RATES = (0.5, 0.75)
"""Those at which fewer than four GPUs are tried."""
TUNING = (101, 102, 103)
UNSEEN = (1, 2, 3, 4, 5)
CAPS_W = (200.0, 250.0, 300.0)
RIVALS: tuple[PlacementPolicyName, ...] = ("collocated", "full-disaggregation", "per-turn-emulated", "conserve")
FIGURES = (
    "p95", "kJ", "kJ on", "p99", "max", "TBT p95", "E2E p95", "TTFET %", "TBT %", "E2E %", "any %", "makespan",
)  # fmt: skip
P95, KJ, KJ_ON, ANY, EACH = 0, 1, 2, 10, (7, 8, 9)
Figures = Float64[np.ndarray, "seeds figures"]


def scenario(fleet: Sequence[tuple[Role, int, float]]) -> Scenario:
    """Return ConServe's scenario on a fleet of (role, count, cap), with targets of five times the standalone latency."""
    asked, five = catalog.scenario("swe-agent-a40-conserve"), LatencyTarget(percentile=95, standalone_factor=5)
    entries = tuple(
        FleetEntry(
            gpu="a40", power_cap_w=cap, role=role, count=count, max_batched_tokens=8192 if role == "prefill" else None
        )
        for role, count, cap in fleet
    )  # fmt: skip
    supply = {"a40": asked.supply["a40"].replace(power_caps_w=CAPS_W)}
    return asked.replace(slo=Slo(ttfet=five, tbt=five, e2e=five), supply=supply, fleet=entries)


def trace() -> Path | None:
    """Return the real trace's path, if there is one."""
    path = Path(os.environ.get("OPTSCHED_DATA", "")) / "conserve" / "trace_profile_summary.csv"
    return path if "OPTSCHED_DATA" in os.environ and path.is_file() else None


@cache
def rival(policy: PlacementPolicyName, decode_w: float) -> Plan:
    """Return a rival's plan: one prefiller at 300 W, three decoders at `decode_w`; the same GPUs, all mixed, if it mixes."""
    return plan_scenario(scenario([("prefill", 1, 300.0), ("decode", 3, decode_w)]), trace=trace(), policy=policy).plan


@cache
def points() -> tuple[Plan, ...]:
    """Return every setting of ``adaptive``, on four or three GPUs of one cap."""
    found: list[Plan] = []
    for count in (4, 3):
        for cap in CAPS_W:
            plain = plan_scenario(scenario([("mixed", count, cap)]), trace=trace(), policy="collocated").plan
            draft = with_batching(with_policy(plain, "adaptive"), "paced")
            # Decodes gather at the default of ``start_s``: half of the grid.
            found += [p for p in settings(draft, load_workload(draft.workload)) if "start_s" not in p.placement.parameters]
    return tuple(found)


def name_of(plan: Plan) -> str:
    """Return what distinguishes a point of ours."""
    own, pace = plan.placement.parameters, plan.batching.parameters
    paced = f"{1e3 * pace['pace_s']:.0f} ms above {pace['above_share']:.0%}" if pace["pace_s"] else "not paced"
    held = f", held at {1e3 * own['longest_step_s']:.0f} ms" if "longest_step_s" in own else ""
    return f"{len(plan.replicas)} x {plan.replicas[0].power_cap_w:.0f} W, {paced}{held}"


@cache
def run(key: tuple[str, int], rate: float, seed: int) -> tuple[float, ...]:
    """Return the `FIGURES` of one execution; `key`: a rival's policy and decode cap, or "" and the number of a point."""
    plan = points()[key[1]] if key[0] == "" else rival(key[0], float(key[1]))  # type: ignore[arg-type]
    plan = with_workload(plan, trace(), rate, seed)
    workload = load_workload(plan.workload)
    log = simulate(plan, workload, record_steps=False)
    m = measure_plan(plan, log, workload)
    alone = standalone_latency(workload, plan.slo.standalone.coefficients, plan.slo.standalone.max_batched_tokens)
    ttfet_s = log.first_token_s[workload.first_turn[1:] - 1] - log.arrival_s[workload.first_turn[:-1]]
    idle_w = np.array([replica.coefficients.idle_w for replica in plan.replicas])
    assert log.dynamic_j is not None
    assert m.energy_j is not None
    unused_w = (4 - len(plan.replicas)) * idle_w.mean()
    off_w = float(idle_w[log.dynamic_j == 0].sum())
    n, missed = m.normalised, m.slo_violations
    found = (
        n.ttfet.p95, (m.energy_j + unused_w * m.makespan_s) / 1e3, (m.energy_j - off_w * m.makespan_s) / 1e3, n.ttfet.p99,
        (ttfet_s / alone.ttfet_s).max(), n.last_turn_tbt.p95, n.e2e.p95, 100 * missed["ttfet"], 100 * missed["tbt"],
        100 * missed["e2e"], 100 * (1 - m.slo_attainment), m.makespan_s,
    )  # fmt: skip
    return tuple(float(value or 0.0) for value in found)


def figures(key: tuple[str, int], rate: float, seeds: Sequence[int]) -> Figures:
    """Return the figures of some arrivals."""
    return np.array([run(key, rate, seed) for seed in seeds])


def choose(rate: float, theirs: Figures, energy: int) -> int:
    """Return the point that beats a rival on the tuning arrivals by the largest margin in either axis.

    Points that are worse in an axis, or miss more targets, come after all that are not, by how much they are.
    """
    mean = theirs.mean(axis=0)

    def order(point: int) -> tuple[float, float]:
        ours = figures(("", point), rate, TUNING).mean(axis=0)
        p95, joules = ours[P95] / mean[P95], ours[energy] / mean[energy]
        worse = max(0.0, p95 - 1) + max(0.0, joules - 1) + sum(max(0.0, ours[i] - mean[i]) for i in (*EACH, ANY)) / 100
        return worse, p95 * joules

    numbers = [i for i, plan in enumerate(points()) if energy == KJ_ON or len(plan.replicas) == 4]
    return min(numbers, key=order)


def interval(ours: Figures, theirs: Figures, column: int) -> tuple[float, float]:
    """Return the mean of ours over theirs less 1, and half of its 95 % interval over the arrivals, paired."""
    ratio = ours[:, column] / theirs[:, column] - 1
    half = student.ppf(0.975, len(ratio) - 1) * ratio.std(ddof=1) / np.sqrt(len(ratio))
    return float(ratio.mean()), float(half)


def verdict(ours: Figures, theirs: Figures, energy: int) -> str:
    """Say which of the two axes are no worse within the interval, and whether no more targets are missed."""
    axes = [interval(ours, theirs, column) for column in (P95, energy)]
    weak = all(mean - half <= 0 for mean, half in axes)
    strict = weak and min(mean for mean, _ in axes) <= -0.10
    more = [FIGURES[i] for i in (*EACH, ANY) if ours[:, i].mean() > theirs[:, i].mean() + 1e-9]
    word = "by 10 %" if strict else "yes" if weak else "**no**"
    return word + (f"; more missed: {', '.join(more)}" if more else "")


def row(name: str, found: Figures) -> str:
    """Return a line of means."""
    return f"| {name} | " + " | ".join(f"{value:.4g}" for value in found.mean(axis=0)) + " |"


def table(energy: int, rates: Sequence[float]) -> None:
    """Print one table: all GPUs billed, or only those on."""
    print(
        f"\n| rate | rival | p95 | {FIGURES[energy]} | any % | ours | p95 | {FIGURES[energy]} | any % | p95 vs | kJ vs | dominated |"
    )
    print("|" + "---|" * 12)
    for rate in rates:
        for policy in RIVALS:
            for decode_w in (300, 200):
                key = (policy, decode_w)
                point = choose(rate, figures(key, rate, TUNING), energy)
                ours, theirs = figures(("", point), rate, UNSEEN), figures(key, rate, UNSEEN)
                versus = ["{:+.1%} ± {:.1%}".format(*interval(ours, theirs, column)) for column in (P95, energy)]
                shown = [f"{x[:, i].mean():.3g}" for x in (theirs, ours) for i in (P95, energy, ANY)]
                print(
                    f"| {rate} | {policy} {decode_w} | {' | '.join(shown[:3])} | {name_of(points()[point])} | "
                    f"{' | '.join(shown[3:])} | {' | '.join(versus)} | {verdict(ours, theirs, energy)} |",
                    flush=True,
                )
                CHOSEN.add((rate, ("", point)))
                CHOSEN.add((rate, key))


CHOSEN: set[tuple[float, tuple[str, int]]] = set()


def main() -> None:
    """Print both tables, and every figure of what is in them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=float, nargs="*", default=RATES, help="offered rates of the first table")
    parser.add_argument("--low-rates", type=float, nargs="*", default=LOW_RATES, help="of the second, three GPUs tried, too")
    asked = parser.parse_args()
    print(f"{'trace' if trace() else 'recipe swe-agent'}, arrivals {UNSEEN}, tuned on {TUNING}", file=sys.stderr)
    table(KJ, asked.rates)
    table(KJ_ON, asked.low_rates)
    print(f"\n| rate, who | {' | '.join(FIGURES)} |")
    print("|" + "---|" * (len(FIGURES) + 1))
    for rate, key in sorted(CHOSEN):
        print(row(f"{rate}, {name_of(points()[key[1]]) if key[0] == '' else f'{key[0]} {key[1]}'}", figures(key, rate, UNSEEN)))


if __name__ == "__main__":
    main()
