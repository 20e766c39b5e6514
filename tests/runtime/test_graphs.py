"""Recorded decode steps: which size a batch is padded to, what is recorded when, and that replays are the steps of any batch."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_llms import ALL, QWEN3, small_llm
from strategies import workloads
from tape import Tape
from test_decode import BLOCK, BLOCKS, CONTEXTS, MODELS, assert_same_caches, random_batch, random_pool
from test_replica import assert_tokens_are_those_of_the_bare_llm, make_replica, model_of, serve, steps_of

from optsched.domain.workload import Workload
from optsched.runtime.cache import BlockPool
from optsched.runtime.decode import DecodeSize
from optsched.runtime.graphs import DecodeGraphs, decode_graphs, row_sizes, widths
from optsched.runtime.step import step

MODEL = MODELS[ALL.index(QWEN3), torch.float64]


def graphs_of(pool: BlockPool, tape: Tape, max_sequences: int = 8, most_graphs: int = 9) -> DecodeGraphs:
    return DecodeGraphs(MODEL, pool, max_sequences, tape, most_graphs)


@given(st.integers(1, 300))
def test_every_batch_is_padded_by_less_than_itself_or_eight_rows(most: int) -> None:
    sizes = row_sizes(most)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] == most
    for rows in range(1, most + 1):
        padded = sizes[int(np.searchsorted(sizes, rows))]
        assert rows <= padded < max(2 * rows, rows + 8)


def test_sizes_of_batches_are_those_that_are_documented() -> None:
    assert row_sizes(40) == (1, 2, 4, 8, 16, 24, 32, 40)
    assert row_sizes(6) == (1, 2, 4, 6)
    assert row_sizes(1) == (1,)
    assert widths(100, 8) == (8, 16, 32, 64, 100)
    assert widths(5, 8) == (5,)
    assert widths(64, 1) == (1, 2, 4, 8, 16, 32, 64)


@settings(max_examples=8)
@given(st.lists(st.tuples(CONTEXTS, st.booleans()), min_size=4, max_size=8), st.integers(0, 2**20))
def test_replays_of_any_sequence_of_batches_are_the_steps_of_any_batch(batches: list[tuple[list[int], bool]], seed: int) -> None:
    rng, tape = np.random.default_rng(seed), Tape()
    ours, theirs = (random_pool(MODEL.llm, torch.float64, seed) for _ in range(2))
    graphs = graphs_of(ours, tape)
    for contexts, all_emit in batches:
        emits = np.ones(len(contexts), bool) if all_emit else rng.random(len(contexts)) < 0.5
        batch = random_batch(MODEL.llm, contexts, rng, emits)
        size = graphs.size_for(batch)
        assert size is not None
        assert size.rows >= len(contexts)
        assert size.width * BLOCK > max(contexts)
        assert graphs.step(batch, size).tolist() == step(MODEL, theirs, batch).tolist()
        assert_same_caches(ours, theirs, batch)
        theirs.storage.copy_(ours.storage)
    assert tape.replays == len(batches)
    assert tape.recordings == len(graphs.recorded)


def test_a_size_is_recorded_once_and_the_one_used_longest_ago_makes_room() -> None:
    rng, tape = np.random.default_rng(0), Tape()
    pool = random_pool(MODEL.llm, torch.float64, 0)
    graphs = graphs_of(pool, tape, most_graphs=2)
    for count in (1, 2, 1, 1, 2, 3, 2):
        batch = random_batch(MODEL.llm, [5] * count, rng)
        graphs.step(batch, graphs.size_for(batch))
    assert tape.recordings == 3
    assert [size.rows for size in graphs.recorded] == [4, 2]
    batch = random_batch(MODEL.llm, [5], rng)
    graphs.step(batch, graphs.size_for(batch))
    assert tape.recordings == 4
    assert [size.rows for size in graphs.recorded] == [2, 1]


def test_batches_that_would_be_mostly_padding_or_more_than_decodes_are_not_recorded() -> None:
    llm = small_llm(max_positions=65_536)
    pool = BlockPool(llm, 8000, 16, torch.float32, "cpu")
    graphs = DecodeGraphs(MODELS[2, torch.float32], pool, 32, None)
    tables = np.zeros((33, 2000), dtype=np.int64)

    def sized(contexts: list[int], new: int = 1) -> DecodeSize | None:
        count = len(contexts)
        batch = random_batch(llm, [0] * count, np.random.default_rng(0))
        return graphs.size_for(
            type(batch)(batch.tokens, np.full(count, new), np.array(contexts), batch.cache, tables[:count], batch.emits)
        )

    assert graphs.widths == (8, 16, 32)  # the model's 512 positions
    assert sized([100] * 3) == (4, 8)
    assert sized([500] + [10] * 14) == (16, 32)  # 8,192 tokens of padding are free
    assert sized([500] + [10] * 16) is None
    assert sized([500] * 16) == (16, 32)
    assert sized([128] * 32) == (32, 16)
    assert sized([3] * 33) is None
    assert sized([600]) is None
    assert sized([100] * 3, new=2) is None


def test_no_size_reads_more_blocks_than_the_pool_has() -> None:
    graphs = DecodeGraphs(MODEL, BlockPool(QWEN3, 40, 4, torch.float64, "cpu"), 8, None)
    assert graphs.widths == (32, 40)
    assert graphs.size_for(random_batch(QWEN3, [27] * 5, np.random.default_rng(0))) == (8, 32)  # the narrowest always will do
    batch = random_batch(QWEN3, [3] * 2, np.random.default_rng(0))
    long = type(batch)(batch.tokens, batch.new, np.array([3, 140]), batch.cache, np.zeros((2, 64), np.int64), batch.emits)
    assert graphs.size_for(long) is None


def test_warming_up_records_common_sizes_largest_first_and_leaves_caches_alone() -> None:
    pool, tape = random_pool(QWEN3, torch.float64, 3), Tape()
    before = pool.storage.clone()
    graphs = graphs_of(pool, tape, max_sequences=20, most_graphs=6)
    graphs.warm_up()
    assert graphs.recorded == ((20, 32), (16, 32), (8, 32), (4, 32), (2, 32), (1, 32))
    assert tape.replays == 0
    assert torch.equal(pool.storage[:, :BLOCKS], before[:, :BLOCKS])
    batch = random_batch(QWEN3, [5, 9], np.random.default_rng(1))
    graphs.step(batch, graphs.size_for(batch))
    assert tape.recordings == 6


def test_a_device_that_refuses_to_record_is_heard_once_and_decodes_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    rng, tape = np.random.default_rng(0), Tape(refuse_after=1)
    ours, theirs = (random_pool(QWEN3, torch.float64, 1) for _ in range(2))
    graphs = graphs_of(ours, tape)
    with caplog.at_level(logging.WARNING):
        for count in (2, 3, 5, 3, 2, 1):
            batch = random_batch(QWEN3, [7] * count, rng)
            assert graphs.step(batch, graphs.size_for(batch)).tolist() == step(MODEL, theirs, batch).tolist()
            theirs.storage.copy_(ours.storage)
    assert len(caplog.messages) == 1
    assert "refused to record a decode step (operation not permitted when stream is capturing); decode" in caplog.text
    assert (tape.recordings, tape.replays) == (1, 2)


def test_a_cpu_records_nothing() -> None:
    assert decode_graphs(MODEL, random_pool(QWEN3, torch.float64, 0), 8) is None


@settings(max_examples=8)
@given(
    index=st.integers(0, len(ALL) - 1),
    workload=workloads(max_conversations=5, max_turns=3, max_new_tokens=60, max_output_tokens=12),
    policy=st.sampled_from(["vllm-chunked", "apt-serve"]),
    spare=st.integers(0, 12),
)  # fmt: skip
def test_a_replica_that_replays_its_decodes_says_the_tokens_of_the_bare_llm(
    index: int, workload: Workload, policy: str, spare: int
) -> None:
    llm, longest = ALL[index], int(workload.peak_tokens.max())
    replica = make_replica(llm, -(-longest // 16) + spare, policy, longest)
    tape = Tape()
    replica.graphs = DecodeGraphs(replica.model, replica.pool, 8, tape, 4)
    reports = serve(replica, workload, [False] * workload.num_conversations)
    assert_tokens_are_those_of_the_bare_llm(model_of(llm), workload, reports)
    steps = steps_of(reports)
    decodes = (steps.prefill_tokens == 0) & (steps.hidden_tokens == 0)
    if len(replica.graphs.widths) == 1:  # then no padded table exceeds the pool
        assert tape.replays >= decodes.sum()
