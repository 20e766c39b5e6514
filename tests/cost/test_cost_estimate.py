from __future__ import annotations

import pytest

from optsched import catalog
from optsched.cost.estimate import decode_step, estimate, prefill_chunks
from optsched.cost.sensitivity import elasticities
from optsched.cost.tables import replica_parameters
from optsched.domain.hardware import FittedStepLaw, Tier
from optsched.domain.step_law import StepLaw
from optsched.errors import SpecError

LLM, A40 = catalog.llm("qwen3-0.6b"), catalog.tier("a40")


def test_an_estimate_adds_up_over_its_breakdown() -> None:
    found = estimate(LLM, A40, prompt_tokens=1500, batch=8, context_tokens=1000)
    assert found.origin == "fitted"
    assert sum(row.seconds for row in found.prefill) == pytest.approx(found.prefill_s)
    assert sum(row.seconds for row in found.decode) == pytest.approx(found.decode_step_s)
    assert found.memory.kv_token_budget > 8 * 1000


def test_elasticities_of_a_step_add_up_to_its_use_of_time() -> None:
    # Time is homogeneous: rates up and times down by one factor shorten every step by exactly that factor.
    parameters, shape = replica_parameters(LLM, A40)
    for features in (prefill_chunks(LLM, 5000, 2048), decode_step(LLM, 64, 3000)):
        each = elasticities(parameters, shape, features)
        rates = sum(value for name, value in each.items() if name.endswith("_per_s"))
        times = sum(value for name, value in each.items() if name.endswith("_s") and not name.endswith("_per_s"))
        assert times - rates == pytest.approx(1.0, abs=1e-9)
        assert rates < 0 < times


def test_an_estimate_says_what_more_of_a_resource_changes_if_asked() -> None:
    found = estimate(LLM, A40, prompt_tokens=5000, batch=64, context_tokens=3000, sensitivity=True)
    assert found.prefill_sensitivity is not None
    assert found.decode_sensitivity is not None
    assert found.decode_sensitivity["memory_bandwidth"].elasticity < -0.5
    assert found.prefill_sensitivity["compute"].change < found.decode_sensitivity["compute"].change <= 0
    assert estimate(LLM, A40, prompt_tokens=50, batch=4, context_tokens=30).decode_sensitivity is None


def test_hidden_cache_slows_the_decode_step_and_a_window_bounds_what_it_reads() -> None:
    def step(llm_name: str, context: int, hidden: int, window: int | None = None) -> float:
        llm = catalog.llm(llm_name).replace(sliding_window=window)
        found = estimate(llm, catalog.tier("a100-80gb"), prompt_tokens=10, batch=32, context_tokens=context, hidden_tokens=hidden)
        return found.decode_step_s

    assert step("opt-13b", 1000, 32_000) > step("opt-13b", 1000, 16_000) > step("opt-13b", 1000, 0)
    windowed = step("llama-3.1-8b", 8192, 0, 1024)
    assert windowed == pytest.approx(step("llama-3.1-8b", 65536, 0, 1024))
    # The kernel reads the tiles at both ends of the window whole, so it takes a little longer than on so short a context.
    assert step("llama-3.1-8b", 1024, 0) <= windowed < step("llama-3.1-8b", 1536, 0)


def test_a_measured_law_replaces_the_model_and_says_so() -> None:
    law = StepLaw(
        overhead_s=1e-3, floor_s=2e-3, gemm_tokens=(0, 10), gemm_s=(1e-3, 2e-3), pair_s=1e-9, kv_s=1e-7, sequence_s=1e-5,
        hidden_s=1e-6, step_j=0.5, idle_w=10.0,
    )  # fmt: skip
    card = catalog.gpu("local-cpu")
    card = card.replace(step_laws=(FittedStepLaw(llm="smollm2-135m", origin="a test", law=law),))
    found = estimate(
        catalog.llm("smollm2-135m"), Tier(card, 65.0), prompt_tokens=100, batch=4, context_tokens=50, chunk_tokens=64
    )
    assert found.origin == "fitted"
    assert found.prefill_s == pytest.approx(law.prefill_s(100, 0, 64))
    assert found.decode_step_s == pytest.approx(float(law.step_s(4, 0, 200, 4)))
    assert found.decode_energy_j_per_token == pytest.approx((0.5 + 10 * found.decode_step_s) / 4)
    assert found.decode == ()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"prompt_tokens": 0}, "prompt 0 must be at least 1"),
        ({"batch": -2}, "batch -2 must be at least 1"),
        ({"context_tokens": 0}, "context 0 must be at least 1"),
        ({"chunk_tokens": 0}, "chunk 0 must be at least 1"),
        ({"hidden_tokens": 801}, "hidden tokens 801 must lie between 0 and the batch's 800 cached tokens"),
        ({"hidden_tokens": -1}, "hidden tokens -1 must lie between 0"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers: dict[str, int], message: str) -> None:
    given = {"prompt_tokens": 10, "batch": 8, "context_tokens": 100, "hidden_tokens": 0, "chunk_tokens": 64} | numbers
    with pytest.raises(SpecError, match=message):
        estimate(
            LLM, A40, prompt_tokens=given["prompt_tokens"], batch=given["batch"], context_tokens=given["context_tokens"],
            hidden_tokens=given["hidden_tokens"], chunk_tokens=given["chunk_tokens"],
        )  # fmt: skip
