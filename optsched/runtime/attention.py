"""Attention of a mixed batch over the paged pool: what to read is worked out once per step, then done in every layer.

Sequences with one new token are attended together, padded to a common length, in buckets of similar lengths so that
little is wasted; longer chunks one by one (a token budget leaves few of them per step), in blocks of rows so that rows
do not attend to keys far beyond them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.nn import functional

from optsched.batching.state import HIDDEN
from optsched.runtime.cache import BlockPool
from optsched.runtime.model.transformer import Angles, Transformer

Array = np.ndarray
# Padding costs memory traffic, another bucket costs a round of small operations: about this many tokens' worth.
_WASTE_TOKENS = 256
_CHUNK_ROWS = 256


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step computes, sequence after sequence.

    Attributes
    ----------
    tokens
        Token ids of all sequences' new tokens.
    new, context
        New tokens of each sequence, and tokens of its cache.
    cache
        `KV` or `HIDDEN`.
    tables
        Blocks of each sequence, with room for the new tokens; entries beyond are ignored.
    emits
        Whether the sequence's last new token yields an output token.
    """

    tokens: Int64[Array, " T"]
    new: Int64[Array, " B"]
    context: Int64[Array, " B"]
    cache: Array
    tables: Int64[Array, "B W"]
    emits: Bool[Array, " B"]


@dataclass(frozen=True, slots=True)
class Bucket:
    """Sequences of one new token each; keys come from whole `blocks` of the pool or from rows of the `rebuilt` ones."""

    rows: Tensor
    blocks: Tensor | None
    rebuilt: Tensor | None
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Chunk:
    """One sequence of several new tokens, rows [`start`, `stop`) of the batch; without either source it has no context.

    `parts` are blocks of its rows: first and last row of the batch, keys that they may see, and the causal mask.
    """

    start: int
    stop: int
    blocks: Tensor | None
    rebuilt: Tensor | None
    parts: tuple[tuple[int, int, int, Tensor], ...]


@dataclass(frozen=True, slots=True)
class Slots:
    """Where tokens are stored: rows of the batch (None: all of them), and block and offset of each."""

    rows: Tensor | None
    block: Tensor
    offset: Tensor


