from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsched import catalog
from optsched.cost.memory import kv_bytes_per_token, kv_token_budget, memory
from optsched.errors import InfeasibleError, SpecError


def test_an_a40_holds_the_tokens_that_vllm_reported_for_qwen3() -> None:
    # ConServe artifact: 19,278 blocks of 16 tokens at 0.9 utilisation.
    assert kv_token_budget(catalog.llm("qwen3-0.6b"), catalog.tier("a40")) == pytest.approx(308_448, rel=0.03)


def test_an_a100_holds_the_tokens_that_were_reported_for_opt_13b() -> None:
    # PagedAttention, arXiv 2309.06180, table 1: 12 GB of KV cache, 15.7k slots, before later versions reserved more.
    assert 13_000 <= kv_token_budget(catalog.llm("opt-13b"), catalog.tier("a100-40gb")) <= 16_000


def test_weights_and_cache_sizes_follow_the_shape() -> None:
    found = memory(catalog.llm("qwen3-0.6b"), catalog.tier("a40"))
    assert found.weights_bytes == pytest.approx(2 * 596e6, rel=0.01)  # model card: 0.6 B parameters, tied embeddings
    assert (found.kv_bytes_per_token, found.hidden_bytes_per_token) == (114_688, 57_344)


@given(blocks=st.sampled_from([1, 16, 32, 128]), tp=st.sampled_from([1, 2, 4, 8]), pp=st.sampled_from([1, 2, 4]))
def test_more_gpus_hold_more_and_budgets_are_whole_blocks(blocks: int, tp: int, pp: int) -> None:
    llm, tier = catalog.llm("llama-3.1-8b"), catalog.tier("a100-80gb")
    budget = kv_token_budget(llm, tier, tp=tp, pp=pp, block_tokens=blocks)
    assert budget % blocks == 0
    assert kv_token_budget(llm, tier, tp=2 * tp if tp < 8 else tp, pp=2 * pp, block_tokens=blocks) > budget
    # several GPUs share one copy of the weights
    assert budget >= tp * pp * (kv_token_budget(llm, tier, block_tokens=blocks) - blocks)


def test_more_gpus_than_kv_heads_hold_copies_of_the_cache() -> None:
    llm = catalog.llm("qwen3-0.6b")
    assert kv_bytes_per_token(llm, 8) == llm.kv_bytes_per_token
    assert kv_bytes_per_token(llm, 16) == 2 * llm.kv_bytes_per_token
    latent = catalog.llm("deepseek-v3")
    assert kv_bytes_per_token(latent, 8) == 8 * latent.kv_bytes_per_token


def test_an_llm_that_does_not_fit_is_refused_with_both_sizes() -> None:
    with pytest.raises(InfeasibleError, match=r"opt-66b needs 13\d\.\d GB .* 1 x a40@300W has 43\.48 GB at 90%"):
        memory(catalog.llm("opt-66b"), catalog.tier("a40"))
    with pytest.raises(InfeasibleError, match=r"2 x a40@300W have .* more GPUs \(tp, pp\)"):
        memory(catalog.llm("opt-66b"), catalog.tier("a40"), tp=2)
    with pytest.raises(SpecError, match="tp=5 does not divide"):
        memory(catalog.llm("opt-66b"), catalog.tier("a40"), tp=5)
