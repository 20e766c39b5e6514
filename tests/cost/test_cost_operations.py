from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsched import catalog
from optsched.cost.communication import Communication
from optsched.cost.features import StepFeatures, attended_pairs, attended_tokens
from optsched.cost.operations import Operation
from optsched.cost.precision import double_precision, scalar
from optsched.cost.shape import Layout, LlmShape
from optsched.cost.transformer import communications, compute_operations
from optsched.domain.llm import Llm
from optsched.errors import SpecError

PROJECTIONS = ("qkv_projection", "output_projection", "feed_forward_in", "feed_forward_out")


@double_precision
def operations_of(llm: Llm, layout: Layout, **totals: float) -> dict[str, Operation]:
    return compute_operations(LlmShape.of(llm, layout), StepFeatures.of(**totals))


@double_precision
def sent(llm: Llm, layout: Layout, **totals: float) -> dict[str, Communication]:
    return communications(LlmShape.of(llm, layout), StepFeatures.of(**totals), scalar(8))


def test_projections_and_feed_forward_cost_two_flops_per_parameter_and_token() -> None:
    llm = catalog.llm("qwen3-0.6b")
    found = operations_of(llm, Layout(), prefill_tokens=100.0)
    # Qwen3-0.6B model card: 28 layers, d 1024, 16 x 128 query and 8 x 128 KV heads, feed-forward 3072, gated.
    per_layer = 1024 * 2048 + 2 * 1024 * 1024 + 2048 * 1024 + 3 * 1024 * 3072
    total = sum(float(found[name].flops) for name in PROJECTIONS)
    assert total == pytest.approx(2 * 100 * 28 * per_layer, rel=1e-12)


def test_weights_are_read_once_per_step_and_match_the_llm() -> None:
    for name in ("qwen3-0.6b", "opt-13b", "llama-3.1-8b"):
        llm = catalog.llm(name)
        found = operations_of(llm, Layout(), decode_sequences=1.0)
        read = sum(float(found[each].bytes) for each in (*PROJECTIONS, "lm_head"))
        embedding = 0 if llm.tied_embeddings else llm.vocab_size * llm.hidden_size
        positions = (llm.max_positions + 2) * llm.hidden_size if llm.learned_positions else 0
        assert read == pytest.approx(2 * (llm.num_params - embedding - positions), rel=0.01)


def test_prefill_attention_follows_four_heads_width_per_pair() -> None:
    # Design: 4 h_q d_h sum n (c + n/2); 1,000 new tokens on 500 cached ones, 28 layers of 16 heads of 128.
    found = operations_of(catalog.llm("qwen3-0.6b"), Layout(), prefill_tokens=1000.0, pairs=float(attended_pairs(1000, 500)))
    assert float(found["prefill_attention"].flops) == pytest.approx(28 * 4 * 16 * 128 * 1000 * (500 + 500), rel=1e-12)


def test_decode_attention_reads_the_kv_cache_once() -> None:
    llm = catalog.llm("opt-13b")
    found = operations_of(llm, Layout(), decode_sequences=4.0, kv_tokens=10_000.0)
    assert float(found["decode_attention"].bytes) == pytest.approx(10_000 * 819_200, rel=0.01)  # 4 d L bytes, fp16
    assert float(found["prefill_attention"].flops) == 0


def test_hidden_rebuild_costs_four_d_squared_per_token_and_layer_for_multi_head_attention() -> None:
    llm = catalog.llm("opt-13b")
    found = operations_of(llm, Layout(), decode_sequences=8.0, hidden_tokens=5000.0)
    assert float(found["hidden_rebuild"].flops) == pytest.approx(40 * 4 * 5120**2 * 5000, rel=1e-12)
    # reads x (d), writes K and V (2 d); OPT has no rotary embedding to apply again
    assert float(found["hidden_rebuild"].bytes) == pytest.approx(40 * 5000 * 3 * 5120 * 2, rel=1e-12)
    # the rebuilt K and V are then read like cached ones
    held = operations_of(llm, Layout(), decode_sequences=8.0, kv_tokens=5000.0)
    assert float(found["decode_attention"].bytes) == float(held["decode_attention"].bytes)


