"""Compute everything that `expected.toml` asks for: one function per table, run in order by `compute`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from optsched.batching.policies.dispatch import compiled_policy
from optsched.batching.state import Counts, Decision, Engine, Requests
from optsched.domain.gaps import Gaps

from ..tables import Row, Tables, Task, run_sections
from .beyond import beyond
from .cells import arriving, cell, make_cell
from .measure import attainment_of, rates_of, ratios
from .settings import Settings

APT = ("apt-serve", "apt-serve-code")


def fitted_overhead_s(settings: Settings, steps: int = 14) -> float:
    """Return the time between steps at which vllm attains the published share at the published rate, by bisection."""
    fit = settings.fit
    dump = settings.model_dump_json(by_alias=True)

    def share(overhead_s: float) -> float:
        attains = cell(dump, fit.llm, overhead_s).search("vllm", settings.workloads[fit.workload])
        return float(np.mean([attains(fit.rate_per_s, seed)["paper"] for seed in fit.seeds]))

    low, high = 0.0, fit.largest_s
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) >= fit.attainment else (low, middle)
    return low


def matrix(settings: Settings) -> Iterator[Task]:
    """Effective throughput of every llm on every workload."""
    for llm in settings.tensor_parallel:
        variants = tuple(settings.variants) if llm == settings.matrix.all_variants_llm else settings.matrix.variants
        for workload, recipe in settings.workloads.items():
            for variant in variants:

                def task(tables: Tables, names: tuple[str, str, str] = (llm, workload, variant), recipe: str = recipe) -> None:
                    found = rates_of(make_cell(settings, names[0]), names, recipe, settings.targets)
                    tables.setdefault("effective_throughput", []).extend(found)

                yield task

    def compare(tables: Tables) -> None:
        variants = [name for name in settings.variants if name != "vllm"]
        tables["ratios"] = ratios(tables["effective_throughput"], variants, ("vllm", "sarathi", "fastgen"))

    yield compare


def curves(settings: Settings) -> Iterator[Task]:
    """Attainment against the rate, around the rate at which vllm attains 90 %."""
    for llm in settings.tensor_parallel:
        for workload, recipe in settings.workloads.items():
            for variant in settings.matrix.variants:

                def task(tables: Tables, names: tuple[str, str, str] = (llm, workload, variant), recipe: str = recipe) -> None:
                    knee = knee_of(tables, names[0], names[1])
                    for multiple in settings.curves.multiples if knee else ():
                        row = attainment_of(make_cell(settings, names[0]), names, recipe, multiple * knee, section="curves")
                        tables.setdefault("attainment", []).append(row)

                yield task


def knee_of(tables: Tables, llm: str, workload: str) -> float:
    """Return the rate at which vllm attains 90 %; 0 if there is none."""
    for row in tables.get("effective_throughput", []):
        key = (row["llm"], row["workload"], row["variant"], row["reading"], row["target"])
        if key == (llm, workload, "vllm", "paper", 0.9):
            return float(row["rate_per_s"])
    return 0.0


def points(settings: Settings) -> Iterator[Task]:
    """All variants at the published rates, and the main ones under bursts."""
    llm, bursts = settings.fit.llm, settings.bursts
    wanted = [(w, rate, 1.0, v, "points") for w, rates in settings.points.items() for rate in rates for v in settings.variants]
    for workload, rates in (("sharegpt", bursts.sharegpt), ("longbench", bursts.longbench)):
        wanted += [(workload, rate, cv, v, "bursts") for cv in bursts.cv for rate in rates for v in bursts.variants]
    for workload, rate, cv, variant, section in wanted:

        def task(
            tables: Tables, workload: str = workload, variant: str = variant, at: tuple[float, float, str] = (rate, cv, section)
        ) -> None:
            names = (llm, workload, variant)
            row = attainment_of(make_cell(settings, llm), names, settings.workloads[workload], *at)
            tables.setdefault("attainment", []).append(row)

        yield task


def slo_sweep(settings: Settings) -> Iterator[Task]:
    """Effective throughput under other targets: the paper's are not public."""
    sweep, llm = settings.slo_sweep, settings.fit.llm
    for ttft_s in sweep.ttft_s:
        for tbt_s in sweep.tbt_s:
            for variant in sweep.variants:

                def task(tables: Tables, variant: str = variant, targets: tuple[float, float] = (ttft_s, tbt_s)) -> None:
                    under = replace(make_cell(settings, llm), ttft_slo_s=targets[0], tbt_slo_s=targets[1])
                    found = rates_of(
                        under, (llm, "sharegpt", variant), settings.workloads["sharegpt"], (0.6, 0.9),
                        readings=("paper", "sustained"), seeds=sweep.seeds,
                    )  # fmt: skip
                    tables.setdefault("slo_sweep", []).extend(found)

                yield task

    def compare(tables: Tables) -> None:
        tables["slo_sweep_ratios"] = ratios(tables["slo_sweep"], APT, ("vllm",))

    yield compare


