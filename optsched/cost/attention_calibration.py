"""Fit the laws of attention to measured rows."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64

from optsched.cost.decode_attention import UNLIMITED_TOKENS, DecodeAttentionParameters, decode_attention_s
from optsched.cost.fit import Fitted, Provenance, fit_law
from optsched.cost.precision import Scalar, double_precision
from optsched.cost.prefill_attention import PrefillAttentionParameters, prefill_attention_s
from optsched.cost.roofline import Card
from optsched.cost.split import Split, heads_of_heldout_llm, split
from optsched.domain.attention_law import DecodeAttentionLaw, PrefillAttentionLaw
from optsched.profiles.attention import AttentionRows

ACTIVATION_BYTES = 2.0
LAUNCH_BOUND_S = 20e-6
LAUNCH_BOUND_WEIGHT = 0.2  # such rows say what a launch costs; how many of them a table has says nothing
WINDOW_WEIGHT = 0.3  # no packaged llm has a sliding window
MOST_TRAINING_ROWS = 4000  # tables of 20,000 rows say no more about 20 coefficients, and take five times as long
CONTEXT_SHARE = 0.25  # of all weight: few tables have chunks on a cached context, most chunks of a long prompt are on one

Array = np.ndarray
Rows = dict[str, Float64[Array, " S"]]
LawT = TypeVar("LawT", PrefillAttentionLaw, DecodeAttentionLaw)


def attention_split(rows: AttentionRows) -> Split:
    """Return which rows to fit to: no batch that the hash holds out, and no heads of a held-out llm."""
    columns = [column.astype(np.int64) for column in (rows.heads, rows.kv_heads, rows.key_dim)]
    return split(rows.keys(), heads_of_heldout_llm(columns[0], columns[1], columns[2]))


def attention_shapes(rows: AttentionRows, flops_per_s: float, memory_bytes_per_s: float) -> Rows:
    """Return the arguments of `prefill_attention_s` and `decode_attention_s` for each row, and the card's peaks beside them.

    Parameters
    ----------
    rows
        Measured ones.
    flops_per_s, memory_bytes_per_s
        Datasheet peaks, the former at the data type that attention computes in.
    """
    new, context, window = rows.new_tokens, rows.context, np.minimum(rows.window, UNLIMITED_TOKENS)
    growing = np.clip(window - context, 0.0, new)
    pairs = growing * (context + growing / 2.0) + (new - growing) * np.minimum(window, context + new)
    return {
        "tokens": rows.sequences * new,
        "context_tokens": rows.sequences * np.minimum(context, window),
        "pairs": rows.sequences * pairs,
        "sequences": rows.sequences,
        "heads": rows.heads,
        "kv_heads": rows.kv_heads,
        "key_dim": rows.key_dim,
        "value_dim": rows.value_dim,
        "cache_width": rows.cache_width,
        "cache_bytes": rows.cache_bytes,
        "window": window,
        "warm": rows.warm,
        "flops_per_s": np.full(len(rows), flops_per_s),
        "memory_bytes_per_s": np.full(len(rows), memory_bytes_per_s),
    }


def predict_prefill(law: PrefillAttentionParameters, rows: dict[str, Scalar]) -> Float[jax.Array, " S"]:
    """Return the law's time of each row of `attention_shapes` in seconds."""
    return jax.vmap(_prefill_s, in_axes=(None, 0))(law, rows)


def predict_decode(law: DecodeAttentionParameters, rows: dict[str, Scalar]) -> Float[jax.Array, " S"]:
    """Return the law's time of each row of `attention_shapes` in seconds."""
    return jax.vmap(_decode_s, in_axes=(None, 0))(law, rows)


def _card(row: dict[str, Scalar]) -> Card:
    return Card(row["flops_per_s"], row["memory_bytes_per_s"], jnp.ones_like(row["flops_per_s"]))


def _prefill_s(law: PrefillAttentionParameters, row: dict[str, Scalar]) -> Scalar:
    return prefill_attention_s(
        law, _card(row), row["tokens"], row["context_tokens"], row["pairs"], row["sequences"], row["heads"], row["kv_heads"],
        row["key_dim"], row["value_dim"], row["cache_width"], row["cache_bytes"], jnp.full_like(row["heads"], ACTIVATION_BYTES),
    )  # fmt: skip


def _decode_s(law: DecodeAttentionParameters, row: dict[str, Scalar]) -> Scalar:
    return decode_attention_s(
        law, _card(row), row["sequences"], row["context_tokens"], row["heads"], row["kv_heads"], row["key_dim"],
        row["value_dim"], row["cache_width"], row["cache_bytes"], jnp.full_like(row["heads"], ACTIVATION_BYTES), row["window"],
        row["warm"],
    )  # fmt: skip


def row_weights(rows: AttentionRows, train: Float64[Array, " S"]) -> Float64[Array, " S"]:
    """Return the weight of each row in a fit.

    Parameters
    ----------
    rows
        All rows.
    train
        Mask of those that are fitted to.
    """
    weights = np.where(rows.seconds < LAUNCH_BOUND_S, LAUNCH_BOUND_WEIGHT, 1.0)
    weights = weights * np.where(np.isfinite(rows.window), WINDOW_WEIGHT, 1.0)
    chunks = (rows.new_tokens > 1) & (rows.context > 0)
    mine, others = weights[chunks & train].sum(), weights[~chunks & train].sum()
    if mine and others:
        weights = np.where(chunks, weights * max(1.0, CONTEXT_SHARE / (1.0 - CONTEXT_SHARE) * others / mine), weights)
    return np.asarray(weights, np.float64)


def thinned(rows: AttentionRows, most: int = MOST_TRAINING_ROWS) -> AttentionRows:
    """Return all held-out rows, and at most so many of the others, drawn with a fixed seed; the rest count as left out."""
    train = np.flatnonzero(attention_split(rows).train)
    if len(train) <= most:
        return rows
    keep = np.ones(len(rows), dtype=bool)
    keep[np.random.default_rng(0).permutation(train)[most:]] = False
    kept = rows.where(keep)
    left_out = {**rows.left_out, f"beyond {most} rows to fit to": len(train) - most}
    return replace(kept, left_out=left_out)


@double_precision
def fit_attention(prior: LawT, rows: AttentionRows, flops_per_s: float, memory_bytes_per_s: float, day: str) -> Fitted[LawT]:
    """Fit a law of attention; which one, the prior says.

    Parameters
    ----------
    prior
        Where to start, and what to lean on.
    rows
        Prefills or decode steps, `thinned` if they are many.
    flops_per_s, memory_bytes_per_s
        As in `attention_shapes`.
    day
        Date of the fit.

    Raises
    ------
    ProblemError
        If there are too few rows.
    """
    chosen = attention_split(rows)
    shapes, provenance = attention_shapes(rows, flops_per_s, memory_bytes_per_s), Provenance(rows.source, day, rows.left_out)
    weights = row_weights(rows, chosen.train)
    if isinstance(prior, PrefillAttentionLaw):
        return fit_law(
            prior, PrefillAttentionParameters, predict_prefill, shapes, rows.seconds, chosen, provenance, weights=weights
        )
    return fit_law(prior, DecodeAttentionParameters, predict_decode, shapes, rows.seconds, chosen, provenance, weights=weights)
