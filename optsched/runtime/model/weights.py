"""The weights of a decoder-only transformer as plain tensors, and seeded random ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from optsched.domain.llm import Llm
from optsched.errors import SpecError

INITIAL_STD = 0.02  # what Hugging Face initialises linear layers and embeddings of these families with
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer; d is the width of the residual stream, h_q, h_kv and d_h the heads and their width.

    Attributes
    ----------
    attention_norm, ffn_norm
        (d,) scales before the attention and the feed-forward; their ``_bias`` only in OPT.
    qkv
        ((h_q + 2 h_kv) d_h, d): queries, keys and values stacked.
    q_norm, k_norm
        (d_h,) scales of the norms per head; None but in Qwen3.
    out
        (d, h_q d_h).
    up
        (f, d); in gated feed-forwards (2 f, d): gate, then up.
    down
        (d, f).
    """

    attention_norm: Tensor
    attention_norm_bias: Tensor | None
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    ffn_norm: Tensor
    ffn_norm_bias: Tensor | None
    up: Tensor
    up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole model; `positions` (P + 2, d) is OPT's learned table, `head` (vocabulary, d) may be the embedding itself."""

    embedding: Tensor
    positions: Tensor | None
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    final_norm_bias: Tensor | None
    head: Tensor


def refuse_what_cannot_run(llm: Llm) -> None:
    """Check that the runtime can execute an llm.

    Raises
    ------
    SpecError
        Naming the first thing that it cannot do.
    """
    if reason := llm.runtime_refusal:
        raise SpecError(f"the runtime cannot run {llm.name}: {reason}. Simulate the plan instead, or choose another llm.")
    if llm.cache_dtype != llm.dtype:
        raise SpecError(
            f"the runtime cannot run {llm.name} with {llm.dtype} weights and {llm.cache_dtype} caches; it keeps both alike. "
            "Leave kv_dtype out, or simulate the plan instead."
        )
    if not llm.learned_positions and (llm.rope_theta is None or llm.head_dim % 2):
        raise SpecError(f"{llm.name} needs rope_theta and an even head_dim for its rotary positions; add them to its spec")


def torch_dtype(llm: Llm) -> torch.dtype:
    """Return the torch data type of an llm's weights and caches."""
    return _DTYPES[llm.dtype]


def moved_weights(weights: Weights, device: torch.device) -> Weights:
    """Return the same weights on a device; those that are tied stay so."""

    def moved(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(device)

    layers = tuple(
        LayerWeights(
            attention_norm=layer.attention_norm.to(device), attention_norm_bias=moved(layer.attention_norm_bias),
            qkv=layer.qkv.to(device), qkv_bias=moved(layer.qkv_bias), q_norm=moved(layer.q_norm), k_norm=moved(layer.k_norm),
            out=layer.out.to(device), out_bias=moved(layer.out_bias),
            ffn_norm=layer.ffn_norm.to(device), ffn_norm_bias=moved(layer.ffn_norm_bias),
            up=layer.up.to(device), up_bias=moved(layer.up_bias), down=layer.down.to(device), down_bias=moved(layer.down_bias),
        )
        for layer in weights.layers
    )  # fmt: skip
    embedding = weights.embedding.to(device)
    head = embedding if weights.head is weights.embedding else weights.head.to(device)
    final = weights.final_norm.to(device), moved(weights.final_norm_bias)
    return Weights(embedding, moved(weights.positions), layers, *final, head)


def random_weights(
    llm: Llm, seed: int, dtype: torch.dtype | None = None, device: str = "cpu", std: float = INITIAL_STD
) -> Weights:
    """Draw weights: matrices from N(0, std^2), scales 1, biases 0; the same for the same seed on every machine.

    Raises
    ------
    SpecError
        If the runtime cannot run the llm.
    """
    refuse_what_cannot_run(llm)
    kind = dtype or torch_dtype(llm)
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        drawn = torch.empty(rows, columns, dtype=torch.float32).normal_(0.0, std, generator=generator)
        return drawn.to(device=device, dtype=kind)

    def constant(size: int, value: float) -> Tensor:
        return torch.full((size,), value, dtype=kind, device=device)

    def bias(size: int) -> Tensor | None:
        return constant(size, 0.0) if llm.biases else None

    d, q, kv, f = llm.hidden_size, llm.num_heads * llm.head_dim, llm.num_kv_heads * llm.head_dim, llm.ffn_size
    up = 2 * f if llm.gated_ffn else f
    embedding = matrix(llm.vocab_size, d)
    positions = matrix(llm.max_positions + 2, d) if llm.learned_positions else None
    layers = tuple(
        LayerWeights(
            attention_norm=constant(d, 1.0), attention_norm_bias=bias(d),
            qkv=matrix(q + 2 * kv, d), qkv_bias=bias(q + 2 * kv),
            q_norm=constant(llm.head_dim, 1.0) if llm.qk_norm else None,
            k_norm=constant(llm.head_dim, 1.0) if llm.qk_norm else None,
            out=matrix(d, q), out_bias=bias(d),
            ffn_norm=constant(d, 1.0), ffn_norm_bias=bias(d),
            up=matrix(up, d), up_bias=bias(up), down=matrix(d, f), down_bias=bias(d),
        )
        for _ in range(llm.num_layers)
    )  # fmt: skip
    head = embedding if llm.tied_embeddings else matrix(llm.vocab_size, d)
    return Weights(embedding, positions, layers, constant(d, 1.0), bias(d), head)
