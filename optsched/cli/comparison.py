"""The table of ``optsched plan --compare``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from optsched.cli.output import print_line, print_table
from optsched.report.numbers import seconds

if TYPE_CHECKING:
    from optsched.domain.plan import Plan
    from optsched.domain.results import Clock, Metrics
    from optsched.planner.compare import Compared

_FIGURES = (
    "TTFET p95", "TTFET p95 / standalone", "last-turn TBT p95 / standalone", "end to end p95", "targets missed", "energy",
    "context tokens/J", "price of the run", "makespan",
)  # fmt: skip


def comparison_json(row: Compared) -> dict[str, object]:
    """Return one policy of the comparison as JSON."""
    return {
        "policy": row.policy,
        "chosen": row.chosen,
        "roles": dict(row.roles),
        "metrics": None if row.metrics is None else row.metrics.model_dump(mode="json"),
        "transfers": row.transfers,
        "objective_value": row.value,
        "objective_bound": row.bound,
        "usd": row.usd,
        "refusal": row.refusal or None,
    }


def print_comparison(rows: Sequence[Compared], plan: Plan, clock: Clock) -> None:
    """Print a table with a column per policy, the plan's own first and marked.

    Parameters
    ----------
    rows
        One per policy.
    plan
        The plan that was chosen.
    clock
        The clock of the figures.
    """
    title = f"The same conversations, GPUs and power caps under other placement policies ({clock} clock; *: the plan)"
    names = [f"{row.policy} *" if row.chosen else row.policy for row in rows]
    columns = [_column(row) for row in rows]
    heads = ("replicas", *_FIGURES, "transfers", "objective", "objective, proven >=")
    print_table(title, ("", *names), list(zip(heads, *columns, strict=True)))
    closing = "no placement of whole conversations undercuts the proven value on a column's replicas"
    print_line(f"Objective: {plan.certificate.objective}; {closing} (the plan's: on any fleet that was considered).")
    for row in rows:
        if row.refusal:
            print_line(f"{row.policy} cannot serve: {row.refusal}")


def _column(row: Compared) -> list[str]:
    roles = " + ".join(f"{number} {role}" for role, number in row.roles.items()) or "-"
    figures = ["-"] * len(_FIGURES) if row.metrics is None else _figures(row.metrics, row.usd)
    moved = "-" if row.transfers is None else f"{row.transfers:,}"
    return [roles, *figures, moved, *("-" if value is None else f"{value:.5g}" for value in (row.value, row.bound))]


def _figures(metrics: Metrics, usd: float | None) -> list[str]:
    def times(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g} x"

    return [
        seconds(metrics.ttfet_s.p95),
        times(metrics.normalised.ttfet.p95),
        times(metrics.normalised.last_turn_tbt.p95),
        seconds(metrics.e2e_s.p95),
        f"{1 - metrics.slo_attainment:.1%}",
        "-" if metrics.energy_j is None else f"{metrics.energy_j / 1e3:.4g} kJ",
        "-" if metrics.context_tokens_per_joule is None else f"{metrics.context_tokens_per_joule:.4g}",
        "-" if usd is None else f"{usd:.4g} USD",
        seconds(metrics.makespan_s),
    ]
