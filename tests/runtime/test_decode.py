"""The static decode step against the step of any batch, and against itself where nothing but its inputs may change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_llms import ALL
from torch.fx.experimental.proxy_tensor import make_fx

from optsched.batching.state import HIDDEN, KV
from optsched.domain.llm import Llm
from optsched.runtime.attention import Batch
from optsched.runtime.cache import BlockPool
from optsched.runtime.decode import DecodeInputs, DecodeSize, decodes_only, fill_inputs, static_decode, static_logits
from optsched.runtime.model.transformer import Transformer
from optsched.runtime.model.weights import random_weights
from optsched.runtime.step import step, step_logits

BLOCK, BLOCKS = 4, 60
MODELS = {
    (index, dtype): Transformer(llm, random_weights(llm, seed=11, dtype=dtype, std=0.3))
    for index, llm in enumerate(ALL)
    for dtype in (torch.float32, torch.float64)
}


def random_pool(llm: Llm, dtype: torch.dtype, seed: int, device: str = "cpu") -> BlockPool:
    """Return a pool that holds some caches: to a step, any finite numbers are."""
    pool = BlockPool(llm, BLOCKS, BLOCK, dtype, device)
    pool.storage.copy_(torch.randn(pool.storage.shape, generator=torch.Generator().manual_seed(seed)))
    return pool


def random_batch(llm: Llm, contexts: list[int], rng: np.random.Generator, emits: np.ndarray | None = None) -> Batch:
    """Return decodes with caches of so many tokens in blocks anywhere; beyond them the tables name blocks that do not exist."""
    count, held = len(contexts), [context // BLOCK + 1 for context in contexts]
    tables = np.full((count, 16), 10**6)
    blocks = rng.permutation(BLOCKS)[: sum(held)]
    for row, (end, number) in enumerate(zip(np.cumsum(held), held, strict=True)):
        tables[row, :number] = blocks[end - number : end]
    tokens = rng.integers(0, llm.vocab_size, count)
    emits = np.ones(count, dtype=bool) if emits is None else emits
    return Batch(tokens, np.ones(count, np.int64), np.array(contexts), np.full(count, KV), tables, emits)


def padded(batch: Batch, pool: BlockPool, size: DecodeSize) -> DecodeInputs:
    flat = np.full(size.numbers, 10**6)  # what a step before left there
    fill_inputs(flat, size, batch, pool)
    return DecodeInputs.of(torch.from_numpy(flat).to(pool.storage.device), size)


def stored_at(pool: BlockPool, batch: Batch) -> torch.Tensor:
    """Return which numbers (blocks, numbers per block) of a layer's pool the batch's new tokens are."""
    new = torch.zeros(BLOCKS + 1, BLOCK, dtype=torch.bool)
    new[batch.tables[np.arange(len(batch.new)), batch.context // BLOCK], batch.context % BLOCK] = True
    return new.repeat_interleave(pool.storage.shape[2] // BLOCK, dim=1)


def assert_same_caches(ours: BlockPool, theirs: BlockPool, batch: Batch) -> None:
    """Check that new tokens' keys and values agree, and that nothing else was touched but the scratch block."""
    new = stored_at(ours, batch)[:BLOCKS]
    mine, other = ours.storage[:, :BLOCKS], theirs.storage[:, :BLOCKS]
    assert torch.equal(mine[:, ~new], other[:, ~new])
    torch.testing.assert_close(mine[:, new], other[:, new], rtol=1e-11, atol=1e-11)


CONTEXTS = st.lists(st.integers(0, 27), min_size=1, max_size=8)


@settings(max_examples=40)
@given(
    index=st.integers(0, len(ALL) - 1), contexts=CONTEXTS, spare=st.tuples(st.integers(0, 5), st.integers(0, 12)),
    seed=st.integers(0, 2**20),
)  # fmt: skip
def test_a_padded_step_gives_the_tokens_and_the_caches_of_the_step_of_any_batch(
    index: int, contexts: list[int], spare: tuple[int, int], seed: int
) -> None:
    model, rng = MODELS[index, torch.float64], np.random.default_rng(seed)
    batch = random_batch(model.llm, contexts, rng)
    ours, theirs = (random_pool(model.llm, torch.float64, seed) for _ in range(2))
    size = DecodeSize(len(contexts) + spare[0], max(contexts) // BLOCK + 1 + spare[1])
    following = static_decode(model, ours, padded(batch, ours, size))
    assert following[: len(contexts)].tolist() == step(model, theirs, batch).tolist()
    assert_same_caches(ours, theirs, batch)


@settings(max_examples=20)
@given(index=st.integers(0, len(ALL) - 1), contexts=CONTEXTS, seed=st.integers(0, 2**20))
def test_in_float32_a_padded_step_gives_logits_within_1e_4(index: int, contexts: list[int], seed: int) -> None:
    model, rng = MODELS[index, torch.float32], np.random.default_rng(seed)
    batch = random_batch(model.llm, contexts, rng)
    ours, theirs = (random_pool(model.llm, torch.float32, seed) for _ in range(2))
    logits = static_logits(model, ours, padded(batch, ours, DecodeSize(8, 8)))[: len(contexts)]
    assert (logits - step_logits(model, theirs, batch)).abs().max() < 1e-4


def test_what_the_scratch_block_holds_reaches_no_sequence() -> None:
    model, rng = MODELS[0, torch.float64], np.random.default_rng(5)
    batch = random_batch(model.llm, [3, 17], rng)
    ours, theirs = (random_pool(model.llm, torch.float64, 5) for _ in range(2))
    ours.storage[:, ours.scratch_block] = torch.nan
    logits = static_logits(model, ours, padded(batch, ours, DecodeSize(8, 16)))[:2]
    torch.testing.assert_close(logits, step_logits(model, theirs, batch), rtol=1e-11, atol=1e-11)
    assert_same_caches(ours, theirs, batch)


@pytest.mark.parametrize("index", range(len(ALL)), ids=lambda index: f"{ALL[index].name}-{ALL[index].hidden_ratio:g}")
def test_a_traced_step_bakes_nothing_in_that_another_batch_would_have_otherwise(index: int) -> None:
    """Record the operations of one batch; replayed on any other, whatever had depended on what it held would show."""
    model, rng = MODELS[index, torch.float64], np.random.default_rng(index)
    size, pool = DecodeSize(8, 8), random_pool(model.llm, torch.float64, 0)
    first = padded(random_batch(model.llm, [9, 0, 26], rng), pool, size)
    with torch.inference_mode(False), torch.no_grad():
        traced = make_fx(lambda *inputs: static_decode(model, pool, DecodeInputs(*inputs)))(*first)
        for seed, contexts in enumerate(([0], [27] * 8, [3, 4, 5, 11, 12], [26, 1, 13, 0, 0, 20, 7])):
            batch, theirs = random_batch(model.llm, contexts, rng), random_pool(model.llm, torch.float64, seed)
            pool.storage.copy_(theirs.storage)
            assert traced(*padded(batch, pool, size))[: len(contexts)].tolist() == step(model, theirs, batch).tolist()
            assert_same_caches(pool, theirs, batch)


def test_only_single_tokens_on_kv_cache_are_decodes() -> None:
    batch = random_batch(ALL[0], [4, 9], np.random.default_rng(0))
    assert decodes_only(batch)
    assert not decodes_only(Batch(batch.tokens, np.array([1, 2]), batch.context, batch.cache, batch.tables, batch.emits))
    assert not decodes_only(Batch(batch.tokens, batch.new, batch.context, np.array([KV, HIDDEN]), batch.tables, batch.emits))
