"""The operations of a step of a transformer: which, of what shape, and how often."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp

from optsched.cost.communication import Communication
from optsched.cost.features import StepFeatures
from optsched.cost.operations import (
    DecodeAttention,
    Elementwise,
    Experts,
    Gemm,
    Operation,
    PrefillAttention,
)
from optsched.cost.precision import Scalar
from optsched.cost.shape import LlmShape

LOGIT_PASSES = 3.0  # fp32 logits are written once and read twice (maximum or softmax, then the draw)
LAYER_KERNELS = 5.0  # two norms, rotation, copy into the cache, activation


def _present(amount: Scalar) -> Scalar:
    """Return 1 where there is something to do, else 0."""
    return jnp.minimum(amount, 1.0)


def _at_least_one(amount: Scalar) -> Scalar:
    return jnp.maximum(amount, 1.0)


def compute_operations(shape: LlmShape, features: StepFeatures) -> dict[str, Operation]:
    """Return what each GPU of a stage computes in a step, by operation, all layers of the llm together.

    Parameters
    ----------
    shape
        The llm and its layout; tensor parallelism splits heads and the feed-forward's width.
    features
        Totals of the step.

    Notes
    -----
    Per layer, with T tokens: projections ``2 T params``; prefill attention ``4 h d_h`` FLOPs per pair; decode attention
    reads the cached K and V of ``kv_tokens + hidden_tokens``; the rebuild of T_h hidden tokens costs
    ``2 T_h d (2 n_kv d_h)`` FLOPs and writes what attention then reads. Its weights are those of the K and V projection
    that the new tokens pass in the same product, so they are not read twice. LM head and router keep 16 bits where the other
    weights are narrower, as checkpoints do. What an llm does not have occurs 0 times.
    """
    s, f = shape, features
    return {
        **_projections(s, f),
        **_cached(s, f, _plain_layers(s, f), s.window),
        **_windowed(s, f),
        **_feed_forward(s, f),
        "elementwise": Elementwise(
            s.num_layers * _present(f.tokens),
            jnp.full_like(f.tokens, LAYER_KERNELS),
            f.tokens * (s.local_elements / s.tp + s.shared_elements) * s.activation_bytes,
        ),
        "lm_head": _gemm(s, f.emitting, s.hidden_size, s.vocab_size / s.tp, jnp.ones_like(f.emitting), wide=True),
        "sampling": Elementwise(
            _present(f.emitting), jnp.full_like(f.emitting, LOGIT_PASSES), LOGIT_PASSES * 4.0 * f.emitting * s.vocab_size / s.tp
        ),
    }


def _gemm(s: LlmShape, rows: Scalar, inner: Scalar, outer: Scalar, count: Scalar, *, wide: bool = False) -> Gemm:
    """Return a matrix product; `wide` weights have the data type of the activations."""
    return Gemm(
        count * _present(rows),
        _at_least_one(rows),
        _at_least_one(inner),
        _at_least_one(outer),
        s.activation_bytes if wide else s.weight_bytes,
        s.activation_bytes,
        jnp.full_like(s.weight_bytes, float(wide)),
    )


def _projections(s: LlmShape, f: StepFeatures) -> dict[str, Operation]:
    """Return the projections around attention; latent attention goes down to its latents and up again.

    Notes
    -----
    In prefill the latents of cached tokens are projected up once more; in decode the up-projection is absorbed into queries
    and outputs, which takes as many FLOPs per new token.
    """
    plain, latent = s.num_layers * (1.0 - s.latent), s.num_layers * s.latent
    queries, values = s.num_heads * s.key_dim / s.tp, s.num_heads * s.value_dim / s.tp
    return {
        "qkv_projection": _gemm(s, f.tokens, s.hidden_size, queries + s.cache_width * s.kv_share, plain),
        "latent_projection": _gemm(s, f.tokens, s.hidden_size, s.query_rank + s.cache_width, latent),
        "query_projection": _gemm(s, f.tokens, s.query_rank, queries, latent),
        "key_value_projection": _gemm(s, f.tokens + f.prefill_context_tokens, s.kv_rank, s.up_width / s.tp, latent),
        "output_projection": _gemm(s, f.tokens, values, s.hidden_size, s.num_layers),
    }


def _plain_layers(s: LlmShape, f: StepFeatures) -> Scalar:
    """Return the layers that see what the step's totals say."""
    return s.num_layers if f.windowed is None else s.num_layers - s.num_windowed_layers


def _windowed(s: LlmShape, f: StepFeatures) -> dict[str, Operation]:
    """Return attention and rebuild of the layers with a sliding window, where others have none."""
    if f.windowed is None:
        return {}
    w = f.windowed
    seen = (w.pairs, w.prefill_context_tokens, w.kv_tokens, w.hidden_tokens)
    within = eqx.tree_at(lambda each: (each.pairs, each.prefill_context_tokens, each.kv_tokens, each.hidden_tokens), f, seen)
    found = _cached(s, within, s.num_windowed_layers, s.layer_window)
    return {f"windowed_{name}": operation for name, operation in found.items()}


def _cached(s: LlmShape, f: StepFeatures, layers: Scalar, window: Scalar) -> dict[str, Operation]:
    """Return what some layers do with the caches: attention, and the rebuild of K and V from hidden cache."""
    return {
        "prefill_attention": _prefill_attention(s, f, layers),
        "decode_attention": _decode_attention(s, f, layers, window),
        **_rebuild(s, f, layers),
    }


