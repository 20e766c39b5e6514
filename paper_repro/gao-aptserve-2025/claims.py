"""Turn the tables into the figures that `expected.toml` names, and judge them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from ..tables import Row, Tables
from .experiment import APT
from .settings import Expected

TITLE = "Apt-Serve, reproduced"
COLUMNS = ("claim", "check", "published", "low", "high", "ours", "verdict", "ours_code", "verdict_code")
TITLES = ("claim", "figure", "published", "from", "to", "ours (text)", "", "ours (code)", "")
WITHIN = " in one reading of Apt-Serve at least"

LLM = "opt-13b"
WORKLOADS = ("sharegpt", "longbench", "humaneval")
BASELINES = ("vllm", "sarathi", "fastgen")


def judge(expected: Expected, tables: Tables) -> list[Row]:
    """Return a row per check: the published figure, its limits, ours in both readings of Apt-Serve, and whether it lies within.

    ``verdict`` and ``verdict_code`` are ``reproduced``, ``not reproduced``, or ``not run`` where the tables lack what is needed.
    """
    text, code = (figures(tables, variant) for variant in APT)
    rows: list[Row] = []
    for claim in expected.claims:
        for check in claim.checks:
            row: Row = {
                "claim": claim.id, "check": check.name, "published": "" if check.published is None else check.published,
                "low": check.low, "high": check.high,
            }  # fmt: skip
            for suffix, found in (("", text), ("_code", code)):
                value = found.get(check.name)
                row[f"ours{suffix}"] = "" if value is None else value
                row[f"verdict{suffix}"] = check.verdict(value)
            rows.append(row)
    return rows


def figures(tables: Tables, apt: str) -> dict[str, float]:
    """Return every figure that the tables allow, with one of the readings of Apt-Serve in its part."""
    found: dict[str, float] = {}
    for family in (_at_rates, _bursts, _rates, _ratios, _ingredients, _scheduler, _grouped, _beyond):
        for name, compute in family(tables, apt):
            try:
                value = compute()
            except (KeyError, ValueError, ZeroDivisionError):  # a smoke run has not every condition, nor misses in each
                continue
            if np.isfinite(value):
                found[name] = value
    return found


Figures = Iterator[tuple[str, Callable[[], float]]]


def _attained(
    tables: Tables, variant: str, rate: float, column: str = "paper", workload: str = "sharegpt", cv: float = 1.0
) -> float:
    """Return one entry of the attainment table.

    Raises
    ------
    KeyError
        If that condition was not run.
    """
    key = (LLM, workload, variant, cv, rate)
    for row in tables.get("attainment", []):
        if (row["llm"], row["workload"], row["variant"], row["cv"], row["rate_per_s"]) == key:
            return float(row[column])
    raise KeyError(key)


def _at_rates(tables: Tables, apt: str) -> Figures:
    def at(variant: str, rate: float, column: str = "paper", workload: str = "sharegpt") -> float:
        return _attained(tables, variant, rate, column, workload)

    yield "vllm_attainment_3", lambda: at("vllm", 3.0)
    yield "vllm_limited_2.6", lambda: at("vllm", 2.6, "limited")
    yield "vllm_limited_3", lambda: at("vllm", 3.0, "limited")
    yield "vllm_misses_by_ttft_3", lambda: (1 - at("vllm", 3.0, "ttft")) / (1 - at("vllm", 3.0))
    yield "vllm_tbt_attainment_3", lambda: at("vllm", 3.0, "tbt")
    yield "random_minus_vllm_ttft_4", lambda: at("random", 4.0, "ttft") - at("vllm", 4.0, "ttft")
    yield "apt_attainment_3", lambda: at(apt, 3.0)
    yield "apt_attainment_6", lambda: at(apt, 6.0)
    yield "vllm_longbench_1.5", lambda: at("vllm", 1.5, workload="longbench")
    yield "apt_longbench_1.5", lambda: at(apt, 1.5, workload="longbench")
    yield "density_longbench_3", lambda: at("density", 3.0, workload="longbench")
    yield "apt_longbench_3", lambda: at(apt, 3.0, workload="longbench")
    yield "hybrid_gain_sharegpt_3", lambda: at(apt, 3.0) - at("density", 3.0)
    yield "hybrid_gain_sharegpt_6", lambda: at(apt, 6.0) - at("density", 6.0)
    yield "hybrid_gain_longbench_3", lambda: at(apt, 3.0, workload="longbench") - at("density", 3.0, workload="longbench")
    yield "apt_goodput_8_over_6", lambda: 8 * at(apt, 8.0) / (6 * at(apt, 6.0))
    yield "vllm_attainment_6", lambda: at("vllm", 6.0)
    yield "apt_starved_6", lambda: at(apt, 6.0, "starved")
    yield "decay_starves_fewer_6", lambda: at(apt, 6.0, "starved") - at("apt-serve-decay", 6.0, "starved")


def _bursts(tables: Tables, apt: str) -> Figures:
    bursts = [row for row in tables.get("attainment", []) if row["section"] == "bursts"]
    conditions = [(str(r["workload"]), float(r["rate_per_s"]), float(r["cv"])) for r in bursts if r["variant"] == apt]

    def by(workload: str, rate: float, cv: float, variant: str) -> float:
        return _attained(tables, variant, rate, workload=workload, cv=cv)

    def gap(cv: float) -> float:
        return by("sharegpt", 3.0, cv, apt) - by("sharegpt", 3.0, cv, "vllm")

    def largest_gain() -> float:
        return max(by(*condition, apt) - by(*condition, "density") for condition in conditions if condition[2] > 1)

    def largest_ratio() -> float:
        return max(by(*condition, apt) / by(*condition, other) for condition in conditions for other in ("vllm", "sarathi"))

    yield "hybrid_gain_largest_burst", largest_gain
    yield "burst_ratio_largest", largest_ratio
    yield "burst_gap_growth", lambda: gap(4.0) - gap(1.0)


def _rates(tables: Tables, apt: str) -> Figures:
    def knee() -> float:
        rows = [r for r in tables.get("effective_throughput", []) if r["llm"] == LLM and r["workload"] == "sharegpt"]
        return next(float(r["rate_per_s"]) for r in rows if (r["variant"], r["reading"], r["target"]) == ("vllm", "paper", 0.9))

    if tables.get("effective_throughput"):
        yield "vllm_rate_90_per_s", knee


def ratio_rows(tables: Tables, variant: str, over: str, target: float, reading: str = "paper") -> dict[tuple[str, str], float]:
    """Return the ratios of one variant over another by llm and workload."""
    key = (variant, over, target, reading)
    rows = tables.get("ratios", [])
    chosen = [row for row in rows if (row["variant"], row["over"], row["target"], row["reading"]) == key]
    return {(str(row["llm"]), str(row["workload"])): float(row["ratio"]) for row in chosen}


def _ratios(tables: Tables, apt: str) -> Figures:
    def mean(over: str, target: float, workload: str = "") -> float:
        values = [x for (_, w), x in ratio_rows(tables, apt, over, target).items() if workload in ("", w)]
        if not values:
            raise KeyError(over)
        return float(np.mean(values))

    def largest(over: str, target: float) -> float:
        return max(ratio_rows(tables, apt, over, target).values())

    for over in BASELINES:
        for share, target in (("60", 0.6), ("90", 0.9)):
            yield f"ratio_{share}_mean_{over}", partial(mean, over, target)
            yield f"ratio_{share}_max_{over}", partial(largest, over, target)
            for workload in WORKLOADS:
                yield f"ratio_{share}_{workload}_{over}", partial(mean, over, target, workload)

    def quotient(above: tuple[float, str], below: tuple[float, str]) -> float:
        return mean("vllm", *above) / mean("vllm", *below)

    yield "ratio_60_over_90_vllm", partial(quotient, (0.6, ""), (0.9, ""))
    yield "sharegpt_over_humaneval_60", partial(quotient, (0.6, "sharegpt"), (0.6, "humaneval"))
    yield "longbench_over_humaneval_90", partial(quotient, (0.9, "longbench"), (0.9, "humaneval"))


def _ingredients(tables: Tables, apt: str) -> Figures:
    def ratio(variant: str) -> float:
        return ratio_rows(tables, variant, "vllm", 0.6)[LLM, "sharegpt"]

    for variant in ("fcfs-demote", "density", "density-no-demotion"):
        yield f"ratio_60_{variant}", partial(ratio, variant)


def _scheduler(tables: Tables, apt: str) -> Figures:
    taken = {float(row["candidates"]): float(row["median_ms"]) for row in tables.get("scheduler", [])}

    def exponent() -> float:
        return float(np.log(taken[1600] / taken[50]) / np.log(1600 / 50))

    for candidates in (50, 1600):
        yield f"scheduler_ms_{candidates}", partial(taken.__getitem__, candidates)
    yield "scheduler_exponent", exponent


def _grouped(tables: Tables, apt: str) -> Figures:
    rates = {
        (str(row["llm"]), str(row["variant"])): float(row["rate_per_s"])
        for row in tables.get("grouped", [])
        if (row["reading"], row["target"]) == ("paper", 0.6)
    }

    def ratio(llm: str, variant: str, over: str) -> float:
        return rates[llm, variant] / rates[llm, over]

    for llm in ("qwen3-8b", "qwen3-0.6b"):
        yield f"hybrid_gain_{llm}", partial(_less_one, partial(ratio, llm, apt, "density"))
        yield f"scheduling_ratio_60_{llm}", partial(ratio, llm, "density", "vllm")


def _less_one(compute: Callable[[], float]) -> float:
    return compute() - 1


def _beyond(tables: Tables, apt: str) -> Figures:
    """Yield, by workload of opt-13b and by other llms, how attain compares with Apt-Serve."""
    compared = [row for row in tables.get("beyond_ratios", []) if (row["variant"], row["over"]) == ("attain", apt)]
    counted = {
        (str(row["llm"]), str(row["workload"]), float(row["rate_per_s"]), str(row["variant"])): float(row["starved"])
        for row in tables.get("beyond_attainment", [])
    }

    def least(cell: tuple[str, str]) -> float:
        finished = [row for row in compared if row["reading"] != "paper"]
        return min(float(row["ratio"]) for row in finished if (row["llm"], row["workload"]) == cell)

    def starved_more(cell: tuple[str, str]) -> float:
        rates = [rate for llm, workload, rate, variant in counted if (llm, workload, variant) == (*cell, "attain")]
        return max(counted[*cell, rate, "attain"] - counted[*cell, rate, apt] for rate in rates)

    for llm, workload in dict.fromkeys((str(row["llm"]), str(row["workload"])) for row in compared):
        name = workload if llm == LLM else llm
        yield f"attain_least_ratio_{name}", partial(least, (llm, workload))
        yield f"attain_starved_more_{name}", partial(starved_more, (llm, workload))
