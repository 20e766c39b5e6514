"""What the ConServe artifact measured on A40 (github.com/jerryding95/conserve, Qwen3-0.6B, vLLM 0.11 eager, bf16).

Wall times of a cold prefill less 0.03 s that lie outside of it. The coefficients of the card were fitted to the prompts of
`FITTED` and to half of the decode steps; the other points took no part.
"""

from __future__ import annotations

import pytest

from optsched import catalog
from optsched.cost.estimate import decode_step, estimate, prefill_chunks
from optsched.cost.evaluate import evaluate_steps
from optsched.cost.tables import replica_parameters

LLM = catalog.llm("qwen3-0.6b")
PREFILL_S = {
    300: {4000: 0.12, 8000: 0.26, 10000: 0.34, 12000: 0.43, 16000: 0.67, 20000: 0.95, 24000: 1.28, 32000: 2.07, 49000: 4.23,
          65000: 7.07},
    200: {4000: 0.12, 8000: 0.28, 12000: 0.50, 16000: 0.80, 24000: 1.64, 32000: 2.75, 65000: 10.21},
}  # fmt: skip
FITTED = {300: (4000, 8000, 16000, 32000, 65000), 200: (8000, 24000, 65000)}
HELD_OUT = [(cap, tokens) for cap, times in PREFILL_S.items() for tokens in times if tokens not in FITTED[cap]]


def prefill_s(tokens: int, cap_w: int) -> float:
    tier, shape = replica_parameters(LLM, catalog.tier(f"a40@{cap_w}"))
    return float(evaluate_steps(tier, shape, prefill_chunks(LLM, tokens, 8192)).seconds.sum())


def decode_s(batch: int, kv_tokens: int, cap_w: int = 300) -> float:
    tier, shape = replica_parameters(LLM, catalog.tier(f"a40@{cap_w}"))
    return float(evaluate_steps(tier, shape, decode_step(LLM, batch, kv_tokens // batch).rows()).seconds[0])


@pytest.mark.parametrize(("cap_w", "tokens"), HELD_OUT)
def test_prefill_of_prompts_that_were_not_fitted_is_within_eight_percent(cap_w: int, tokens: int) -> None:
    assert prefill_s(tokens, cap_w) == pytest.approx(PREFILL_S[cap_w][tokens], rel=0.08)


def test_prefill_of_fitted_prompts_is_within_eight_percent() -> None:
    for cap_w, prompts in FITTED.items():
        for tokens in prompts:
            assert prefill_s(tokens, cap_w) == pytest.approx(PREFILL_S[cap_w][tokens], rel=0.08)


def test_the_penalty_of_a_200_watt_cap_grows_with_the_prompt_and_spares_decode() -> None:
    penalties = [prefill_s(tokens, 200) / prefill_s(tokens, 300) for tokens in (4000, 8000, 16000, 32000, 65000)]
    assert penalties == sorted(penalties)
    assert penalties[0] < 1.05
    assert penalties[-1] > 1.35
    for batch, kv_tokens in ((16, 98_500), (64, 131_000), (64, 197_000)):
        assert 1.0 <= decode_s(batch, kv_tokens, 200) / decode_s(batch, kv_tokens) <= 1.03


def test_a_cap_between_two_measured_ones_lies_between_their_times() -> None:
    for tokens in (8000, 16000, 65000):
        assert prefill_s(tokens, 300) < prefill_s(tokens, 250) < prefill_s(tokens, 200)


@pytest.mark.parametrize(
    ("kv_tokens", "measured_ms"), [(128, 14.2), (16_000, 14.2), (65_600, 17.6), (98_500, 23.6), (131_000, 30.0), (197_000, 44.0)]
)
def test_decode_step_is_within_eight_percent_of_the_measured_one(kv_tokens: int, measured_ms: float) -> None:
    assert decode_s(1 if kv_tokens == 128 else 32, kv_tokens) * 1e3 == pytest.approx(measured_ms, rel=0.08)


def test_loaded_decoders_draw_what_the_artifact_implies_and_long_prefill_nears_the_cap() -> None:
    for cap, decode_w in ((300, 262), (200, 184)):
        found = estimate(LLM, catalog.tier(f"a40@{cap}"), prompt_tokens=65000, batch=64, context_tokens=3000)
        assert 0.9 * cap <= found.prefill_energy_j / found.prefill_s <= cap
        assert found.decode_energy_j_per_token * 64 / found.decode_step_s == pytest.approx(decode_w, rel=0.1)


def test_lightly_loaded_decoders_hold_their_clocks_up() -> None:
    found = estimate(LLM, catalog.tier("a40"), prompt_tokens=100, batch=16, context_tokens=1000)
    watts = found.decode_energy_j_per_token * 16 / found.decode_step_s
    assert 160 < watts < 220
