"""One paged pool for KV and hidden cache, and the block tables that say who owns what.

A block has room for K and V of `block_tokens` tokens in every layer. A request held as hidden cache stores attention
inputs x instead (d numbers per token and layer), so its blocks hold ``block_tokens / hidden_ratio`` tokens each.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from optsched.batching.state import HIDDEN
from optsched.domain.llm import Llm
from optsched.errors import SpecError, WorkerError

Array = np.ndarray


def tokens_per_block(llm: Llm, block_tokens: int, cache: int) -> int:
    """Return how many tokens one block holds as KV or as hidden cache (see `optsched.batching.blocks.blocks_for`)."""
    return int(block_tokens / llm.hidden_ratio + 1e-9) if cache == HIDDEN else block_tokens


class BlockPool:
    """The cache memory of one replica, or of one of the ranks that share it.

    Parameters
    ----------
    llm
        Whose caches are stored.
    num_blocks, block_tokens
        Size of the pool, and tokens of KV per block.
    dtype, device
        Of the stored numbers.
    ranks
        How many share the caches: each has its KV heads, and its slice of every attention input (``d / ranks`` numbers).
        A block holds as many tokens at each of them as it would at one, of either kind.

    Raises
    ------
    SpecError
        If the memory cannot be had.
    """

    def __init__(
        self, llm: Llm, num_blocks: int, block_tokens: int, dtype: torch.dtype, device: torch.device | str, ranks: int = 1
    ) -> None:
        self.llm, self.num_blocks, self.block_tokens = llm, num_blocks, block_tokens
        self.hidden_tokens = tokens_per_block(llm, block_tokens, HIDDEN)
        self.hidden_width, uneven = divmod(llm.hidden_size, ranks)
        self._kv_heads = llm.num_kv_heads // ranks
        shape = (llm.num_layers, num_blocks + 1, block_tokens * llm.kv_width // ranks)
        try:
            self.storage = _zeros(shape, dtype, device)
        except (RuntimeError, MemoryError) as error:
            size = float(np.prod(shape)) * torch.empty(0, dtype=dtype).element_size()
            raise SpecError(f"a cache pool of {num_blocks:,} blocks takes {size / 1e9:.3g} GB, which {device} cannot give; "
                            "plan fewer kv_blocks") from error  # fmt: skip
        self._kv = self.storage.view(*shape[:2], block_tokens, 2, self._kv_heads, llm.head_dim)
        room = 0 if uneven else self.hidden_tokens * self.hidden_width
        self._hidden = self.storage[:, :, :room].view(*shape[:2], self.hidden_tokens, self.hidden_width) if room else None

    @property
    def hidden_ratio(self) -> float:
        """Size of hidden cache over that of KV cache; 0 where none is kept: it would be no smaller, or has no room here."""
        return self.llm.hidden_ratio if self._hidden is not None and self.llm.hidden_ratio < 1 else 0.0

    @property
    def scratch_block(self) -> int:
        """The block behind the last: no table holds it, and a padded step stores there what its padding computes."""
        return self.num_blocks

    @property
    def moved_width(self) -> int:
        """Numbers per layer and block of what `export_blocks` returns."""
        return int(self.storage.shape[2])

    def write_kv(self, layer: int, block: Tensor, offset: Tensor, key_value: Tensor) -> None:
        """Store keys and values (T, 2, h_kv, d_h) at offsets (T,) of blocks (T,)."""
        self._kv[layer][block, offset] = key_value

    def read_kv(self, layer: int, blocks: Tensor, sequences: int) -> Tensor:
        """Return keys and values (sequences, tokens, 2, h_kv, d_h) of whole blocks, equally many for each sequence."""
        return self.storage[layer].index_select(0, blocks).view(sequences, -1, 2, self._kv_heads, self.llm.head_dim)

    def write_hidden(self, layer: int, block: Tensor, offset: Tensor, x: Tensor) -> None:
        """Store attention inputs (T, d) at offsets (T,) of blocks (T,)."""
        self._hidden_view(layer)[block, offset] = x

    def read_hidden(self, layer: int, block: Tensor, offset: Tensor) -> Tensor:
        """Return the attention inputs (T, d) at offsets (T,) of blocks (T,)."""
        return self._hidden_view(layer)[block, offset]

    def copy_blocks(self, blocks: Int64[Array, " b"]) -> Tensor:
        """Return a copy (layers, b, block) of what is stored here of some blocks, on the pool's device."""
        return self.storage[:, torch.from_numpy(blocks).to(self.storage.device)]

    def store_blocks(self, blocks: Int64[Array, " b"], content: Tensor) -> None:
        """Store what `copy_blocks` returned."""
        self.storage[:, torch.from_numpy(blocks).to(self.storage.device)] = content.to(self.storage.device)

    def export_blocks(self, blocks: Int64[Array, " b"], cache: int) -> Tensor:
        """Return a copy (layers, b, block) of whole blocks in main memory; `cache` is `KV` or `HIDDEN`.

        However many ranks share the pool, a block of KV is tokens x 2 x heads x d_h, one of hidden cache tokens x d and
        then unused.
        """
        return self.copy_blocks(blocks).cpu()

    def import_blocks(self, blocks: Int64[Array, " b"], content: Tensor, cache: int) -> None:
        """Store what `export_blocks` returned elsewhere."""
        self.store_blocks(blocks, content)

    def _hidden_view(self, layer: int) -> Tensor:
        if self._hidden is None:
            raise WorkerError(f"{self.llm.name} has no room for hidden cache: {self.llm.hidden_ratio:g} times its KV cache")
        view: Tensor = self._hidden[layer]
        return view


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Return zeros (not garbage: masked positions are multiplied by zero weights, and 0 x NaN is NaN).

    In main memory the pages come from numpy, whose zeros the system hands out when they are first touched; torch would
    write them all at once.
    """
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(dtype).view(shape)


class BlockTables:
    """Which blocks each slot holds, in order of its tokens.

    Parameters
    ----------
    slots
        Slots at first; `reserve` adds more.
    num_blocks
        Blocks of the pool.
    """

    def __init__(self, slots: int, num_blocks: int) -> None:
        self.table = np.zeros((slots, 16), dtype=np.int64)
        self.held = np.zeros(slots, dtype=np.int64)
        self._free = np.arange(num_blocks - 1, -1, -1, dtype=np.int64)
        self.num_free = num_blocks

    def reserve(self, slots: int) -> None:
        """Make room for so many slots."""
        extra = slots - len(self.held)
        self.table = np.concatenate([self.table, np.zeros((extra, self.table.shape[1]), np.int64)])
        self.held = np.concatenate([self.held, np.zeros(extra, np.int64)])

    def grow(self, slots: Int64[Array, " n"], needed: Int64[Array, " n"]) -> None:
        """Give each slot blocks until it holds as many as needed.

        Raises
        ------
        WorkerError
            If the pool has not that many left.
        """
        lacking = np.maximum(needed - self.held[slots], 0)
        total = int(lacking.sum())
        if total == 0:
            return
        if total > self.num_free:
            raise WorkerError(
                f"the batching policy promised {total} cache blocks where {self.num_free} are free (a bug, please report it)"
            )
        if (widest := int(needed.max())) > self.table.shape[1]:
            more = max(widest, 2 * self.table.shape[1]) - self.table.shape[1]
            self.table = np.pad(self.table, ((0, 0), (0, more)))
        taken = self._free[self.num_free - total : self.num_free]
        self.num_free -= total
        rows = np.repeat(slots, lacking)
        columns = np.arange(total) - np.repeat(np.cumsum(lacking) - lacking, lacking) + self.held[rows]
        self.table[rows, columns] = taken
        self.held[slots] += lacking

    def release(self, slot: int) -> None:
        """Take back all blocks of a slot."""
        count = int(self.held[slot])
        self._free[self.num_free : self.num_free + count] = self.table[slot, :count]
        self.num_free += count
        self.held[slot] = 0

    def blocks(self, slot: int) -> Int64[Array, " b"]:
        """Return the blocks of a slot in order of its tokens."""
        return self.table[slot, : int(self.held[slot])].copy()
