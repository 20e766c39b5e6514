"""The numbers of an llm, sharded over a replica's GPUs, that a step's operations depend on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import equinox as eqx

from optsched.cost.decode_attention import UNLIMITED_TOKENS
from optsched.cost.precision import Scalar, scalar
from optsched.domain.dtypes import DTYPE_BYTES
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
            If tp or pp is below 1, tp does not divide the heads, pp exceeds the layers, or whole experts are to be spread over
            GPUs by an llm that has none or fewer of them.
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
        if self.expert_parallel and (llm.moe is None or llm.moe.num_experts < self.tp):
            held = f"{llm.moe.num_experts} experts" if llm.moe else "no experts"
            raise SpecError(f"{llm.name} has {held} to spread over tp={self.tp} GPUs; leave out --expert-parallel")


def kv_share(llm: Llm, tp: int) -> float:
    """Return the share of the KV cache that each of `tp` GPUs holds.

    Heads are split; once there are fewer KV heads than GPUs, and for the latent vector of MLA, they are replicated.
    """
    return 1.0 if llm.mla else 1.0 / min(tp, llm.num_kv_heads)


class LlmShape(eqx.Module):
    """An llm under a layout; every leaf a float64 scalar (or a stack of them). Widths are the llm's, before they are split.

    Attributes
    ----------
    num_layers, num_dense_layers, num_moe_layers
        All layers, and those with a dense and with a routed feed-forward.
    hidden_size, vocab_size
        d, and the width of the LM head.
    weight_bytes, activation_bytes, cache_bytes
        Bytes of one weight, one activation and one cached element.
    latent
        1 with latent attention (MLA), else 0.
    num_heads, kv_heads_per_gpu
        Query heads, and KV heads on each GPU.
    key_dim, value_dim
        Widths of one head's queries and values in prefill.
    decode_key_dim, decode_value_dim
        In decode; latent attention absorbs its projections: latent and rotated width, and latent width.
    query_rank, kv_rank, up_width
        Latent widths of the queries, and of keys and values, and the width that the latter are projected up to; else 1.
    cache_width
        Cached elements per token.
    window
        Tokens that a layer attends back to; `UNLIMITED_TOKENS` without a sliding window, or with one in some layers only.
    num_windowed_layers, layer_window
        Layers with a sliding window beside others without, and that window; 0 and `UNLIMITED_TOKENS` where all are alike.
    ffn_size, ffn_matrices
        Width and number of matrices of the dense feed-forward.
    num_experts, experts_per_token, expert_size, shared_size
        Routed experts, and the width of the shared ones together; 1, 1, 1 and 0 without.
    local_elements, shared_elements
        Elements per token and layer that elementwise kernels read and write: split over the GPUs, and not split (norms).
    rotated_elements
        Elements per token that a rebuild normalises and rotates again.
    tp, pp, kv_share, expert_groups
        As named; `kv_share` of the cache is on each GPU of a stage; GPUs that whole experts are spread over (1: slices).
    """

    num_layers: Scalar
    num_dense_layers: Scalar
    num_moe_layers: Scalar
    hidden_size: Scalar
    vocab_size: Scalar
    weight_bytes: Scalar
    activation_bytes: Scalar
    cache_bytes: Scalar
    latent: Scalar
    num_heads: Scalar
    kv_heads_per_gpu: Scalar
    key_dim: Scalar
    value_dim: Scalar
    decode_key_dim: Scalar
    decode_value_dim: Scalar
    query_rank: Scalar
    kv_rank: Scalar
    up_width: Scalar
    cache_width: Scalar
    window: Scalar
    num_windowed_layers: Scalar
    layer_window: Scalar
    ffn_size: Scalar
    ffn_matrices: Scalar
    num_experts: Scalar
    experts_per_token: Scalar
    expert_size: Scalar
    load_cv: Scalar
    shared_size: Scalar
    local_elements: Scalar
    shared_elements: Scalar
    rotated_elements: Scalar
    tp: Scalar
    pp: Scalar
    kv_share: Scalar
    expert_groups: Scalar

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
            "vocab_size": llm.vocab_size,
            "weight_bytes": DTYPE_BYTES[llm.dtype],
            # Between kernels 8-bit and 4-bit llms keep 16-bit activations.
            "activation_bytes": max(2.0, DTYPE_BYTES[llm.dtype]),
            "cache_bytes": DTYPE_BYTES[llm.cache_dtype],
            "num_heads": llm.num_heads,
            **_attention(llm, layout.tp),
            "cache_width": llm.kv_width,
            "window": llm.common_window or UNLIMITED_TOKENS,
            "num_windowed_layers": llm.num_windowed_layers,
            "layer_window": llm.layer_window or UNLIMITED_TOKENS,
            "ffn_size": llm.ffn_size,
            "ffn_matrices": 3 if llm.gated_ffn else 2,
            "num_experts": moe.num_experts if moe else 1,
            "experts_per_token": moe.experts_per_token if moe else 1,
            "expert_size": moe.expert_size if moe else 1,
            "load_cv": moe.load_cv if moe else 0,
            "shared_size": moe.num_shared * moe.expert_size if moe else 0,
            "local_elements": local,
            # Two norms, each with the residual addition: read x and the residual, write both.
            "shared_elements": 8 * llm.hidden_size,
            "rotated_elements": rotated,
            "tp": layout.tp,
            "pp": layout.pp,
            "kv_share": kv_share(llm, layout.tp),
            "expert_groups": layout.tp if layout.expert_parallel and moe else 1,
        }
        return cls(**{name: scalar(value) for name, value in numbers.items()})


def _attention(llm: Llm, tp: int) -> dict[str, float]:
    m = llm.mla
    if m is None:
        width = llm.head_dim
        return {
            "latent": 0, "kv_heads_per_gpu": max(1.0, llm.num_kv_heads / tp), "key_dim": width, "value_dim": width,
            "decode_key_dim": width, "decode_value_dim": width, "query_rank": 1, "kv_rank": 1, "up_width": 1,
        }  # fmt: skip
    return {
        "latent": 1, "kv_heads_per_gpu": 1, "key_dim": m.nope_dim + m.rope_dim, "value_dim": m.v_dim,
        "decode_key_dim": m.kv_rank + m.rope_dim, "decode_value_dim": m.kv_rank, "query_rank": m.q_rank,
        "kv_rank": m.kv_rank, "up_width": llm.num_heads * (m.nope_dim + m.v_dim),
    }  # fmt: skip


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
