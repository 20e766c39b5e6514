"""Turn the tables into the figures that `expected.toml` names, and judge them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from optsched.domain.interval import mean_interval

from ..checks import Check
from ..tables import Row, Tables
from .seed import Seed
from .settings import Expected, Table

TITLE = "ConServe, reproduced"
COLUMNS = ("claim", "check", "published", "low", "high", "ours", "mean", "verdict")
TITLES = ("claim", "figure", "published", "from", "to", "ours", "mean", "")
WITHIN = " on the artifact's own arrivals"


def judge(expected: Expected, tables: Tables) -> list[Row]:
    """Return a row per check: the published figure, its limits, ours on the artifact's own arrivals, and whether it lies within.

    ``mean``, ``mean_low`` and ``mean_high`` are over all seeds, with the 95 % interval of the mean. ``kind`` is ``predicted``,
    ``fitted`` or ``ours``; ``verdict`` is ``reproduced``, ``not reproduced``, or ``not run``.
    """
    seeds = list(dict.fromkeys(int(row["seed"]) for row in tables.get("cells", [])))
    per_seed = {seed: Seed(tables, seed).figures() for seed in seeds}
    together = across(tables, per_seed)
    rows: list[Row] = []
    for identifier, kind, check in checks(expected):
        own = [found[check.name] for found in per_seed.values() if check.name in found]
        value = together.get(check.name, per_seed[seeds[0]].get(check.name) if seeds else None)
        mean, low, high = mean_interval(own) if own and check.name not in together else (float("nan"),) * 3
        rows.append(
            {
                "claim": identifier, "check": check.name, "kind": kind,
                "published": "" if check.published is None else check.published, "low": check.low, "high": check.high,
                "ours": "" if value is None else value, "verdict": check.verdict(value), "mean": "" if np.isnan(mean) else mean,
                "mean_low": low if np.isfinite(low) else "", "mean_high": high if np.isfinite(high) else "",
            }
        )  # fmt: skip
    return rows


def checks(expected: Expected) -> Iterator[tuple[str, str, Check]]:
    """Yield every check with its claim's id and kind, the tables' first; a figure that two tables print is checked in each."""
    for table in expected.tables:
        for policy, values in table.rows.items():
            for at, published in zip(table.at, values, strict=True):
                name = check_name(table, policy, at)
                low, high = limits(table, published)
                kind = "fitted" if name in table.fitted else "predicted"
                yield table.id, kind, Check(name=name, published=published, low=low, high=high)
    for claim in expected.claims:
        for check in claim.checks:
            yield claim.id, claim.kind, check


def limits(table: Table, published: float) -> tuple[float, float]:
    """Return the limits around a published figure."""
    if table.factor is not None:
        return published / table.factor, published * table.factor
    half = table.relative * abs(published) + table.absolute
    return published - half, published + half


def check_name(table: Table, policy: str, at: float | str) -> str:
    """Return what a figure of a published table is called: metric, policy, caps and rate (or share)."""
    name, _, caps = policy.partition(" ")
    if name == "sweep":
        return f"{table.metric} sweep {at:g}"
    metric, rate = (at, 2.0) if isinstance(at, str) else (table.metric, at)
    return f"{metric} {name} {caps or '300/300'} {rate:g}"


def across(tables: Tables, per_seed: dict[int, dict[str, float]]) -> dict[str, float]:
    """Return the figures that need all seeds or none."""
    found: dict[str, float] = {}
    if tables.get("workload"):
        found |= {name: float(value) for name, value in tables["workload"][0].items() if name != "conversations"}
    for name, target, published in (
        ("ttfet_p95 ampd 300/300 2", "ampd_p95_within_seeds", 8.30),
        ("tpj_over_ampd", "tpj_over_ampd_within_seeds", 7.51),
    ):
        values = [figures[name] for figures in per_seed.values() if name in figures]
        if values:
            found[target] = float(min(values) <= published <= max(values))
    reductions = [figures["ttfet_reduction"] for figures in per_seed.values() if "ttfet_reduction" in figures]
    if reductions:
        found |= {"ttfet_reduction_least": min(reductions), "ttfet_reduction_most": max(reductions)}
    return found | (cost_figures(tables) if tables.get("costs") else {})


def cost_figures(tables: Tables) -> dict[str, float]:
    """Return the figures of single steps."""
    by = {(float(row["cap"]), float(row["tokens"])): row for row in tables["costs"]}

    def ratio(column: str, above: tuple[float, float], below: tuple[float, float]) -> float:
        return float(by[above][column]) / float(by[below][column])

    at_home = by[300.0, 16000.0]
    return {
        "prefill_32k_over_8k": ratio("prefill_s", (300, 32000), (300, 8000)),
        "cap_costs_prefill_12k": 100 * (ratio("prefill_s", (200, 12000), (300, 12000)) - 1),
        "cap_costs_prefill_16k": 100 * (ratio("prefill_s", (200, 16000), (300, 16000)) - 1),
        "cap_costs_decode": 100 * (ratio("decode_8_s", (200, 16000), (300, 16000)) - 1),
        "decode_32k_over_floor": float(by[300, 4000]["decode_8_s"]) / float(at_home["floor_s"]),
        "decode_128k_over_floor": float(at_home["decode_8_s"]) / float(at_home["floor_s"]),
        "decode_batch_8_over_4": float(at_home["decode_8_s"]) / float(at_home["decode_4_s"]),
        "append_at_home_ms": 1e3 * float(at_home["append_s"]),
        "pause_without_queue_ms": 1e3 * float(at_home["pause_s"]),
        "transfer_share_of_first_turn": 100 * float(at_home["transfer_s"]) / float(at_home["prefill_s"]),
    }
