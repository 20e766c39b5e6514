"""Random conversations that show a replica every kind of step it may have to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from optsched.domain.llm import Llm
from optsched.domain.scenario import EngineSpec

_APPENDS, _APPENDED = 6, 64
"""Later turns of a conversation that grows as agents' do, and their longest prompt."""


def longest_prompt(llm: Llm, engine: EngineSpec, kv_blocks: int) -> int:
    """Return the longest prompt worth measuring: some chunks, within positions and pool."""
    return max(8, min(2 * engine.max_batched_tokens, llm.max_positions // 4, kv_blocks * engine.block_tokens // 8))


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns of (new tokens, output tokens) to run, and how."""

    turns: tuple[tuple[int, int], ...]
    hidden: bool


class Episodes:
    """Groups of conversations that together make all kinds of steps.

    They are chunks, short turns on what was said, decodes, several of these at once, and hidden cache.

    Parameters
    ----------
    llm, engine, kv_blocks
        What bounds the lengths.
    seed
        Seed of the lengths.
    """

    def __init__(self, llm: Llm, engine: EngineSpec, kv_blocks: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._pool = kv_blocks * engine.block_tokens
        self._longest = longest_prompt(llm, engine, kv_blocks)
        self._most = min(32, engine.max_sequences, self._pool // 64)
        self._hybrid = llm.hidden_ratio < 1
        self._kinds = (self._prefills, self._decodes, self._mix, self._decodes, self._appends) + (
            (self._hidden,) if self._hybrid else ()
        )

    def __iter__(self) -> Iterator[list[Conversation]]:
        """Iterate without end, kind after kind."""
        while True:
            for kind in self._kinds:
                yield kind()

    def _length(self, low: float, high: float) -> int:
        return int(np.exp(self._rng.uniform(np.log(low), np.log(max(low, high)))))

    def _prefills(self) -> list[Conversation]:
        turns = ((self._length(1, self._longest), 2), (self._length(1, self._longest / 2), 2))
        return [Conversation(turns, hidden=False)]

    def _decodes(self, hidden: bool = False) -> list[Conversation]:
        count = self._length(1, self._most + 0.99)
        longest = min(self._longest, self._pool / (2 * count), 8 * self._longest / count)
        outputs = int(self._rng.integers(8, 32))
        return [Conversation(((self._length(4, longest), outputs),), hidden) for _ in range(count)]

    def _mix(self) -> list[Conversation]:
        first = self._decodes()[:8]
        late = Conversation(((1, 4), (self._length(8, self._longest), 2)), hidden=bool(self._rng.integers(2)) and self._hybrid)
        return [*first, late]

    def _appends(self) -> list[Conversation]:
        beside = self._decodes()[: int(self._rng.integers(3))]
        later = tuple((self._length(1, _APPENDED), 2) for _ in range(_APPENDS))
        return [*beside, Conversation(((self._length(self._longest / 16, self._longest / 2), 2), *later), hidden=False)]

    def _hidden(self) -> list[Conversation]:
        return self._decodes(hidden=True)
