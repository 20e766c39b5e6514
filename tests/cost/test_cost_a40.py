"""What the ConServe artifact measured on A40 (github.com/jerryding95/conserve, Qwen3-0.6B, vLLM 0.11 eager, bf16).

The coefficients of the card were fitted to some prompts and half of the decode steps (`optsched.profiles.conserve_a40`, written
down before any fit); the other points took no part.
"""

from __future__ import annotations

import pytest

from optsched import catalog
from optsched.cost.estimate import decode_step, prefill_chunks
from optsched.cost.evaluate import evaluate_steps
from optsched.cost.features import StepFeatures
from optsched.cost.tables import replica_parameters
from optsched.profiles import conserve_a40 as a40

LLM = catalog.llm(a40.LLM)
PROMPTS = [(cap, tokens) for cap, times in a40.PREFILL_S.items() for tokens in times]
FITTED = [(cap, tokens) for cap, tokens in PROMPTS if tokens in a40.FITTED_PROMPTS[cap]]
HELD_OUT = [prompt for prompt in PROMPTS if prompt not in FITTED]


def prefill_s(tokens: int, cap_w: int) -> float:
    tier, shape = replica_parameters(LLM, catalog.tier(f"a40@{cap_w}"))
    return float(evaluate_steps(tier, shape, prefill_chunks(LLM, tokens, 8192)).seconds.sum())


def decode_s(batch: int, kv_tokens: int, cap_w: int = 300) -> float:
    tier, shape = replica_parameters(LLM, catalog.tier(f"a40@{cap_w}"))
    return float(evaluate_steps(tier, shape, decode_step(LLM, batch, kv_tokens // batch).rows()).seconds[0])


@pytest.mark.parametrize(("cap_w", "tokens"), HELD_OUT)
def test_prefill_of_prompts_that_were_not_fitted_is_within_eight_percent(cap_w: int, tokens: int) -> None:
    assert prefill_s(tokens, cap_w) == pytest.approx(a40.PREFILL_S[cap_w][tokens], rel=0.08)


@pytest.mark.parametrize(("cap_w", "tokens"), FITTED)
def test_prefill_of_fitted_prompts_is_within_eight_percent(cap_w: int, tokens: int) -> None:
    assert prefill_s(tokens, cap_w) == pytest.approx(a40.PREFILL_S[cap_w][tokens], rel=0.08)


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


@pytest.mark.parametrize(("shape", "measured_s"), a40.DECODE_S.items())
def test_decode_step_is_within_eight_percent_of_the_measured_one(shape: tuple[int, int], measured_s: float) -> None:
    assert decode_s(*shape) == pytest.approx(measured_s, rel=0.08)


def power_w(cap_w: int, steps: StepFeatures) -> float:
    costs = evaluate_steps(*replica_parameters(LLM, catalog.tier(f"a40@{cap_w}")), steps.rows())
    return float(costs.joules.sum() / costs.seconds.sum())


def test_loaded_decoders_draw_what_the_artifact_implies_and_long_prefill_nears_the_cap() -> None:
    for cap, decode_w in a40.LOADED_DECODER_W.items():
        assert 0.85 * cap <= power_w(cap, prefill_chunks(LLM, 65000, 8192)) <= cap
        assert power_w(cap, decode_step(LLM, 64, 3000)) == pytest.approx(decode_w, rel=0.1)


def test_lightly_loaded_decoders_hold_their_clocks_up() -> None:
    assert power_w(300, decode_step(LLM, 16, 1000)) == pytest.approx(a40.LIGHT_DECODER_W, rel=0.2)
