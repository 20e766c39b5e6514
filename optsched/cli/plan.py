"""``optsched plan``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from optsched.cli.asked import THEIR_OWN, Conversations, read_scenario
from optsched.cli.comparison import comparison_json, print_comparison
from optsched.cli.output import emit_json, metrics_rows, print_line, print_table, progress, warn
from optsched.domain.plan import Certificate, Plan

if TYPE_CHECKING:
    from optsched.domain.results import Clock
    from optsched.domain.scenario import Scenario
    from optsched.planner.compare import Compared
    from optsched.planner.plan import Planned


def plan(
    scenario: str,
    /,
    *,
    conversations: Conversations = THEIR_OWN,
    policy: tuple[str, ...] = (),
    clock: Literal["true", "paper"] = "true",
    compare: bool = False,
    timeline: Path | None = None,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Plan a scenario: who prefills, who decodes, at what power cap, which conversation goes where.

    Parameters
    ----------
    scenario
        A scenario file (.toml), or the name of a packaged one (optsched show scenarios).
    conversations
        Which conversations.
    policy
        Placement or batching policy, instead of the scenario's; twice for both.
    clock
        true: latencies count from arrival. paper: prefiller queueing and decoder-admission waits are left out.
    compare
        Simulate the same conversations under collocated, full-disaggregation, per-turn and conserve too, on the plan's GPUs
        and power caps, and print one table.
    timeline
        Draw what each replica does for which conversation, and how full its cache is, to this .svg or .html file.
    out
        Write the plan to this file.
    json
        Print the plan as one JSON object; with --compare it has a key "comparison" more than the plan's file.
    """
    from optsched import files
    from optsched.cli.checks import policies
    from optsched.planner.plan import plan_scenario
    from optsched.planner.replan import scenario_with_batching
    from optsched.report.timeline import check_timeline, save_timeline

    check_timeline(timeline)
    placement, batching = policies(policy)
    base, asked = read_scenario(scenario)
    if batching is not None:
        asked = scenario_with_batching(asked, batching)
    with progress("planning") as advance:
        planned = plan_scenario(
            asked,
            base=base,
            trace=conversations.trace,
            rate_per_s=conversations.rate_per_s,
            seed=conversations.seed,
            policy=placement,
            clock=clock,
            progress=advance,
        )
    if out is not None:
        files.save(planned.plan, "plan", out)
    if timeline is not None:
        save_timeline(planned.plan, planned.log, planned.workload, timeline)
    rows = _compared(asked, planned, clock) if compare else None
    if json:
        more = {} if rows is None else {"comparison": [comparison_json(row) for row in rows]}
        emit_json({**files.dump(planned.plan, "plan"), **more})
        return
    print_plan(planned.plan, planned.simulated, planned.considered)
    if rows is not None:
        print_comparison(rows, planned.plan, clock)
    if out is not None:
        warn(f"Plan written to {out}")
    if timeline is not None:
        warn(f"Timeline written to {timeline}")


def _compared(scenario: Scenario, planned: Planned, clock: Clock) -> list[Compared]:
    from optsched.planner.compare import compare

    with progress("comparing") as advance:
        return compare(scenario, planned, clock=clock, progress=advance)


def print_plan(plan: Plan, simulated: float, considered: int) -> None:
    """Print a plan for people: replicas, prediction, certificate."""
    rows = []
    for replica in plan.replicas:
        placed = sum(replica.id in (item.prefill, item.decode) for item in plan.placement.assignments)
        tier = f"{replica.gpu}@{replica.power_cap_w:g}W{f' {replica.dtype}' if replica.dtype else ''}"
        tokens = f"{replica.kv_blocks * plan.engine.block_tokens:,}"
        rows.append((replica.id, replica.role, tier, f"{replica.tp} x {replica.pp}", tokens, placed, replica.origin))
    columns = ("replica", "role", "tier", "TP x PP", "KV tokens", "conversations", "coefficients")
    print_table(f"Plan: {plan.llms[0].name}, placement {plan.placement.policy}, batching {plan.batching.policy}", columns, rows)
    predicted = plan.predicted
    print_table(f"Predicted ({predicted.clock} clock)", ("", "mean", "p50", "p95", "p99"), metrics_rows(predicted))
    print_line(summary(plan))
    print_line(certificate_line(plan.certificate, simulated, considered))
    if any(replica.origin == "assumed" for replica in plan.replicas):
        warn("Some coefficients are assumed, not fitted on measurements; 'optsched show gpus NAME' names their sources.")


def summary(plan: Plan) -> str:
    """Return makespan, energy, cost and attainment in one line."""
    m = plan.predicted
    energy = "-" if m.energy_j is None else f"{m.energy_j / 1e3:.4g} kJ ({m.context_tokens_per_joule or 0:.4g} context tokens/J)"
    cost = "-" if m.cost_usd_per_hour is None else f"{m.cost_usd_per_hour:.4g} USD/h"
    missed = ", ".join(f"{name} {share:.1%}" for name, share in m.slo_violations.items()) or "no targets"
    return (
        f"Makespan {m.makespan_s:.4g} s, {m.tokens_per_s:.4g} output tokens/s, energy {energy}, {cost}, "
        f"SLO attainment {m.slo_attainment:.1%} (missed: {missed})"
    )


def certificate_line(certificate: Certificate, simulated: float, considered: int) -> str:
    """Return the certificate in one line."""
    fleets = "" if considered == 1 else f"; best of {considered} fleets simulated"
    difference = f" ({simulated / certificate.value - 1:+.1%})" if certificate.value > 0 else ""
    return (
        f"Certificate: {certificate.objective} = {certificate.value:.5g} under evaluator {certificate.evaluator}, proven >= "
        f"{certificate.bound:.5g}, gap {certificate.gap:.1%}, {certificate.status} ({certificate.solver}); "
        f"simulated {simulated:.5g}{difference}{fleets}"
    )
