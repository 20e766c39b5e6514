"""``optsched capacity``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from optsched.cli.output import emit_json, metrics_rows, print_line, print_table, progress, warn

if TYPE_CHECKING:
    from optsched.domain.scenario import FleetEntry
    from optsched.planner.capacity_answer import CapacityPlan

MOST_RATES = 1000


def capacity(
    scenario: str,
    /,
    *,
    trace: Path | None = None,
    rate: float | None = None,
    sweep: str | None = None,
    seed: int | None = None,
    out: Path | None = None,
    explain: bool = False,
    json: bool = False,
) -> None:
    """Find the cheapest fleet that keeps a scenario's targets, in simulation too.

    Parameters
    ----------
    scenario
        A scenario file (.toml), or the name of a packaged one (optsched show scenarios).
    trace
        Take the conversations from this trace instead of the scenario's source.
    rate
        Conversations per second, instead of the scenario's rate.
    sweep
        Ask for several rates, first:last:step, as in rate=1:10:1; prints a line for each.
    seed
        Seed of arrivals and lengths, instead of the scenario's; fleets are tried with the two that follow, too.
    out
        Write the plan of the fleet to this file, for simulate and run.
    explain
        Say why other replica types take no part.
    json
        Print one JSON object.
    """
    from optsched import catalog, files
    from optsched.capacity.solve import FleetInfeasibleError
    from optsched.cli.checks import positive
    from optsched.errors import SpecError
    from optsched.planner.capacity import capacity as find

    path, asked = catalog.scenario_path(scenario), catalog.scenario(scenario)
    rate = positive("--rate", rate)
    if sweep is not None:
        if rate is not None or out is not None:
            raise SpecError("several rates have no one rate and no one plan; leave out --rate and --out", field="--sweep")
        _sweep(sweep, lambda each: find(asked, base=path.parent, trace=trace, rate_per_s=each, seed=seed), json)
        return
    try:
        with progress("trying fleets") as advance:
            found = find(asked, base=path.parent, trace=trace, rate_per_s=rate, seed=seed, progress=advance)
    except FleetInfeasibleError as error:
        if json:
            relax = [{"limit": each.limit, "from": each.now, "to": each.needed} for each in error.relax]
            emit_json({"infeasible": {"relax": relax, "reason": str(error)}})
        raise
    if out is not None:
        files.save(found.planned.plan, "plan", out)
    if json:
        emit_json(_as_json(found))
        return
    _print(found, explain)
    if out is not None:
        warn(f"Plan written to {out}")


def _as_json(found: CapacityPlan) -> dict[str, object]:
    problem = found.problem.problem
    share = problem.demand_per_s / max(float(problem.demand_per_s.sum()), 1e-300)
    return {
        "fleet": [_entry(entry) for entry in found.fleet],
        "cost_usd_per_hour": found.cost_usd_per_hour,
        "power_w": found.power_w,
        "predicted": found.planned.plan.predicted.model_dump(mode="json"),
        "certificate": found.certificate.model_dump(mode="json"),
        "prices": {
            "objective": found.certificate.objective,
            "limits": dict(zip(problem.resources, found.prices.limits.tolist(), strict=True)),
            "one_more": found.one_more,
            "demand": dict(zip(problem.classes, found.prices.demand.tolist(), strict=True)),
            "rate_per_s": float(share @ found.prices.demand),
            "targets_1_percent_looser": found.slo_price,
        },
        "utilisation": found.utilisation,
        "sustained": found.sustained,
        "iterations": [
            {
                "utilisation": each.utilisation, "fleet": [_entry(entry) for entry in each.fleet], "cost": each.cost,
                "met": each.met, "worst_target": each.worst[0], "excess_violations": each.worst[1],
            }
            for each in found.iterations
        ],
        "dropped": [asdict(each) for each in found.problem.dropped],
    }  # fmt: skip


def _entry(entry: FleetEntry) -> dict[str, object]:
    from optsched import catalog

    cap = entry.power_cap_w or catalog.gpu(entry.gpu).datasheet.power_w
    return {"gpu": entry.gpu, "power_cap_w": cap, "role": entry.role, "tp": entry.tp, "pp": entry.pp, "count": entry.count}


def _in_words(fleet: tuple[FleetEntry, ...]) -> str:
    parts = []
    for each in fleet:
        entry = _entry(each)
        size = f" tp {each.tp}" if each.tp > 1 else ""
        parts.append(f"{each.count} x {each.gpu}@{entry['power_cap_w']:g}W{size} {each.role}")
    return " + ".join(parts)


def _print(found: CapacityPlan, explain: bool) -> None:
    """Print the answer for people: the fleet, what it does, the proof, prices, and what was tried."""
    plan, proof, problem = found.planned.plan, found.certificate, found.problem.problem
    print_line(f"Fleet: {_in_words(found.fleet)}")
    print_line(
        f"{found.cost_usd_per_hour:.4g} USD/h, {found.power_w:,.0f} W of power caps; "
        f"{plan.placement.policy}, {plan.batching.policy}"
    )
    print_table("Simulated (true clock)", ("", "mean", "p50", "p95", "p99"), metrics_rows(plan.predicted))
    used = [(name, f"{100 * share:.0f}%") for name, share in found.utilisation.items()]
    print_table("Use of each replica's full rate", ("replica type", "used"), used)
    print_line(
        f"Certificate: {proof.objective} = {proof.value:.5g} under evaluator {proof.evaluator}, proven >= {proof.bound:.5g} "
        f"whatever the queues, gap {100 * proof.gap:.1f}%, {proof.status} ({proof.solver})"
    )
    share = problem.demand_per_s / max(float(problem.demand_per_s.sum()), 1e-300)
    if found.sustained < 1:
        warn(
            f"The fleet could serve {100 * found.sustained:.0f}% of this traffic for ever; it keeps the targets since the "
            "workload ends. Prices are those of that share, and no bound is proven."
        )
    rows = [
        (name, f"{price:.4g}", f"{found.one_more[name]:.4g}" if name in found.one_more else "-")
        for name, price in zip(problem.resources, found.prices.limits.tolist(), strict=True)
    ]
    rows.append(("one conversation/s less", f"{float(share @ found.prices.demand):.4g}", "-"))
    rows.append(("targets 1 % looser", "-" if found.slo_price is None else f"{found.slo_price:.4g}", "-"))
    print_table(f"What one more unit saves, in {proof.objective}", ("limit", "fractions of replicas", "whole replicas"), rows)
    tried = [
        (
            "one fewer" if each.utilisation is None else f"{100 * each.utilisation:.0f}%",
            _in_words(each.fleet),
            f"{each.cost:.4g}",
            "met" if each.met else f"misses {each.worst[0]} by {100 * each.worst[1]:.3g} points",
        )
        for each in found.iterations
    ]  # fmt: skip
    print_table("Tried", ("utilisation", "fleet", "cost", "targets"), tried)
    if explain:
        print_table("Left out", ("replica type", "why"), [(each.label, each.reason) for each in found.problem.dropped])


def _sweep(text: str, find: object, json: bool) -> None:
    from optsched.errors import InfeasibleError

    rows = []
    rates = _rates(text)
    with progress("sweeping") as advance:
        for number, rate in enumerate(rates):
            try:
                found: CapacityPlan = find(rate)  # type: ignore[operator]
                rows.append({"rate_per_s": rate, **_as_json(found), "words": _in_words(found.fleet)})
            except InfeasibleError as error:
                rows.append({"rate_per_s": rate, "infeasible": str(error)})
            advance(number + 1, len(rates))
    if json:
        emit_json({"sweep": rows})
        return
    cells = [
        (f"{row['rate_per_s']:g}", row.get("words", row.get("infeasible")), f"{row.get('cost_usd_per_hour', float('nan')):.4g}")
        for row in rows
    ]
    print_table("Cheapest fleets", ("conversations/s", "fleet", "USD/h"), cells)


def _rates(text: str) -> list[float]:
    from optsched.errors import SpecError

    rule = f"{text!r}: give rate=FIRST:LAST:STEP, as in rate=1:10:1, with positive numbers and at most {MOST_RATES:,} rates"
    name, _, numbers = text.partition("=")
    try:
        first, last, step = (float(part) for part in numbers.split(":"))
    except ValueError as error:
        raise SpecError(rule, field="--sweep") from error
    if name != "rate" or not (0 < first <= last < float("inf") and step > 0) or (last - first) / step >= MOST_RATES:
        raise SpecError(rule, field="--sweep")
    return [float(rate) for rate in np.arange(first, last + step / 1e6, step)]
