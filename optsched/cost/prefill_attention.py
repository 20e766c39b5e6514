"""Attention of the new tokens of sequences in prefill."""

from __future__ import annotations

from optsched.cost.precision import Scalar
from optsched.cost.roofline import ROOFLINE_BLEND, Card, LawParameters, smooth_max


class PrefillAttentionParameters(LawParameters):
    """Coefficients of a `optsched.domain.efficiency.PrefillAttentionLaw`."""

    compute: Scalar
    memory: Scalar
    half_tokens: Scalar
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
        Of the data type that attention computes in.
    tokens, context_tokens, pairs, sequences
        Totals over the sequences in prefill: new tokens, tokens cached before them, pairs (`attended_pairs`), sequences.
    heads, kv_heads, key_dim, value_dim
        Query and KV heads on this GPU, and the widths of one head's queries and values.
    cache_width, cache_bytes, activation_bytes
        Elements per cached token on this GPU, bytes of one, and of one activation.
    """
    flops = prefill_attention_flops(pairs, heads, key_dim, value_dim)
    compute = flops * (1.0 + law.half_tokens / tokens) / (card.flops_per_s * card.clock * law.compute)
    moved = prefill_attention_bytes(tokens, context_tokens, heads, key_dim, value_dim, cache_width, cache_bytes, activation_bytes)
    return law.launch_s + smooth_max(compute, moved / (card.memory_bytes_per_s * law.memory), ROOFLINE_BLEND)
