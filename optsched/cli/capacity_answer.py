"""A capacity answer as JSON for machines, and in tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from optsched.cli.output import SUMMARY_COLUMNS, metrics_rows, print_line, print_table, summary_row, warn

if TYPE_CHECKING:
    from optsched.domain.scenario import FleetEntry
    from optsched.planner.capacity_answer import CapacityPlan, PoolPlan
    from optsched.planner.capacity_search import Iteration
    from optsched.planner.sweep import Outcome


def capacity_json(found: CapacityPlan) -> dict[str, object]:
    """Return a capacity answer as plain data."""
    problem = found.problem.problem
    several = len(found.pools) > 1
    answer: dict[str, object] = {
        "fleet": [{**entry_json(entry), **(_of_pool(pool) if several else {})} for pool in found.pools for entry in pool.fleet],
        "cost_usd_per_hour": found.cost_usd_per_hour,
        "power_w": found.power_w,
        "predicted": found.planned.plan.predicted.model_dump(mode="json"),
        "certificate": found.certificate.model_dump(mode="json"),
        "prices": {
            "objective": found.certificate.objective,
            "limits": dict(zip(problem.resources, found.prices.limits.tolist(), strict=True)),
            "one_more": found.one_more,
            "demand": dict(zip(problem.classes, found.prices.demand.tolist(), strict=True)),
            "rate_per_s": _price_of_traffic(found),
            "targets_1_percent_looser": found.slo_price,
        },
        "utilisation": found.utilisation,
        "sustained": found.sustained,
        "seeds": found.seeds,
        "iterations": [
            {
                "origin": each.origin, "utilisation": each.utilisation, "fleet": [entry_json(entry) for entry in each.fleet],
                "cost": each.cost, "met": each.met, "worst_target": each.worst[0], "excess_violations": each.worst[1],
            }
            for each in found.iterations
        ],
        "dropped": [asdict(each) for each in found.problem.dropped],
    }  # fmt: skip
    if several:
        answer["pools"] = [
            {
                **_of_pool(pool), "llm": pool.pool.llm.name, "rate_per_s": pool.pool.rate_per_s, "hours": pool.pool.hours,
                "fleet": [entry_json(entry) for entry in pool.fleet],
                "predicted": pool.planned.plan.predicted.model_dump(mode="json"),
            }
            for pool in found.pools
        ]  # fmt: skip
    if found.one_fleet is not None:
        answer["changes_usd"] = found.changes_usd
        answer["one_fleet"] = capacity_json(found.one_fleet)
    return answer


def outcome_json(outcome: Outcome) -> dict[str, object]:
    """Return one answer of a sweep as plain data."""
    if outcome.infeasible is not None:
        return {"rate_per_s": outcome.question.rate_per_s, "infeasible": outcome.infeasible}
    return {
        "rate_per_s": outcome.question.rate_per_s,
        "fleet": [entry_json(entry) for entry in outcome.fleet],
        "words": in_words(outcome.fleet),
        "cost_usd_per_hour": outcome.usd_per_hour,
        "power_w": outcome.power_w,
        "predicted": {name or "all": metrics.model_dump(mode="json") for name, metrics in outcome.predicted},
        "certificate": outcome.certificate.model_dump(mode="json") if outcome.certificate else None,
        "sustained": outcome.sustained,
    }


def _of_pool(pool: PoolPlan) -> dict[str, object]:
    return {"pool": pool.pool.name, "service": pool.pool.service.name}


def entry_json(entry: FleetEntry) -> dict[str, object]:
    """Return a fleet entry as plain data, its power cap filled in."""
    from optsched import catalog

    cap = entry.power_cap_w or catalog.gpu(entry.gpu).datasheet.power_w
    size = {"tp": entry.tp, "pp": entry.pp, "count": entry.count}
    return {"gpu": entry.gpu, "power_cap_w": cap, "role": entry.role, **size} | ({"dtype": entry.dtype} if entry.dtype else {})


def in_words(fleet: Sequence[FleetEntry]) -> str:
    """Return a fleet in one line."""
    parts = []
    for each in fleet:
        size = (f" tp {each.tp}" if each.tp > 1 else "") + (f" pp {each.pp}" if each.pp > 1 else "")
        size = (f" {each.dtype}" if each.dtype else "") + size
        parts.append(f"{each.count} x {each.gpu}@{entry_json(each)['power_cap_w']:g}W{size} {each.role}")
    return " + ".join(parts)


def _price_of_traffic(found: CapacityPlan) -> float:
    problem = found.problem.problem
    share = problem.demand_per_s / max(float(problem.demand_per_s.sum()), 1e-300)
    return float(share @ found.prices.demand)


def print_capacity(found: CapacityPlan, explain: bool) -> None:
    """Print a capacity answer: fleets, percentiles, certificate, prices, and what was tried."""
    from optsched.planner.capacity_trials import MOST_MISSES, SEEDS

    for pool in found.pools:
        traffic = f" ({pool.pool.llm.name}, {pool.pool.rate_per_s:.4g} conversations/s)" if len(found.pools) > 1 else ""
        print_line(f"{pool.pool.name or 'Fleet'}{traffic}: {in_words(pool.fleet)}")
    use = ", ".join(f"{name} {100 * share:.0f}%" for name, share in found.utilisation.items())
    print_line(f"{found.cost_usd_per_hour:.4g} USD/h, power caps {found.power_w:,.0f} W; in use: {use}")
    if len(found.pools) == 1:
        metrics = found.planned.plan.predicted
        print_table(f"Simulated ({metrics.clock} clock)", ("", "mean", "p50", "p95", "p99"), metrics_rows(metrics))
    else:
        rows = [summary_row(pool.pool.name, pool.planned.plan.predicted) for pool in found.pools]
        print_table("Simulated (true clock)", SUMMARY_COLUMNS, rows)
    print_line(_certificate(found))
    if found.one_fleet is not None:
        print_line(
            f"One fleet for all periods: {in_words(found.one_fleet.fleet)}, {found.one_fleet.cost_usd_per_hour:.4g} USD/h "
            f"(one per period: {found.cost_usd_per_hour:.4g} USD/h, and {found.changes_usd:.4g} USD of changes a day)"
        )
    if found.sustained < 1:
        warn(
            f"The fleet could serve {100 * found.sustained:.0f}% of this traffic for ever; it keeps the targets since the "
            "workload ends. Prices are those of that share, and no bound is proven."
        )
    if found.seeds < SEEDS:
        warn(
            f"The given GPUs keep the targets with the scenario's seed and the {found.seeds - 1} that follow, not with "
            f"{SEEDS - MOST_MISSES} of {SEEDS}: expect misses with other arrivals, give more GPUs, or loosen the targets."
        )
    _print_prices(found)
    print_table("Tried", ("utilisation", "fleet", "cost", "targets"), [_tried(each) for each in found.iterations])
    if explain:
        print_table("Left out", ("replica type", "why"), [(each.label, each.reason) for each in found.problem.dropped])


def _certificate(found: CapacityPlan) -> str:
    proof = found.certificate
    value = f"Certificate: {proof.objective} = {proof.value:.5g} under evaluator {proof.evaluator}"
    if not found.proven:
        return f"{value}; no bound is proven"
    return (
        f"{value}, proven >= {proof.bound:.5g} whatever the queues, gap {100 * proof.gap:.1f}%, {proof.status} ({proof.solver})"
    )


def _print_prices(found: CapacityPlan) -> None:
    rows = [
        (name, f"{price:.4g}", f"{found.one_more[name]:.4g}" if name in found.one_more else "-")
        for name, price in zip(found.problem.problem.resources, found.prices.limits.tolist(), strict=True)
    ]
    rows.append(("one conversation/s less", f"{_price_of_traffic(found):.4g}", "-"))
    rows.append(("targets 1 % looser", "-" if found.slo_price is None else f"{found.slo_price:.4g}", "-"))
    title = f"What one more unit saves, in {found.certificate.objective}"
    print_table(title, ("limit", "fractions of replicas", "whole replicas"), rows)


def _tried(each: Iteration) -> tuple[str, str, str, str]:
    origin = each.origin if each.utilisation is None else f"{100 * each.utilisation:.0f}%"
    targets = "met" if each.met else f"misses {each.worst[0]} by {100 * each.worst[1]:.3g} points"
    return origin, in_words(each.fleet), f"{each.cost:.4g}", targets
