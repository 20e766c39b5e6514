"""What the experiments record: rates that attain, and what happens at a rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optsched.domain.gaps import Gaps
from optsched.errors import NoPlanError
from optsched.planner.effective_throughput import EffectiveThroughput, Reading, effective_throughput

from ..tables import Row
from .cells import Cell, arriving, limited_share

READINGS: tuple[Reading, ...] = ("paper", "strict", "sustained")


def rates_of(
    cell: Cell,
    names: tuple[str, str, str],
    recipe: str,
    targets: Sequence[float],
    *,
    readings: Sequence[Reading] = READINGS,
    seeds: Sequence[int] = (),
) -> list[Row]:
    """Return the effective throughput of one variant on one workload, a row per reading and target.

    Parameters
    ----------
    cell
        The replica.
    names
        Llm, workload and variant, as the table names them.
    recipe
        The workload's recipe.
    targets, readings
        Shares to reach, and how to count.
    seeds
        Those of the settings if empty.
    """
    llm, workload, variant = names
    key: Row = {
        "llm": llm, "workload": workload, "variant": variant, "ttft_slo_s": cell.ttft_slo_s, "tbt_slo_s": cell.tbt_slo_s,
    }  # fmt: skip
    try:
        found = effective_throughput(
            cell.search(variant, recipe), seeds=seeds or cell.settings.seeds, targets=targets, readings=readings,
            tolerance=cell.settings.tolerance,
        )  # fmt: skip
    except NoPlanError:  # attained at any rate, or at none: no figure
        return []
    return [
        {
            **key, "reading": reading, "target": target, "rate_per_s": rate.rate_per_s, "low_per_s": rate.low_per_s,
            "high_per_s": rate.high_per_s, "per_seed": " ".join(f"{value:.5g}" for value in rate.per_seed),
        }
        for (reading, target), rate in found.items()
    ]  # fmt: skip


def ratios(rates: Sequence[Row], variants: Sequence[str], over: Sequence[str]) -> list[Row]:
    """Return the rates of some variants over those of others in the same condition: mean and 95 % interval over the seeds."""
    same = ("llm", "workload", "ttft_slo_s", "tbt_slo_s", "reading", "target")
    per_seed = {
        (tuple(row[name] for name in same), str(row["variant"])): np.array([float(x) for x in str(row["per_seed"]).split()])
        for row in rates
    }
    conditions = list(dict.fromkeys(condition for condition, _ in per_seed))
    made: list[Row] = []
    for condition in conditions:
        for variant in variants:
            for other in over:
                mine, theirs = per_seed.get((condition, variant)), per_seed.get((condition, other))
                if mine is None or theirs is None:
                    continue
                found = EffectiveThroughput.of(list(mine / theirs))
                row: Row = dict(zip(same, condition, strict=True))
                made.append(
                    {
                        **row, "variant": variant, "over": other, "ratio": found.rate_per_s, "low": found.low_per_s,
                        "high": found.high_per_s,
                    }
                )  # fmt: skip
    return made


def attainment_of(
    cell: Cell, names: tuple[str, str, str], recipe: str, rate_per_s: float, cv: float = 1.0, section: str = "points"
) -> Row:
    """Return what happens to a workload at a rate, mean over the seeds; `paper_sd` is the seeds' standard deviation.

    Besides the shares that attain: those whose TTFT, and whose gaps, alone do; the share of time at the memory limit (see
    `limited_share`); the share of starved requests; the share of cached tokens read as hidden; and preemptions per request.
    """
    llm, workload, variant = names
    seen = []
    for seed in cell.settings.seeds:
        requests = arriving(cell.settings, recipe, rate_per_s, seed, cv)
        log, judged = cell.run(variant, requests)
        gaps, limit_s = Gaps.of(log, requests), cell.settings.starved_s
        starved = (log.first_token_s - log.arrival_s > limit_s) | (gaps.max_s > limit_s)
        hidden, kv = float(log.steps.hidden_tokens.sum()), float(log.steps.kv_tokens.sum())
        seen.append(
            [
                *judged.shares.values(), judged.ttft.mean(), judged.tbt.mean(), limited_share(log), starved.mean(),
                hidden / max(1.0, hidden + kv), log.preemptions / cell.settings.requests,
            ]
        )  # fmt: skip
    columns = ("paper", "strict", "sustained", "ttft", "tbt", "limited", "starved", "hidden_share", "preemptions")
    values = np.array(seen, float)
    key: Row = {"section": section, "llm": llm, "workload": workload, "variant": variant, "cv": cv, "rate_per_s": rate_per_s}
    spread = float(values[:, 0].std(ddof=1)) if len(values) > 1 else 0.0
    means: Row = dict(zip(columns, map(float, values.mean(axis=0)), strict=True))
    return {**key, **means, "paper_sd": spread}