def length_sweep(settings: Settings) -> Iterator[Task]:
    """Effective throughput with other lengths that could be meant by ShareGPT."""
    llm = settings.fit.llm
    for recipe in settings.length_sweep.workloads:
        for variant in settings.length_sweep.variants:

            def task(tables: Tables, recipe: str = recipe, variant: str = variant) -> None:
                found = rates_of(make_cell(settings, llm), (llm, recipe, variant), recipe, settings.targets)
                tables.setdefault("length_sweep", []).extend(found)

            yield task

    def compare(tables: Tables) -> None:
        variants = [name for name in settings.length_sweep.variants if name != "vllm"]
        tables["length_sweep_ratios"] = ratios(tables["length_sweep"], variants, ("vllm", "sarathi", "fastgen"))

    yield compare


def grouped(settings: Settings) -> Iterator[Task]:
    """Effective throughput of llms whose hidden cache is larger than their KV cache, or half of it although grouped."""
    for llm in settings.grouped.llms:
        for variant in settings.grouped.variants:

            def task(tables: Tables, names: tuple[str, str, str] = (llm, "sharegpt", variant)) -> None:
                found = rates_of(make_cell(settings, names[0]), names, settings.workloads["sharegpt"], settings.targets)
                tables.setdefault("grouped", []).extend(found)

            yield task


def tail(settings: Settings) -> Iterator[Task]:
    """Quantiles of TTFT and of each request's longest gap, over all seeds."""
    llm, rate = settings.fit.llm, settings.tail.rate_per_s
    shares = (0.5, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99, 0.999, 1.0)

    def task(tables: Tables) -> None:
        for variant in settings.tail.variants:
            ttft, longest, total = [], [], []
            for seed in settings.seeds:
                requests = arriving(settings, settings.workloads["sharegpt"], rate, seed)
                log, _ = make_cell(settings, llm).run(variant, requests)
                ttft.append(log.first_token_s - log.arrival_s)
                longest.append(Gaps.of(log, requests).max_s)
                total.append(log.end_s - log.arrival_s)
            for share in shares:
                values: Row = {
                    name: float(np.quantile(np.concatenate(of), share))
                    for name, of in (("ttft_s", ttft), ("longest_gap_s", longest), ("end_to_end_s", total))
                }
                tables.setdefault("tail", []).append({"variant": variant, "rate_per_s": rate, "quantile": share, **values})

    yield task


def scheduler(settings: Settings) -> Iterator[Task]:
    """Time of one decision of Apt-Serve among n waiting candidates: the median, and the least, of the repeats."""

    def task(tables: Tables) -> None:
        decide = compiled_policy("apt-serve")
        for candidates in settings.scheduler.candidates:
            random = np.random.default_rng(candidates)
            requests, queue = Requests.empty(candidates), np.arange(candidates)
            requests.arrival_s[:] = requests.last_token_s[:] = random.uniform(0, 1, candidates)
            requests.new_tokens[:] = random.integers(4, 1024, candidates)
            engine = Engine(1.0, 873, 873, 16, 0, 2048, 256, 0.5, 2.5e-4, 1.0, 1.0)
            decision, taken = Decision.empty(candidates), []
            for _ in range(settings.scheduler.repeats):
                start = time.perf_counter()
                decide(requests, queue, Counts(0, candidates, 0), engine, decision)
                taken.append((time.perf_counter() - start) * 1e3)
            row: Row = {"candidates": candidates, "median_ms": float(np.median(taken)), "least_ms": float(min(taken))}
            tables.setdefault("scheduler", []).append(row)

    yield task


def fit(settings: Settings) -> Iterator[Task]:
    """Fit the only constant again, beside the frozen one."""

    def task(tables: Tables) -> None:
        frozen = settings.frozen.step_overhead_s if settings.frozen else float("nan")
        tables["fit"] = [{"step_overhead_s": fitted_overhead_s(settings), "frozen_s": frozen}]

    yield task


SECTIONS = (fit, scheduler, points, tail, matrix, curves, length_sweep, slo_sweep, grouped, beyond)


def compute(
    settings: Settings, advance: Callable[[float, float], None], keep: Callable[[Tables], None] = lambda tables: None
) -> Tables:
    """Compute all tables; see `run_sections`."""
    return run_sections(SECTIONS, settings, advance, keep)
