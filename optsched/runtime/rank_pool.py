"""The caches of a replica whose ranks share it: each holds its part of every block, and they leave and enter whole.

Of KV cache a rank has its heads, of hidden cache its slice of the attention inputs: what is read of it is gathered from
all ranks, once per layer and step, and each rebuilds K and V of its own heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Int64
from torch import Tensor
from torch.nn import functional

from optsched.batching.state import HIDDEN
from optsched.domain.llm import Llm
from optsched.runtime.cache import BlockPool

if TYPE_CHECKING:
    from optsched.runtime.ranks import Member, Ranks

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Export:
    """Gather these blocks at the first rank."""

    blocks: Int64[Array, " b"]


@dataclass(frozen=True, slots=True)
class Import:
    """Take these blocks from the first rank."""

    blocks: Int64[Array, " b"]


class RankPool(BlockPool):
    """One rank's part of a replica's cache.

    Parameters
    ----------
    llm
        Whose caches are stored: the whole llm.
    num_blocks, block_tokens, dtype, device
        As of `BlockPool`.
    group
        Who has the other parts.
    rank, ranks
        Which part this is, of how many.
    """

    def __init__(
        self,
        llm: Llm,
        num_blocks: int,
        block_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        group: Member,
        rank: int,
        ranks: int,
    ) -> None:
        super().__init__(llm, num_blocks, block_tokens, dtype, device, ranks)
        self._group, self._slice = group, slice(rank * self.hidden_width, (rank + 1) * self.hidden_width)

    def write_hidden(self, layer: int, block: Tensor, offset: Tensor, x: Tensor) -> None:
        """Store this rank's slice of attention inputs (T, d) at offsets (T,) of blocks (T,)."""
        super().write_hidden(layer, block, offset, x[:, self._slice])

    def read_hidden(self, layer: int, block: Tensor, offset: Tensor) -> Tensor:
        """Return the attention inputs (T, d) at offsets (T,) of blocks (T,); every rank reads the same."""
        return self._group.gather(super().read_hidden(layer, block, offset))

    def send(self, blocks: Int64[Array, " b"]) -> None:
        """Send this part of some blocks to the first rank, which exports them."""
        dist.gather(self.copy_blocks(blocks))

    def take(self, blocks: Int64[Array, " b"]) -> None:
        """Store this part of some blocks, which the first rank imports."""
        layers, _, width = self.storage.shape
        part = torch.empty(layers, len(blocks), width, dtype=self.storage.dtype, device=self.storage.device)
        dist.scatter(part)
        self.store_blocks(blocks, part)


class FirstPool(RankPool):
    """The first rank's part of a replica's cache, through which whole caches go.

    Parameters
    ----------
    llm, num_blocks, block_tokens, dtype, device
        As of `RankPool`.
    ranks
        Who has the other parts.
    """

    def __init__(
        self, llm: Llm, num_blocks: int, block_tokens: int, dtype: torch.dtype, device: torch.device, ranks: Ranks
    ) -> None:
        super().__init__(llm, num_blocks, block_tokens, dtype, device, ranks, 0, ranks.size)
        self._ranks = ranks

    @property
    def moved_width(self) -> int:
        """Numbers per layer and block of a whole cache."""
        return self._ranks.size * super().moved_width

    def export_blocks(self, blocks: Int64[Array, " b"], cache: int) -> Tensor:
        """Return a copy (layers, b, block) of whole blocks in main memory, put together from the parts of all ranks."""
        self._ranks.announce(Export(blocks))
        own = self.copy_blocks(blocks)
        parts = [torch.empty_like(own) for _ in range(self._ranks.size)]
        dist.gather(own, parts)
        return self._joined(parts, cache).cpu()

    def import_blocks(self, blocks: Int64[Array, " b"], content: Tensor, cache: int) -> None:
        """Store what `export_blocks` returned elsewhere, each rank its part."""
        self._ranks.announce(Import(blocks))
        parts = self._divided(content.to(self.storage.device), cache)
        own = torch.empty_like(parts[0])
        dist.scatter(own, parts)
        self.store_blocks(blocks, own)

    def _joined(self, parts: list[Tensor], cache: int) -> Tensor:
        if cache == HIDDEN:
            return self._filled(torch.cat([self._by_token(part, self.hidden_width) for part in parts], dim=3), self.moved_width)
        return torch.cat([self._by_head(part) for part in parts], dim=4).flatten(2)

    def _divided(self, content: Tensor, cache: int) -> list[Tensor]:
        if cache == HIDDEN:
            slices = self._by_token(content, self.llm.hidden_size).chunk(self._ranks.size, dim=3)
            return [self._filled(each, self.storage.shape[2]) for each in slices]
        return [part.flatten(2).contiguous() for part in self._by_head(content).chunk(self._ranks.size, dim=4)]

    def _by_head(self, blocks: Tensor) -> Tensor:
        return blocks.view(*blocks.shape[:2], self.block_tokens, 2, -1, self.llm.head_dim)

    def _by_token(self, blocks: Tensor, width: int) -> Tensor:
        return blocks[:, :, : self.hidden_tokens * width].view(*blocks.shape[:2], self.hidden_tokens, width)

    @staticmethod
    def _filled(by_token: Tensor, width: int) -> Tensor:
        """Return blocks (layers, b, width) of hidden cache; what they do not use is zeros, as in a pool at first."""
        used = by_token.flatten(2)
        return functional.pad(used, (0, width - used.shape[2]))
