"""How many blocks of the pool a cache of some tokens takes."""

from __future__ import annotations

from optsched.batching.state import HIDDEN
from optsched.compiled import inlined


@inlined
def blocks_for(tokens: int, cache: int, block_tokens: int, hidden_ratio: float) -> int:
    """Return the blocks that a cache of `tokens` tokens takes; hidden cache packs ``1 / hidden_ratio`` as many per block."""
    if cache == HIDDEN:
        per_block = int(block_tokens / hidden_ratio + 1e-9)
        return (tokens + per_block - 1) // per_block
    return (tokens + block_tokens - 1) // block_tokens