class AttentionPlan:
    """Index tensors of one step, shared by all layers.

    Parameters
    ----------
    model
        For the rotary angles of rebuilt keys.
    pool
        Where the caches are.
    batch
        What is computed.
    """

    def __init__(self, model: Transformer, pool: BlockPool, batch: Batch) -> None:
        self._model, self._pool, self._device = model, pool, model.device
        first = np.cumsum(batch.new) - batch.new
        sequence = np.repeat(np.arange(len(batch.new)), batch.new)
        self.positions = np.arange(len(sequence)) - first[sequence] + batch.context[sequence]
        hidden = batch.cache == HIDDEN
        per_block = np.where(hidden, max(pool.hidden_tokens, 1), pool.block_tokens)
        self._batch, self._per_block, self._first = batch, per_block, first
        block = batch.tables[sequence, self.positions // per_block[sequence]]
        offset = self.positions % per_block[sequence]
        self._write_kv = self._slots(~hidden[sequence], block, offset)
        self._write_hidden = self._slots(hidden[sequence], block, offset)
        self._rebuilds = np.flatnonzero(hidden)
        self._read, self._read_angles, self._source = self._rebuild_plan()
        single = batch.new == 1
        self._buckets = self._make_buckets(np.flatnonzero(single & ~hidden)) + self._make_buckets(np.flatnonzero(single & hidden))
        self._chunks = [self._make_chunk(int(i)) for i in np.flatnonzero(~single)]

    def attend(self, layer: int, x: Tensor, query: Tensor, key_value: Tensor) -> Tensor:
        """Store one layer's caches and return its attention (T, h_q d_h).

        Parameters
        ----------
        layer
            Its index.
        x
            (T, d) attention inputs.
        query, key_value
            (T, h_q, d_h) and (T, 2, h_kv, d_h), normed and rotated.
        """
        if self._write_kv is not None:
            to = self._write_kv
            self._pool.write_kv(layer, to.block, to.offset, key_value if to.rows is None else key_value[to.rows])
        rebuilt = key_value
        if self._write_hidden is not None:
            to = self._write_hidden
            if self._read is not None and self._read_angles is not None:
                cached = self._pool.read_hidden(layer, self._read.block, self._read.offset)
                rebuilt = torch.cat([key_value, self._model.rebuild(layer, cached, self._read_angles)])
            self._pool.write_hidden(layer, to.block, to.offset, x if to.rows is None else x[to.rows])
        attended = torch.empty_like(query, memory_format=torch.contiguous_format)
        for bucket in self._buckets:
            attended[bucket.rows] = self._attend_bucket(layer, bucket, query, rebuilt)
        for chunk in self._chunks:
            self._attend_chunk(layer, chunk, query, rebuilt, attended)
        return attended.flatten(1)

    def _attend_bucket(self, layer: int, bucket: Bucket, query: Tensor, rebuilt: Tensor) -> Tensor:
        count = len(bucket.rows)
        if bucket.blocks is not None:
            stored = self._pool.read_kv(layer, bucket.blocks, count)
        else:
            stored = rebuilt[bucket.rebuilt].view(count, -1, *rebuilt.shape[1:])
        # The query heads that share a KV head stand as rows of one attention: nothing is repeated in memory.
        grouped = query[bucket.rows].view(count, stored.shape[3], -1, stored.shape[4])
        key, value = stored[:, :, 0].transpose(1, 2), stored[:, :, 1].transpose(1, 2)
        return functional.scaled_dot_product_attention(grouped, key, value, attn_mask=bucket.mask).flatten(1, 2)

    def _attend_chunk(self, layer: int, chunk: Chunk, query: Tensor, rebuilt: Tensor, attended: Tensor) -> None:
        if chunk.blocks is not None:
            stored = self._pool.read_kv(layer, chunk.blocks, 1)[0]
        else:
            stored = rebuilt[chunk.start : chunk.stop] if chunk.rebuilt is None else rebuilt[chunk.rebuilt]
        key, value = stored[:, 0].transpose(0, 1)[None], stored[:, 1].transpose(0, 1)[None]
        grouped = query.shape[1] != key.shape[1]
        for start, stop, seen, mask in chunk.parts:
            rows = query[start:stop].transpose(0, 1)[None]
            out = functional.scaled_dot_product_attention(
                rows, key[:, :, :seen], value[:, :, :seen], attn_mask=mask, enable_gqa=grouped
            )  # fmt: skip
            attended[start:stop] = out[0].transpose(0, 1)

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def _slots(self, chosen: Bool[Array, " T"], block: Array, offset: Array) -> Slots | None:
        if not chosen.any():
            return None
        if chosen.all():
            return Slots(None, self._tensor(block), self._tensor(offset))
        return Slots(self._tensor(np.flatnonzero(chosen)), self._tensor(block[chosen]), self._tensor(offset[chosen]))

    def _rebuild_plan(self) -> tuple[Slots | None, Angles | None, Int64[Array, " B"]]:
        """Find the cached attention inputs to read, and where each sequence's rebuilt keys start (behind the new ones)."""
        batch, rows = self._batch, self._rebuilds
        contexts = batch.context[rows]
        source = np.zeros(len(batch.new), dtype=np.int64)
        source[rows] = len(self.positions) + np.cumsum(contexts) - contexts
        if int(contexts.sum()) == 0:
            return None, None, source
        owner = np.repeat(rows, contexts)
        position = np.arange(len(owner)) - np.repeat(np.cumsum(contexts) - contexts, contexts)
        block = batch.tables[owner, position // self._per_block[owner]]
        read = Slots(None, self._tensor(block), self._tensor(position % self._per_block[owner]))
        return read, self._model.angles(self._tensor(position)), source

    def _make_buckets(self, sequences: Int64[Array, " n"]) -> list[Bucket]:
        """Group sequences of one new token by length, longest first."""
        lengths = self._batch.context[sequences] + 1
        order = np.argsort(-lengths, kind="stable")
        sequences, lengths = sequences[order], lengths[order]
        buckets, start = [], 0
        while start < len(sequences):
            waste = np.cumsum(lengths[start] - lengths[start:])
            fits = int(np.searchsorted(waste, _WASTE_TOKENS + lengths[start] // 4, side="right"))
            buckets.append(self._make_bucket(sequences[start : start + fits]))
            start += fits
        return buckets

    def _make_bucket(self, sequences: Int64[Array, " n"]) -> Bucket:
        batch = self._batch
        lengths = batch.context[sequences] + 1
        rows = self._tensor(self._first[sequences])
        if batch.cache[sequences[0]] == HIDDEN:
            width, blocks = int(lengths.max()), None
            index = self._source[sequences][:, None] + np.arange(width)
            index[np.arange(len(sequences)), lengths - 1] = self._first[sequences]
            index[np.arange(width) >= lengths[:, None]] = 0  # masked; any row will do
            rebuilt: Tensor | None = self._tensor(index.ravel())
        else:
            count, rebuilt = -(-int(lengths.max()) // self._pool.block_tokens), None
            width = count * self._pool.block_tokens
            table = batch.tables[sequences, :count].copy()
            table[np.arange(count) * self._pool.block_tokens >= lengths[:, None]] = 0  # masked; any block will do
            blocks = self._tensor(table.ravel())
        mask = self._tensor(np.arange(width) < lengths[:, None])[:, None, None]
        return Bucket(rows, blocks, rebuilt, mask)

    def _make_chunk(self, sequence: int) -> Chunk:
        batch = self._batch
        start, new, context = int(self._first[sequence]), int(batch.new[sequence]), int(batch.context[sequence])
        blocks = rebuilt = None
        if context and batch.cache[sequence] == HIDDEN:
            cached = self._source[sequence] + np.arange(context)
            rebuilt = self._tensor(np.concatenate([cached, np.arange(start, start + new)]))
        elif context:
            count = -(-(context + new) // self._pool.block_tokens)
            blocks = self._tensor(batch.tables[sequence, :count])
        parts = []
        for row in range(0, new, _CHUNK_ROWS):
            rows = min(_CHUNK_ROWS, new - row)
            seen = context + row + rows
            mask = torch.ones(rows, seen, dtype=torch.bool, device=self._device).tril(context + row)
            parts.append((start + row, start + row + rows, seen, mask))
        return Chunk(start, start + new, blocks, rebuilt, tuple(parts))
