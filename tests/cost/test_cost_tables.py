from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsched import catalog
from optsched.cost.estimate import decode_step, prefill_chunks
from optsched.cost.evaluate import evaluate_steps
from optsched.cost.links import transfer_law
from optsched.cost.rho import rho_s_per_block
from optsched.cost.tables import origin, replica_parameters, step_law, step_law_error
from optsched.domain.elementwise_law import ElementwiseLaw
from optsched.domain.gemm_law import GemmLaw
from optsched.domain.hardware import FittedStepLaw, Tier
from optsched.domain.llm import Llm
from optsched.domain.step_law import StepLaw
from optsched.errors import UnknownNameError

REPLICAS = [
    ("qwen3-0.6b", "a40", 1, 1),
    ("qwen3-0.6b", "a40@200", 1, 1),
    ("opt-13b", "a100-40gb", 1, 1),
    ("opt-66b", "a100-80gb", 4, 1),
    ("qwen3-32b", "h200", 2, 2),
    ("mixtral-8x7b", "h100-sxm", 2, 1),
    ("qwen3-30b-a3b", "h100-sxm", 1, 1),
    ("deepseek-v3", "h200", 8, 1),
]
MEASURED = StepLaw(
    overhead_s=1e-3, floor_s=2e-3, gemm_tokens=(0, 10), gemm_s=(1e-3, 2e-3), pair_s=1e-9, kv_s=1e-7, sequence_s=1e-5,
    hidden_s=1e-6, step_j=0.1, token_j=1e-2, idle_w=10.0,
)  # fmt: skip


@pytest.mark.parametrize(("llm", "tier", "tp", "pp"), REPLICAS)
def test_the_step_law_stays_within_its_published_error(llm: str, tier: str, tp: int, pp: int) -> None:
    assert_within_published_error(catalog.llm(llm), catalog.tier(tier), tp, pp)


def test_the_step_law_follows_the_tiles_of_8_bit_products() -> None:
    llm = catalog.llm("llama-3.1-8b").replace(dtype="fp8", kv_dtype="bf16")
    assert catalog.gpu("h100-sxm").efficiency.gemm["fp8"].row_quantum == 256
    assert_within_published_error(llm, catalog.tier("h100-sxm"))


def assert_within_published_error(llm: Llm, tier: Tier, tp: int = 1, pp: int = 1) -> None:
    found = step_law_error(step_law(llm, tier, tp=tp, pp=pp), llm, tier, tp=tp, pp=pp)
    assert max(each.mape for each in found.values()) <= 0.03
    assert max(each.max for each in found.values()) <= 0.15
    assert max(each.energy_mape for each in found.values()) <= 0.05


def test_a_short_append_on_a_long_context_is_charged_for_what_it_reads() -> None:
    shape, place = catalog.llm("qwen3-30b-a3b"), catalog.tier("h200")
    law, (tier, numbers) = step_law(shape, place), replica_parameters(shape, place)
    for new, context in ((1, 20_000), (16, 32_000), (64, 8_000), (100, 60_000)):
        full = evaluate_steps(tier, numbers, prefill_chunks(shape, new, 2048, context)).seconds.sum()
        assert law.prefill_s(new, context, 2048) == pytest.approx(full, rel=0.15)


def test_the_law_of_the_a40_has_the_floor_and_slopes_that_were_measured() -> None:
    # ConServe artifact (github.com/jerryding95/conserve): floor 14.2 ms, 24.1 us per sequence, 0.19 us per KV token.
    law = step_law(catalog.llm("qwen3-0.6b"), catalog.tier("a40"))
    assert law.overhead_s + law.floor_s == pytest.approx(14.2e-3, rel=0.02)
    assert law.kv_s == pytest.approx(0.19e-6, rel=0.05)
    assert law.sequence_s == pytest.approx(24.1e-6, rel=0.3)
    assert law.idle_w == 77


@given(batch=st.integers(1, 256), context=st.integers(1, 8192), prompt=st.integers(1, 20000))
def test_the_law_times_whole_prefills_and_decodes_as_the_full_model_does(batch: int, context: int, prompt: int) -> None:
    llm = catalog.llm("qwen3-0.6b")
    law = step_law(llm, catalog.tier("a40"))
    tier, shape = replica_parameters(llm, catalog.tier("a40"))
    full = evaluate_steps(tier, shape, prefill_chunks(llm, prompt, 2048)).seconds.sum()
    assert law.prefill_s(prompt, 0, 2048) == pytest.approx(full, rel=0.06)
    step = evaluate_steps(tier, shape, decode_step(llm, batch, context).rows()).seconds[0]
    assert float(law.step_s(batch, 0.0, batch * context, batch)) == pytest.approx(step, rel=0.06)


