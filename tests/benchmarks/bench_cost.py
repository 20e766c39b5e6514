"""Throughput of the cost model; run with ``pytest tests/benchmarks/bench_cost.py``."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from optsched import catalog
from optsched.cost.evaluate import evaluate_configurations, stack
from optsched.cost.features import StepFeatures
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