def test_hidden_rebuild_of_grouped_queries_projects_onto_the_kv_heads_only() -> None:
    found = operations_of(catalog.llm("qwen3-8b"), Layout(), decode_sequences=1.0, hidden_tokens=100.0)
    assert float(found["hidden_rebuild"].flops) == pytest.approx(2 * 36 * 100 * 4096 * (2 * 8 * 128), rel=1e-12)


@given(tokens=st.integers(1, 4096))
def test_distinct_experts_read_lie_between_those_of_one_token_and_all(tokens: int) -> None:
    llm = catalog.llm("qwen3-30b-a3b")
    assert llm.moe is not None
    llm = llm.replace(moe=llm.moe.replace(load_cv=0.0))
    found = operations_of(llm, Layout(), prefill_tokens=float(tokens))
    experts, router = found["experts"], found["router"]
    one, every = 8 * llm.expert_params, 128 * llm.expert_params
    widths = tokens * 8 * (2 * 2048 + 3 * 768)
    weights = float(experts.bytes) / 48 - 2 * widths
    assert 2 * one * (1 - 1e-9) <= weights <= 2 * every * (1 + 1e-9)
    expected = 128 * (1 - (1 - 8 / 128) ** tokens) * llm.expert_params
    assert weights == pytest.approx(2 * expected, rel=1e-6)
    assert float(experts.flops) == pytest.approx(48 * 2 * tokens * 8 * llm.expert_params, rel=1e-12)
    assert float(router.flops) == pytest.approx(48 * 2 * tokens * 2048 * 128, rel=1e-12)


def test_latent_attention_reads_its_latent_vector_and_absorbs_the_projections() -> None:
    # DeepSeek-V3 (arXiv 2412.19437 §4.2): 61 layers, 128 heads, latent 512 + 64, value width 128, no-position width 128.
    found = operations_of(catalog.llm("deepseek-v3"), Layout(), decode_sequences=1.0, kv_tokens=1e6)
    width = catalog.llm("deepseek-v3").kv_bytes_per_token / 61
    assert float(found["decode_attention"].bytes) == pytest.approx(61 * 1e6 * width, rel=1e-3)
    assert float(found["decode_attention"].flops) == pytest.approx(61 * 2 * 128 * (2 * 512 + 64) * 1e6, rel=1e-12)
    pairs = operations_of(catalog.llm("deepseek-v3"), Layout(), prefill_tokens=10.0, pairs=50.0)["prefill_attention"]
    assert float(pairs.flops) == pytest.approx(61 * 2 * 128 * (128 + 64 + 128) * 50, rel=1e-12)


def test_two_gpus_halve_flops_and_weights_of_every_matrix_product() -> None:
    llm = catalog.llm("opt-30b")
    one = operations_of(llm, Layout(), decode_sequences=1.0, kv_tokens=1e5, hidden_tokens=1e4)
    two = operations_of(llm, Layout(tp=2), decode_sequences=1.0, kv_tokens=1e5, hidden_tokens=1e4)
    for name in (*PROJECTIONS, "lm_head", "decode_attention", "hidden_rebuild"):
        assert float(two[name].flops) == pytest.approx(float(one[name].flops) / 2, rel=1e-12)
    for name in (*PROJECTIONS, "lm_head", "decode_attention"):
        assert float(two[name].bytes) == pytest.approx(float(one[name].bytes) / 2, rel=0.01)


def test_more_gpus_than_kv_heads_replicate_the_cache() -> None:
    llm = catalog.llm("qwen3-0.6b")  # 8 KV heads
    eight = operations_of(llm, Layout(tp=8), decode_sequences=1.0, kv_tokens=1e6)["decode_attention"]
    sixteen = operations_of(llm, Layout(tp=16), decode_sequences=1.0, kv_tokens=1e6)["decode_attention"]
    assert float(sixteen.bytes) == pytest.approx(float(eight.bytes), rel=1e-3)