def test_a_measured_law_is_returned_for_its_llm_and_layout_only() -> None:
    llm, card = catalog.llm("smollm2-135m"), catalog.gpu("local-cpu")
    fitted = card.replace(step_laws=(FittedStepLaw(llm=llm.name, origin="a test", law=MEASURED),))
    tier = catalog.tier("local-cpu")
    tier = type(tier)(fitted, tier.power_cap_w)
    assert step_law(llm, tier) is MEASURED
    assert origin(fitted, llm) == "fitted"
    assert step_law(catalog.llm("tiny-qwen3"), tier) != MEASURED
    assert origin(fitted, catalog.llm("tiny-qwen3")) == "assumed"
    assert step_law(llm, tier, tp=3, link=catalog.link("loopback")) != MEASURED


def test_a_replica_of_several_gpus_uses_its_cards_interconnect_and_idles_on_all() -> None:
    llm, tier = catalog.llm("opt-30b"), catalog.tier("a100-40gb")
    own = step_law(llm, tier, tp=2)
    assert own == step_law(llm, tier, tp=2, link=catalog.link("nvlink3"))
    assert own.idle_w == 2 * step_law(llm, tier).idle_w
    slower = step_law(llm, tier, tp=2, link=catalog.link("pcie4-x16"))
    assert float(slower.step_s(2048, 2e6)) > float(own.step_s(2048, 2e6))


def test_an_interconnect_without_a_link_file_is_named() -> None:
    card = catalog.gpu("a40")
    tier = catalog.tier("a40")
    tier = type(tier)(card.replace(datasheet=card.datasheet.replace(interconnect="string")), tier.power_cap_w)
    with pytest.raises(UnknownNameError, match="Unknown link 'string'"):
        step_law(catalog.llm("qwen3-0.6b"), tier, tp=2)


def test_rho_is_the_rebuild_of_a_block_without_the_attention_that_kv_pays_too() -> None:
    # OPT-13B: 4 d^2 x 40 layers = 4.19 GFLOP per hidden token (papers' arithmetic), about 19 us at 218 TFLOP/s.
    card = catalog.gpu("a100-40gb")
    laws = {"gemm": {"bf16": GemmLaw(compute=0.7)}, "elementwise": ElementwiseLaw(memory=0.82)}
    card = card.replace(efficiency=card.efficiency.replace(**laws))
    law = step_law(catalog.llm("opt-13b"), Tier(card, card.datasheet.power_w))
    rho = rho_s_per_block(law, 16)
    flops = 4 * 5120**2 * 40 / (312e12 * 0.7)
    moved = 40 * 3 * 5120 * 2 / (1555e9 * 0.82)
    assert 16 * flops <= rho <= 16 * (flops + moved) * 1.1
    assert rho == pytest.approx(16 * (law.hidden_s - law.kv_s))


def test_a_cache_transfer_takes_latency_plus_bytes_over_bandwidth() -> None:
    # ConServe artifact: 5.27 ms + 0.985 us per token of Qwen3-0.6B; about 20 ms for 15k tokens.
    law = transfer_law(catalog.link("kv-transfer-a40"), catalog.llm("qwen3-0.6b"))
    assert law.transfer_s(15_000) == pytest.approx(5.27e-3 + 15_000 * 0.985e-6, rel=0.001)
    assert law.transfer_s(0) == 0
    assert law.transfer_j(1000) == pytest.approx(1000 * 114_688 * 4.8e-11)
    hidden = transfer_law(catalog.link("kv-transfer-a40"), catalog.llm("qwen3-0.6b"), hidden=True)
    assert hidden.seconds_per_token == pytest.approx(law.seconds_per_token / 2)


def test_gemm_of_a_law_grows_with_the_tokens_and_never_bends_backwards() -> None:
    for llm, tier, tp, pp in REPLICAS:
        law = step_law(catalog.llm(llm), catalog.tier(tier), tp=tp, pp=pp)
        per_token = np.diff(law.gemm_s[-6:]) / np.diff(law.gemm_tokens[-6:])
        assert np.all(per_token > 0)
        assert per_token.max() <= 1.5 * per_token.min()