def _prefill_attention(s: LlmShape, f: StepFeatures, layers: Scalar) -> PrefillAttention:
    return PrefillAttention(
        count=layers * _present(f.prefill_tokens),
        tokens=_at_least_one(f.prefill_tokens),
        context_tokens=f.prefill_context_tokens,
        pairs=f.pairs,
        sequences=_at_least_one(f.sequences - f.decode_sequences),
        heads=s.num_heads / s.tp,
        kv_heads=s.kv_heads_per_gpu,
        key_dim=s.key_dim,
        value_dim=s.value_dim,
        cache_width=s.cache_width * s.kv_share,
        cache_bytes=s.cache_bytes,
        activation_bytes=s.activation_bytes,
    )


def _decode_attention(s: LlmShape, f: StepFeatures, layers: Scalar, window: Scalar) -> DecodeAttention:
    return DecodeAttention(
        count=layers * _present(f.decode_sequences),
        sequences=_at_least_one(f.decode_sequences),
        cached_tokens=f.kv_tokens + f.hidden_tokens,
        heads=s.num_heads / s.tp,
        kv_heads=s.kv_heads_per_gpu,
        key_dim=s.decode_key_dim,
        value_dim=s.decode_value_dim,
        cache_width=s.cache_width * s.kv_share,
        cache_bytes=s.cache_bytes,
        activation_bytes=s.activation_bytes,
        window=window,
    )


def _rebuild(s: LlmShape, f: StepFeatures, layers: Scalar) -> dict[str, Operation]:
    """Return the rebuild of K and V from hidden cache: a product with weights already at hand, and what it moves besides."""
    width = s.cache_width * s.kv_share
    # The cached layer input is split over the GPUs at rest and gathered into a buffer: read once more, and written.
    gathered = jnp.where(s.tp > 1.0, 1.0, 0.0) * (s.hidden_size + s.hidden_size / s.tp)
    return {
        "hidden_rebuild": Gemm(
            layers * _present(f.hidden_tokens),
            _at_least_one(f.hidden_tokens),
            s.hidden_size,
            width,
            jnp.zeros_like(s.weight_bytes),
            s.cache_bytes,
            jnp.zeros_like(s.weight_bytes),
        ),
        "hidden_rotation": Elementwise(
            layers * _present(f.hidden_tokens),
            jnp.zeros_like(f.hidden_tokens),  # the kernels that rotate and store the new tokens do these too
            f.hidden_tokens * (gathered + s.rotated_elements * s.kv_share) * s.cache_bytes,
        ),
    }


def _feed_forward(s: LlmShape, f: StepFeatures) -> dict[str, Operation]:
    """Return the dense feed-forward, and the router, routed and shared experts of the other layers."""
    tokens, inputs = f.tokens, s.ffn_matrices - 1.0
    shared = s.num_moe_layers * _present(s.shared_size)
    return {
        "feed_forward_in": _gemm(s, tokens, s.hidden_size, inputs * s.ffn_size / s.tp, s.num_dense_layers),
        "feed_forward_out": _gemm(s, tokens, s.ffn_size / s.tp, s.hidden_size, s.num_dense_layers),
        "router": _gemm(s, tokens, s.hidden_size, s.num_experts, s.num_moe_layers, wide=True),
        "experts": Experts(
            count=s.num_moe_layers * _present(tokens),
            tokens=_at_least_one(tokens),
            hidden_size=s.hidden_size,
            expert_size=s.expert_size * s.expert_groups / s.tp,
            num_experts=s.num_experts,
            experts_per_token=s.experts_per_token,
            groups=s.expert_groups,
            load_cv=s.load_cv,
            matrices=s.ffn_matrices,
            weight_bytes=s.weight_bytes,
            activation_bytes=s.activation_bytes,
        ),
        "shared_experts_in": _gemm(s, tokens, s.hidden_size, inputs * s.shared_size / s.tp, shared),
        "shared_experts_out": _gemm(s, tokens, s.shared_size / s.tp, s.hidden_size, shared),
    }


def communications(shape: LlmShape, features: StepFeatures, gpus_per_node: Scalar) -> dict[str, Communication]:
    """Return what the GPUs of a replica send in a step, by operation.

    Parameters
    ----------
    shape, features
        The llm and its layout, and the totals of the step.
    gpus_per_node
        Decides which hand-overs between stages cross nodes.

    Notes
    -----
    There are two all-reduces per layer; with expert parallelism the second one of a routed layer becomes two all-to-alls of
    the routed tokens. Pipeline stages hand over the layer input of all tokens.
    """
    s, f = shape, features
    activations = f.tokens * s.hidden_size * s.activation_bytes
    several, used = _present(s.tp - 1.0), _present(f.tokens)
    exchanged = s.num_moe_layers * _present(s.expert_groups - 1.0)
    hand_overs = s.pp - 1.0
    crossing = jnp.clip((jnp.ceil(s.tp * s.pp / gpus_per_node) - 1.0) / _at_least_one(hand_overs), 0.0, 1.0)

    def gather(layers: Scalar, hidden: Scalar) -> Communication:
        return Communication(several * layers * _present(hidden), hidden * s.hidden_size * s.cache_bytes, s.tp, "all_gather")

    return {
        "all_reduce": Communication(several * used * (2.0 * s.num_layers - exchanged), activations, s.tp, "all_reduce"),
        "expert_exchange": Communication(used * 2.0 * exchanged, activations * s.experts_per_token / s.tp, s.tp, "all_to_all"),
        "hidden_gather": gather(_plain_layers(s, f), f.hidden_tokens),
        **({} if f.windowed is None else {"windowed_hidden_gather": gather(s.num_windowed_layers, f.windowed.hidden_tokens)}),
        "stage_hand_over": Communication(used * hand_overs, activations / s.tp, crossing, "hand_over"),
    }
