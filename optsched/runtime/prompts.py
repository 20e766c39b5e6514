"""Prompt tokens: ids drawn from (seed, conversation, turn), so that every process can draw the same ones."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from jaxtyping import Int64

Array = np.ndarray


def prompt_tokens(seed: int, conversation: int, turn: int, count: int, vocab_size: int) -> Int64[Array, " count"]:
    """Return the prompt of one turn.

    Parameters
    ----------
    seed
        Seed of the run.
    conversation, turn
        Index of the conversation, and number of the turn in it.
    count, vocab_size
        How many ids, each below the vocabulary's size.
    """
    return np.random.default_rng([seed, conversation, turn]).integers(0, vocab_size, count, dtype=np.int64)


class Prompts(Protocol):
    """Where prompts come from."""

    @property
    def drawn(self) -> bool:
        """Whether workers draw the same ones from the run's seed by themselves."""
        ...

    def of(self, conversation: int, turn: int, count: int, before: Int64[Array, " o"]) -> Int64[Array, " n"]:
        """Return the prompt of one turn of a conversation: of `count` tokens if it is drawn; what was put out before is known."""
        ...


class DrawnPrompts:
    """Random prompts.

    Parameters
    ----------
    seed, vocab_size
        As of `prompt_tokens`.
    """

    drawn = True

    def __init__(self, seed: int, vocab_size: int) -> None:
        self._seed, self._vocab_size = seed, vocab_size

    def of(self, conversation: int, turn: int, count: int, before: Int64[Array, " o"]) -> Int64[Array, " count"]:
        """Return the prompt of one turn of a conversation."""
        return prompt_tokens(self._seed, conversation, turn, count, self._vocab_size)
