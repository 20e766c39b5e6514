"""Attention of decoding sequences: one new token each, over all their cached ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from optsched.cost.precision import Scalar
from optsched.cost.roofline import Card, LawParameters, power_norm

REFERENCE_WIDTH = 128.0  # the width of a head that times of walks and units refer to
REFERENCE_TOKENS = 1024.0  # the context that the time of a walk refers to
SPLIT_TOKENS = 192.0  # contexts from about here on are split
ROW_SHARPNESS = 3.0  # how sharply the query heads of a group are rounded up to a tile
RESIDENT_SHARPNESS = 8.0  # reading in circles evicts all of a cache as soon as it does not fit
WINDOW_SHARPNESS = 4.0
UNLIMITED_TOKENS = 1e15  # no window


class DecodeAttentionParameters(LawParameters):
    """Coefficients of a `optsched.domain.attention_law.DecodeAttentionLaw`."""

    memory: Scalar
    narrow_width: Scalar
    compute: Scalar
    tile_rows: Scalar
    wide_width: Scalar
    unit_s: Scalar
    half_width: Scalar
    grouping: Scalar
    window_grouping: Scalar
    path_s: Scalar
    path_power: Scalar
    serial_s: Scalar
    split_s: Scalar
    overlap: Scalar
    query_passes: Scalar
    sequence_s: Scalar
    window_keys: Scalar
    resident_bytes: Scalar
    resident_cost: Scalar
    launch_s: Scalar


def decode_attention_flops(cached_tokens: Scalar, heads: Scalar, key_dim: Scalar, value_dim: Scalar) -> Scalar:
    """Return the FLOPs of scores and values over the cached tokens."""
    return 2.0 * cached_tokens * heads * (key_dim + value_dim)


def decode_attention_bytes(
    sequences: Scalar,
    cached_tokens: Scalar,
    heads: Scalar,
    key_dim: Scalar,
    value_dim: Scalar,
    cache_width: Scalar,
    cache_bytes: Scalar,
    activation_bytes: Scalar,
) -> Scalar:
    """Return the bytes moved: the cache once, and queries and outputs of the new tokens."""
    return cached_tokens * cache_width * cache_bytes + sequences * heads * (key_dim + value_dim) * activation_bytes


def _memory_s(law: DecodeAttentionParameters, card: Card, read: Scalar, width: Scalar, warm: Scalar) -> Scalar:
    far = (1.0 + law.narrow_width / width) / law.memory
    fits = warm * jax.nn.sigmoid(RESIDENT_SHARPNESS * jnp.log(law.resident_bytes / jnp.maximum(read, 1.0)))
    return read / card.memory_bytes_per_s * (far - fits * (far - law.resident_cost))


def _units_and_walk_s(
    law: DecodeAttentionParameters, units: Scalar, group: Scalar, context: Scalar, width: Scalar, window: Scalar
) -> Scalar:
    """Return the time that the number of sequences and heads takes, and that one multiprocessor walks a context.

    The group and the window are the llm's, so the choices between kernels below have no gradient to lose.
    """
    limited = window < UNLIMITED_TOKENS
    repeats = group ** jnp.where(limited, law.window_grouping, law.grouping)
    each = units * repeats * law.unit_s * (width + law.half_width) / (REFERENCE_WIDTH + law.half_width)
    alone = jnp.where(limited | (group < 1.5), law.serial_s * context, 0.0)
    walk = (law.path_s * (context / REFERENCE_TOKENS) ** law.path_power + alone) * width / REFERENCE_WIDTH
    return power_norm(each, walk, 1.0 + law.overlap)


def decode_attention_s(
    law: DecodeAttentionParameters,
    card: Card,
    sequences: Scalar,
    cached_tokens: Scalar,
    heads: Scalar,
    kv_heads: Scalar,
    key_dim: Scalar,
    value_dim: Scalar,
    cache_width: Scalar,
    cache_bytes: Scalar,
    activation_bytes: Scalar,
    window: Scalar | float = UNLIMITED_TOKENS,
    warm: Scalar | float = 0.0,
) -> Scalar:
    """Return the time of one layer's decode attention on one GPU in seconds.

    Parameters
    ----------
    law, card
        Of the data type of the cache, and of the one that attention computes in.
    sequences, cached_tokens
        Decoding sequences, and the cached tokens of all of them that are attended to (at most the window each).
    heads, kv_heads, key_dim, value_dim
        Query and KV heads on this GPU, and the widths of one head's queries and values. Latent attention in absorbed form
        has one KV head, queries of the latent and the rotated width, and values of the latent width.
    cache_width, cache_bytes, activation_bytes
        Elements per cached token on this GPU, bytes of one, and of one activation.
    window
        Tokens that a layer attends back to; `UNLIMITED_TOKENS`: all.
    warm
        1 for a measurement that repeats itself, so that small caches stay in the card's last-level cache; 0 while serving.

    Notes
    -----
    With g query heads per KV head, context c per sequence and d the mean of both widths::

        memory = cached bytes (1 + narrow_width / d) / (memory W)
        work   = 2 cached kv_heads |g, tile_rows|_3 (d_k + d_v) (1 + (d / wide_width)^2) / (compute F clock)
        units  = sequences kv_heads g ** grouping unit_s (d + half_width) / (128 + half_width) / clock
        walk   = (path_s (c / 1024) ** path_power + [not split] serial_s c) d / 128 / clock
        time   = launch + split + | |memory, work|, |units, walk| |_(1 + overlap) + queries and outputs

    ``|a, b|_p`` is the p-norm. Never below the datasheet's time of the FLOPs, nor (with ``warm`` 0) of the bytes.

    References
    ----------
    Dao et al., Flash-Decoding, https://crfm.stanford.edu/2023/10/12/flashdecoding.html: the context split over idle
    multiprocessors, and joined.
    """
    width, group = (key_dim + value_dim) / 2.0, heads / kv_heads
    context = jnp.maximum(cached_tokens / sequences, 1.0)
    reach = law.window_keys * (context / window) ** WINDOW_SHARPNESS  # tiles are read whole at both ends of a full window
    tokens = sequences * (context + reach)
    memory = _memory_s(law, card, tokens * cache_width * cache_bytes, width, jnp.asarray(warm))
    rows = kv_heads * power_norm(group, law.tile_rows, ROW_SHARPNESS)
    work = decode_attention_flops(tokens, rows, key_dim, value_dim) * (1.0 + (width / law.wide_width) ** 2)
    work = work / (card.flops_per_s * card.clock * law.compute)
    order = 1.0 + law.overlap
    around = _units_and_walk_s(law, sequences * kv_heads, group, context + reach, width, jnp.asarray(window)) / card.clock
    outer = sequences * heads * (key_dim + value_dim) * activation_bytes
    split = law.split_s / (1.0 + (SPLIT_TOKENS / context) ** 4)
    ends = outer * law.query_passes / card.memory_bytes_per_s + (sequences * law.sequence_s + split) / card.clock
    time = law.launch_s + power_norm(power_norm(memory, work, order), around, order) + ends
    moved = cached_tokens * cache_width * cache_bytes + outer
    return jnp.maximum(time, (1.0 - jnp.asarray(warm)) * moved / card.memory_bytes_per_s)
