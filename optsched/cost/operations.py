"""Every operation of a step as FLOPs, bytes and rows on each GPU of a stage, summed over the layers."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp

from optsched.cost.features import StepFeatures
from optsched.cost.precision import Scalar
from optsched.cost.shape import LlmShape

LOGIT_PASSES = 3.0  # fp32 logits are written once and read twice (maximum or softmax, then the draw)


class Operation(eqx.Module):
    """Work of one operation on each GPU of a stage, all layers of the llm together.

    Attributes
    ----------
    flops, bytes
        Floating-point operations, and bytes of device memory read and written.
    idle_rows
        ``1 / M``, M the rows of the matrix product: its rate is the full one times ``M / (M + half_rate_tokens)``. 0 where
        rows do not limit it.
    attention
        Whether it runs at the rate of attention instead of that of matrix products.
    """

    flops: Scalar
    bytes: Scalar
    idle_rows: Scalar
    attention: bool = eqx.field(static=True, default=False)


class Communication(eqx.Module):
    """Bytes that each GPU sends over its link, and messages that follow one another."""

    bytes: Scalar
    messages: Scalar


def _gemm(params: Scalar, rows: Scalar, widths: Scalar, shape: LlmShape, layers: Scalar) -> Operation:
    """Return a matrix product with `params` weights on each GPU; `widths` counts its inputs and outputs per row."""
    moved = params * shape.weight_bytes + rows * widths * shape.activation_bytes
    return Operation(2.0 * layers * rows * params, layers * moved, 1.0 / jnp.maximum(rows, 1.0))


def compute_operations(shape: LlmShape, features: StepFeatures) -> dict[str, Operation]:
    """Return what each GPU of a stage computes in a step, by operation.

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
    that the new tokens pass in the same product, so they are not read twice.
    """
    s, f = shape, features
    tokens, layers = f.tokens, s.num_layers
    return {
        "qkv_projection": _gemm(
            s.sharded_qkv_params / s.tp + s.kv_params * s.kv_share,
            tokens,
            s.hidden_size + s.query_width / s.tp + s.cache_width * s.kv_share,
            s,
            layers,
        ),
        "prefill_attention": _prefill_attention(s, f),
        "decode_attention": _decode_attention(s, f),
        "hidden_rebuild": _hidden_rebuild(s, f),
        "output_projection": _gemm(s.output_params / s.tp, tokens, s.value_width / s.tp + s.hidden_size, s, layers),
        "feed_forward": _dense_feed_forward(s, tokens),
        "experts": _experts(s, tokens),
        "elementwise": _elementwise(s, tokens),
        "lm_head": _lm_head(s, f),
    }


def _prefill_attention(s: LlmShape, f: StepFeatures) -> Operation:
    new = jnp.maximum(f.prefill_tokens, 1.0)
    # Keys and values read once per sequence: the mean context of its new tokens, for each sequence in prefill.
    read = f.pairs / new * jnp.maximum(f.sequences - f.decode_sequences, 0.0)
    queries = f.prefill_tokens * (s.query_width + s.value_width) / s.tp * s.activation_bytes
    moved = queries + read * s.cache_width * s.kv_share * s.cache_bytes
    return Operation(s.num_layers * s.pair_flops / s.tp * f.pairs, s.num_layers * moved, 1.0 / new, attention=True)


def _decode_attention(s: LlmShape, f: StepFeatures) -> Operation:
    cached = f.kv_tokens + f.hidden_tokens
    queries = f.decode_sequences * (s.query_width + s.value_width) / s.tp * s.activation_bytes
    moved = cached * s.cache_width * s.kv_share * s.cache_bytes + queries
    # Split over sequences, heads and pieces of the context, so few rows do not starve it.
    return Operation(s.num_layers * s.cached_flops / s.tp * cached, s.num_layers * moved, jnp.zeros_like(cached), attention=True)


def _hidden_rebuild(s: LlmShape, f: StepFeatures) -> Operation:
    local_width = s.cache_width * s.kv_share
    flops = 2.0 * s.num_layers * f.hidden_tokens * s.hidden_size * local_width
    # The cached layer input is split over the GPUs at rest and gathered into a buffer, written and read again.
    gathered = jnp.where(s.tp > 1.0, 2.0, 0.0) * s.hidden_size
    elements = s.hidden_size / s.tp + gathered + local_width + s.rotated_elements * s.kv_share
    return Operation(flops, s.num_layers * f.hidden_tokens * elements * s.cache_bytes, 1.0 / jnp.maximum(f.hidden_tokens, 1.0))


def _dense_feed_forward(s: LlmShape, tokens: Scalar) -> Operation:
    """Return the dense feed-forward of the dense layers and the shared experts of the others."""
    width = s.num_dense_layers * s.ffn_size + s.num_moe_layers * s.shared_size
    params = s.ffn_matrices * s.hidden_size * width / s.tp
    outputs = s.ffn_matrices * width / s.tp + 2.0 * s.num_layers * s.hidden_size
    return _gemm(params, tokens, outputs, s, jnp.ones_like(tokens))


def _experts(s: LlmShape, tokens: Scalar) -> Operation:
    """Return the router and the routed experts.

    Notes
    -----
    With T tokens drawing k of E experts evenly, ``E (1 - (1 - k/E)^T)`` distinct ones are expected to be read; each then
    multiplies ``T k`` over that many rows.
    """
    missed = jnp.log1p(-jnp.minimum(s.experts_per_token / s.num_experts, 1.0 - 1e-12))
    touched = -s.num_experts * jnp.expm1(tokens * missed)
    visits = tokens * s.experts_per_token
    expert = s.ffn_matrices * s.hidden_size * s.expert_size / s.tp
    router = s.num_experts * s.hidden_size
    rows = visits / jnp.maximum(touched, 1.0)
    widths = visits * (2.0 * s.hidden_size + s.ffn_matrices * s.expert_size / s.tp) + tokens * (s.hidden_size + s.num_experts)
    flops = 2.0 * (visits * expert + tokens * router)
    moved = (touched * expert + router) * s.weight_bytes + widths * s.activation_bytes
    return Operation(s.num_moe_layers * flops, s.num_moe_layers * moved, 1.0 / jnp.maximum(rows, 1.0))


def _elementwise(s: LlmShape, tokens: Scalar) -> Operation:
    elements = s.local_elements / s.tp + s.shared_elements
    return Operation(jnp.zeros_like(tokens), s.num_layers * tokens * elements * s.activation_bytes, jnp.zeros_like(tokens))


def _lm_head(s: LlmShape, f: StepFeatures) -> Operation:
    params = s.hidden_size * s.vocab_size / s.tp
    needed = jnp.minimum(f.emitting, 1.0)  # a step in which nothing is emitted skips it
    logits = f.emitting * (s.hidden_size * s.activation_bytes + LOGIT_PASSES * 4.0 * s.vocab_size / s.tp)
    return Operation(2.0 * f.emitting * params, needed * params * s.weight_bytes + logits, 1.0 / jnp.maximum(f.emitting, 1.0))


def communications(shape: LlmShape, features: StepFeatures) -> dict[str, Communication]:
    """Return what each GPU sends in a step, by operation.

    Notes
    -----
    An all-reduce of n bytes over p GPUs sends ``2 n (p - 1) / p`` from each (ring bound; Patarasuk and Yuan, J. Parallel
    Distrib. Comput. 69, 2009) in ``2 log2 p`` dependent messages (double binary trees; Sanders, Speck and Traff, Parallel
    Computing 35, 2009); an all-gather and an all-to-all send ``n (p - 1) / p``. There are two all-reduces per layer; with
    expert parallelism the second one of a routed layer becomes two all-to-alls of the routed tokens. Pipeline stages hand
    over the layer input of all tokens.
    """
    s, f = shape, features
    part, depth = (s.tp - 1.0) / s.tp, jnp.log2(s.tp)
    activations = f.tokens * s.hidden_size * s.activation_bytes
    exchanged_layers = s.num_moe_layers * s.expert_parallel
    reduces = 2.0 * s.num_layers - exchanged_layers
    used = jnp.minimum(f.hidden_tokens, 1.0)
    gathered = f.hidden_tokens * s.hidden_size * s.cache_bytes
    return {
        "all_reduce": Communication(reduces * 2.0 * part * activations, reduces * 2.0 * depth),
        "expert_exchange": Communication(
            exchanged_layers * 2.0 * part * activations * s.experts_per_token / s.tp, exchanged_layers * 2.0 * depth
        ),
        "hidden_gather": Communication(s.num_layers * part * gathered, s.num_layers * depth * used),
        "stage_hand_over": Communication((s.pp - 1.0) * activations / s.tp, s.pp - 1.0),
    }
