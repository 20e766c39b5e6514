"""Attention of the new tokens of sequences in prefill."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from optsched.cost.precision import Scalar
from optsched.cost.roofline import Card, LawParameters, power_norm

REFERENCE_WIDTH = 128.0  # the width of a head that times per key or unit refer to
ROW_SHARPNESS = 3.0  # how sharply the rows of a sequence are rounded up to a tile


class PrefillAttentionParameters(LawParameters):
    """Coefficients of a `optsched.domain.attention_law.PrefillAttentionLaw`."""

    compute: Scalar
    half_width: Scalar
    wide_width: Scalar
    tile_rows: Scalar
    packing: Scalar
    row_keys: Scalar
    window_keys: Scalar
    path_s: Scalar
    overlap: Scalar
    memory: Scalar
    copies: Scalar
    resident_bytes: Scalar
    sharpness: Scalar
    resident_cost: Scalar
    copy_width: Scalar
    copy_s: Scalar
    launch_s: Scalar


def prefill_attention_flops(pairs: Scalar, heads: Scalar, key_dim: Scalar, value_dim: Scalar) -> Scalar:
    """Return the FLOPs of scores and values over the (token, context token) pairs."""
    return 2.0 * pairs * heads * (key_dim + value_dim)


def prefill_attention_bytes(
    tokens: Scalar,
    context_tokens: Scalar,
    heads: Scalar,
    key_dim: Scalar,
    value_dim: Scalar,
    cache_width: Scalar,
    cache_bytes: Scalar,
    activation_bytes: Scalar,
) -> Scalar:
    """Return the bytes moved: queries and outputs of the new tokens, and keys and values of all tokens, each once."""
    return tokens * heads * (key_dim + value_dim) * activation_bytes + (tokens + context_tokens) * cache_width * cache_bytes


def _compute_s(
    law: PrefillAttentionParameters,
    card: Card,
    tokens: Scalar,
    context_tokens: Scalar,
    pairs: Scalar,
    sequences: Scalar,
    heads: Scalar,
    kv_heads: Scalar,
    key_dim: Scalar,
    value_dim: Scalar,
) -> Scalar:
    """Return the longer of the work of all multiprocessors and the walk of one along the longest row."""
    new, context, keys = tokens / sequences, context_tokens / sequences, pairs / tokens
    causal = context + new / 2.0
    windowed = jnp.clip(1.0 - keys / causal, 0.0, 1.0)
    longest = keys * (context + new) / causal
    width = (key_dim + value_dim) / 2.0
    costly = width * (1.0 + (width / law.wide_width) ** 2) + law.half_width
    rows = power_norm(new, law.tile_rows * (kv_heads / heads) ** law.packing, ROW_SHARPNESS)
    row_cost = (keys + windowed * law.window_keys) * costly + law.row_keys * REFERENCE_WIDTH
    work = 4.0 * sequences * heads * rows * row_cost / (card.flops_per_s * law.compute)
    walk = law.path_s * (longest + law.row_keys) * costly / (REFERENCE_WIDTH + law.half_width)
    return power_norm(work, walk, 1.0 + law.overlap) / card.clock


def _memory_s(
    law: PrefillAttentionParameters,
    card: Card,
    tokens: Scalar,
    context_tokens: Scalar,
    rows_width: Scalar,
    cache_width: Scalar,
    cache_bytes: Scalar,
    activation_bytes: Scalar,
) -> Scalar:
    """Return the time of memory: new tokens may stay in the last-level cache, a cached context comes from afar."""
    outer, stored = rows_width * activation_bytes, cache_width * (activation_bytes + cache_bytes)
    fits = jax.nn.sigmoid(law.sharpness * jnp.log(law.resident_bytes / (tokens * (outer + stored))))
    new = tokens * (outer + law.copies * stored / 2.0) * (1.0 - fits * (1.0 - law.resident_cost))
    context = context_tokens * cache_width * cache_bytes
    return (new + context) / (card.memory_bytes_per_s * law.memory)


def prefill_attention_s(
    law: PrefillAttentionParameters,
    card: Card,
    tokens: Scalar,
    context_tokens: Scalar,
    pairs: Scalar,
    sequences: Scalar,
    heads: Scalar,
    kv_heads: Scalar,
    key_dim: Scalar,
    value_dim: Scalar,
    cache_width: Scalar,
    cache_bytes: Scalar,
    activation_bytes: Scalar,
) -> Scalar:
    """Return the time of one layer's prefill attention on one GPU in seconds, all sequences in prefill together.

    Parameters
    ----------
    law, card
        Of the data type of the cache, and of the one that attention computes in.
    tokens, context_tokens, pairs, sequences
        Totals over the sequences in prefill: new tokens, tokens cached before them, pairs (`attended_pairs`), sequences.
    heads, kv_heads, key_dim, value_dim
        Query and KV heads on this GPU, and the widths of one head's queries and values.
    cache_width, cache_bytes, activation_bytes
        Elements per cached token on this GPU, bytes of one, and of one activation.

    Notes
    -----
    With means n = tokens / sequences, c and m = pairs / tokens keys per row, and d the mean of both widths::

        rows   = |n, tile_rows / g ** packing|_3                       # rounded up to a tile
        width  = d (1 + (d / wide_width)^2) + half_width
        work   = 4 sequences heads rows ((m + window_keys) width + row_keys 128) / (compute F)
        walk   = path_s ((c + n) + row_keys) width / (128 + half_width)
        memory = (new bytes, less what stays in the last-level cache, + context bytes) / (memory W)
        time   = launch + |work, walk|_(1 + overlap) / clock + memory + tokens copy_s w^2 / (w^2 + copy_width^2)

    ``|a, b|_p`` is the p-norm; memory adds up because writing keys and values into the cache is a kernel of its own. Never
    below the datasheet's time of the FLOPs, nor of the bytes.

    References
    ----------
    Tiles, packing and causal masks: Dao, FlashAttention-2, arXiv 2307.08691, section 3; Shah et al., FlashAttention-3, arXiv
    2407.08608 (exponentials against products, section 3.2).
    """
    compute = _compute_s(law, card, tokens, context_tokens, pairs, sequences, heads, kv_heads, key_dim, value_dim)
    rows_width = heads * (key_dim + value_dim)
    memory = _memory_s(law, card, tokens, context_tokens, rows_width, cache_width, cache_bytes, activation_bytes)
    wide = (cache_width / law.copy_width) ** 2
    copying = tokens * law.copy_s * wide / (1.0 + wide) / card.clock
    moved = prefill_attention_bytes(tokens, context_tokens, heads, key_dim, value_dim, cache_width, cache_bytes, activation_bytes)
    return jnp.maximum(law.launch_s + compute + memory + copying, moved / card.memory_bytes_per_s)
