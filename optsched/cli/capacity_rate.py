"""The highest rate that a supply sustains, as JSON and in tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optsched.cli.capacity_answer import entry_json, in_words
from optsched.cli.output import metrics_rows, print_line, print_table

if TYPE_CHECKING:
    from optsched.planner.capacity_rate import RateAnswer


def rate_json(found: RateAnswer) -> dict[str, object]:
    """Return the answer as plain data."""
    return {
        "fleet": [entry_json(entry) for entry in found.best.fleet],
        "rate_per_s": found.best.rate_per_s,
        "columns_per_s": found.columns_per_s,
        "bound_per_s": found.bound_per_s,
        "gpus": found.gpus,
        "tokens_per_s_per_gpu": found.tokens_per_s_per_gpu,
        "predicted": found.planned.plan.predicted.model_dump(mode="json"),
        "tried": [
            {
                "fleet": [entry_json(entry) for entry in each.fleet],
                "rate_per_s": each.rate_per_s if each.less_than_per_s is None else None,
                "less_than_per_s": each.less_than_per_s,
            }
            for each in found.tried
        ],
    }


def print_rate(found: RateAnswer) -> None:
    """Print the answer for people."""
    metrics = found.planned.plan.predicted
    print_line(f"Fleet: {in_words(found.best.fleet)} ({found.gpus} GPUs)")
    print_line(
        f"{found.best.rate_per_s:.4g} conversations/s within the targets, simulated to 1%; "
        f"{found.tokens_per_s_per_gpu:.4g} output tokens/s per GPU"
    )
    print_line(
        f"Without queues, the best fleet sustains {found.columns_per_s:.4g} conversations/s under columns-v1, and proven none "
        f"more than {found.bound_per_s:.4g}"
    )
    print_table(f"Simulated ({metrics.clock} clock)", ("", "mean", "p50", "p95", "p99"), metrics_rows(metrics))
    rows = [
        (in_words(each.fleet), f"{each.policy.placement}, {each.policy.batching}", f"{each.rate_per_s:.4g}")
        if each.less_than_per_s is None
        else (in_words(each.fleet), "-", f"< {each.less_than_per_s:.4g}")
        for each in found.tried
    ]
    print_table("Tried", ("fleet", "policies", "conversations/s"), rows)
