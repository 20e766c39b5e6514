"""Durations of attention kernels, as other people measured them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float64, Shaped

COLUMNS = (
    "sequences", "new_tokens", "context", "heads", "kv_heads", "key_dim", "value_dim", "cache_width", "cache_bytes", "window",
    "warm", "seconds",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class AttentionRows:
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
    seconds
        Duration.
    source
        Where the rows were published.
    left_out
        Rows of the files that are not here, by the reason.
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
    seconds: Float64[np.ndarray, " S"]
    source: str
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.seconds)

    def where(self, chosen: Bool[np.ndarray, " S"]) -> AttentionRows:
        """Return the chosen rows."""
        return AttentionRows(
            **{name: getattr(self, name)[chosen] for name in COLUMNS}, source=self.source, left_out=self.left_out
        )

    def keys(self) -> list[str]:
        """Return a text per row that names the batch and no heads or time: the same batch has the same key anywhere."""
        columns = zip(self.sequences, self.new_tokens, self.context, strict=True)
        return [f"s{sequences:.0f} n{new:.0f} c{context:.0f}" for sequences, new, context in columns]


def joined(first: AttentionRows, *others: AttentionRows) -> AttentionRows:
    """Return the rows of several sources as one."""
    every = (first, *others)
    left_out: dict[str, int] = {}
    for rows in every:
        for reason, count in rows.left_out.items():
            left_out[reason] = left_out.get(reason, 0) + count
    columns = {name: np.concatenate([getattr(rows, name) for rows in every]) for name in COLUMNS}
    return AttentionRows(**columns, source="; ".join(dict.fromkeys(rows.source for rows in every)), left_out=left_out)


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
        **{name: np.ascontiguousarray(np.broadcast_to(given[name], size)) for name in COLUMNS},
        source=source,
        left_out={reason: count for reason, count in left_out.items() if count},
    )
