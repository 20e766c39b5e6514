"""Plans on real workers against predictions: ``python tests/benchmarks/bench_workers.py --fill docs/benchmarks.md``.

This machine is calibrated first, on other seeds, into a temporary folder. Then each placement policy is planned and executed under
two loads and three arrivals; one arrival of some policies is executed three times, and how far those are apart is the least error
that anyone can expect. An llm whose hidden cache is half of its KV is given too small a pool under several batching policies.

Nothing else should run; it takes about eight minutes on two cores. ``--quick`` only tries whether all of it works. Without
``--fill`` the tables are printed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from time import monotonic

from errors import fill, markdown
from workers_runs import (
    BATCHINGS,
    FIGURES,
    STEP_KINDS,
    Concurrency,
    Outcome,
    Scarce,
    agentic,
    calibrate,
    figure,
    measured,
    prompts_per_s,
)  # fmt: skip

from optsched.domain.results import Metrics
from optsched.domain.scenario import PlacementPolicyName
from optsched.runtime.busy import busy_cores

POLICIES: tuple[PlacementPolicyName, ...] = ("conserve", "collocated", "full-disaggregation", "adaptive")
LOADS = (0.3, 0.6)
SEEDS = (11, 12, 13)
"""Of arrivals, lengths, prompts and weights; calibration has seed 20,001."""
REPEATED: tuple[PlacementPolicyName, ...] = ("conserve", "collocated")
REPEATS = 3
WINDOW_S, FEWEST, MOST = 4.0, 6, 24
"""Over how long conversations arrive, and how many at least and at most."""
SCARCE = Scarce("demo-opt", kv_blocks=40, ttft_factor=1.0)
REQUESTS, ATTAINED, RATE_SEED = 64, 0.6, 5
WITHIN = 0.10
Key = tuple[PlacementPolicyName, float]


def conversations(rate_per_s: float) -> int:
    """Return how many conversations arrive in about `WINDOW_S`."""
    return min(MOST, max(FEWEST, round(WINDOW_S * rate_per_s)))


def mean_and_range(values: Sequence[float]) -> str:
    """Return relative errors as a cell: their mean, and from where to where they go."""
    if not values:
        return "-"
    return f"{fmean(values):+.1%}" + (f" [{min(values):+.0%}, {max(values):+.0%}]" if len(values) > 1 else "")


def spread(values: Sequence[float]) -> float:
    """Return the difference between the largest and the smallest over their mean."""
    return (max(values) - min(values)) / fmean(values)


def say(text: str, began_s: float) -> None:
    """Tell on the side how far it is."""
    sys.stderr.write(f"{monotonic() - began_s:5.0f} s  {text}\n")


def run_policies(
    policies: Sequence[PlacementPolicyName], rates: Mapping[float, float], seeds: Sequence[int], began_s: float
) -> tuple[dict[Key, list[Outcome]], dict[Key, list[Outcome]]]:
    """Execute each policy under each load (whose rate is given), once per seed, and some of them again with the first seed.

    Returns
    -------
    tuple
        By policy and load the outcomes of the seeds, and those of one seed executed `REPEATS` times.
    """
    found: dict[Key, list[Outcome]] = {}
    again: dict[Key, list[Outcome]] = {}
    for load, rate_per_s in rates.items():
        for policy in policies:
            for seed in seeds:
                plan, workload = agentic(policy, rate_per_s, conversations(rate_per_s), seed)
                times = REPEATS if policy in REPEATED and seed == seeds[0] and len(seeds) > 1 else 1
                outcomes = [measured(plan, workload, seed) for _ in range(times)]
                found.setdefault((policy, load), []).append(outcomes[0])
                if times > 1:
                    again[policy, load] = outcomes
                say(f"{policy}, load {load}, seed {seed}: {outcomes[0].observed.makespan_s:.1f} s", began_s)
    return found, again


def values_table(found: Mapping[Key, Sequence[Outcome]]) -> str:
    """Return measured (predicted) figures, means over the seeds; latencies in milliseconds."""
    rows = []
    for (policy, load), outcomes in found.items():
        cells = []
        for name in FIGURES:
            unit = 1e3 if unit_of(name) == "ms" else 1.0
            ours = fmean(unit * figure(outcome.observed, name) for outcome in outcomes)
            theirs = fmean(unit * figure(outcome.predicted, name) for outcome in outcomes)
            cells.append(f"{ours:.4g} ({theirs:.4g})")
        rows.append([policy, f"{load:g}", *cells])
    heading = [f"{name}, {unit_of(name)}" if unit_of(name) else name for name in FIGURES]
    return markdown(["policy", "load", *heading], rows)


def unit_of(name: str) -> str:
    """Return the unit that a figure is printed in; nothing where its name says it."""
    return {"makespan": "s", "tokens/s": ""}.get(name, "ms")


def errors_table(found: Mapping[Key, Sequence[Outcome]], names: Sequence[str]) -> str:
    """Return predicted over measured less 1: the mean of the seeds, and their range."""
    rows = [
        [policy, f"{load:g}", *(mean_and_range([o.errors[name] for o in outcomes if name in o.errors]) for name in names)]
        for (policy, load), outcomes in found.items()
    ]
    return markdown(["policy", "load", *names], rows)


def floor_table(again: Mapping[Key, Sequence[Outcome]]) -> str:
    """Return how far apart the same plan with the same seed is measured."""
    rows = [
        [policy, f"{load:g}", *(f"{spread([figure(o.observed, name) for o in outcomes]):.1%}" for name in FIGURES)]
        for (policy, load), outcomes in again.items()
    ]
    return markdown(["policy", "load", *FIGURES], rows) if rows else "Nothing was executed more than once."


def verdict(found: Mapping[Key, Sequence[Outcome]]) -> str:
    """Count the figures within `WITHIN` of what was measured: means over the seeds, and single executions."""
    cells = [[o.errors[name] for o in outcomes if name in o.errors] for outcomes in found.values() for name in FIGURES]
    means = [fmean(values) for values in cells if values]
    single = [value for values in cells for value in values]
    near = [sum(abs(value) <= WITHIN for value in values) for values in (means, single)]
    return f"Within {WITHIN:.0%}: {near[0]} of {len(means)} means over seeds, {near[1]} of {len(single)} single figures."


def run_scarce(requests: int, seeds: Sequence[int], began_s: float) -> str:
    """Execute requests in too small a pool under each batching policy; return the table."""
    rate_per_s = SCARCE.rate_per_s(ATTAINED, REQUESTS, RATE_SEED)
    rows = []
    for batching in BATCHINGS:
        outcomes, predicted = [], []
        for seed in seeds:
            plan, workload, log = SCARCE.plan(batching, rate_per_s, requests, seed)
            outcomes.append(measured(plan, workload, seed))
            predicted.append(Concurrency.of(log))
            say(f"{batching}, seed {seed}: {outcomes[-1].observed.makespan_s:.1f} s", began_s)
        rows.append([batching, *scarce_cells(outcomes, predicted)])
    head = ("most at once", "at once, mean", "read as hidden", "preemptions", "TTFT attained", "TBT mean, ms", "tokens/s")
    return (
        f"{requests} requests at {rate_per_s:.3g} per second; measured (predicted), means over {len(seeds)} arrivals.\n\n"
        + markdown(["batching", *head], rows)
    )


def scarce_cells(outcomes: Sequence[Outcome], predicted: Sequence[Concurrency]) -> list[str]:
    """Return a row of that table: measured, and in brackets predicted."""
    observed = [Concurrency.of(outcome.log) for outcome in outcomes]

    def pair(ours: Sequence[float], theirs: Sequence[float], form: str) -> str:
        return f"{fmean(ours):{form}} ({fmean(theirs):{form}})"

    def of_metrics(value: Callable[[Metrics], float], form: str) -> str:
        return pair([value(each.observed) for each in outcomes], [value(each.predicted) for each in outcomes], form)

    return [
        f"{max(each.most for each in observed)} ({max(each.most for each in predicted)})",
        pair([each.mean for each in observed], [each.mean for each in predicted], ".1f"),
        pair([each.hidden_share for each in observed], [each.hidden_share for each in predicted], ".0%"),
        pair([each.preemptions for each in observed], [each.preemptions for each in predicted], ".0f"),
        of_metrics(lambda metrics: 1 - metrics.slo_violations["ttft"], ".0%"),
        of_metrics(lambda metrics: 1e3 * figure(metrics, "TBT mean"), ".1f"),
        of_metrics(lambda metrics: figure(metrics, "tokens/s"), ".0f"),
    ]  # fmt: skip


def tables(asked: argparse.Namespace) -> dict[str, str]:
    """Do everything that is asked; return the tables by name."""
    began_s = monotonic()
    seeds = SEEDS[:1] if asked.quick else SEEDS
    busy = busy_cores()
    with TemporaryDirectory() as folder:
        laws = calibrate(Path(folder), ("demo-qwen3", SCARCE.llm), 3.0 if asked.quick else 9.0)
        say("calibrated", began_s)
        alone = prompts_per_s(RATE_SEED)
        rates = {load: load * alone for load in (asked.loads[:1] if asked.quick else asked.loads)}
        policies = asked.policies[:2] if asked.quick else asked.policies
        found, again = run_policies(policies, rates, seeds, began_s)
        scarce = run_scarce(REQUESTS // 4 if asked.quick else REQUESTS, seeds[:2], began_s)
    offered = ", ".join(f"{load:g}: {rate:.3g} per second, {conversations(rate)} conversations" for load, rate in rates.items())
    others = "an unknown number of" if busy is None else f"{busy:.1f}"
    took = f"Seeds {', '.join(map(str, seeds))}; {monotonic() - began_s:.0f} s in all."
    conditions = f"{os.cpu_count()} cores, {others} busy with other work at the start. Loads: {offered}. {took}"
    ground = markdown(["llm", "steps", "held-out error", "slow-down with 1, 2, 3 busy"], laws)
    return {
        "workers: ground": f"{conditions}\n\n{ground}",
        "workers: figures": values_table(found),
        "workers: errors": f"{verdict(found)}\n\n{errors_table(found, tuple(FIGURES))}",
        "workers: operations": errors_table(found, STEP_KINDS),
        "workers: floor": floor_table(again),
        "workers: hidden": scarce,
    }


def main() -> None:
    """Print the tables, or put them where they belong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two policies, one load, one seed: does it work")
    parser.add_argument("--policies", nargs="*", default=POLICIES, help="placement policies; per-turn is another one")
    parser.add_argument("--loads", type=float, nargs="*", default=LOADS, help="first prompts, of those that one replica computes")
    parser.add_argument("--fill", type=Path, help="Markdown file whose marked places take the tables")
    asked = parser.parse_args()
    made = tables(asked)
    if asked.fill is not None:
        fill(asked.fill, made, "python tests/benchmarks/bench_workers.py")
    else:
        print("\n\n".join(f"<!-- {name} -->\n{table}" for name, table in made.items()))


if __name__ == "__main__":
    main()
