"""The numbers of an llm, sharded over a replica's GPUs, that a step's operations depend on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import equinox as eqx

from optsched.cost.precision import Scalar, scalar
from optsched.domain.hardware import DTYPE_BYTES
from optsched.domain.llm import Llm
from optsched.errors import SpecError


@dataclass(frozen=True, slots=True)
class Layout:
    """How a replica spreads an llm: `tp` GPUs share every layer, `pp` stages share the layers.

    With `expert_parallel` the GPUs of a stage hold whole experts and exchange tokens; otherwise each holds a slice of every
    expert.
    """

    tp: int = 1
    pp: int = 1
    expert_parallel: bool = False

    @property
    def num_gpus(self) -> int:
        """GPUs of the replica."""
        return self.tp * self.pp

    def check(self, llm: Llm) -> None:
        """Refuse a layout that the llm cannot be split into.

        Raises
        ------
        SpecError
            If tp or pp is below 1, tp does not divide the heads, or pp exceeds the layers.
        """
        if self.tp < 1 or self.pp < 1:
            raise SpecError(f"tp={self.tp} and pp={self.pp} must be at least 1; give a positive number of GPUs")
        if llm.num_heads % self.tp:
            divisors = [n for n in range(1, min(llm.num_heads, 64) + 1) if llm.num_heads % n == 0]
            raise SpecError(
                f"tp={self.tp} does not divide the {llm.num_heads} heads of {llm.name}; choose --tp among "
                f"{', '.join(map(str, divisors))}"
            )
        if self.pp > llm.num_layers:
            raise SpecError(f"pp={self.pp} exceeds the {llm.num_layers} layers of {llm.name}; choose a smaller --pp")


def kv_share(llm: Llm, tp: int) -> float:
    """Return the share of the KV cache that each of `tp` GPUs holds.

    Heads are split; once there are fewer KV heads than GPUs, and for the latent vector of MLA, they are replicated.
    """
    return 1.0 if llm.mla else 1.0 / min(tp, llm.num_kv_heads)


class LlmShape(eqx.Module):
    """An llm under a layout; every leaf a float64 scalar (or a stack of them). Counts of parameters are per layer.

    Attributes
    ----------
    num_layers, num_dense_layers, num_moe_layers
        All layers, and those with a dense and with a routed feed-forward.
    hidden_size
        d.
    weight_bytes, activation_bytes, cache_bytes
        Bytes of one weight, one activation and one cached element.
    sharded_qkv_params, kv_params, output_params
        Projections split over the heads (queries, and the up-projections of MLA), projections into the cache, and the
        output projection.
    query_width, value_width
        Elements of a token's queries and of its attention output.
    ffn_size, ffn_matrices
        Width and number of matrices of the dense feed-forward; shared experts are counted by `shared_size`.
    num_experts, experts_per_token, expert_size, shared_size
        Routed experts; 1, 1, 0 and 0 without.
    pair_flops
        FLOPs of prefill attention per (token, context token) pair: ``4 h d_h``, MLA ``2 h (nope + rope + v)``.
    cached_flops
        FLOPs of decode attention per cached token: as a pair; MLA in absorbed form ``2 h (2 rank + rope)``.
    cache_width
        Cached elements per token.
    local_elements, shared_elements
        Elements per token and layer that elementwise kernels read and write: split over the GPUs, and not split (norms).
    rotated_elements
        Elements per token that a rebuild normalises and rotates again.
    vocab_size, tp, pp, kv_share, expert_parallel
        As named; `kv_share` of the cache is on each GPU of a stage.
    """

    num_layers: Scalar
    num_dense_layers: Scalar
    num_moe_layers: Scalar
    hidden_size: Scalar
    weight_bytes: Scalar
    activation_bytes: Scalar
    cache_bytes: Scalar
    sharded_qkv_params: Scalar
    kv_params: Scalar
    output_params: Scalar
    query_width: Scalar
    value_width: Scalar
    ffn_size: Scalar
    ffn_matrices: Scalar
    num_experts: Scalar
    experts_per_token: Scalar
    expert_size: Scalar
    shared_size: Scalar
    pair_flops: Scalar
    cached_flops: Scalar
    cache_width: Scalar
    local_elements: Scalar
    shared_elements: Scalar
    rotated_elements: Scalar
    vocab_size: Scalar
    tp: Scalar
    pp: Scalar
    kv_share: Scalar
    expert_parallel: Scalar

    @classmethod
    def of(cls, llm: Llm, layout: Layout | None = None) -> Self:
        """Derive the numbers from an llm's shape.

        Raises
        ------
        SpecError
            If the llm cannot be split so.
        """
        layout = layout or Layout()
        layout.check(llm)
        moe = llm.moe
        local, rotated = _elementwise(llm)
        numbers = {
            "num_layers": llm.num_layers,
            "num_dense_layers": llm.num_layers - llm.num_moe_layers,
            "num_moe_layers": llm.num_moe_layers,
            "hidden_size": llm.hidden_size,
            "weight_bytes": DTYPE_BYTES[llm.dtype],
            # Between kernels 8-bit and 4-bit llms keep 16-bit activations.
            "activation_bytes": max(2.0, DTYPE_BYTES[llm.dtype]),
            "cache_bytes": DTYPE_BYTES[llm.cache_dtype],
            **_attention(llm),
            "ffn_size": llm.ffn_size,
            "ffn_matrices": 3 if llm.gated_ffn else 2,
            "num_experts": moe.num_experts if moe else 1,
            "experts_per_token": moe.experts_per_token if moe else 1,
            "expert_size": moe.expert_size if moe else 0,
            "shared_size": moe.num_shared * moe.expert_size if moe else 0,
            "local_elements": local,
            # Two norms, each with the residual addition: read x and the residual, write both.
            "shared_elements": 8 * llm.hidden_size,
            "rotated_elements": rotated,
            "vocab_size": llm.vocab_size,
            "tp": layout.tp,
            "pp": layout.pp,
            "kv_share": kv_share(llm, layout.tp),
            "expert_parallel": layout.expert_parallel,
        }
        return cls(**{name: scalar(value) for name, value in numbers.items()})


def _attention(llm: Llm) -> dict[str, float]:
    d, heads = llm.hidden_size, llm.num_heads
    if llm.mla is not None:
        m = llm.mla
        query = heads * (m.nope_dim + m.rope_dim)
        up = m.q_rank * query + m.kv_rank * heads * (m.nope_dim + m.v_dim)
        return {
            "sharded_qkv_params": d * m.q_rank + up,
            "kv_params": d * (m.kv_rank + m.rope_dim),
            "output_params": heads * m.v_dim * d,
            "query_width": query,
            "value_width": heads * m.v_dim,
            "pair_flops": 2 * heads * (m.nope_dim + m.rope_dim + m.v_dim),
            "cached_flops": 2 * heads * (2 * m.kv_rank + m.rope_dim),
            "cache_width": llm.kv_width,
        }
    width = heads * llm.head_dim
    return {
        "sharded_qkv_params": d * width,
        "kv_params": d * llm.kv_width,
        "output_params": width * d,
        "query_width": width,
        "value_width": width,
        "pair_flops": 4 * width,
        "cached_flops": 4 * width,
        "cache_width": llm.kv_width,
    }


def _elementwise(llm: Llm) -> tuple[float, float]:
    """Return the elements per token and layer that split elementwise kernels move, and those that a rebuild moves again."""
    if llm.mla is not None:
        queries, keys, normed = llm.num_heads * llm.mla.rope_dim, llm.mla.rope_dim, llm.mla.q_rank + llm.mla.kv_rank
    else:
        queries, keys, normed = llm.num_heads * llm.head_dim, llm.num_kv_heads * llm.head_dim, 0
    passes = (0 if llm.learned_positions else 1) + (1 if llm.qk_norm else 0)
    rotate = 2 * passes * (queries + keys) + 2 * normed
    width = float(llm.ffn_size * (llm.num_layers - llm.num_moe_layers))
    if llm.moe is not None:
        width += (llm.moe.experts_per_token + llm.moe.num_shared) * llm.moe.expert_size * llm.num_moe_layers
    # The activation reads gate and up (without a gate: up) and writes their product; K and V are copied into the cache.
    activation = (3 if llm.gated_ffn else 2) * width / llm.num_layers
    return rotate + activation + 2 * llm.kv_width, 2.0 * passes * keys
