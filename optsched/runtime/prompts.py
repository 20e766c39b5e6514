"""Prompt tokens: ids drawn from (seed, conversation, turn), so that every process can draw the same ones."""

from __future__ import annotations

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
