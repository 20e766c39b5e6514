"""Any schedule of chunks, decodes, turns and cache kinds gives what the forward pass without a cache gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_llms import ALL, HYBRID, LLAMA, LLAMA_GQA, OPT, QWEN3

from optsched.batching.blocks import blocks_for
from optsched.batching.state import HIDDEN, KV
from optsched.domain.llm import Llm
from optsched.errors import SpecError, WorkerError
from optsched.runtime.attention import Batch
from optsched.runtime.cache import BlockPool, BlockTables, tokens_per_block
from optsched.runtime.model.transformer import Transformer
from optsched.runtime.model.weights import random_weights
from optsched.runtime.step import forward, step, step_logits

BLOCK = 4
MODELS = {
    (index, dtype): Transformer(llm, random_weights(llm, seed=11, dtype=dtype, std=0.3))
    for index, llm in enumerate(ALL)
    for dtype in (torch.float32, torch.float64)
}


@dataclass
class Sequence:
    """A conversation under test: its known tokens, how many are cached, and in which kind of cache."""

    slot: int
    cache: int
    known: list[int]
    cached: int = 0


class Engine:
    """The least that drives steps: block tables, and sequences that compute what they are told."""

    def __init__(self, model: Transformer, caches: list[int], prompts: list[list[int]]) -> None:
        self.model = model
        self.pool = BlockPool(model.llm, 400, BLOCK, model.dtype, "cpu")
        self.tables = BlockTables(len(caches), 400)
        self.sequences = [Sequence(i, cache, list(p)) for i, (cache, p) in enumerate(zip(caches, prompts, strict=True))]

    def batch(self, chosen: list[tuple[Sequence, int]]) -> Batch:
        new = np.array([count for _, count in chosen])
        context = np.array([sequence.cached for sequence, _ in chosen])
        cache = np.array([sequence.cache for sequence, _ in chosen])
        slots = np.array([sequence.slot for sequence, _ in chosen])
        needed = [
            blocks_for(int(t), int(c), BLOCK, self.model.llm.hidden_ratio) for t, c in zip(context + new, cache, strict=True)
        ]
        self.tables.grow(slots, np.array(needed))
        tokens = np.concatenate([s.known[s.cached : s.cached + count] for s, count in chosen]).astype(np.int64)
        emits = np.array([s.cached + count == len(s.known) for s, count in chosen])
        for sequence, count in chosen:
            sequence.cached += count
        return Batch(tokens, new, context, cache, self.tables.table[slots], emits)


def check_schedule(data: st.DataObject, index: int, dtype: torch.dtype) -> None:
    model = MODELS[index, dtype]
    kinds = st.sampled_from([KV, HIDDEN]) if ALL[index] in HYBRID else st.just(KV)
    count = data.draw(st.integers(1, 5), label="sequences")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**20), label="seed"))
    draw_tokens = lambda longest: rng.integers(0, model.llm.vocab_size, rng.integers(1, longest)).tolist()  # noqa: E731
    engine = Engine(model, [data.draw(kinds) for _ in range(count)], [draw_tokens(40) for _ in range(count)])
    for _ in range(data.draw(st.integers(1, 12), label="steps")):
        chosen = []
        for sequence in engine.sequences:
            if not data.draw(st.booleans()):
                continue
            left = len(sequence.known) - sequence.cached
            chosen.append((sequence, data.draw(st.integers(1, left)) if left > 1 else 1))
        if not chosen:
            continue
        chosen = [chosen[i] for i in rng.permutation(len(chosen))]
        batch = engine.batch(chosen)
        expected = [forward(model, torch.tensor(s.known[: s.cached]))[-1] for s, _ in chosen]
        compare(model, engine.pool, batch, chosen, expected, rng)


def compare(model: Transformer, pool: BlockPool, batch: Batch, chosen: list, expected: list, rng: np.random.Generator) -> None:
    wanted = [logits for logits, emits in zip(expected, batch.emits, strict=True) if emits]
    if model.dtype == torch.float64:
        following = step(model, pool, batch)
        assert following[batch.emits].tolist() == [int(logits.argmax()) for logits in wanted]
        assert np.all(following[~batch.emits] == -1)
    elif wanted:
        ours = step_logits(model, pool, batch)
        assert (ours - torch.stack(wanted)).abs().max() < 1e-4
        top = torch.stack(wanted).topk(2).values
        clear = top[:, 0] - top[:, 1] > 1e-3
        assert torch.equal(ours.argmax(-1)[clear], torch.stack(wanted).argmax(-1)[clear])
    else:
        step(model, pool, batch)
    for (sequence, _), logits, emits in zip(chosen, expected, batch.emits, strict=True):
        if emits:  # sometimes a turn ends here, and the next one's prompt follows its last token
            sequence.known.append(int(logits.argmax()))
            sequence.known += rng.integers(0, model.llm.vocab_size, rng.integers(0, 9) * rng.integers(0, 2)).tolist()


@settings(max_examples=60)
@given(st.data(), st.integers(0, len(ALL) - 1))
def test_every_schedule_yields_the_tokens_of_the_forward_pass_without_a_cache(data: st.DataObject, index: int) -> None:
    check_schedule(data, index, torch.float64)


@settings(max_examples=40)
@given(st.data(), st.integers(0, len(ALL) - 1))
def test_in_float32_every_schedule_yields_logits_within_1e_4(data: st.DataObject, index: int) -> None:
    check_schedule(data, index, torch.float32)


@pytest.mark.parametrize("cache", [KV, HIDDEN])
def test_long_chunks_and_very_different_lengths_agree_with_the_forward_pass(cache: int) -> None:
    model = MODELS[ALL.index(QWEN3), torch.float64]
    rng = np.random.default_rng(0)
    engine = Engine(model, [cache] * 6, [rng.integers(0, 101, n).tolist() for n in (500, 3, 350, 4, 90, 301)])
    step(model, engine.pool, engine.batch([(engine.sequences[0], 120)]))
    for chosen in (
        [(s, len(s.known) - s.cached - 1) for s in engine.sequences],  # one chunk of 379 on a context, others from scratch
        [(s, 1) for s in engine.sequences],  # six decodes from 3 to 500 tokens: several buckets
    ):
        batch = engine.batch(chosen)
        following = step(model, engine.pool, batch)
        expected = [int(forward(model, torch.tensor(s.known))[-1].argmax()) for s in engine.sequences]
        assert following[batch.emits].tolist() == (expected if batch.emits.any() else [])


@pytest.mark.parametrize("llm", ALL, ids=lambda llm: f"{llm.name}-{llm.hidden_ratio:g}")
@given(tokens=st.integers(1, 5000), block=st.sampled_from([1, 4, 16, 32]))
def test_blocks_hold_what_the_policies_count_on(llm: Llm, tokens: int, block: int) -> None:
    for cache in (KV, HIDDEN):
        per_block = tokens_per_block(llm, block, cache)
        assert -(-tokens // per_block) == blocks_for(tokens, cache, block, llm.hidden_ratio)
        width = llm.hidden_size if cache == HIDDEN else llm.kv_width
        assert per_block * width <= block * llm.kv_width


def test_exported_blocks_continue_elsewhere_as_if_nothing_had_happened() -> None:
    for index, cache in ((ALL.index(LLAMA_GQA), KV), (ALL.index(OPT), HIDDEN), (ALL.index(LLAMA), HIDDEN)):
        model = MODELS[index, torch.float64]
        prompt = list(range(7, 40))
        here, there = (Engine(model, [KV, cache], [[1, 2, 3], prompt]) for _ in range(2))
        step(model, there.pool, there.batch([(there.sequences[0], 3)]))
        following = step(model, here.pool, here.batch([(here.sequences[1], len(prompt))]))
        content = here.pool.export_blocks(here.tables.blocks(1), cache)
        there.tables.grow(np.array([1]), here.tables.held[[1]])
        there.pool.import_blocks(there.tables.blocks(1), content, cache)
        moved = there.sequences[1]
        moved.cached, moved.known = len(prompt), [*prompt, int(following[0])]
        assert step(model, there.pool, there.batch([(moved, 1)]))[0] == int(
            forward(model, torch.tensor(moved.known))[-1].argmax()
        )


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12)), max_size=30))
def test_block_tables_never_share_or_lose_a_block(requests: list[tuple[int, int]]) -> None:
    tables = BlockTables(6, 40)
    for slot, needed in requests:
        if needed == 0:
            tables.release(slot)
        elif needed - tables.held[slot] <= tables.num_free:
            tables.grow(np.array([slot]), np.array([needed]))
        owned = np.concatenate([tables.blocks(i) for i in range(6)])
        assert len(set(owned.tolist())) == len(owned) == 40 - tables.num_free


def test_more_blocks_than_are_free_are_refused() -> None:
    with pytest.raises(WorkerError, match="promised 5 cache blocks where 4 are free"):
        BlockTables(1, 4).grow(np.array([0]), np.array([5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pool_starts_as_zeros_of_the_type_asked_for(dtype: torch.dtype) -> None:
    storage = BlockPool(QWEN3, 7, BLOCK, dtype, "cpu").storage
    assert storage.dtype == dtype
    assert storage.shape == (2, 7 + 1, BLOCK * QWEN3.kv_width)  # and the scratch block
    assert not storage.any()


def test_a_pool_beyond_memory_is_refused_in_one_line() -> None:
    with pytest.raises(SpecError, match=r"takes .* GB, which cpu cannot give; plan fewer kv_blocks"):
        BlockPool(QWEN3, 10**15, BLOCK, torch.float32, "cpu")
