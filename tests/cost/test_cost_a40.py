"""What the ConServe artifact measured on A40 (github.com/jerryding95/conserve, Qwen3-0.6B, vLLM 0.11 eager, bf16)."""

from __future__ import annotations

import pytest

from optsched import catalog
from optsched.cost.estimate import decode_step, estimate, prefill_chunks
from optsched.cost.evaluate import evaluate_steps
from optsched.cost.tables import replica_parameters

LLM = catalog.llm("qwen3-0.6b")


def prefill_s(tokens: int, cap_w: int) -> float:
    tier, shape = replica_parameters(LLM, catalog.tier(f"a40@{cap_w}"))
    return float(evaluate_steps(tier, shape, prefill_chunks(LLM, tokens, 8192)).seconds.sum())


def decode_s(batch: int, kv_tokens: int, cap_w: int = 300) -> float:
    tier, shape = replica_parameters(LLM, catalog.tier(f"a40@{cap_w}"))
    return float(evaluate_steps(tier, shape, decode_step(LLM, batch, kv_tokens // batch).rows()).seconds[0])


@pytest.mark.parametrize(
    ("tokens", "measured_s"),
    [(4000, 0.12), (8000, 0.26), (10000, 0.34), (12000, 0.43), (16000, 0.67), (20000, 0.95), (24000, 1.28), (32000, 2.07),
     (49000, 4.23), (65000, 7.07)],
)  # fmt: skip
def test_cold_prefill_is_within_fifteen_percent_of_the_measured_one(tokens: int, measured_s: float) -> None:
    assert prefill_s(tokens, 300) == pytest.approx(measured_s, rel=0.15)


@pytest.mark.parametrize(
    ("tokens", "measured_s"),
    [(4000, 0.12), (8000, 0.28), (12000, 0.50), (16000, 0.80), (24000, 1.64), (32000, 2.75), (65000, 10.21)]
)  # fmt: skip
def test_capped_prefill_is_within_fifteen_percent_of_the_measured_one(tokens: int, measured_s: float) -> None:
    assert prefill_s(tokens, 200) == pytest.approx(measured_s, rel=0.15)


def test_a_200_watt_cap_slows_long_prefill_by_a_fifth_and_decode_hardly() -> None:
    assert 1.19 <= prefill_s(16000, 200) / prefill_s(16000, 300) <= 1.26
    for batch, kv_tokens in ((16, 98_500), (64, 131_000), (64, 197_000)):
        assert 1.0 <= decode_s(batch, kv_tokens, 200) / decode_s(batch, kv_tokens) <= 1.03


@pytest.mark.parametrize(
    ("kv_tokens", "measured_ms"), [(128, 14.2), (16_000, 14.2), (65_600, 17.6), (98_500, 23.6), (131_000, 30.0), (197_000, 44.0)]
)
def test_decode_step_is_within_ten_percent_of_the_measured_one(kv_tokens: int, measured_ms: float) -> None:
    assert decode_s(1 if kv_tokens == 128 else 32, kv_tokens) * 1e3 == pytest.approx(measured_ms, rel=0.1)


def test_prefill_draws_the_cap_and_decode_less() -> None:
    for cap, decode_w in ((300, 262), (200, 184)):
        found = estimate(LLM, catalog.tier(f"a40@{cap}"), prompt_tokens=16000, batch=64, context_tokens=2000)
        assert found.prefill_energy_j / found.prefill_s == pytest.approx(cap, rel=0.03)
        assert found.decode_energy_j_per_token * 64 / found.decode_step_s == pytest.approx(decode_w, rel=0.1)
