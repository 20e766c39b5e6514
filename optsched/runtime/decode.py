"""A decode step of fixed shape: the same operations on the same addresses whatever is decoded, so that a device can replay it.

A batch of B sequences, each with one new token on KV cache, is padded to some rows and to some blocks per row. What the padding
computes is stored in the pool's scratch block, which nobody owns, and read by nobody. Nothing here looks at what tensors hold:
no shape, no branch and no host-side number depends on it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn import functional

from optsched.batching.state import KV
from optsched.runtime.attention import Batch
from optsched.runtime.cache import BlockPool
from optsched.runtime.model.transformer import Transformer

Array = np.ndarray


class DecodeSize(NamedTuple):
    """The shape of a static decode step: rows of the batch, and blocks of each row's table."""

    rows: int
    width: int

    @property
    def blocks(self) -> int:
        """Blocks that the step reads per layer, padding included."""
        return self.rows * self.width

    @property
    def numbers(self) -> int:
        """Integers of the step's inputs."""
        return self.rows * (2 + self.width)


class DecodeInputs(NamedTuple):
    """What a static decode step reads, all int64 and on one device.

    Attributes
    ----------
    tokens, contexts
        (rows,) the new token of each sequence, and the tokens of its cache.
    tables
        (rows, width) its blocks, with room for the new token.
    """

    tokens: Tensor
    contexts: Tensor
    tables: Tensor

    @classmethod
    def of(cls, flat: Tensor, size: DecodeSize) -> DecodeInputs:
        """Return the inputs that lie one after the other in `flat` (at least `size.numbers` integers), without a copy."""
        rows = size.rows
        return cls(flat[:rows], flat[rows : 2 * rows], flat[2 * rows : size.numbers].view(size))


def decodes_only(batch: Batch) -> bool:
    """Tell whether a batch is one new token of every sequence on KV cache: what `static_decode` computes."""
    return bool((batch.new == 1).all() and (batch.cache == KV).all())


def blocks_needed(batch: Batch, block_tokens: int) -> Int64[Array, " B"]:
    """Return how many blocks hold each sequence's cache and its new token."""
    return np.asarray(batch.context // block_tokens + 1)


def fill_inputs(flat: Int64[Array, " numbers"], size: DecodeSize, batch: Batch, pool: BlockPool) -> None:
    """Lay a batch out as `DecodeInputs.of` reads it.

    Parameters
    ----------
    flat
        Where to write; `size.numbers` integers.
    size
        Of the step: at least the batch's sequences, and at least the blocks of the longest.
    batch
        One new token of each sequence (see `decodes_only`).
    pool
        Whose scratch block the padding uses.
    """
    rows, count = size.rows, len(batch.new)
    flat[: 2 * rows] = 0
    flat[:count], flat[rows : rows + count] = batch.tokens, batch.context
    tables = flat[2 * rows :].reshape(size)
    held = min(size.width, batch.tables.shape[1])
    tables[count:] = pool.scratch_block
    # Masked blocks are read, too (0 x NaN is NaN). A sequence's first block stands in for them: it is read anyway.
    tables[:count] = batch.tables[:, :1]
    used = np.arange(held) < blocks_needed(batch, pool.block_tokens)[:, None]
    np.copyto(tables[:count, :held], batch.tables[:, :held], where=used)


def static_logits(model: Transformer, pool: BlockPool, inputs: DecodeInputs) -> Tensor:
    """Store the new tokens' keys and values, and return the logits (rows, vocabulary).

    Parameters
    ----------
    model
        The llm with its weights; one rank alone, since ranks exchange by way of the host.
    pool
        The caches.
    inputs
        The padded batch.
    """
    tokens, contexts, tables = inputs
    rows, keys = len(tokens), tables.shape[1] * pool.block_tokens
    place = torch.div(contexts, pool.block_tokens, rounding_mode="floor")
    block, offset = tables.gather(1, place[:, None])[:, 0], contexts - place * pool.block_tokens
    blocks = tables.flatten()
    mask = (torch.arange(keys, device=contexts.device) <= contexts[:, None])[:, None, None]
    stream, angles = model.embed(tokens, contexts), model.angles(contexts)
    for layer in range(model.llm.num_layers):
        query, key_value = model.project(layer, model.attention_input(layer, stream), angles)
        pool.write_kv(layer, block, offset, key_value)
        stored = pool.read_kv(layer, blocks, rows)
        key, value = stored[:, :, 0].transpose(1, 2), stored[:, :, 1].transpose(1, 2)
        # Query heads that share a KV head stand as rows of one attention: kernels that take a mask repeat no keys for them.
        grouped = query.view(rows, key.shape[1], -1, key.shape[3])
        attended = functional.scaled_dot_product_attention(grouped, key, value, attn_mask=mask)
        stream = model.after_attention(layer, stream, attended.flatten(1))
    return model.logits(stream)


def static_decode(model: Transformer, pool: BlockPool, inputs: DecodeInputs) -> Tensor:
    """Do as `static_logits`, but return the next token (rows,) of each sequence."""
    return static_logits(model, pool, inputs).argmax(dim=-1)
