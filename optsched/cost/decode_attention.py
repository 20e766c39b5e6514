"""Attention of decoding sequences: one new token each, over all their cached ones."""

from __future__ import annotations

from optsched.cost.precision import Scalar
from optsched.cost.roofline import ROOFLINE_BLEND, Card, LawParameters, smooth_max


class DecodeAttentionParameters(LawParameters):
    """Coefficients of a `optsched.domain.efficiency.DecodeAttentionLaw`."""

    compute: Scalar
    memory: Scalar
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
) -> Scalar:
    """Return the time of one layer's decode attention on one GPU in seconds.

    Parameters
    ----------
    law, card
        Of the data type that attention computes in.
    sequences, cached_tokens
        Decoding sequences, and the cached tokens of all of them.
    heads, kv_heads, key_dim, value_dim
        Query and KV heads on this GPU, and the widths of one head's queries and values. Latent attention in absorbed form
        has one KV head, queries of the latent and the rotated width, and values of the latent width.
    cache_width, cache_bytes, activation_bytes
        Elements per cached token on this GPU, bytes of one, and of one activation.
    """
    flops = decode_attention_flops(cached_tokens, heads, key_dim, value_dim)
    moved = decode_attention_bytes(
        sequences, cached_tokens, heads, key_dim, value_dim, cache_width, cache_bytes, activation_bytes
    )
    compute = flops / (card.flops_per_s * card.clock * law.compute)
    return law.launch_s + smooth_max(compute, moved / (card.memory_bytes_per_s * law.memory), ROOFLINE_BLEND)
