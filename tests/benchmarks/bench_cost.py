"""Throughput of the cost model: ``pytest tests/benchmarks/bench_cost.py``; as a script, a grid of 1e7 steps with its peak memory."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import jax
import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from optsched import catalog
from optsched.cost.evaluate import evaluate_configurations, stack
from optsched.cost.features import StepFeatures
from optsched.cost.grid import By, StepAxes, evaluate_grid
from optsched.cost.shape import Layout, LlmShape
from optsched.cost.tables import step_law
from optsched.cost.tier import TierParameters

NUMBER = 1 << 17
LLMS = ("qwen3-0.6b", "opt-13b", "llama-3.1-8b", "mixtral-8x7b")
GPUS = ("a40", "a100-80gb", "h100-sxm", "h200")


@pytest.fixture(scope="module")
def configurations() -> tuple[TierParameters, LlmShape, StepFeatures]:
    pairs = [(catalog.llm(llm), catalog.tier(gpu), tp) for llm in LLMS for gpu in GPUS for tp in (1, 2, 4)]
    tiers = stack([TierParameters.of(tier, llm, catalog.link("nvlink4")) for llm, tier, _ in pairs])
    shapes = stack([LlmShape.of(llm, Layout(tp)) for llm, _, tp in pairs])
    draw = np.random.default_rng(0)
    chosen = draw.integers(0, len(pairs), NUMBER)
    batch = draw.integers(1, 256, NUMBER).astype(float)
    features = StepFeatures.of(
        prefill_tokens=draw.integers(0, 4096, NUMBER).astype(float), pairs=1e5, decode_sequences=batch, kv_tokens=batch * 2000
    )
    return jax.tree.map(lambda leaf: leaf[chosen], tiers), jax.tree.map(lambda leaf: leaf[chosen], shapes), features


def test_full_model(benchmark: BenchmarkFixture, configurations: tuple[TierParameters, LlmShape, StepFeatures]) -> None:
    evaluate_configurations(*configurations)
    benchmark(evaluate_configurations, *configurations)
    benchmark.extra_info["configurations_per_s"] = NUMBER / benchmark.stats["min"]


def test_step_law(benchmark: BenchmarkFixture) -> None:
    law = step_law(catalog.llm("qwen3-0.6b"), catalog.tier("a40"))
    draw = np.random.default_rng(0)
    tokens, batch = draw.integers(1, 4096, NUMBER).astype(float), draw.integers(1, 256, NUMBER).astype(float)
    benchmark(law.step_s, tokens, tokens * 100, batch * 2000, batch, 0.0)
    benchmark.extra_info["configurations_per_s"] = NUMBER / benchmark.stats["min"]


def test_condensing_one_replica(benchmark: BenchmarkFixture) -> None:
    llm, tier = catalog.llm("qwen3-0.6b"), catalog.tier("a40")
    step_law(llm, tier)
    benchmark(step_law, llm, tier)


@pytest.mark.parametrize("by", ["model", "law"])
def test_a_grid(benchmark: BenchmarkFixture, by: By) -> None:
    llm, tier = catalog.llm("qwen3-0.6b"), catalog.tier("a40")
    axes = StepAxes(np.arange(1, 51), np.linspace(16, 32768, 50, dtype=int), np.linspace(0, 8192, 200, dtype=int))
    evaluate_grid(llm, [tier], [1], axes, by=by)
    benchmark(evaluate_grid, llm, [tier], [1], axes, by=by)
    benchmark.extra_info["steps_per_s"] = axes.num_points / benchmark.stats["min"]


def row(name: str, by: By) -> str:
    """Return a table row of one call over 1e7 steps: 5 tiers x 4 TP x 100 batches x 100 contexts x 50 prompts."""
    axes = StepAxes(np.arange(1, 101), np.linspace(16, 32768, 100, dtype=int), np.linspace(0, 8192, 50, dtype=int))
    llm, tiers = catalog.llm(name), [catalog.tier(each) for each in ("a40", "a100-80gb", "h100-sxm", "h200", "b200")]
    evaluate_grid(llm, tiers[:1], [1], axes, by=by)
    before, clock, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.perf_counter(), time.process_time()
    found = evaluate_grid(llm, tiers, [1, 2, 4, 8], axes, by=by)
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    points, result = found.seconds.size, (found.seconds.nbytes + found.joules.nbytes) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    return f"| {name} | {by} | {points:,} | {points / cpu / 1e6:.1f} M | {points / clock / 1e6:.1f} M | {result:.0f} MB | {peak:.0f} MB |"


def main() -> None:
    """Print rates and the growth of the peak memory, each case in a process of its own."""
    print("| llm | by | steps | steps per CPU-second | steps per second | result | growth of the peak |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name in sys.argv[1:] or ("qwen3-32b", "qwen3-30b-a3b", "deepseek-v3"):
        for by in ("law", "model"):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                print(pool.submit(row, name, by).result(), flush=True)


if __name__ == "__main__":
    main()
