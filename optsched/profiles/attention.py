"""Durations of attention kernels, as other people measured them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Shaped

from optsched.profiles.rows import MeasuredRows


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionRows(MeasuredRows):
    """Attention of S alike sequences each, of one layer on one GPU.

    Attributes
    ----------
    sequences
        Sequences of the batch.
    new_tokens, context
        Of each: tokens computed, and tokens cached before them. A decode step has one new token, and `context` counts it in.
    heads, kv_heads, key_dim, value_dim
        Query and KV heads, and widths of one head's queries and values; latent attention as in `LlmShape`.
    cache_width, cache_bytes
        Elements cached per token, and bytes of one.
    window
        Tokens that are attended back to; infinite without a sliding window.
    warm
        1 where the measurement repeats itself on one cache, so that a small one stays in the card's last-level cache.
    """

    sequences: Float64[np.ndarray, " S"]
    new_tokens: Float64[np.ndarray, " S"]
    context: Float64[np.ndarray, " S"]
    heads: Float64[np.ndarray, " S"]
    kv_heads: Float64[np.ndarray, " S"]
    key_dim: Float64[np.ndarray, " S"]
    value_dim: Float64[np.ndarray, " S"]
    cache_width: Float64[np.ndarray, " S"]
    cache_bytes: Float64[np.ndarray, " S"]
    window: Float64[np.ndarray, " S"]
    warm: Float64[np.ndarray, " S"]

    def keys(self) -> list[str]:
        """Return a text per row that names the batch and no heads or time: the same batch has the same key anywhere."""
        columns = zip(self.sequences, self.new_tokens, self.context, strict=True)
        return [f"s{sequences:.0f} n{new:.0f} c{context:.0f}" for sequences, new, context in columns]


def attention_rows(
    columns: Mapping[str, Shaped[np.ndarray, " S"] | float], source: str, left_out: Mapping[str, int]
) -> AttentionRows:
    """Return rows from columns and constants; `value_dim` is as `key_dim` and `cache_width` K and V of all KV heads unless given.

    Parameters
    ----------
    columns
        By name of the attributes of `AttentionRows`.
    source, left_out
        See `AttentionRows`; reasons without rows are dropped.
    """
    given = {name: np.asarray(value, np.float64) for name, value in columns.items()}
    given.setdefault("value_dim", given["key_dim"])
    given.setdefault("cache_width", given["kv_heads"] * (given["key_dim"] + given["value_dim"]))
    size = given["seconds"].shape
    return AttentionRows(
        **{name: np.ascontiguousarray(np.broadcast_to(given[name], size)) for name in given},
        source=source,
        left_out={reason: count for reason, count in left_out.items() if count},
    )