def test_all_reduces_send_the_ring_bound_twice_per_layer() -> None:
    llm = catalog.llm("opt-66b")
    found = sent(llm, Layout(tp=4), prefill_tokens=2048.0)
    activations = 2048 * 9216 * 2
    assert float(found["all_reduce"].bytes) == pytest.approx(2 * 64 * 2 * 3 / 4 * activations, rel=1e-12)
    assert float(found["all_reduce"].count) == 2 * 64
    assert float(found["stage_hand_over"].bytes) == 0
    gathered = sent(llm, Layout(tp=4), decode_sequences=1.0, hidden_tokens=1000.0)["hidden_gather"]
    assert float(gathered.bytes) == pytest.approx(64 * 3 / 4 * 1000 * 9216 * 2, rel=1e-12)


def test_a_single_gpu_sends_nothing() -> None:
    for name in ("qwen3-0.6b", "mixtral-8x7b"):
        for each in sent(catalog.llm(name), Layout(), decode_sequences=4.0, hidden_tokens=100.0).values():
            assert (float(each.bytes), float(each.count)) == (0, 0)


def test_expert_parallelism_trades_an_all_reduce_for_two_exchanges() -> None:
    llm = catalog.llm("mixtral-8x7b")
    sliced = sent(llm, Layout(tp=4), prefill_tokens=512.0)
    whole = sent(llm, Layout(tp=4, expert_parallel=True), prefill_tokens=512.0)
    assert float(sliced["expert_exchange"].bytes) == 0
    assert float(whole["all_reduce"].bytes) == pytest.approx(float(sliced["all_reduce"].bytes) / 2)
    assert float(whole["expert_exchange"].bytes) == pytest.approx(32 * 2 * 3 / 4 * 512 * 4096 * 2 * 2 / 4)


def test_pipeline_stages_hand_over_the_layer_input() -> None:
    found = sent(catalog.llm("opt-13b"), Layout(pp=4), prefill_tokens=100.0)
    assert float(found["stage_hand_over"].bytes) == 3 * 100 * 5120 * 2
    assert float(found["stage_hand_over"].count) == 3


@given(new=st.integers(1, 300), context=st.integers(0, 300), window=st.integers(1, 400))
def test_pairs_within_a_sliding_window_match_a_count_token_by_token(new: int, context: int, window: int) -> None:
    midpoints = context + np.arange(new) + 0.5
    counted = np.minimum(midpoints, window).sum()
    assert float(attended_pairs(new, context, window)) == pytest.approx(counted, abs=0.125 + 1e-9)
    assert float(attended_pairs(new, context)) == pytest.approx(midpoints.sum())
    assert float(attended_tokens(context, window)) == min(context, window)


def test_a_layout_that_does_not_divide_the_heads_is_refused() -> None:
    with pytest.raises(SpecError, match=r"tp=3 does not divide the 16 heads of qwen3-0.6b; choose --tp among 1, 2, 4"):
        LlmShape.of(catalog.llm("qwen3-0.6b"), Layout(tp=3))
    with pytest.raises(SpecError, match="tp=0 and pp=1 must be at least 1"):
        LlmShape.of(catalog.llm("qwen3-0.6b"), Layout(tp=0))
    with pytest.raises(SpecError, match="pp=29 exceeds the 28 layers"):
        LlmShape.of(catalog.llm("qwen3-0.6b"), Layout(pp=29))


def test_the_lm_head_keeps_sixteen_bits_where_other_weights_are_narrower() -> None:
    wide, narrow = (
        operations_of(catalog.llm("llama-3.1-8b").replace(dtype=dtype), Layout(), decode_sequences=1.0)
        for dtype in ("bf16", "int4")
    )
    assert float(narrow["lm_head"].bytes) == float(wide["lm_head"].bytes)
    weights = catalog.llm("llama-3.1-8b").hidden_size * 2 * 14336
    assert float(wide["feed_forward_in"].bytes - narrow["feed_forward_in"].bytes) == pytest.approx(32 * weights * (2 - 0.5))
