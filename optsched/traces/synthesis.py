"""Turn a recipe into conversations."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64

from optsched.domain.workload import LengthQuantiles, Recipe, Workload
from optsched.errors import SpecError

Array = np.ndarray
MAX_CONVERSATIONS = 10_000_000
"""More than a workload in memory should have: five turns each take some GB."""
_NUM_TURNS, _NEW, _OUTPUT, _GAP = range(4)
# Keeps the streams of lengths apart from that of the arrivals, which are drawn from the bare seed.
_LENGTHS = 1


def synthesise(recipe: Recipe, conversations: int, seed: int) -> Workload:
    """Draw conversations whose lengths follow a recipe's quantiles, independently of each other.

    Lengths are drawn by inverting the piecewise linear quantile function and rounding; first turns append at least one
    token, and every turn generates at least one. Each length of each turn has a random stream of its own, so that the first
    k conversations are the same however many are drawn, and all are whatever later turns the recipe has. No arrivals are
    drawn: see `arrival_times`.

    Parameters
    ----------
    recipe
        Length quantiles per turn.
    conversations
        How many, at least 1.
    seed
        Seed of all streams.

    Raises
    ------
    SpecError
        If fewer than one conversation is asked for, or more than `MAX_CONVERSATIONS`.
    """
    if not 1 <= conversations <= MAX_CONVERSATIONS:
        rule = "draw at least 1" if conversations < 1 else f"draw at most {MAX_CONVERSATIONS}"
        raise SpecError(f"{conversations} conversations: {rule}", field="conversations")
    sizes = _num_turns(recipe, conversations, seed)
    columns = [
        (
            np.maximum(np.rint(_draw(turn.new_tokens, conversations, seed, index, _NEW)), 0 if index else 1),
            np.maximum(np.rint(_draw(turn.output_tokens, conversations, seed, index, _OUTPUT)), 1),
            np.zeros(conversations) if turn.gap_s is None else _draw(turn.gap_s, conversations, seed, index, _GAP),
        )
        for index, turn in enumerate(recipe.turns)
    ]
    keep = np.arange(len(recipe.turns)) < sizes[:, None]
    new, output, gap = (np.stack([column[kind] for column in columns], axis=1)[keep] for kind in range(3))
    return Workload(
        conversation_id=np.arange(conversations),
        arrival_s=np.zeros(conversations),
        first_turn=np.concatenate([[0], np.cumsum(sizes)]),
        new_tokens=new.astype(np.int64),
        output_tokens=output.astype(np.int64),
        gap_s=gap,
        arrivals_known=False,
    )


def _uniform(count: int, seed: int, *key: int) -> Float64[Array, " N"]:
    sequence = np.random.SeedSequence(seed, spawn_key=(_LENGTHS, *key))
    return np.random.Generator(np.random.PCG64(sequence)).random(count)


def _draw(lengths: LengthQuantiles, count: int, seed: int, turn: int, kind: int) -> Float64[Array, " N"]:
    probability, value = np.array(lengths.quantiles, float).T
    return np.asarray(np.interp(_uniform(count, seed, turn, kind), probability, value))


def _num_turns(recipe: Recipe, count: int, seed: int) -> Int64[Array, " N"]:
    if recipe.num_turns_weights is None:
        return np.full(count, len(recipe.turns), dtype=np.int64)
    cumulative = np.cumsum(recipe.num_turns_weights) / sum(recipe.num_turns_weights)
    index = np.searchsorted(cumulative, _uniform(count, seed, 0, _NUM_TURNS), side="right")
    # Rounding may leave the last sum a hair below 1, and then only entries of weight 0 follow.
    return np.asarray(1 + np.minimum(index, int(np.flatnonzero(recipe.num_turns_weights)[-1])), dtype=np.int64)
