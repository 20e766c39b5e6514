"""What a step works on, as the few totals that its cost depends on."""

from __future__ import annotations

from typing import Self, cast

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Num

from optsched.cost.precision import Scalar

Numbers = float | Num[np.ndarray, " S"]


class WindowedTotals(eqx.Module):
    """What the layers with a sliding window see of a step, in llms that have others without.

    Attributes
    ----------
    pairs, prefill_context_tokens, kv_tokens, hidden_tokens
        As in `StepFeatures`, within the window.
    """

    pairs: Scalar
    prefill_context_tokens: Scalar
    kv_tokens: Scalar
    hidden_tokens: Scalar

    @classmethod
    def of(
        cls,
        *,
        pairs: Numbers = 0.0,
        prefill_context_tokens: Numbers = 0.0,
        kv_tokens: Numbers = 0.0,
        hidden_tokens: Numbers = 0.0,
    ) -> Self:
        """Take totals as float64; `StepFeatures.of` broadcasts them."""
        values = (pairs, prefill_context_tokens, kv_tokens, hidden_tokens)
        return cls(*(cast(Scalar, np.asarray(value, np.float64)) for value in values))


class StepFeatures(eqx.Module):
    """Totals of one step (float64 scalars), or of S steps (arrays).

    Attributes
    ----------
    prefill_tokens
        New tokens of the sequences in prefill.
    pairs
        ``sum n_i (c_i + n_i/2)`` over them (`attended_pairs`).
    prefill_context_tokens
        ``sum c_i`` over them: cached tokens that their attention reads, earlier chunks of the same prompt included.
    decode_sequences
        Sequences that decode, one token each.
    kv_tokens, hidden_tokens
        Cached tokens they attend to (`attended_tokens`), held as KV cache and as hidden cache.
    sequences
        All sequences in the step.
    emitting
        Sequences that emit a token, so pass the LM head: the decoding ones and those whose prefill ends.
    windowed
        What layers with a sliding window see, if the llm has others without; the totals above are then what these see. None:
        all layers see the same.
    """

    prefill_tokens: Scalar
    pairs: Scalar
    prefill_context_tokens: Scalar
    decode_sequences: Scalar
    kv_tokens: Scalar
    hidden_tokens: Scalar
    sequences: Scalar
    emitting: Scalar
    windowed: WindowedTotals | None = None

    @classmethod
    def of(
        cls,
        *,
        prefill_tokens: Numbers = 0.0,
        pairs: Numbers = 0.0,
        prefill_context_tokens: Numbers | None = None,
        decode_sequences: Numbers = 0.0,
        kv_tokens: Numbers = 0.0,
        hidden_tokens: Numbers = 0.0,
        sequences: Numbers | None = None,
        emitting: Numbers | None = None,
        windowed: WindowedTotals | None = None,
    ) -> Self:
        """Broadcast totals against each other, as float64.

        Parameters
        ----------
        prefill_tokens, pairs, decode_sequences, kv_tokens, hidden_tokens, windowed
            See the class.
        prefill_context_tokens
            None: what the pairs imply if all sequences in prefill are alike (`implied_context`).
        sequences
            None: the decoding ones, and one more where there is prefill.
        emitting
            None: all sequences.
        """
        prefilling = np.minimum(np.asarray(prefill_tokens, np.float64), 1.0)
        present = prefilling + np.asarray(decode_sequences, np.float64) if sequences is None else sequences
        context = prefill_context_tokens
        if context is None:
            context = implied_context(prefill_tokens, pairs, np.asarray(present, np.float64) - decode_sequences)
        values = np.broadcast_arrays(
            *(
                np.asarray(value, np.float64)
                for value in (
                    prefill_tokens,
                    pairs,
                    context,
                    decode_sequences,
                    kv_tokens,
                    hidden_tokens,
                    present,
                    present if emitting is None else emitting,
                )
            )
        )
        shape = values[0].shape
        new, paired, read, decoding, kv, hidden, together, last = (
            cast(Scalar, np.ascontiguousarray(value).reshape(shape)) for value in values
        )
        within = jax.tree.map(lambda leaf: np.array(np.broadcast_to(np.asarray(leaf), shape)), windowed)
        return cls(new, paired, read, decoding, kv, hidden, together, last, within)

    @property
    def tokens(self) -> Scalar:
        """T, the tokens computed in the step."""
        return self.prefill_tokens + self.decode_sequences

    def rows(self) -> Self:
        """Return one step as an array of one step; arrays stay as they are."""
        rows: Self = jax.tree.map(lambda leaf: np.atleast_1d(np.asarray(leaf)), self)
        return rows

    def row(self, index: int) -> Self:
        """Return one step of an array of steps."""
        row: Self = jax.tree.map(lambda leaf: np.asarray(leaf)[index], self)
        return row


def attended_pairs(new_tokens: Numbers, context: Numbers, window: int | None = None) -> Num[np.ndarray, " S"]:
    """Return the (token, context token) pairs of a sequence's prefill, ``n (c + n/2)`` without a sliding window.

    Parameters
    ----------
    new_tokens, context
        n and c of each sequence.
    window
        Tokens that a layer attends back to; None: all. A token at position x then has ``min(x, window)`` pairs.
    """
    new, before = np.asarray(new_tokens, float), np.asarray(context, float)
    if window is None:
        return new * (before + new / 2)
    growing = np.clip(window - before, 0.0, new)
    return np.asarray(growing * (before + growing / 2) + (new - growing) * window)


def implied_context(prefill_tokens: Numbers, pairs: Numbers, prefills: Numbers) -> Num[np.ndarray, " S"]:
    """Return the cached tokens that k alike prefills read, from their totals: ``k pairs / N - N / 2`` with N new tokens.

    Parameters
    ----------
    prefill_tokens, pairs
        Totals over the sequences in prefill.
    prefills
        How many sequences are in prefill.
    """
    new = np.asarray(prefill_tokens, float)
    return np.asarray(np.maximum(np.asarray(prefills, float) * pairs / np.maximum(new, 1.0) - new / 2, 0.0))


def attended_tokens(context: Numbers, window: int | None = None) -> Num[np.ndarray, " S"]:
    """Return the cached tokens that a decode step of each sequence reads: its context, at most the sliding window."""
    held = np.asarray(context, float)
    return held if window is None else np.minimum(held, float(window))


def spread(features: StepFeatures, most: int) -> StepFeatures:
    """Return steps as arrays, or evenly spaced ones of them if they are more than `most`."""
    rows = features.rows()
    number = len(np.asarray(rows.pairs))
    chosen = np.unique(np.linspace(0, number - 1, min(number, most)).round().astype(int))
    some: StepFeatures = jax.tree.map(lambda leaf: np.asarray(leaf)[chosen], rows)
    return some
