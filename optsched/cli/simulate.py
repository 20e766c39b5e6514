"""``optsched simulate``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from optsched.cli.output import SUMMARY_COLUMNS, emit_json, metrics_rows, print_line, print_table, progress, summary_row, warn

if TYPE_CHECKING:
    from optsched.domain.log import ExecutionLog
    from optsched.domain.plan import Plan
    from optsched.domain.scenario import PlacementPolicyName
    from optsched.domain.workload import Workload


def simulate(
    source: str,
    /,
    *,
    policy: tuple[str, ...] = (),
    trace: Path | None = None,
    rate: float | None = None,
    seed: int | None = None,
    clock: Literal["true", "paper"] = "true",
    log: Path | None = None,
    timeline: Path | None = None,
    json: bool = False,
) -> None:
    """Execute a plan or a scenario on a virtual clock and print what its conversations experience.

    Parameters
    ----------
    source
        A plan file (.json; of a set of plans, all of them, or FILE#NAME for one), a scenario file (.toml), or the name of a
        packaged scenario.
    policy
        Placement or batching policy, instead of the one named there; twice for both. Under a placement that reserves cache for
        whole conversations, batching has little left to decide.
    trace
        Take the conversations from this trace instead.
    rate
        Conversations per second, instead of the rate named there.
    seed
        Seed of arrivals and lengths, instead of the one named there.
    clock
        true: latencies count from arrival. paper: prefiller queueing and decoder-admission waits are left out.
    log
        Write the execution log to this Parquet file.
    timeline
        Draw what each replica does for which conversation, and how full its cache is, to this .svg or .html file.
    json
        Print one JSON object.
    """
    from optsched import catalog, logfile
    from optsched.cli.checks import policies, positive
    from optsched.domain.accounting import measure_plan
    from optsched.errors import SpecError
    from optsched.report.timeline import check_timeline, save_timeline

    check_timeline(timeline)
    rate = positive("--rate", rate)
    placement, batching = policies(policy)
    started = time.process_time()
    file, _, name = source.partition("#")
    if file.endswith(".json") and not name and len(names := plan_names(file)) > 1:
        if log is not None or timeline is not None:
            raise SpecError(f"several plans have no one log; name one, as in '{file}#{names[0]}'", file=file)
        _simulate_all(file, names, placement, batching, clock, json)
        return
    if file.endswith(".json"):
        plan, workload, executed = _simulate_plan(Path(source), placement, batching, trace, rate, seed)
    else:
        from optsched.planner.plan import plan_scenario
        from optsched.planner.replan import scenario_with_batching

        path, scenario = catalog.scenario_path(source), catalog.scenario(source)
        scenario = scenario if batching is None else scenario_with_batching(scenario, batching)
        with progress("simulating") as advance:
            planned = plan_scenario(
                scenario,
                base=path.parent, trace=trace, rate_per_s=rate, seed=seed, policy=placement, clock=clock, progress=advance,
            )  # fmt: skip
        plan, workload, executed = planned.plan, planned.workload, planned.log
    cpu_s = time.process_time() - started
    metrics = measure_plan(plan, executed, workload, clock)
    if log is not None:
        logfile.save_log(executed, workload, log, plan)
    if timeline is not None:
        save_timeline(plan, executed, workload, timeline)
    if json:
        emit_json(
            {
                "policy": {"placement": plan.placement.policy, "batching": plan.batching.policy},
                "metrics": metrics.model_dump(mode="json"),
                "iterations": executed.iterations,
                "transfers": len(executed.transfers.start_s),
                "preemptions": executed.preemptions,
                "cpu_s": cpu_s,
            }
        )
        return
    print_table(
        f"Simulated ({clock} clock): {plan.llms[0].name}, placement {plan.placement.policy}, batching {plan.batching.policy}",
        ("", "mean", "p50", "p95", "p99"),
        metrics_rows(metrics),
    )
    from optsched.cli.plan import summary

    print_line(summary(plan.replace(predicted=metrics)))
    print_line(
        f"{workload.num_conversations:,} conversations, {workload.num_turns:,} turns, {executed.iterations:,} iterations, "
        f"{len(executed.transfers.start_s):,} transfers, {executed.preemptions:,} preemptions, {cpu_s:.3g} s CPU"
    )
    if log is not None:
        warn(f"Log written to {log}")
    if timeline is not None:
        warn(f"Timeline written to {timeline}")


def plan_names(file: str) -> list[str]:
    """Return the names of the plans that a file holds."""
    from optsched import files

    return list(files.load_plans(file))


def _simulate_all(
    file: str,
    names: list[str],
    placement: PlacementPolicyName | None,
    batching: str | None,
    clock: Literal["true", "paper"],
    json: bool,
) -> None:
    """Simulate every plan of a set, each with its own conversations, and print a line for each."""
    from optsched.domain.accounting import measure_plan

    found = {}
    for name in names:
        plan, workload, executed = _simulate_plan(Path(f"{file}#{name}"), placement, batching, None, None, None)
        found[name] = measure_plan(plan, executed, workload, clock)
    if json:
        emit_json({"plans": {name: {"metrics": metrics.model_dump(mode="json")} for name, metrics in found.items()}})
        return
    print_table(f"Simulated ({clock} clock)", SUMMARY_COLUMNS, [summary_row(name, metrics) for name, metrics in found.items()])


def _simulate_plan(
    path: Path,
    placement: PlacementPolicyName | None,
    batching: str | None,
    trace: Path | None,
    rate: float | None,
    seed: int | None,
) -> tuple[Plan, Workload, ExecutionLog]:
    from optsched import files
    from optsched.planner.replan import with_batching, with_policy, with_workload
    from optsched.simulator.simulate import simulate as execute
    from optsched.traces.loading import load_workload

    plan = files.load_plan(path)
    if placement is not None:
        plan = with_policy(plan, placement)
    if batching is not None:
        plan = with_batching(plan, batching)
    if trace is not None or rate is not None or seed is not None:
        plan = with_workload(plan, trace, rate, seed)
    workload = load_workload(plan.workload)
    with progress("simulating", total=1) as advance:
        executed = execute(plan, workload, seed=plan.workload.seed, progress=advance)
    return plan, workload, executed
